"""Read what runs and evaluations left on disk, whatever state they were left in.

A `Run` is the contents of a run folder, an `EvaluationResult` one finished evaluation of one checkpoint. A run that is
still going, was killed between two writes, or was never evaluated has fewer files, and perhaps half a line at the end
of one. All that is whole is read; all that is missing is named in `Run.problems`, so that a report can say so. Only
files are read: no checkpoint is opened and no torch is needed.
"""

import csv
import io
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from nanochat_pl.config.stages import training_order
from nanochat_pl.eval.metrics import METRICS
from nanochat_pl.eval.results import MetricRow, read_rows
from nanochat_pl.paths import reason

__all__ = [
    "PREFERRED",
    "RL_SETTINGS",
    "SETTINGS",
    "Curve",
    "EvaluationResult",
    "Record",
    "Run",
    "best_point",
    "checkpoint_order",
    "find_chain",
    "json_lines",
    "last_value",
    "newest_row",
    "parse_result",
    "read_config",
    "read_metrics",
    "read_results",
    "read_run",
    "result_files",
    "setting",
    "settings_shown",
    "start_of",
    "validation_metric",
]

Curve = tuple[tuple[int, float], ...]
"""Points (step, value), ordered by step; a value may be NaN or infinite where training diverged."""

Record = Mapping[str, Any]
"""One answered question: a line of `examples.jsonl`."""

PREFERRED = ("best", "last")
"""The checkpoints of a run that are shown before the others, in this order."""
SETTINGS = (
    "data.source", "data.root", "seed", "data.order_seed", "data.packing", "trainer.devices", "trainer.num_nodes",
    "stage.sequence_len", "stage.device_batch", "stage.total_batch_tokens", "stage.total_batch_rows", "stage.num_steps",
    "stage.num_epochs", "stage.tokens_per_param", "stage.target_flops", "optim.matrix_lr", "optim.embedding_lr",
    "optim.unembedding_lr", "optim.weight_decay", "optim.grad_clip", "optim.init_lr_frac", "optim.warmup_frac",
    "optim.warmdown_frac",
)  # fmt: skip
RL_SETTINGS = (
    "rl.algorithm", "rl.prompts_per_step", "rl.num_samples", "rl.max_new_tokens", "rl.temperature", "rl.top_k",
    "rl.kl_coef",
)  # fmt: skip
"""Settings of training, in the order in which reports and model cards show them; each leaves out a few."""
_RUN_FILES = ("config.yaml", "run.json", "summary.json", "metrics.csv")
_MAX_SAMPLES = 200
_MAX_RECORDS = 5000
"""A report shows a few answers of each evaluation; it reads at most this many."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """One finished evaluation of one checkpoint."""

    file: Path
    """The `results.json`."""
    name: str
    """Name of the evaluation, such as `scienceqa`."""
    checkpoint: Mapping[str, Any]
    """Identity of the evaluated weights: `path`, `hash`, `stage`, `step`."""
    settings: Mapping[str, Any]
    """What the answers depend on."""
    rows: Sequence[MetricRow]
    records: Sequence[Record] = ()
    """The answers; empty for evaluations that ask no questions, and where none were kept."""
    seconds: float = 0.0
    examples_per_s: float | None = None

    @property
    def checkpoint_name(self) -> str:
        """Stem of the evaluated file, such as `best`."""
        return self.file.parent.name

    @property
    def step(self) -> int | None:
        """Step of the weights when they were evaluated; the file may have been overwritten since."""
        return self.checkpoint.get("step")


@dataclass(frozen=True, kw_only=True)
class Run:
    """The contents of one run folder."""

    folder: Path
    stage: str
    name: str
    config: Mapping[str, Any]
    """The resolved config.yaml; empty where it is missing."""
    config_text: str
    record: Mapping[str, Any]
    """run.json: command line, commit, machine, versions."""
    dirty: bool | None
    """Uncommitted changes were saved with the run; None = the commit is not known either."""
    summary: Mapping[str, Any]
    curves: Mapping[str, Curve]
    """Curves by the name of the metric, as logged."""
    results: tuple[EvaluationResult, ...]
    """Results by name of the evaluation; where several checkpoints were evaluated, best comes first, then last."""
    samples: tuple[Record, ...]
    """The newest lines of samples.jsonl."""
    problems: tuple[str, ...]
    """What is missing or unfinished, one sentence each."""

    @property
    def status(self) -> str:
        """`finished`, `stopped`, `failed: …`, `unfinished` (running or killed), or `unknown` (no summary)."""
        status = str(self.summary.get("status", "unknown"))
        return "unfinished" if status == "running" else status

    @property
    def step(self) -> int | None:
        """The last step of which anything is known."""
        logged = max((curve[-1][0] for curve in self.curves.values()), default=None)
        written = self.summary.get("step")
        return max((step for step in (logged, written) if step is not None), default=None)

    @property
    def seconds(self) -> float | None:
        """Wall time over all sessions, as far as it was recorded."""
        # The summary of a killed run lacks what came after its last write, up to a minute, which the training time of
        # the metrics may hold: the longer one is nearer the truth.
        known = (
            self.summary.get("wall_s"),
            self.summary.get("train_seconds"),
            last_value(self.curves, "total_training_time"),
        )
        return max((float(value) for value in known if value is not None), default=None)

    @property
    def median_speed(self) -> float | None:
        """Median tokens per second, from the summary or over all rows but the first, which includes start-up."""
        if self.summary.get("median_tok_per_sec") is not None:
            return float(self.summary["median_tok_per_sec"])
        speeds = [speed for _, speed in self.curves.get("train/tok_per_sec", ())[1:]]
        return statistics.median(speeds) if speeds else None


def last_value(curves: Mapping[str, Curve], metric: str) -> float | None:
    """Return the newest value of a metric, or None where it was never logged."""
    return curves[metric][-1][1] if curves.get(metric) else None


def validation_metric(curves: Mapping[str, Curve]) -> tuple[str, bool] | None:
    """Return the metric that chooses the best checkpoint, and whether higher is better; None without validation."""
    chosen = next((name for name, known in METRICS.items() if known.chooses_best and curves.get(name)), None)
    return None if chosen is None else (chosen, METRICS[chosen].direction > 0)


def best_point(curve: Curve, higher: bool = False) -> tuple[int, float] | None:
    """Return the earliest point of the lowest value (the highest with `higher`), ignoring NaN."""
    numbers = [point for point in curve if not math.isnan(point[1])]
    return min(numbers, key=lambda point: -point[1] if higher else point[1], default=None)


# --- runs ---


def find_chain(folders: Sequence[Path], *, whole: bool = True) -> list[Path]:
    """Return `folders` with the other stages of their chains, in the order of training.

    A chain consists of the runs of the same name in the folders of the other stages, `<outputs>/<stage>/<run_name>`,
    and of those that a run says it started from. With `whole=False` the folders are only put in order.

    Raises:
        FileNotFoundError: One of them is no run folder; the message lists the runs near it.
    """
    found: dict[Path, Path] = {}
    waiting = [Path(folder) for folder in folders]
    for folder in waiting:
        _check_run(folder)
    while waiting:
        folder = waiting.pop(0)
        if folder.resolve() in found:
            continue
        found[folder.resolve()] = folder
        if not whole:
            continue
        _, ancestor = start_of(_read_json(folder / "summary.json", []))
        if ancestor is not None:
            # Noted as the training command saw it: from its working folder, or the outputs' parent if both moved.
            places = [ancestor] if ancestor.is_absolute() else [ancestor, folder.parent.parent.parent / ancestor]
            waiting += [place for place in places if _is_run(place)][:1]
        if folder.parent.name == _stage_of(folder):
            siblings = [stage / folder.name for stage in sorted(folder.parent.parent.glob("*/"))]
            waiting += [run for run in siblings if _is_run(run) and run.parent.name == _stage_of(run)]
    return sorted(found.values(), key=lambda run: (training_order(s := _stage_of(run)), s, run.name, str(run)))


def start_of(summary: Mapping[str, Any]) -> tuple[str, Path | None]:
    """Return what a run says it started from (empty = from nothing), and the run folder that contains it, if any.

    The folder's path is relative to where the training command ran.
    """
    start = str(summary.get("init_from") or "").partition(" (")[0]
    return start, Path(start).parent.parent if "/checkpoints/" in start else None


def read_run(folder: Path, now: float | None = None) -> Run:
    """Read a run folder; what is missing or torn becomes a sentence in `problems`.

    Args:
        now: Seconds since the epoch, from which the age of an unfinished run's last write is counted; None = the clock.

    Raises:
        FileNotFoundError: This is no run folder.
    """
    _check_run(folder)
    problems: list[str] = []
    summary = _read_json(folder / "summary.json", problems)
    record = _read_json(folder / "run.json", problems)
    config, config_text = read_config(folder, problems)
    stage = _stage_of(folder)
    curves = read_metrics(folder / "metrics.csv", problems) if stage != "tokenizer" else {}
    results = tuple(read_results(folder, problems))
    status = summary.get("status")
    if status == "running" or (status is None and curves):
        ago = (time.time() if now is None else now) - _last_write(folder)
        problems.append(
            f"not finished: this run is still going or was killed; it last wrote {_duration(ago)} before this report"
        )
    elif isinstance(status, str) and status.startswith("failed"):
        problems.append(f"{status}; its figures end where it failed (log.txt says why)")
    elif status == "stopped":
        problems.append(
            f"stopped at step {summary.get('step')} of {summary.get('num_steps')}; resume=auto continues it"
        )
    # A checkpoint that was overwritten after its evaluation has figures of other weights.
    current = {"best": summary.get("best_step"), "last": summary.get("step") if status == "finished" else None}
    for result in results:
        name, step = result.checkpoint_name, current.get(result.checkpoint_name)
        if step is not None and result.step not in (None, step):
            problems.append(
                f"the figures of {result.name} are of step {result.step}, {name}.ckpt is of step {step} now; "
                f"python evaluate.py ckpt={folder / 'checkpoints' / name}.ckpt eval={result.name} measures it"
            )
    if stage != "tokenizer" and not results:
        problems.append(f"no evaluation yet; python evaluate.py ckpt={folder} makes one")
    samples = (sample for _, sample in json_lines(folder / "samples.jsonl") if sample is not None)
    return Run(
        folder=folder,
        stage=stage,
        name=str(summary.get("run_name") or config.get("run_name") or folder.name),
        config=config,
        config_text=config_text,
        record=record,
        dirty=(folder / "git_diff.patch").is_file() if record.get("git_commit") else None,
        summary=summary,
        curves=curves,
        results=results,
        samples=tuple(islice(samples, _MAX_RECORDS))[-_MAX_SAMPLES:],
        problems=tuple(problems),
    )


def read_metrics(path: Path, problems: list[str]) -> dict[str, Curve]:
    """Read metrics.csv into one curve per metric; of two rows of one step the later one counts.

    What is no number becomes NaN, so that an earlier number is not taken for it.

    A last line without its line end is left out, even where it parses: `3.1` may be the beginning of `3.14`.
    """
    if not path.is_file():
        problems.append("no metrics.csv: it was imported, or ended before the first logged step")
        return {}
    text = path.read_bytes().decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    whole = text[: text.rfind("\n") + 1]
    if len(whole) < len(text):
        problems.append("the last line of metrics.csv is half written and was left out")
    points: dict[str, dict[int, float]] = {}
    # Every cell is a number or a name without commas: a stray quote must not swallow the lines that follow it.
    reader = csv.DictReader(io.StringIO(whole.replace("\0", "")), quoting=csv.QUOTE_NONE)
    for row in _rows(reader, problems):
        if not (row.get("step") or "").isdigit():
            continue
        for metric, value in row.items():
            if metric is None or metric == "step" or not value:
                continue
            try:
                number = float(value)
            except ValueError:
                problems.append(f"metrics.csv, step {row['step']}: {metric} is {value[:40]!r}, no number; left out")
                number = math.nan
            points.setdefault(metric, {})[int(row["step"])] = number
    if not points:
        problems.append("metrics.csv holds no whole row yet")
    return {metric: tuple(sorted(values.items())) for metric, values in points.items()}


def _rows(reader: csv.DictReader, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield rows until one cannot be read, which is noted."""
    try:
        yield from reader
    except csv.Error:
        problems.append(f"metrics.csv is damaged in line {reader.line_num + 1}; what follows was left out")


def read_config(folder: Path, problems: list[str]) -> tuple[dict[str, Any], str]:
    """Read the config.yaml of a run folder, as data and as text; empty where it is missing or cannot be read."""
    import yaml

    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        # The C loader where there is one: a config of 150 keys takes 2 ms instead of 30.
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        problems.append("no config.yaml")
        return {}, ""
    except (yaml.YAMLError, ValueError, OSError) as error:
        why = _why(error) if isinstance(error, UnicodeError | OSError) else "it is no YAML"
        problems.append(f"config.yaml cannot be read ({why})")
        return {}, ""
    return (content, text) if isinstance(content, dict) else ({}, text)


def setting(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key of a config, None where it is missing."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def settings_shown(config: Mapping[str, Any], keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return the keys that a config has, with their values as text."""
    return [(key, str(value)) for key in keys if (value := setting(config, key)) is not None]


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _RUN_FILES)


def _check_run(folder: Path) -> None:
    if _is_run(folder):
        return
    near = folder if folder.is_dir() else next((p for p in folder.parents if p.is_dir()), Path())
    runs = sorted(
        {path.parent for name in _RUN_FILES for depth in ("*", "*/*") for path in near.glob(f"{depth}/{name}")}
    )
    listed = ", ".join(str(run) for run in runs[:8]) + (f" and {len(runs) - 8} more" if len(runs) > 8 else "")
    raise FileNotFoundError(
        f"{folder} is no run folder: it holds none of {', '.join(_RUN_FILES)}; "
        + (f"runs near it: {listed}" if runs else "give a folder that train.py made, such as outputs/base/<run_name>")
    )


def _stage_of(folder: Path) -> str:
    """Return the stage of a run from its summary, else from its config, else from the folder around it."""
    stage = _read_json(folder / "summary.json", []).get("stage")
    if stage is None:
        section = read_config(folder, [])[0].get("stage")
        stage = section.get("name") if isinstance(section, Mapping) else None
    return str(stage or folder.resolve().parent.name)


def _last_write(folder: Path) -> float:
    files = (folder / name for name in (*_RUN_FILES, "log.txt"))
    return max(path.stat().st_mtime for path in files if path.is_file())


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"


# --- results ---


def newest_row(run: Path, name: str, metric: str) -> MetricRow | None:
    """Return one overall figure of the run's latest evaluation of that name; None if there is none."""
    files = sorted((run / "eval" / name).glob("*/results.json"), key=lambda path: path.stat().st_mtime)
    rows = read_rows(json.loads(files[-1].read_text(encoding="utf-8"))) if files else []
    return next((row for row in rows if row.metric == metric and row.group is None), None)


def read_results(folder: Path, problems: list[str]) -> Iterator[EvaluationResult]:
    """Read all results of a run folder; those that cannot be read become a sentence in `problems`."""
    for file in result_files(folder):
        unreadable: list[str] = []
        try:
            result = parse_result(file, _read_json(file, unreadable))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = unreadable[0] if unreadable else reason(error)
            problems.append(f"{file.relative_to(folder)} is no results file ({why}); left out")
            continue
        records = (record for _, record in json_lines(file.with_name("examples.jsonl")) if record is not None)
        yield replace(result, records=tuple(islice(records, _MAX_RECORDS)))


def checkpoint_order(name: str) -> tuple[int, str]:
    return (PREFERRED.index(name) if name in PREFERRED else len(PREFERRED), name)


def result_files(run: Path) -> list[Path]:
    """List the results of a run by evaluation; where several checkpoints were evaluated, best comes first."""
    files = run.glob("eval/*/*/results.json")
    return sorted(files, key=lambda file: (file.parent.parent.name, checkpoint_order(file.parent.name)))


def parse_result(file: Path, document: Mapping[str, Any]) -> EvaluationResult:
    """Turn the content of a `results.json` into a result.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: It is not whole.
    """
    rows = read_rows(document)
    name, checkpoint, settings = document["name"], document["checkpoint"], document["config"]
    if not (isinstance(name, str) and isinstance(checkpoint, dict) and isinstance(settings, dict)):
        raise TypeError
    return EvaluationResult(
        file=file,
        name=name,
        checkpoint=checkpoint,
        settings=settings,
        rows=tuple(rows),
        seconds=float(document.get("seconds", 0.0)),
        examples_per_s=document.get("examples_per_s"),
    )


# --- files ---


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read a JSON object; what is wrong with it becomes a sentence in `problems`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"no {path.name}")
        return {}
    except (ValueError, OSError) as error:
        problems.append(f"{path.name} cannot be read ({_why(error)})")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds no object")
        return {}
    return content


def json_lines(path: Path) -> Iterator[tuple[int, Record | None]]:
    """Yield the number and the object of every whole line, None for a line without one; the file may be growing."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):  # torn by a crash
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield number, record if isinstance(record, dict) else None


def _why(error: Exception) -> str:
    return (error.strerror or "it cannot be opened").lower() if isinstance(error, OSError) else reason(error)
