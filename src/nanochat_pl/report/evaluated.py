"""Checkpoints to be compared: what their evaluations left behind, read strictly, under a short label each.

`compare` and `failures` begin here: a run folder, a checkpoint or a results.json becomes an `EvaluatedRun`. Where
`read.read_run` reports what is missing, these functions raise, because a comparison must not rest on a part; where
results are missing, the message has the command for them. Nothing is evaluated.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nanochat_pl.config.stages import training_order
from nanochat_pl.eval.results import SCHEMA, MetricRow
from nanochat_pl.paths import checkpoint_file, first_distinct, read_record, reason, run_folder, run_label, runs_of_sweep
from nanochat_pl.report.read import (
    PREFERRED,
    Curve,
    EvaluationResult,
    Record,
    checkpoint_order,
    json_lines,
    parse_result,
    read_config,
    read_metrics,
    result_files,
    setting,
)

__all__ = [
    "TRAINING",
    "VALIDATED_ON",
    "EvaluatedRun",
    "evaluate_command",
    "evaluation_names",
    "find_results",
    "load_evaluated_runs",
    "question_key",
    "read_result",
    "record_fault",
    "stage_order",
]


TRAINING = "training"
"""What the validation of training is called among the evaluations."""
VALIDATED_ON = (
    "stage.val_tokens", "stage.val_rows", "data.source", "data.root", "data.val_shard", "data.column",
)  # fmt: skip
"""Settings that say what a run was validated on."""
_MOST_BITS = 1000.0
"""No model has more bits per byte: one that draws tokens evenly has less than 30."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedRun:
    """One checkpoint in a comparison, with its results."""

    label: str
    results: Mapping[str, EvaluationResult]
    """Results by the name of the evaluation; at least one."""
    config: Mapping[str, Any] | None = None
    """The config that its run was started with; None where it is not known."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """What the run logged; empty where a checkpoint or a results.json was given."""
    problems: Sequence[str] = ()
    """What is wrong with what it logged, in sentences."""

    @property
    def stage(self) -> str:
        """Stage of training that the weights come from; empty where it is not known."""
        return str(self.any_result.checkpoint.get("stage") or "")

    @property
    def checkpoint(self) -> str:
        """Path of the weights, or of the results where those do not say."""
        return str(self.any_result.checkpoint.get("path") or self.any_result.file)

    @property
    def any_result(self) -> EvaluationResult:
        return next(iter(self.results.values()))


def find_results(path: str | Path) -> list[Path]:
    """Return the `results.json` files that a path stands for, one for each evaluation.

    Args:
        path: A `results.json` (or the `examples.jsonl` next to it), the folder around it, a checkpoint file, or a run
            folder. Where several checkpoints of a run were evaluated, `best` is chosen, else `last`.

    Raises:
        FileNotFoundError: Nothing was evaluated there; the message says how to, or what there is.
        ValueError: Several other checkpoints were evaluated: the caller must name one.
    """
    path = Path(path)
    if path.name in ("results.json", "examples.jsonl") and path.is_file():
        path = path.parent
    if (path / "results.json").is_file():
        return [path / "results.json"]
    if path.name == "checkpoints" and path.is_dir():
        path = path.parent
    if path.is_file() and path.suffix != ".ckpt":
        raise ValueError(f"{path} is neither a results.json, nor a checkpoint (.ckpt), nor a run folder")
    run = run_folder(path) if path.is_file() else path
    found = result_files(run)
    names = list(dict.fromkeys(file.parent.name for file in found))
    chosen = path.stem if path.is_file() else next(iter(sorted(names, key=checkpoint_order)), "")
    if path.is_dir() and len(names) > 1 and chosen not in PREFERRED:
        raise ValueError(f"{path} has results of {', '.join(names)}; name one of these checkpoints' results.json")
    files = [file for file in found if file.parent.name == chosen]
    if not files:
        there = f"; {run} has results of {', '.join(names)}" if names else ""
        # `checkpoint_file` raises its own error where there is no such path, or no checkpoint to evaluate.
        checkpoint = path if path.is_file() else checkpoint_file(path)
        raise FileNotFoundError(
            f"{path} has no results of an evaluation{there}; measure it with `python evaluate.py ckpt={checkpoint}`"
        )
    return files


def read_result(file: Path) -> EvaluationResult:
    """Read a `results.json` and the `examples.jsonl` next to it, whose last line may be torn by a crash.

    Raises:
        ValueError: Not a results document, of another schema version, or answers that are not those of its figures.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        schema = document["schema"]
        path = (document.get("checkpoint") or {}).get("path", "…")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{file} is no results document ({reason(error)}); evaluate again to write a new one"
        ) from error
    again = f"evaluate again with `python evaluate.py ckpt={path}`"
    if schema != SCHEMA:
        raise ValueError(f"{file} has schema {schema}, this version reads {SCHEMA}; {again}")
    try:
        result = parse_result(file, document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no whole results document ({reason(error)}); {again}") from error
    examples = file.with_name("examples.jsonl")
    records: list[Record] = []
    for number, record in json_lines(examples):
        if record is None:
            raise ValueError(
                f"{examples}, line {number} is no record of an answer; evaluate again with eval.fresh=true"
            )
        if fault := record_fault(record):
            raise ValueError(f"{examples}, line {number}: {fault}; evaluate again with eval.fresh=true")
        records.append(record)
    if len({question_key(record) for record in records}) < len(records):
        raise ValueError(f"{examples} holds a question twice; evaluate again with eval.fresh=true")
    if foreign := {str(r["config"]) for r in records if "config" in r} - {str(document.get("config_hash"))}:
        raise ValueError(
            f"{examples} holds answers of other settings (config {', '.join(sorted(foreign))}) than {file.name} "
            f"({document.get('config_hash')}): an evaluation was begun and not finished; {again}"
        )
    return replace(result, records=records)


def record_fault(record: Record) -> str:
    """Say what is wrong with the record of an answer; empty where nothing is."""

    def is_number(value: Any, above: float = -math.inf) -> bool:
        return isinstance(value, int | float) and above < value < math.inf

    if "id" not in record:
        return "the answer has no id"
    for key in ("correct", "likely_correct"):
        if not is_number(record.get(key, True)):
            return f"{key} is {record[key]!r}, expected true, false or a score"
    gold, size = record.get("answer_bits"), record.get("answer_bytes")
    if not (gold is None or (is_number(gold) and is_number(size, 0))):
        return f"answer_bits of {gold!r} in answer_bytes of {size!r} are no measure of the answer"
    bits, sizes = record.get("wrong_bits", ()), record.get("wrong_bytes", ())
    lists = isinstance(bits, Sequence) and isinstance(sizes, Sequence) and len(bits) == len(sizes)
    if not lists or not all(b is None or (is_number(b) and is_number(n, 0)) for b, n in zip(bits, sizes)):
        return "wrong_bits and wrong_bytes are no measures of the wrong choices"
    return ""


def load_evaluated_runs(paths: Sequence[str | Path]) -> list[EvaluatedRun]:
    """Read the results that each path stands for, under a short label that no other has.

    The validation of training counts as one more evaluation, `training`, of run folders whose bits per byte can be
    compared: at least two, of one stage. So a run that was never evaluated can be compared by it.

    Args:
        paths: As for `find_results`, one for each checkpoint; the folder of a sweep stands for all its runs.

    Raises:
        FileNotFoundError, ValueError: As `find_results` and `read_result`; or a checkpoint is given twice, or the
            config of a run is no YAML.
    """
    places: list[str | Path] = []
    for path in paths:
        places += runs_of_sweep(path) or [path]
    opened = _without_lone_training([_opened(place) for place in places])
    known: dict[Path, str] = {}
    for run in opened:
        for file in {result.file.resolve() for result in run.results.values()}:
            if file in known:
                twice = f"{known[file]} and {run.label} are the same run"
                if known[file] == run.label:
                    twice = f"{run.label} is given twice"
                raise ValueError(f"{twice}; name each checkpoint once")
            known[file] = run.label
    files = [Path(run.checkpoint) for run in opened]
    short = [run_label(file) for file in files]
    longer = [f"{label}:{file.stem}" for label, file in zip(short, files)]
    own = [run.label for run in opened]
    labels = first_distinct(short, longer, own)
    assert labels is not None, "paths of different files differ"
    return [replace(run, label=label) for run, label in zip(opened, labels)]


def _opened(path: str | Path) -> EvaluatedRun:
    """Read the results of one path and, where it is a run folder, what it logged."""
    folder = Path(path)
    problems: list[str] = []
    curves = read_metrics(folder / "metrics.csv", problems) if (folder / "metrics.csv").is_file() else {}
    trained = _training_result(folder, curves) if curves.get("val/bpb") else None
    try:
        results = {result.name: result for result in map(read_result, find_results(path))}
    except FileNotFoundError as error:
        if trained is None:
            raise FileNotFoundError("; ".join([str(error), *problems[:1]])) from error
        results = {}
    if trained is not None:
        results[TRAINING] = trained
        if trained.rows[0].value is None:
            step, value = curves["val/bpb"][-1]
            problems.append(
                f"its last validation, at step {step}, is {value:g} bits per byte, which no model has: training has "
                "diverged, or the file is damaged; left out"
            )
    config = _run_config(next(iter(results.values())))
    return EvaluatedRun(label=str(path), results=results, config=config, curves=curves, problems=problems)


def _training_result(folder: Path, curves: Mapping[str, Curve]) -> EvaluationResult:
    """Return the last validation of a run as a result, without a value where it is none that a model can have."""
    step, value = curves["val/bpb"][-1]
    possible = math.isfinite(value) and 0 < value < _MOST_BITS
    config, summary = read_config(folder, [])[0], read_record(folder / "summary.json") or {}
    stage = str(summary.get("stage") or setting(config, "stage.name") or "")
    sizes = (setting(config, key) for key in ("stage.val_tokens", "stage.val_rows", "stage.total_batch_tokens"))
    read = next((size for size in sizes if isinstance(size, int)), 0)  # what says how much is read, if anything does
    row = MetricRow(task=TRAINING, metric="val/bpb", value=value if possible else None, n=read)
    settings = {"steps": step, "status": str(summary.get("status") or "unknown")}
    settings |= {key: setting(config, key) for key in VALIDATED_ON}
    checkpoint = {"path": str(folder / "checkpoints" / "last.ckpt"), "stage": stage, "step": step}
    return EvaluationResult(
        file=folder / "metrics.csv", name=TRAINING, checkpoint=checkpoint, settings=settings, rows=[row]
    )


def _without_lone_training(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """Leave the validation of training out unless several runs of one stage have it; other stages read other texts."""
    trained = [run for run in runs if TRAINING in run.results]
    if len(trained) > 1 and len({run.results[TRAINING].checkpoint["stage"] for run in trained}) == 1:
        return list(runs)
    kept = []
    for run in runs:
        evaluated = {name: result for name, result in run.results.items() if name != TRAINING}
        if not evaluated:
            find_results(run.label)  # raises, with the command that evaluates it
        kept.append(replace(run, results=evaluated))
    return kept


def evaluation_names(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return the names of all evaluations that one of the runs has, in the order met."""
    return list(dict.fromkeys(name for run in runs for name in run.results))


def stage_order(runs: Sequence[EvaluatedRun]) -> list[int]:
    """Return the indices of the runs from the first stage of training to the last; unknown stages come last."""
    return sorted(range(len(runs)), key=lambda index: training_order(runs[index].stage))


def question_key(record: Record) -> tuple[str, str]:
    """Return what identifies a question within one evaluation: its task (empty where there is only one) and its id."""
    return str(record.get("task") or ""), str(record["id"])


def evaluate_command(runs: Sequence[EvaluatedRun], name: str) -> str:
    """Return the command that asks all the runs the same questions of the evaluation `name`."""
    name = "bpb" if name == TRAINING else name  # which measures the same, and can be asked for
    return f"python evaluate.py 'ckpt=[{','.join(run.checkpoint for run in runs)}]' eval={name}"


def _run_config(result: EvaluationResult) -> Mapping[str, Any] | None:
    """Read the config of the run in which a result lies: <run>/eval/<name>/<checkpoint>/results.json."""
    evaluated = result.file.resolve().parent.parent.parent
    folder = result.file.resolve().parent if result.name == TRAINING else evaluated.parent
    if (result.name != TRAINING and evaluated.name != "eval") or not (folder / "config.yaml").is_file():
        return None
    problems: list[str] = []
    config, _ = read_config(folder, problems)
    if problems:
        raise ValueError(f"{folder / 'config.yaml'} is no YAML; mend it or move it away")
    return config or None
