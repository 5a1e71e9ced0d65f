"""One form for the outcome of every evaluation, and a log of examples from which an interrupted evaluation resumes.

An evaluation answers questions (`records`, one JSON line each in `examples.jsonl`) and computes metrics from them
(`MetricRow`s in `results.json`), below `eval/<name>/<checkpoint>/`. Reports, comparisons and `evaluation_summary.json`
are views of these two. Documents are returned as data or text, for the caller to write atomically; only `ExampleLog`
writes to disk, because it must grow while the evaluation runs.
"""

import hashlib
import json
import math
import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat_pl.eval.metrics import metric_of
from nanochat_pl.eval.stats import Interval, bootstrap_interval, wilson_interval

__all__ = [
    "PROMPT_TAIL_CHARS",
    "REQUESTS",
    "SCHEMA",
    "Evaluation",
    "ExampleLog",
    "MetricRow",
    "config_hash",
    "dashboard_metrics",
    "evaluation_summary",
    "fenced",
    "find_row",
    "headline_metrics",
    "keep_other_results",
    "mean_row",
    "proportion_row",
    "read_rows",
    "results_document",
    "weighted_mean",
]

SCHEMA = 1
REQUESTS = "requests.jsonl"
"""Log of the single requests of an evaluation whose examples are drawn from them (lm_eval)."""
RESULT_FILES = ("results.json", "evaluation_summary.json", "examples.md", "core.csv")
"""Files with metrics below `eval/<name>/<checkpoint>/`."""
PROMPT_TAIL_CHARS = 600
"""Characters of the end of a prompt with solved examples that its record keeps."""


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One metric of an evaluation, over all questions of a task or some of them."""

    task: str
    metric: str
    """Name such as `strict/accuracy_over_asked`; the part before the slash says how the answer was read."""
    value: float | None
    """None where nothing could be measured (`n` is 0)."""
    n: int
    """The number of questions that the value is taken over."""
    count: int | None = None
    """For a proportion: the number of questions on which it holds."""
    interval: Interval | None = None
    """Wilson's for a proportion, the percentile bootstrap's for a mean."""
    bootstrap: Interval | None = None
    """A proportion's bootstrap interval, in addition to Wilson's."""
    baseline: Mapping[str, float | str] | None = None
    """What needs no model: `chance` (mean of 1/choices), `majority` (always the commonest answer, which is named)."""
    group: Mapping[str, str] | None = None
    """The part of the questions that is measured, such as `{"subject": "natural science"}`; None = all."""

    def __post_init__(self) -> None:
        """Refuse values that are not finite, which JSON cannot hold, and impossible counts."""
        if self.n < 0 or not 0 <= (self.count or 0) <= self.n:
            counted = self.n if self.count is None else f"{self.count} of {self.n}"
            raise ValueError(f"{self.metric} of {self.task} is over {counted} questions, which cannot be")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(
                f"{self.metric} of {self.task} is {self.value}: the model computes values that are not finite; its "
                "training diverged, so evaluate an earlier checkpoint"
            )

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "MetricRow":
        """Read a row of `results.json` back.

        Raises:
            TypeError: Fields are missing, unknown, or no numbers where those are needed.
            ValueError: A value is not finite, or over an impossible number of questions.
        """
        intervals = {key: Interval(**row[key]) for key in ("interval", "bootstrap") if row.get(key)}
        bounds = [bound for interval in intervals.values() for bound in (interval.low, interval.high)]
        if not all(map(math.isfinite, bounds)):
            raise ValueError(f"an interval of {row.get('metric')} is not finite")
        return cls(**{**row, **intervals})

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends of the interval, or twice the value where there is none."""
        if self.interval is not None:
            return self.interval.low, self.interval.high
        return self.value or 0.0, self.value or 0.0

    @property
    def is_share(self) -> bool:
        """Whether the value is a share of the questions, shown in percent."""
        return self.count is not None or metric_of(self.metric).unit == "share"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation returns: the answered questions, the metrics, and the cost."""

    records: list[dict[str, Any]]
    rows: list[MetricRow]
    seconds: float
    """Time spent in this session; an evaluation that was interrupted has several."""
    num_answered: int
    """Questions answered in this session; the others came from the log."""


def proportion_row(
    task: str,
    metric: str,
    holds: Sequence[bool],
    *,
    baseline: Mapping[str, float | str] | None = None,
    group: Mapping[str, str] | None = None,
    bootstrap_seed: int | None = None,
) -> MetricRow:
    """Return the row of a share of questions; `bootstrap_seed` adds the bootstrap interval to Wilson's."""
    count, n = sum(map(bool, holds)), len(holds)
    return MetricRow(
        task=task,
        metric=metric,
        value=count / n if n else None,
        n=n,
        count=count,
        interval=wilson_interval(count, n) if n else None,
        bootstrap=bootstrap_interval(holds, seed=bootstrap_seed) if n and bootstrap_seed is not None else None,
        baseline=baseline,
        group=group,
    )


def mean_row(
    task: str, metric: str, values: Sequence[float], *, weights: Sequence[float] | None = None, seed: int = 0
) -> MetricRow:
    """Return the row of a mean with its bootstrap interval; None where all values are equal, or there is but one.

    `weights` are those of a weighted mean, all above 0; None = all weigh the same.
    """
    n = len(values)
    interval = bootstrap_interval(values, seed=seed, weights=weights) if len(set(values)) > 1 else None
    value = weighted_mean(values, weights) if n else None
    return MetricRow(task=task, metric=metric, value=value, n=n, interval=interval)


def weighted_mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Return the mean of one value or more; `weights` as for `mean_row`."""
    if weights is None:
        return sum(values) / len(values)
    return math.fsum(map(operator.mul, values, weights)) / math.fsum(weights)


def find_row(rows: Sequence[MetricRow], metric: str) -> MetricRow:
    """Return the ungrouped row of `metric`.

    Raises:
        KeyError: There is none; the message lists what exists.
    """
    overall = {row.metric: row for row in rows if row.group is None}
    if metric not in overall:
        raise KeyError(f"no metric {metric!r} among {', '.join(sorted(overall))}")
    return overall[metric]


def headline_metrics(rows: Sequence[MetricRow]) -> list[tuple[str, str]]:
    """Return task and metric of the rows to show: all of a single task, or those whose better direction is known.

    With several tasks, a detail such as pass@2 next to pass@1 is left out. Where no direction is known, all are shown.
    """
    overall = [(row.task, row.metric) for row in rows if row.group is None]
    if len({task for task, _ in overall}) < 2:
        return overall
    telling = [key for key in overall if (known := metric_of(key[1])).direction and not known.is_detail]
    return telling or overall


def dashboard_metrics(name: str, rows: Sequence[MetricRow]) -> dict[str, float]:
    """Return the values as a dashboard names them: `<evaluation>/<task>/<metric>`, or the name of a composite alone.

    Rows of some of the questions and those that could not be measured are left out.
    """
    return {
        row.metric if metric_of(row.metric).is_composite else f"{name}/{row.task}/{row.metric}": row.value
        for row in rows
        if row.group is None and row.value is not None
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 16 hex digits of all that the answers depend on.

    The caller includes checkpoint hash, tokenizer fingerprint, task and its options, prompt form, decoding settings.
    """
    text = json.dumps(config, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def results_document(
    evaluation: Evaluation, *, name: str, checkpoint: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of `results.json`.

    `checkpoint` says which weights were evaluated: at least `path` and `hash`. `config` holds the settings that the
    answers depend on.
    """
    answered, seconds = evaluation.num_answered, evaluation.seconds
    return {
        "schema": SCHEMA,
        "name": name,
        "checkpoint": dict(checkpoint),
        "config": dict(config),
        "config_hash": config_hash(config),
        "seconds": seconds,
        "examples_answered": answered,
        "examples_per_s": answered / seconds if answered and seconds > 0 else None,
        "metrics": [asdict(row) for row in evaluation.rows],
    }


def read_rows(document: Mapping[str, Any]) -> list[MetricRow]:
    """Read the metrics of a `results.json` back.

    Raises:
        KeyError: It has no schema, or no metrics.
        TypeError: The metrics are no list of rows.
        ValueError: It is of another schema, or a row is impossible.
    """
    if document["schema"] != SCHEMA:
        raise ValueError(f"it has schema {document['schema']}, this version reads {SCHEMA}")
    if not isinstance(document["metrics"], list):
        raise TypeError("metrics is no list")
    return [MetricRow.from_json(row) for row in document["metrics"]]


def keep_other_results(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Rename results of other settings in `folder`, so that those of `config` overwrite nothing.

    `results.json` and its views become `results.<hash>.json` and so on, as the log of their answers becomes
    `examples.<hash>.jsonl`. Results of the same settings that were renamed before are deleted: they are made again.

    Returns:
        A human-readable sentence: what was kept and which settings differ; None if there was nothing to rename.
    """
    own = config_hash(config)
    for name in RESULT_FILES:
        _with_hash(folder / name, own).unlink(missing_ok=True)
    file = folder / "results.json"
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        other, then = str(before["config_hash"]), dict(before["config"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if other == own or re.fullmatch("[0-9a-f]{16}", other) is None:
        return None
    for name in RESULT_FILES:
        if (folder / name).is_file():
            (folder / name).replace(_with_hash(folder / name, other))
    now = json.loads(json.dumps(config))
    differ = [key for key in {**now, **then} if now.get(key) != then.get(key)]
    return f"earlier results, of other {', '.join(differ)}, are kept as {_with_hash(file, other)}"


def _with_hash(file: Path, config: str) -> Path:
    return file.with_name(f"{file.stem}.{config}{file.suffix}")


def evaluation_summary(
    evaluations: Mapping[str, Evaluation], comparisons: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the content of `evaluation_summary.json`: numbers of correct, scored and all answers of each checkpoint.

    The evaluations are those of ScienceQA by the name of their checkpoint, over the same questions; the comparisons
    are `Comparison`s of pairs of them, as dicts.
    """
    models = {}
    for name, evaluation in evaluations.items():
        asked = find_row(evaluation.rows, "strict/accuracy_over_asked")
        scored = find_row(evaluation.rows, "strict/accuracy_over_scored")
        models[name] = {
            "correct": asked.count,
            "scored": scored.n,
            "total": asked.n,
            "accuracy": asked.value,
            "accuracy_over_scored": scored.value,
            "interval": asdict(asked.interval) if asked.interval else None,
            "parse_rate": find_row(evaluation.rows, "strict/parse_rate").value,
            "loglikelihood_accuracy": find_row(evaluation.rows, "loglikelihood/accuracy").value,
            "letter_regex_accuracy": find_row(evaluation.rows, "letter_regex/accuracy_over_asked").value,
            "baseline": dict(asked.baseline or {}),
        }
    samples = max((len(e.records) for e in evaluations.values()), default=0)
    return {"schema": SCHEMA, "samples": samples, "models": models, "comparisons": [dict(c) for c in comparisons]}


class ExampleLog:
    """Answered questions, appended to `examples.jsonl` as they come, so that an interrupted evaluation can resume.

    A record belongs to a question (`id`) and to a configuration (`config`, a `config_hash`). A last line torn by a
    crash is cut off; a log of another configuration is renamed to `examples.<its hash>.jsonl`, and renamed back when
    that configuration is evaluated again. Without a path the records are kept in memory only.

    Raises:
        ValueError: A line before the last is not a record.
    """

    def __init__(self, path: Path | None = None, config: str = "") -> None:
        self.path, self.config = path, config
        self.records: dict[str, dict[str, Any]] = {}
        self.num_appended = 0
        if path is not None:
            self._open(path)

    def pending(self, questions: Sequence[Mapping[str, Any]], chunk_rows: int) -> list[list[Mapping[str, Any]]]:
        """Return the questions that have no record yet, in order, in chunks of at most `chunk_rows`.

        Raises:
            ValueError: No questions, one without an `id`, or two with the same.
        """
        if not questions:
            raise ValueError("there is nothing to evaluate: the task is empty; check its split, filters and row limit")
        seen: set[str] = set()
        for index, question in enumerate(questions):
            key = str(question.get("id", ""))
            if not key or key in seen:
                raise ValueError(
                    f"question {index} has {f'the id {key} of an earlier one' if key else 'no id'}; evaluation resumes "
                    "and compares by `id`: the task must give each conversation one of its own"
                )
            seen.add(key)
        todo = [question for question in questions if str(question["id"]) not in self.records]
        return [todo[start : start + chunk_rows] for start in range(0, len(todo), chunk_rows)]

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records; where there is a file, they are on disk when this returns."""
        stamped = [{**record, "config": self.config} for record in records]
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in stamped).encode())
                file.flush()
                os.fsync(file.fileno())
        self.records.update((record["id"], record) for record in stamped)
        self.num_appended += len(stamped)

    def clear(self) -> None:
        """Delete the records of this configuration; the logs of others stay."""
        self.records = {}
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def in_order(self, questions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the record of each question, in their order."""
        return [self.records[str(question["id"])] for question in questions]

    def _open(self, path: Path) -> None:
        """Leave at `path` only whole records of this configuration, and read them."""
        own = path.with_name(f"{path.stem}.{self.config}{path.suffix}")
        if path.exists():
            content = path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            records = [_parsed(line, path, number) for number, line in enumerate(whole.split(b"\n")[:-1], start=1)]
            foreign = next((record["config"] for record in records if record["config"] != self.config), None)
            if foreign is None:
                if len(whole) < len(content):
                    os.truncate(path, len(whole))
                self.records = {record["id"]: record for record in records}
                return
            path.rename(path.with_name(f"{path.stem}.{foreign}{path.suffix}"))
        if own.exists():
            own.rename(path)
            self._open(path)


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    keyed = isinstance(record, dict) and all(isinstance(record.get(key), str) for key in ("id", "config"))
    if not keyed:
        raise ValueError(f"{path}: line {number} is no record of an evaluation; move the file away to start afresh")
    return record


def fenced(text: str) -> list[str]:
    """Return `text` as a code block whose fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return [fence + "text", text, fence]
