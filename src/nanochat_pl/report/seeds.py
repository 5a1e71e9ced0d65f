"""Compare recipes over seeds: runs that differ in their seed only are one group.

One run says nothing about a recipe, because another seed may give another order; mean and standard deviation over seeds
do, and a t test of them: of pairs where two groups have the same seeds and these change the order of the data, else
Welch's. Seeds are `seed` (initial weights) and `data.order_seed` (order of the data).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, variance
from typing import Any

from nanochat_pl.config.stages import HORIZONS, STAGES, UNTRAINED, StageName
from nanochat_pl.eval.compare import verdict
from nanochat_pl.eval.metrics import metric_of
from nanochat_pl.eval.power import Enough, PairedQuestions, Seeds, what_is_enough
from nanochat_pl.eval.stats import Interval, Spread, holm_correction, paired_t_test, seed_spread, welch_test
from nanochat_pl.report.compare import ComparedMetric, Difference, NamedMetric, learn_questions
from nanochat_pl.report.evaluated import TRAINING, EvaluatedRun

__all__ = [
    "SeedMetric",
    "compare_seeds",
    "group_by_seed",
    "group_label",
    "learn_design",
    "pair_by_seed",
    "refuse_repeated",
    "seeds_of",
    "validated_alike",
]


APART = ("seed", "data.order_seed", "run_name", "sweep", *UNTRAINED)
"""Settings in which runs of one group may differ."""


@dataclass(frozen=True, kw_only=True)
class SeedMetric(NamedMetric):
    """One figure of groups of runs that differ in their seed only."""

    spreads: Sequence[Spread | None]
    """One for each group; None where none of its runs has the figure."""
    differences: Sequence[Difference | None]
    """One for each group, of its mean against that of the first; None for the first, and where there is no figure."""

    @property
    def verdicts(self) -> list[str]:
        """One for each group; empty where there is no difference."""
        return [difference.verdict if difference else "" for difference in self.differences]


def learn_design(metric: ComparedMetric, runs: Sequence[EvaluatedRun]) -> tuple[Seeds | PairedQuestions, int]:
    """Learn how a figure varies: over the seeds of one recipe or several, else over questions that two runs answered.

    Where recipes have the same seeds as the first, it is learned how their differences to it vary.

    Returns:
        The design, and the degrees of freedom of its standard deviation, or the number of questions.

    Raises:
        ValueError: The runs show neither.
    """
    groups = _counted(metric, runs, group_by_seed(runs) if all(run.config is not None for run in runs) else [])
    pairs = [_two_sets(metric, runs, groups[0], group) for group in groups[1:]]
    differences = [two.differences for two in pairs if two.paired]
    values = [[*own.values()] for group in groups if len(own := _values(metric, group)) > 1]
    for sets in (differences, values):
        if std := _pooled_std(sets, [value for own in values for value in own]):
            return Seeds(std=std, paired=sets is differences), sum(len(own) - 1 for own in sets)
    if questions := learn_questions(metric, runs):
        return questions
    raise ValueError(
        f"{metric.evaluation} {metric.name} of {', '.join(run.label for run in runs)} does not say how it varies: give "
        "two or more runs that differ in their seed only and in this figure, or two checkpoints that answered the same "
        "questions"
    )


def group_by_seed(runs: Sequence[EvaluatedRun], *, any_length: bool = False) -> list[list[int]]:
    """Return groups of indices of runs that have the same config but for their seeds and names.

    Args:
        any_length: How long they trained may differ, too.

    Raises:
        ValueError: The config of a run is not known.
    """
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        if run.config is None:
            raise ValueError(
                f"{run.label} cannot be put into a group of seeds: there is no config.yaml of its run beside "
                f"{run.any_result.file}; give the run folder"
            )
        own = _without(run.config, [*APART, *(f"stage.{key}" for key in HORIZONS if any_length)])
        text = json.dumps([own, run.any_result.checkpoint.get("stage")], sort_keys=True, default=str)
        # Initial weights of an earlier stage are in a folder of the run's own name.
        run_name = re.escape(str(run.config.get("run_name") or ""))
        groups.setdefault(re.sub(rf"(?<=[/\"]){run_name}(?=[/\"])", "*", text) if run_name else text, []).append(index)
    return list(groups.values())


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return a config without some dotted keys."""
    kept: dict[str, Any] = {}
    for name, value in config.items():
        below = [key.partition(".")[2] for key in keys if key.startswith(f"{name}.")]
        if name not in keys:
            kept[name] = _without(value, below) if below and isinstance(value, Mapping) else value
    return kept


def validated_alike(group: Sequence[int], runs: Sequence[EvaluatedRun]) -> tuple[list[int], list[int]]:
    """Split the runs of a group into those that were validated at the same steps as most of them, and the others.

    The others were broken off, or trained longer: their last validation is no figure of the same recipe.
    """
    steps = {index: tuple(step for step, _ in runs[index].curves.get("val/bpb", ())) for index in group}
    validated = [own for own in steps.values() if own]
    usual = max(validated, key=lambda own: (validated.count(own), own[-1]), default=())
    return [i for i in group if steps[i] == usual], [i for i in group if steps[i] != usual]


def refuse_repeated(runs: Sequence[EvaluatedRun], groups: Sequence[Sequence[int]]) -> None:
    """Raise ValueError where two runs of a group have the same seeds: they say nothing about other seeds."""
    for group in groups:
        seen: dict[tuple[int | None, int | None], str] = {}
        for index in group:
            seeds, label = seeds_of(runs[index]), runs[index].label
            if seeds[0] is not None and seeds in seen:
                raise ValueError(
                    f"{seen[seeds]} and {label} have the same settings and seed={seeds[0]}: a spread over seeds counts "
                    "each once; leave one of them out"
                )
            seen[seeds] = label


def seeds_of(run: EvaluatedRun) -> tuple[int | None, int | None]:
    """Return the seed of a run and that of the order of its data; None where it has none or its config is not known."""
    config = run.config or {}
    return config.get("seed"), (config.get("data") or {}).get("order_seed")


def pair_by_seed(runs: Sequence[EvaluatedRun], groups: Sequence[Sequence[int]]) -> list[list[int]] | None:
    """Return groups of indices in an order in which entry i of each has the same seeds.

    None where there are no pairs to be made: the seeds of two groups differ, a group has two runs of the same, or fewer
    than two runs. None as well where all runs read their data in one order: what initial weights change they change for
    each recipe in its own way, and pairs would only halve the degrees of freedom.
    """
    by_seed = [{seeds_of(runs[index]): index for index in group} for group in groups]
    first, *others = by_seed
    if len(first) < 2 or any(own.keys() != first.keys() for own in others):
        return None
    if any(len(own) != len(group) for own, group in zip(by_seed, groups)):
        return None
    if len({_order_of(runs[index]) for index in groups[0]}) < 2:
        return None
    return [[own[seeds] for seeds in first] for own in by_seed]


def _order_of(run: EvaluatedRun) -> int | None:
    """Return the seed of the order in which a run read its data; None = that of the files, in which texts are read."""
    seed, order_seed = seeds_of(run)
    reads_texts = run.stage not in STAGES or run.stage == StageName.base
    return order_seed if reads_texts or order_seed is not None else seed


def group_label(runs: Sequence[EvaluatedRun]) -> str:
    """Return the name of a group: its run's, or its first run's without the seeds that a sweep puts into names."""
    label = runs[0].label
    parts = [part for part in re.split(r"-|(?<=/)", label) if not re.fullmatch(r"(data\.)?(order_)?seed=\d+", part)]
    return label if len(runs) == 1 or not parts else "-".join(parts).replace("/-", "/").rstrip("/")


def compare_seeds(
    runs: Sequence[EvaluatedRun],
    metrics: Sequence[ComparedMetric],
    groups: Sequence[Sequence[int]],
    *,
    alpha: float = 0.05,
) -> list[SeedMetric]:
    """Summarize each figure over the runs of each group, and compare the groups with the first.

    Runs of the same seeds are compared in pairs where these change the order of the data, most of which is common to
    both recipes. Otherwise the test is Welch's, because a recipe may vary more than another from seed to seed. All of
    them are corrected together (Holm). A group of one run is not tested: it does not say how far another seed would
    lie.
    """
    counted = [_counted(metric, runs, groups) for metric in metrics]
    sets = [[_two_sets(metric, runs, own[0], group) for group in own] for metric, own in zip(metrics, counted)]
    tested = [
        [_seed_difference(metric, runs, two, own[0], group) for two, group in zip(twos, own)]
        for metric, twos, own in zip(metrics, sets, counted)
    ]
    p_values = [d.p_value for found in tested for d in found[1:] if d is not None and d.p_value is not None]
    corrected = iter(holm_correction(p_values))
    compared = []
    for metric, own, found in zip(metrics, sets, tested):
        differences: list[Difference | None] = [None]
        for two, group, difference in zip(own[1:], groups[1:], found[1:]):
            if difference is not None and difference.p_value is not None:
                first, second = (group_label([runs[index] for index in one]) for one in (groups[0], group))
                share = any(row is not None and row.is_share for row in metric.rows)
                sign = metric_of(metric.metric).direction
                p = next(corrected)
                sentence = verdict(
                    first,
                    second,
                    sign * difference.difference,
                    p,
                    two.text,
                    share=share,
                    num_tests=len(p_values),
                    alpha=alpha,
                )
                enough = two.enough(alpha / len(p_values), found=p < alpha)
                difference = replace(difference, corrected=p, verdict=sentence, enough=enough)
            differences.append(difference)
        key = {"evaluation": metric.evaluation, "task": metric.task, "metric": metric.metric}
        spreads = [seed_spread(two.other) if two.other else None for two in own]
        compared.append(SeedMetric(**key, spreads=spreads, differences=differences))
    return compared


@dataclass(frozen=True, kw_only=True)
class _TwoSets:
    """One figure of the runs of two groups; if `paired`, entry i of both has the same seeds."""

    first: list[float]
    other: list[float]
    paired: bool

    @property
    def text(self) -> str:
        """How many seeds there are, for a verdict."""
        return f"{len(self.first)} pairs of seeds" if self.paired else f"{len(self.first)} and {len(self.other)} seeds"

    @property
    def difference(self) -> float:
        return fmean(self.other) - fmean(self.first)

    @property
    def differences(self) -> list[float]:
        """Those of the pairs."""
        return [b - a for a, b in zip(self.first, self.other, strict=True)]

    def test(self) -> tuple[float, Interval | None]:
        """Return p-value and interval of the difference."""
        return (paired_t_test if self.paired else welch_test)(self.first, self.other)

    def enough(self, alpha: float, *, found: bool) -> Enough | None:
        """Return what the seeds could have found; None where nothing varies. Sets vary equally if not in pairs."""
        std = _pooled_std([self.differences] if self.paired else [self.first, self.other], self.first)
        if not std:
            return None
        design = Seeds(std=std, paired=True) if self.paired else Seeds(std=std, reference=len(self.first))
        return what_is_enough(design, len(self.other), self.difference, alpha, found=found)


def _pooled_std(sets: Sequence[Sequence[float]], values: Sequence[float]) -> float:
    """Return the standard deviation within sets, 0 where nothing varies but by the rounding of such values."""
    df = sum(len(own) - 1 for own in sets)
    std = sqrt(sum((len(own) - 1) * variance(own) for own in sets) / df) if df else 0.0
    return std if std > 1e-12 * max(map(abs, values), default=0.0) else 0.0


def _counted(
    metric: ComparedMetric, runs: Sequence[EvaluatedRun], groups: Sequence[Sequence[int]]
) -> Sequence[Sequence[int]]:
    """Return the runs of each group that count for a figure: of training those that were validated alike."""
    return [validated_alike(group, runs)[0] for group in groups] if metric.evaluation == TRAINING else groups


def _two_sets(
    metric: ComparedMetric, runs: Sequence[EvaluatedRun], first: Sequence[int], other: Sequence[int]
) -> _TwoSets:
    known = [_values(metric, group) for group in (first, other)]
    pairs = pair_by_seed(runs, [[*own] for own in known])
    before, after = ([own[index] for index in order] for own, order in zip(known, pairs or known))
    two = _TwoSets(first=before, other=after, paired=pairs is not None)
    # Where all pairs differ by the same, as shares of few questions do, nothing is known of how they vary.
    return two if not two.paired or _pooled_std([two.differences], before) else replace(two, paired=False)


def _values(metric: ComparedMetric, group: Sequence[int]) -> dict[int, float]:
    """Return the figure of each run of a group that has it, by the index of the run."""
    return {index: row.value for index in group if (row := metric.rows[index]) is not None and row.value is not None}


def _seed_difference(
    metric: ComparedMetric, runs: Sequence[EvaluatedRun], two: _TwoSets, first: Sequence[int], other: Sequence[int]
) -> Difference | None:
    if not two.first or not two.other or not metric_of(metric.metric).direction:
        return None
    difference = Difference(difference=two.difference)
    # A seed at which a recipe fails is part of what it does: means over the others would flatter it.
    failed = [runs[i].label for i in (*first, *other) if (row := metric.rows[i]) is not None and row.value is None]
    if failed:
        return replace(difference, verdict=f"no verdict: {', '.join(failed)} has no value")
    single = [
        group_label([runs[index] for index in group])
        for group, values in ((first, two.first), (other, two.other))
        if len(values) < 2
    ]
    if single:
        return replace(difference, verdict=f"one seed of {' and of '.join(single)} is no spread: no verdict")
    p, interval = two.test()
    return replace(difference, interval=interval, p_value=p)
