"""What was measured of a checkpoint, read back from the files that its evaluations left behind.

A comparison, and a look at what went wrong, begin here: a run folder, a checkpoint or a results.json becomes an
`Entrant`. Nothing is evaluated and no checkpoint is opened; where results are missing, the message has the command for
them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_pl.config.stages import training_order
from nanochat_pl.eval.results import SCHEMA, MetricRow, read_rows
from nanochat_pl.paths import checkpoint_file, reason

__all__ = [
    "Entrant",
    "Record",
    "Result",
    "evaluate_command",
    "evaluations",
    "find_results",
    "load_entrants",
    "load_result",
    "question_key",
    "stage_order",
]

Record = Mapping[str, Any]
"""One answered question: a line of `examples.jsonl`."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished evaluation of one checkpoint."""

    file: Path
    """Its `results.json`."""
    name: str
    checkpoint: Mapping[str, Any]
    """Identity of the weights: `path`, `hash`, `stage`, `step`."""
    settings: Mapping[str, Any]
    """What the answers depend on."""
    rows: Sequence[MetricRow]
    records: Sequence[Record] = ()
    """The answers; empty where none were kept."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One checkpoint in a comparison."""

    label: str
    results: Mapping[str, Result]
    """By the name of the evaluation; at least one."""
    run: Mapping[str, Any] | None = None
    """The config its run was started with; None where it is not known."""

    @property
    def stage(self) -> str:
        """Stage of training that the weights come from; empty where it is not known."""
        return str(self._any_result.checkpoint.get("stage") or "")

    @property
    def checkpoint(self) -> str:
        """Path of the weights, or of the results where those do not say."""
        return str(self._any_result.checkpoint.get("path") or self._any_result.file)

    @property
    def _any_result(self) -> Result:
        return next(iter(self.results.values()))


def evaluations(entrants: Sequence[Entrant]) -> list[str]:
    """Return the names of all evaluations that one of the entrants has, in the order met."""
    return list(dict.fromkeys(name for entrant in entrants for name in entrant.results))


def stage_order(entrants: Sequence[Entrant]) -> list[int]:
    """Return the indices of the entrants from the first stage of training to the last, others behind, else as given."""
    return sorted(
        range(len(entrants)),
        key=lambda index: training_order(entrants[index].stage),
    )


def question_key(record: Record) -> tuple[str, str]:
    """Return what names a question within one evaluation: its task, empty where there is one only, and its id."""
    return str(record.get("task") or ""), str(record["id"])


def evaluate_command(entrants: Sequence[Entrant], name: str) -> str:
    """Return the command that asks all of them the same questions of the evaluation `name`."""
    return f"python evaluate.py 'ckpt=[{','.join(entrant.checkpoint for entrant in entrants)}]' eval={name}"


def load_entrants(paths: Sequence[str | Path]) -> list[Entrant]:
    """Open what each path stands for, under a short name that tells it from the others: its run, or more if need be.

    Args:
        paths: As `find_results` takes them, one for each entrant.

    Raises:
        FileNotFoundError, ValueError: As `find_results` and `load_result`; or a checkpoint is given twice, or the
            config of a run is no YAML.
    """
    opened = []
    for path in paths:
        results = {result.name: result for result in map(load_result, find_results(path))}
        opened.append(Entrant(label=str(path), results=results, run=_run_config(next(iter(results.values())))))
    return [
        Entrant(label=label, results=entrant.results, run=entrant.run)
        for label, entrant in zip(_labels(opened), opened)
    ]


def _labels(opened: Sequence[Entrant]) -> list[str]:
    """Return the shortest names that differ: stage and run, with the checkpoint behind, or the paths as given."""
    files = [Path(entrant.checkpoint) for entrant in opened]
    runs = [file.parent.parent if file.parent.name == "checkpoints" else file.parent for file in files]
    short = [f"{run.parent.name}/{run.name}".strip("/") or file.stem for run, file in zip(runs, files)]
    longer = [f"{label}:{file.stem}" for label, file in zip(short, files)]
    given = [entrant.label for entrant in opened]
    for labels in (short, longer, given):
        if len(set(labels)) == len(labels):
            return labels
    again = next(label for label in given if given.count(label) > 1)
    raise ValueError(f"{again} is given twice; name each checkpoint once")


def _run_config(result: Result) -> Mapping[str, Any] | None:
    """Read the config of the run that a result lies in: <run>/eval/<name>/<checkpoint>/results.json."""
    evaluated = result.file.resolve().parent.parent.parent
    config = evaluated.parent / "config.yaml"
    if evaluated.name != "eval" or not config.is_file():
        return None
    import yaml

    try:
        read = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{config} is no YAML; mend it or move it away") from error
    return read if isinstance(read, dict) else None


def find_results(path: str | Path) -> list[Path]:
    """Return the `results.json` files that a path stands for, one for each evaluation.

    Args:
        path: A `results.json` (or the `examples.jsonl` beside it), the folder it lies in, a checkpoint file, or a run
            folder. Of a run folder whose checkpoints were evaluated severally, `best` is taken, else `last`.

    Raises:
        FileNotFoundError: Nothing was evaluated there; the message says how to, or what there is.
        ValueError: Several other checkpoints were evaluated: one is to be named.
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
    run = path
    if path.is_file():
        run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    found = sorted(run.glob("eval/*/*/results.json"))
    names = list(dict.fromkeys(file.parent.name for file in found))
    chosen = path.stem if path.is_file() else next((n for n in ("best", "last", *names[:1]) if n in names), "")
    if path.is_dir() and len(names) > 1 and chosen not in ("best", "last"):
        raise ValueError(f"{path} has results of {', '.join(names)}; name one of these checkpoints' results.json")
    files = [file for file in found if file.parent.name == chosen]
    if not files:
        there = f"; {run} has results of {', '.join(names)}" if names else ""
        # Says itself what is wrong where there is no such path, or no checkpoint to evaluate.
        checkpoint = path if path.is_file() else checkpoint_file(path)
        raise FileNotFoundError(
            f"{path} has no results of an evaluation{there}; measure it with `python evaluate.py ckpt={checkpoint}`"
        )
    return files


def load_result(file: Path) -> Result:
    """Read a `results.json` and the `examples.jsonl` beside it.

    A last line of examples that a crash has torn is passed over.

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
        rows = read_rows(document)
        name, checkpoint, settings = document["name"], document["checkpoint"], document["config"]
        if not (isinstance(name, str) and isinstance(checkpoint, dict) and isinstance(settings, dict)):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no whole results document ({reason(error)}); {again}") from error
    examples = file.with_name("examples.jsonl")
    records = _records(examples) if examples.is_file() else []
    if foreign := {str(r["config"]) for r in records if "config" in r} - {str(document.get("config_hash"))}:
        raise ValueError(
            f"{examples} holds answers of other settings (config {', '.join(sorted(foreign))}) than {file.name} "
            f"({document.get('config_hash')}): an evaluation was begun and not finished; {again}"
        )
    return Result(file=file, name=name, checkpoint=checkpoint, settings=settings, rows=rows, records=records)


def _records(file: Path) -> list[Record]:
    whole, newline, _torn = file.read_text(encoding="utf-8").rpartition("\n")
    records: list[Record] = []
    for number, line in enumerate(whole.split("\n") if newline else [], start=1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{file}, line {number} is no record of an answer; evaluate again with eval.fresh=true"
            ) from error
    return records
