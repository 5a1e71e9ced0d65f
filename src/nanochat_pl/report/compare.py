"""Compare checkpoints by their evaluations, and find which differences are more than chance.

The others are compared with the first checkpoint given. Where both answered the same questions, those that one of them
answered better decide, and all such tests of one comparison are corrected together (Holm): otherwise one of twenty
comparisons of equal models would find a winner. Figures without answers to pair are judged by their intervals alone,
and the verdict says so. Every test says as well what it could have found. Runs that differ in their seed only are
grouped and compared in `seeds.py`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from nanochat_pl.eval.compare import compare, scores_behind, verdict, verdict_of_intervals
from nanochat_pl.eval.metrics import metric_of
from nanochat_pl.eval.power import Enough, PairedQuestions, paired_design, what_is_enough
from nanochat_pl.eval.results import MetricRow
from nanochat_pl.eval.stats import Interval, holm_correction
from nanochat_pl.report.evaluated import TRAINING, EvaluatedRun, evaluate_command, evaluation_names, question_key

__all__ = [
    "ComparedMetric",
    "Difference",
    "NamedMetric",
    "compare_runs",
    "learn_questions",
    "missing_figures",
    "settings_that_differ",
]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure against that of the reference."""

    difference: float
    """This figure minus that of the reference."""
    interval: Interval | None = None
    """Interval of the difference (`eval.compare.compare`, over seeds that of a t test); None without a test."""
    p_value: float | None = None
    """The p-value of the paired answers alone (`eval.compare.compare`), over seeds a t test's; None without a test."""
    corrected: float | None = None
    """The p-value after Holm's correction over all tests of the comparison."""
    verdict: str = ""
    enough: Enough | None = None
    """What the test could have found; None without one."""


@dataclass(frozen=True, kw_only=True)
class NamedMetric:
    """Which figure it is."""

    evaluation: str
    task: str
    metric: str

    @property
    def name(self) -> str:
        """Name of the figure within its evaluation: the metric, after the task where that has another name."""
        return self.metric if self.task == self.evaluation else f"{self.task} {self.metric}"


@dataclass(frozen=True, kw_only=True)
class ComparedMetric(NamedMetric):
    """One figure of all runs."""

    rows: Sequence[MetricRow | None]
    """One for each run; None where it has no such figure."""
    differences: Sequence[Difference | None]
    """One for each run; None for the reference, and where there is no figure."""

    @property
    def reference(self) -> int:
        """Index of the run that the others are compared with: the first that has the figure."""
        return next((i for i, row in enumerate(self.rows) if row is not None and row.value is not None), 0)

    @property
    def baseline(self) -> str:
        """What the figure is without a model, such as `chance 25.0%`; empty where that is not known."""
        baseline = next((row.baseline for row in self.rows if row is not None and row.baseline), {})
        return ", ".join(f"{key} {value:.1%}" for key, value in baseline.items() if isinstance(value, float))


def compare_runs(
    runs: Sequence[EvaluatedRun], *, metrics: Sequence[str] | None = None, alpha: float = 0.05, seed: int = 0
) -> list[ComparedMetric]:
    """Compare every run with the first one that has the figure, figure by figure.

    Args:
        metrics: Names of figures, or parts before or after their slash; None = all whose better direction is known, but
            only the first and the last of pass@1 to pass@n, and of several tasks no details.
        alpha: A verdict names a winner where the corrected p is below this.

    Raises:
        ValueError: Runs were asked different questions, no evaluation is common to two of them, or no figure has one of
            the names.
    """
    names = evaluation_names(runs)
    shared = [name for name in names if sum(name in run.results for run in runs) > 1]
    if len(runs) > 1 and not shared:
        have = "; ".join(f"{run.label} has {', '.join(run.results)}" for run in runs)
        raise ValueError(f"no evaluation is common to two of them: {have}; {_together(runs, names[0])}")
    for name in shared:
        _check_questions([run for run in runs if name in run.results], name)
    found = [metric for name in names for metric in _metrics(runs, name, metrics)]
    if metrics and not found:
        there = sorted({row.metric for run in runs for result in run.results.values() for row in result.rows})
        raise ValueError(f"no figure is called {' or '.join(metrics)}; there are {', '.join(there)}")
    # All tests must be known before one of them can be corrected, and only then a verdict can be worded.
    designs: list[PairedQuestions | None] = []
    tested = [replace(metric, differences=list(_differences(metric, runs, seed, designs))) for metric in found]
    p_values = [d.p_value for metric in tested for d in metric.differences if d is not None and d.p_value is not None]
    corrected = zip(holm_correction(p_values), designs)
    return [
        replace(metric, differences=[*_with_verdicts(metric, runs, corrected, len(p_values), alpha)])
        for metric in tested
    ]


def _together(runs: Sequence[EvaluatedRun], name: str) -> str:
    return f"ask them together with `{evaluate_command(runs, name)}`"


def _check_questions(runs: Sequence[EvaluatedRun], name: str) -> None:
    """Refuse answers to different questions: other ids, or other words under the same id."""
    prompts = {run.label: {question_key(r): r.get("prompt") for r in run.results[name].records} for run in runs}
    first, *others = [run for run in runs if run.results[name].records] or runs[:1]
    expected = prompts[first.label]
    for run in others:
        found = prompts[run.label]
        if found == expected:
            continue
        common = found.keys() & expected.keys()
        reworded = sum(found[key] != expected[key] for key in common)
        raise ValueError(
            f"{first.label} and {run.label} were asked different questions in {name}: {len(expected)} and "
            f"{len(found)}, {len(common)} of the same id, {reworded} of these in other words "
            f"({first.results[name].file}, {run.results[name].file}); {_together([first, run], name)}"
        )


def _metrics(runs: Sequence[EvaluatedRun], name: str, chosen: Sequence[str] | None) -> Iterator[ComparedMetric]:
    """Yield the figures of one evaluation that are to be shown, without differences."""
    rows = [
        {(row.task, row.metric): row for row in run.results[name].rows if row.group is None}
        if name in run.results
        else {}
        for run in runs
    ]
    several = len({task for own in rows for task, _ in own}) > 1
    for task, metric in dict.fromkeys(key for own in rows for key in own):
        names = {metric, *metric.split("/"), "all"}
        others = [other for own in rows for of_task, other in own if of_task == task]
        if names & set(chosen) if chosen else metric_of(metric).direction and not _left_out(metric, others, several):
            figures = [own.get((task, metric)) for own in rows]
            yield ComparedMetric(
                evaluation=name, task=task, metric=metric, rows=figures, differences=[None] * len(runs)
            )


def _left_out(metric: str, others: Sequence[str], several: bool) -> bool:
    """Return whether another figure of the task says nearly the same.

    That is so of a pass@k between the first k and the last, and of a detail of one of several tasks, unless it is the
    mean over them. Each would be one more test for which the others have to be corrected.
    """
    tries, *more = [int(k[1]) if (k := re.fullmatch(r"pass@(\d+)", name)) else 0 for name in (metric, *others)]
    if tries:
        return 1 < tries < max(more)
    return several and metric_of(metric).is_detail and not any(metric_of(other).is_composite for other in others)


def _differences(
    metric: ComparedMetric, runs: Sequence[EvaluatedRun], seed: int, designs: list[PairedQuestions | None]
) -> Iterator[Difference | None]:
    """Yield differences, with tests where the answers can be paired; how these differ is appended to `designs`."""
    scores = [_scores(metric, run, row) for run, row in zip(runs, metric.rows)]
    first, before = metric.rows[metric.reference], scores[metric.reference]
    for index, (row, own) in enumerate(zip(metric.rows, scores)):
        if index == metric.reference or row is None or row.value is None:
            yield None
            continue
        assert first is not None and first.value is not None
        difference = Difference(difference=row.value - first.value)
        direction = metric_of(metric.metric).direction
        if own and direction and _weights(own) == _weights(before):
            tested = compare(before, own, measure="score", share=row.is_share, direction=direction, seed=seed)
            difference = replace(difference, interval=tested.interval, p_value=tested.p_value)
            designs.append(_design(before, own))
        yield difference


def _design(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> PairedQuestions | None:
    """Learn how two models differ; where questions weigh differently, weight times score is what adds up."""
    scores = {record["id"]: record["score"] for record in second}
    weights = [float(record.get("weight", 1)) for record in first]
    scale = [weight / fmean(weights) for weight in weights]
    return paired_design(
        [own * record["score"] for own, record in zip(scale, first)],
        [own * scores[record["id"]] for own, record in zip(scale, first)],
    )


def learn_questions(metric: ComparedMetric, runs: Sequence[EvaluatedRun]) -> tuple[PairedQuestions, int] | None:
    """Return how two runs differ in their answers, and to how many questions; None where they cannot be paired."""
    scores = [_scores(metric, run, row) for run, row in zip(runs, metric.rows)]
    if len(runs) != 2 or not all(scores) or (design := _design(*scores)) is None:
        return None
    return design, len(scores[0])


def _scores(metric: ComparedMetric, run: EvaluatedRun, row: MetricRow | None) -> list[dict[str, Any]]:
    if row is None:
        return []
    records = run.results[metric.evaluation].records
    of_task = [record for record in records if str(record.get("task") or metric.task) == metric.task]
    return scores_behind(row, of_task or records)  # a task of no record's is one over all tasks, such as CORE


def _weights(scores: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what each question weighs: only scores of the same questions with the same weights can be paired."""
    return {score["id"]: score.get("weight", 1) for score in scores}


def _with_verdicts(
    metric: ComparedMetric,
    runs: Sequence[EvaluatedRun],
    corrected: Iterator[tuple[float, PairedQuestions | None]],
    num_tests: int,
    alpha: float,
) -> Iterator[Difference | None]:
    first = runs[metric.reference].label
    for difference, run, row in zip(metric.differences, runs, metric.rows):
        if difference is None or row is None:
            yield None
        elif difference.p_value is None:
            yield replace(difference, verdict=_by_intervals(metric, first, run.label, row))
        else:
            p, design = next(corrected)
            enough = None
            if design is not None:
                enough = what_is_enough(design, row.n, difference.difference, alpha / num_tests, found=p < alpha)
            sentence = verdict(
                first,
                run.label,
                metric_of(metric.metric).direction * difference.difference,
                p,
                row.n,
                share=row.is_share,
                rows=(metric.rows[metric.reference], row),
                num_tests=num_tests,
                alpha=alpha,
            )
            yield replace(difference, corrected=p, verdict=sentence, enough=enough)


def _by_intervals(metric: ComparedMetric, first: str, label: str, row: MetricRow) -> str:
    """Judge figures without paired answers."""
    before = metric.rows[metric.reference]
    assert before is not None and row.value is not None and before.value is not None
    sign = metric_of(metric.metric).direction
    if not sign:
        return "no better or worse"
    if metric_of(metric.metric).unit == "bits per byte" and row.n != before.n:
        if metric.metric != "bpb":
            return f"not the same questions: {before.n:,} and {row.n:,} measured"
        return f"not the same text: {before.n:,} and {row.n:,} tokens"
    if row.interval is None or before.interval is None:
        if row.value == before.value:
            return "equal"
        several = "; several seeds of each and --seeds give one" if metric.evaluation == TRAINING else ""
        return f"no interval, no verdict{several}"
    return verdict_of_intervals(first, label, before.interval, row.interval, sign)


def settings_that_differ(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return one sentence for each setting of an evaluation that was not the same for all runs.

    Where `answer_bpb` was not wanted, the figures themselves are missing (`missing_figures`).
    """
    sentences = []
    for name in evaluation_names(runs):
        those = [run for run in runs if name in run.results]
        settings = [run.results[name].settings for run in those]
        for key in dict.fromkeys(key for own in settings for key in own):
            values = [own.get(key) for own in settings]
            plain = all(value is None or isinstance(value, str | int | float) for value in values)
            if (
                plain
                and key not in ("checkpoint", "tokenizer", "answer_bpb")
                and any(value != values[0] for value in values)
            ):
                sentences.append(f"{name}: {key} was not the same for all: {_by_value(values, those)}")
    return sentences


def _by_value(values: Sequence[Any], runs: Sequence[EvaluatedRun]) -> str:
    """Say who has which value: the rarest first, each with the few runs that have it, then what the others have."""
    labels: dict[str, list[str]] = {}
    for value, run in zip(values, runs):
        labels.setdefault(str(value), []).append(run.label)
    if len(runs) <= 4:
        return ", ".join(map(str, values))
    *rare, (commonest, _) = sorted(labels.items(), key=lambda item: len(item[1]))
    shown = [f"{value} of {', '.join(own[:3])}{' …' if len(own) > 3 else ''}" for value, own in rare[:4]]
    return f"{'; '.join(shown)}{' …' if len(rare) > 4 else ''}; {commonest} of the others"


def missing_figures(runs: Sequence[EvaluatedRun], metrics: Sequence[ComparedMetric]) -> list[str]:
    """Return one sentence for each run whose results of an evaluation lack figures of a task that others have."""
    lacking: dict[tuple[str, int], list[str]] = {}
    empty: dict[tuple[str, int], list[str]] = {}
    for metric in metrics:
        for index, (run, row) in enumerate(zip(runs, metric.rows)):
            if row is not None and row.value is None and metric.evaluation != TRAINING:
                empty.setdefault((metric.evaluation, index), []).append(metric.metric)
            asked = run.results[metric.evaluation].rows if metric.evaluation in run.results else ()
            if row is None and any(other.task == metric.task for other in asked):
                lacking.setdefault((metric.evaluation, index), []).append(metric.metric)
    return [
        f"{runs[index].label} has no {', '.join(dict.fromkeys(names))} of {evaluation}: it was evaluated before these "
        f"were measured, or with other settings; {evaluate_command([runs[index]], evaluation)}"
        for (evaluation, index), names in lacking.items()
    ] + [
        f"{runs[index].label} has no value of {', '.join(dict.fromkeys(names))} of {evaluation}: not one of its "
        "questions was measured"
        for (evaluation, index), names in empty.items()
    ]
