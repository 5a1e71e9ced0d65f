"""Two checkpoints or more beside each other: what their evaluations say, and what of it is more than chance.

The first one given is what the others are measured against. Where both answered the same questions, the questions
that only one of them got right decide (McNemar), and all such tests of one comparison are corrected together (Holm):
of twenty comparisons of equal models one would otherwise find a winner. Figures without answers to pair are judged by
their intervals alone, and said to be. Only files are read: `results.json` and `examples.jsonl` of finished evaluations.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nanochat_pl.eval.compare import compare
from nanochat_pl.eval.results import SCHEMA, MetricRow
from nanochat_pl.eval.stats import Interval, Spread, holm_correction, seed_spread
from nanochat_pl.paths import checkpoint_file

__all__ = [
    "Entrant",
    "Judgement",
    "Line",
    "Result",
    "SeedLine",
    "Shared",
    "compare_entrants",
    "compare_seeds",
    "direction",
    "find_results",
    "group_by_seed",
    "load_result",
    "settings_that_differ",
    "side_by_side",
    "stage_order",
]

Record = Mapping[str, Any]
_ANSWER_FIELDS = {"prompt", "expected", "output", "correct"}
_STAGES = ("base", "mid", "sft", "sft_scienceqa", "rl")


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
    """By the name of the evaluation."""
    run: Mapping[str, Any] | None = None
    """The config its run was started with; None where it is not known."""

    @property
    def stage(self) -> str:
        return str(next(iter(self.results.values())).checkpoint.get("stage") or "")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One figure against that of the first entrant that has it."""

    difference: float
    """This one minus that one."""
    interval: Interval | None = None
    """Of the difference, by paired bootstrap; None where the answers could not be paired."""
    p_value: float | None = None
    """McNemar's, as it is; None where the answers could not be paired."""
    corrected: float | None = None
    """The p-value after Holm's correction over all tests of the comparison."""
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure of all entrants."""

    evaluation: str
    task: str
    metric: str
    rows: Sequence[MetricRow | None]
    """An entrant each; None where it has no such figure."""
    judgements: Sequence[Judgement | None]
    """An entrant each; None for the one they are held against, and where there is no figure."""

    @property
    def reference(self) -> int:
        """Index of the entrant that the others are held against: the first that has the figure."""
        return next((i for i, row in enumerate(self.rows) if row is not None and row.value is not None), 0)


@dataclass(frozen=True, kw_only=True)
class SeedLine:
    """One figure of groups of runs that differ in their seed only."""

    evaluation: str
    task: str
    metric: str
    spreads: Sequence[Spread | None]
    """A group each; None where none of its runs has the figure."""
    verdicts: Sequence[str]
    """A group each, against the first; empty for the first."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One question that several entrants answered."""

    evaluation: str
    id: str
    prompt: str
    expected: str
    answers: Mapping[str, Record] = field(repr=False)
    """By the label of the entrant."""
    differ: bool
    """Not all of them are right, and not all are wrong."""


# -- reading ------------------------------------------------------------------------------------------------------


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
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no results document ({error!r}); evaluate again to write a new one") from error
    again = f"evaluate again with `python evaluate.py ckpt={(document.get('checkpoint') or {}).get('path', '…')}`"
    if schema != SCHEMA:
        raise ValueError(f"{file} has schema {schema}, this version reads {SCHEMA}; {again}")
    try:
        rows = [_row(metric) for metric in document["metrics"]]
        name, checkpoint, settings = document["name"], document["checkpoint"], document["config"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} lacks {error} of a results document; {again}") from error
    examples = file.with_name("examples.jsonl")
    records = _records(examples) if examples.is_file() else []
    if foreign := {str(r["config"]) for r in records if "config" in r} - {str(document.get("config_hash"))}:
        raise ValueError(
            f"{examples} holds answers of other settings (config {', '.join(sorted(foreign))}) than {file.name} "
            f"({document.get('config_hash')}): an evaluation was begun and not finished; {again}"
        )
    return Result(file=file, name=name, checkpoint=checkpoint, settings=settings, rows=rows, records=records)


def _row(metric: Mapping[str, Any]) -> MetricRow:
    intervals = {key: Interval(**metric[key]) for key in ("interval", "bootstrap") if metric.get(key)}
    return MetricRow(**{**metric, **intervals})


def _records(file: Path) -> list[Record]:
    whole, newline, _torn = file.read_text(encoding="utf-8").rpartition("\n")
    try:
        return [json.loads(line) for line in whole.split("\n")] if newline else []
    except ValueError as error:
        raise ValueError(f"{file} has a line that is no JSON ({error}); evaluate again with eval.fresh=true") from error


# -- comparing ----------------------------------------------------------------------------------------------------

_RIGHT: Mapping[str, Callable[[Record], bool]] = {
    "": lambda record: bool(record["correct"]),
    "strict": lambda record: bool(record["correct"]),
    "loglikelihood": lambda record: bool(record["likely_correct"]),
    "letter_regex": lambda record: record["regex_letter"] == record["expected"],
}
"""How the answers behind a proportion are read again: by the part of a metric's name before the slash."""


def direction(metric: str) -> int:
    """Return 1 where higher is better, -1 where lower is, 0 where neither can be said.

    Accuracy over *scored* answers is 0: each model leaves out other questions. So is centered accuracy, which says
    again what accuracy says.
    """
    last = metric.rpartition("/")[2]
    if re.fullmatch(r"bpb|.*loss", last):
        return -1
    good = r"(?!.*over_scored).*accuracy.*|exact_match|pass@\d+|.*core_metric|rouge_l|reward|pass_rate|passed"
    return 1 if re.fullmatch(good, last) else 0


def compare_entrants(
    entrants: Sequence[Entrant], *, metrics: Sequence[str] | None = None, alpha: float = 0.05, seed: int = 0
) -> list[Line]:
    """Compare every entrant with the first one that has the figure, figure by figure.

    Args:
        entrants: One or more.
        metrics: Names of figures, or parts before or after their slash; None = all that have a better and a worse.
        alpha: A verdict names a winner where the corrected p is below.
        seed: For the bootstrap.

    Raises:
        ValueError: Entrants were asked different questions, no evaluation is common to two of them, or no figure has
            one of the names.
    """
    names = list(dict.fromkeys(name for entrant in entrants for name in entrant.results))
    shared = [name for name in names if sum(name in entrant.results for entrant in entrants) > 1]
    if len(entrants) > 1 and not shared:
        have = "; ".join(f"{entrant.label} has {', '.join(entrant.results)}" for entrant in entrants)
        raise ValueError(f"no evaluation is common to two of them: {have}; {_together(entrants, names[0])}")
    for name in shared:
        _check_questions([entrant for entrant in entrants if name in entrant.results], name)
    lines = [line for name in names for line in _lines(entrants, name, metrics)]
    if metrics and not lines:
        there = sorted({row.metric for entrant in entrants for r in entrant.results.values() for row in r.rows})
        raise ValueError(f"no figure is called {' or '.join(metrics)}; there are {', '.join(there)}")
    judged = [_judge(line, entrants, seed) for line in lines]
    tests = [j.p_value for line in judged for j in line.judgements if j is not None and j.p_value is not None]
    corrected = iter(holm_correction(tests))
    return [_with_verdicts(line, entrants, corrected, len(tests), alpha) for line in judged]


def _together(entrants: Sequence[Entrant], name: str) -> str:
    paths = ",".join(str(next(iter(e.results.values())).checkpoint.get("path", e.label)) for e in entrants)
    return f"ask them together with `python evaluate.py 'ckpt=[{paths}]' eval={name}`"


def _check_questions(entrants: Sequence[Entrant], name: str) -> None:
    """Refuse answers to different questions: other ids, or other words under the same id."""
    answered = [entrant for entrant in entrants if entrant.results[name].records]
    asked = [{_key(record): record.get("prompt") for record in e.results[name].records} for e in answered]
    for entrant, prompts in zip(answered[1:], asked[1:]):
        if prompts == asked[0]:
            continue
        first = answered[0]
        common = prompts.keys() & asked[0].keys()
        reworded = sum(prompts[key] != asked[0][key] for key in common)
        raise ValueError(
            f"{first.label} and {entrant.label} were asked different questions in {name}: {len(asked[0])} and "
            f"{len(prompts)}, {len(common)} of the same id, {reworded} of these in other words "
            f"({first.results[name].file}, {entrant.results[name].file}); {_together([first, entrant], name)}"
        )


def _key(record: Record) -> tuple[str, str]:
    return str(record.get("task") or ""), str(record["id"])


def _lines(entrants: Sequence[Entrant], name: str, metrics: Sequence[str] | None) -> Iterator[Line]:
    rows = [
        {(row.task, row.metric): row for row in entrant.results[name].rows if row.group is None}
        if name in entrant.results
        else {}
        for entrant in entrants
    ]
    for task, metric in dict.fromkeys(key for own in rows for key in own):
        names = {metric, *metric.split("/")}
        if any(asked in (*names, "all") for asked in metrics) if metrics else direction(metric):
            figures = [own.get((task, metric)) for own in rows]
            yield Line(evaluation=name, task=task, metric=metric, rows=figures, judgements=[None] * len(entrants))


def _judge(line: Line, entrants: Sequence[Entrant], seed: int) -> Line:
    """Give differences, and tests where the answers can be paired; verdicts come when all tests are known."""
    answers = [_answers(line, entrant, row) for entrant, row in zip(entrants, line.rows)]
    first = line.rows[line.reference]
    judgements: list[Judgement | None] = []
    for index, (row, own) in enumerate(zip(line.rows, answers)):
        if index == line.reference or row is None or row.value is None:
            judgements.append(None)
            continue
        assert first is not None and first.value is not None
        judgement = Judgement(difference=row.value - first.value)
        if own and answers[line.reference] and direction(line.metric):
            tested = compare(answers[line.reference], own, measure="right", seed=seed)
            judgement = replace(judgement, interval=tested.interval, p_value=tested.p_value)
        judgements.append(judgement)
    return replace(line, judgements=judgements)


def _answers(line: Line, entrant: Entrant, row: MetricRow | None) -> list[Record]:
    """Return the answers a proportion was taken over as `id` and `right`; nothing where they are not at hand."""
    before, slash, _ = line.metric.rpartition("/")
    if row is None or row.count is None or (before if slash else "") not in _RIGHT:
        return []
    records = [r for r in entrant.results[line.evaluation].records if str(r.get("task") or line.task) == line.task]
    try:
        answers: list[Record] = [{"id": r["id"], "right": _RIGHT[before](r)} for r in records]
    except KeyError:  # records of another kind, as those of a figure computed from several answers
        return []
    # The figure itself must come out of the answers, or they are not the ones it was taken over.
    return answers if (len(answers), sum(answer["right"] for answer in answers)) == (row.n, row.count) else []


def _with_verdicts(
    line: Line, entrants: Sequence[Entrant], corrected: Iterator[float], num_tests: int, alpha: float
) -> Line:
    first = entrants[line.reference].label
    judgements: list[Judgement | None] = []
    for judgement, entrant, row in zip(line.judgements, entrants, line.rows):
        if judgement is None or row is None:
            judgements.append(None)
        elif judgement.p_value is None:
            judgements.append(replace(judgement, verdict=_by_intervals(line, first, entrant.label, row)))
        else:
            p = next(corrected)
            said = f"{_p(p)}, Holm over {num_tests} tests" if num_tests > 1 else _p(p)
            if p < alpha:
                rows = {entrant.label: row, first: line.rows[line.reference]}
                winner, loser = (entrant.label, first) if judgement.difference > 0 else (first, entrant.label)
                verdict = f"{winner} is better than {loser} ({said}, n = {row.n}){_no_better_than_chance(rows[winner])}"
            else:
                verdict = f"not distinguishable ({said}, n = {row.n})"
            judgements.append(replace(judgement, corrected=p, verdict=verdict))
    return replace(line, judgements=judgements)


def _no_better_than_chance(row: MetricRow | None) -> str:
    """Say so where even the better of two is not above what guessing reaches."""
    chance = row.baseline.get("chance") if row is not None and row.baseline else None
    guessed = isinstance(chance, float) and row is not None and row.interval is not None and row.interval.low <= chance
    return ", but not than chance" if guessed else ""


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"


def _by_intervals(line: Line, first: str, label: str, row: MetricRow) -> str:
    """Judge figures without paired answers."""
    before = line.rows[line.reference]
    assert before is not None and row.value is not None and before.value is not None
    sign = direction(line.metric)
    if not sign:
        return "no better or worse"
    if line.metric.endswith("bpb") and row.n != before.n:
        return f"not the same text: {before.n:,} and {row.n:,} tokens"
    if row.interval is None or before.interval is None:
        return "no interval, no verdict" if row.value != before.value else "equal"
    return _apart(first, label, before.interval, row.interval, sign)


def _apart(first: str, label: str, before: Interval, after: Interval, sign: int) -> str:
    if before.high >= after.low and after.high >= before.low:
        return "not distinguishable (intervals overlap; unpaired)"
    better = (after.low > before.high) == (sign > 0)
    winner, loser = (label, first) if better else (first, label)
    return f"{winner} is better than {loser} (intervals do not overlap; unpaired)"


def settings_that_differ(entrants: Sequence[Entrant]) -> list[str]:
    """Say which settings of the same evaluation were not the same for all, a sentence each."""
    said = []
    for name in dict.fromkeys(name for entrant in entrants for name in entrant.results):
        settings = [e.results[name].settings for e in entrants if name in e.results]
        for key in dict.fromkeys(key for own in settings for key in own):
            values = [own.get(key) for own in settings]
            plain = all(value is None or isinstance(value, str | int | float) for value in values)
            if plain and key not in ("checkpoint", "tokenizer") and any(value != values[0] for value in values):
                said.append(f"{name}: {key} was not the same for all: {', '.join(map(str, values))}")
    return said


def stage_order(entrants: Sequence[Entrant]) -> list[int]:
    """Return the indices of the entrants from the first stage of training to the last, others behind, else as given."""
    return sorted(
        range(len(entrants)),
        key=lambda index: _STAGES.index(entrants[index].stage) if entrants[index].stage in _STAGES else len(_STAGES),
    )


# -- seeds --------------------------------------------------------------------------------------------------------


def group_by_seed(entrants: Sequence[Entrant]) -> list[list[int]]:
    """Return the indices of entrants whose runs have the same config but for the seed and their names.

    Raises:
        ValueError: The config of a run is not known.
    """
    groups: dict[str, list[int]] = {}
    for index, entrant in enumerate(entrants):
        if entrant.run is None:
            raise ValueError(
                f"{entrant.label} cannot be put into a group of seeds: there is no config.yaml of its run beside "
                f"{next(iter(entrant.results.values())).file}; give the run folder"
            )
        result = next(iter(entrant.results.values()))
        own = {key: value for key, value in entrant.run.items() if key not in ("seed", "run_name", "resume", "force")}
        text = json.dumps([own, result.checkpoint.get("stage")], sort_keys=True, default=str)
        # Start weights of an earlier stage lie in a folder of the run's own name.
        run_name = re.escape(str(entrant.run.get("run_name") or ""))
        groups.setdefault(re.sub(rf"(?<=[/\"]){run_name}(?=[/\"])", "*", text) if run_name else text, []).append(index)
    return list(groups.values())


def compare_seeds(
    entrants: Sequence[Entrant], lines: Sequence[Line], groups: Sequence[Sequence[int]]
) -> list[SeedLine]:
    """Summarize each figure over the runs of each group: mean, standard deviation, t interval; groups by overlap."""
    compared = []
    for line in lines:
        spreads: list[Spread | None] = []
        for group in groups:
            rows = [row for index in group if (row := line.rows[index]) is not None]
            values = [row.value for row in rows if row.value is not None]
            spreads.append(seed_spread(values) if values else None)
        names = [entrants[group[0]].label for group in groups]
        verdicts = [""]
        for name, spread in zip(names[1:], spreads[1:]):
            first, sign = spreads[0], direction(line.metric)
            if first is None or spread is None or not sign:
                verdicts.append("")
            elif first.interval is None or spread.interval is None:
                verdicts.append("one seed is no spread: no verdict")
            else:
                verdicts.append(_apart(names[0], name, first.interval, spread.interval, sign))
        compared.append(
            SeedLine(evaluation=line.evaluation, task=line.task, metric=line.metric, spreads=spreads, verdicts=verdicts)
        )
    return compared


# -- answers ------------------------------------------------------------------------------------------------------


def side_by_side(entrants: Sequence[Entrant], limit: int) -> dict[str, list[Shared]]:
    """Return, for each evaluation, up to `limit` questions that all who were asked in it answered.

    Where some are right and some wrong comes first, then where they wrote different things, then the others.
    """
    shown = {}
    for name in dict.fromkeys(name for entrant in entrants for name in entrant.results):
        answers = {
            entrant.label: {_key(r): r for r in entrant.results[name].records if r.keys() >= _ANSWER_FIELDS}
            for entrant in entrants
            if name in entrant.results and entrant.results[name].records
        }
        if len(answers) < min(2, len(entrants)):
            continue
        first = next(iter(answers.values()))
        questions = [
            Shared(
                evaluation=name,
                id="/".join(filter(None, key)),
                prompt=str(record["prompt"]),
                expected=str(record["expected"]),
                answers={label: own[key] for label, own in answers.items()},
                differ=len({bool(own[key]["correct"]) for own in answers.values()}) > 1,
            )
            for key, record in first.items()
            if all(key in own for own in answers.values())
        ]
        questions.sort(key=lambda q: (not q.differ, len({str(a["output"]) for a in q.answers.values()}) == 1))
        if questions:
            shown[name] = questions[:limit]
    return shown
