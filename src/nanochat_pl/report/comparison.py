"""Two checkpoints or more beside each other: what their evaluations say, and what of it is more than chance.

The first one given is what the others are measured against. Where both answered the same questions, those that one of
them answered better decide, and all such tests of one comparison are corrected together (Holm): of twenty comparisons
of equal models one would otherwise find a winner. Figures without answers to pair are judged by their intervals alone,
and said to be.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanochat_pl.eval.compare import compare, scores_behind, verdict
from nanochat_pl.eval.metrics import metric_of
from nanochat_pl.eval.results import MetricRow
from nanochat_pl.eval.stats import Interval, holm_correction
from nanochat_pl.report.evaluated import EvaluatedRun, evaluate_command, evaluation_names, question_key

__all__ = ["Judgement", "Line", "compare_runs", "settings_that_differ", "verdict_of_intervals"]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One figure against that of the first entrant that has it."""

    difference: float
    """This one minus that one."""
    interval: Interval | None = None
    """Of the difference (`stats.paired_interval`); None where the answers could not be paired."""
    p_value: float | None = None
    """Of the paired answers alone (`eval.compare.compare`); None where they could not be paired."""
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


def compare_runs(
    entrants: Sequence[EvaluatedRun], *, metrics: Sequence[str] | None = None, alpha: float = 0.05, seed: int = 0
) -> list[Line]:
    """Compare every entrant with the first one that has the figure, figure by figure.

    Args:
        entrants: One or more.
        metrics: Names of figures, or parts before or after their slash; None = all that have a better and a worse,
            of pass@1 to pass@n the first and the last.
        alpha: A verdict names a winner where the corrected p is below.
        seed: For resampling.

    Raises:
        ValueError: Entrants were asked different questions, no evaluation is common to two of them, or no figure has
            one of the names.
    """
    names = evaluation_names(entrants)
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


def _together(entrants: Sequence[EvaluatedRun], name: str) -> str:
    return f"ask them together with `{evaluate_command(entrants, name)}`"


def _check_questions(entrants: Sequence[EvaluatedRun], name: str) -> None:
    """Refuse answers to different questions: other ids, or other words under the same id."""
    answered = [entrant for entrant in entrants if entrant.results[name].records]
    asked = [{question_key(record): record.get("prompt") for record in e.results[name].records} for e in answered]
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


def _lines(entrants: Sequence[EvaluatedRun], name: str, metrics: Sequence[str] | None) -> Iterator[Line]:
    rows = [
        {(row.task, row.metric): row for row in entrant.results[name].rows if row.group is None}
        if name in entrant.results
        else {}
        for entrant in entrants
    ]
    for task, metric in dict.fromkeys(key for own in rows for key in own):
        names = {metric, *metric.split("/")}
        telling = metric_of(metric).direction and not _between(metric, [m for own in rows for t, m in own if t == task])
        if any(asked in (*names, "all") for asked in metrics) if metrics else telling:
            figures = [own.get((task, metric)) for own in rows]
            yield Line(evaluation=name, task=task, metric=metric, rows=figures, judgements=[None] * len(entrants))


def _between(metric: str, others: Sequence[str]) -> bool:
    """Tell whether it is a pass@k between the first k and the last.

    They say nearly the same, and each would be one more test that the others have to be corrected for.
    """
    tries, *more = [int(k[1]) if (k := re.fullmatch(r"pass@(\d+)", name)) else 0 for name in (metric, *others)]
    return 1 < tries < max(more)


def _judge(line: Line, entrants: Sequence[EvaluatedRun], seed: int) -> Line:
    """Give differences, and tests where the answers can be paired; verdicts come when all tests are known."""
    scores = [_scores(line, entrant, row) for entrant, row in zip(entrants, line.rows)]
    first, before = line.rows[line.reference], scores[line.reference]
    judgements: list[Judgement | None] = []
    for index, (row, own) in enumerate(zip(line.rows, scores)):
        if index == line.reference or row is None or row.value is None:
            judgements.append(None)
            continue
        assert first is not None and first.value is not None
        judgement = Judgement(difference=row.value - first.value)
        if own and before and metric_of(line.metric).direction:
            tested = compare(before, own, measure="score", seed=seed)
            judgement = replace(judgement, interval=tested.interval, p_value=tested.p_value)
        judgements.append(judgement)
    return replace(line, judgements=judgements)


def _scores(line: Line, entrant: EvaluatedRun, row: MetricRow | None) -> list[dict[str, Any]]:
    if row is None:
        return []
    records = entrant.results[line.evaluation].records
    return scores_behind(row, [record for record in records if str(record.get("task") or line.task) == line.task])


def _with_verdicts(
    line: Line, entrants: Sequence[EvaluatedRun], corrected: Iterator[float], num_tests: int, alpha: float
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
            sentence = verdict(
                first,
                entrant.label,
                judgement.difference,
                p,
                row.n,
                share=row.is_share,
                rows=(line.rows[line.reference], row),
                num_tests=num_tests,
                alpha=alpha,
            )
            judgements.append(replace(judgement, corrected=p, verdict=sentence))
    return replace(line, judgements=judgements)


def _by_intervals(line: Line, first: str, label: str, row: MetricRow) -> str:
    """Judge figures without paired answers."""
    before = line.rows[line.reference]
    assert before is not None and row.value is not None and before.value is not None
    sign = metric_of(line.metric).direction
    if not sign:
        return "no better or worse"
    if line.metric.endswith("bpb") and row.n != before.n:
        return f"not the same text: {before.n:,} and {row.n:,} tokens"
    if row.interval is None or before.interval is None:
        return "no interval, no verdict" if row.value != before.value else "equal"
    return verdict_of_intervals(first, label, before.interval, row.interval, sign)


def verdict_of_intervals(first: str, label: str, before: Interval, after: Interval, sign: int) -> str:
    """Say which of two figures is better where their intervals do not overlap.

    Args:
        first: Name of the one.
        label: Name of the other.
        before: Interval of the one.
        after: Interval of the other.
        sign: 1 where higher is better, -1 where lower is.
    """
    if before.high >= after.low and after.high >= before.low:
        return "not distinguishable (intervals overlap; unpaired)"
    better = (after.low > before.high) == (sign > 0)
    winner, loser = (label, first) if better else (first, label)
    return f"{winner} is better than {loser} (intervals do not overlap; unpaired)"


def settings_that_differ(entrants: Sequence[EvaluatedRun]) -> list[str]:
    """Say which settings of the same evaluation were not the same for all, a sentence each."""
    said = []
    for name in evaluation_names(entrants):
        settings = [e.results[name].settings for e in entrants if name in e.results]
        for key in dict.fromkeys(key for own in settings for key in own):
            values = [own.get(key) for own in settings]
            plain = all(value is None or isinstance(value, str | int | float) for value in values)
            if plain and key not in ("checkpoint", "tokenizer") and any(value != values[0] for value in values):
                said.append(f"{name}: {key} was not the same for all: {', '.join(map(str, values))}")
    return said
