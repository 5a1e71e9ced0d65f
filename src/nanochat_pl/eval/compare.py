"""Is one checkpoint better than another, or is the difference chance?

Two accuracies whose intervals overlap may still differ, and two that look different may not: the questions that one of
the two answered better decide. Both must have been asked the same questions.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanochat_pl.eval.answer_bpb import answer_scores
from nanochat_pl.eval.metrics import metric_of
from nanochat_pl.eval.results import MetricRow, weighted_mean
from nanochat_pl.eval.stats import (
    Interval,
    mcnemar_exact,
    p_text,
    paired_bootstrap,
    paired_interval,
    sign_flip_test,
)
from nanochat_pl.tasks.answers import pass_at_k

__all__ = ["Comparison", "compare", "scores_behind", "verdict", "verdict_of_intervals"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two checkpoints on the same questions; differences are second minus first."""

    first: str
    second: str
    measure: str
    """The field of the records that was compared."""
    n: int
    mean_first: float
    """Share of right answers, or mean of the scores."""
    mean_second: float
    difference: float
    interval: Interval | None
    """The interval of the difference: `stats.paired_interval` of shares, else `stats.paired_bootstrap`; None of other
    scores where all differ by the same, or there is one only: that does not say how others would."""
    only_first: int
    """Number of questions that only the first got right, or answered better."""
    only_second: int
    p_value: float
    """Two-sided: McNemar's exact test where answers are right or wrong, else the sign-flip test of the scores."""
    verdict: str


def compare(
    records_first: Sequence[Mapping[str, Any]],
    records_second: Sequence[Mapping[str, Any]],
    *,
    first: str = "first",
    second: str = "second",
    measure: str = "correct",
    share: bool = True,
    direction: Literal[-1, 1] = 1,
    alpha: float = 0.05,
    seed: int = 0,
) -> Comparison:
    """Compare two checkpoints question by question; their records may be in any order and are matched by `id`.

    Where records have a `weight`, the means are weighted by it; it is the same of a question in both.

    Args:
        first: Name of the first checkpoint in the verdict.
        second: Name of the second.
        measure: A field of the records: true or false, such as `correct`, or `likely_correct` for the likelihood of
            letters; or a score, such as `scores_behind` returns.
        share: The scores are shares, from 0 to 1, whose differences are points.
        direction: 1 = a higher score is better, -1 = a lower one.
        alpha: The verdict names a winner where p < alpha.

    Raises:
        ValueError: The two did not answer the same questions, or none, or a question weighs differently in the two.
    """
    scores_first = {record["id"]: float(record[measure]) for record in records_first}
    scores_second = {record["id"]: float(record[measure]) for record in records_second}
    if scores_first.keys() != scores_second.keys() or not scores_first:
        raise ValueError(
            f"{first} answered {len(scores_first)} questions, {second} {len(scores_second)}, "
            f"{len(scores_first.keys() & scores_second.keys())} in common: a comparison needs the same "
            "questions; evaluate both with the same task, split and row limit"
        )
    weight_first, weight_second = (
        {record["id"]: record.get("weight", 1) for record in records} for records in (records_first, records_second)
    )
    if weight_first != weight_second:
        raise ValueError(
            f"{first} and {second} give the same questions other weights: answers of other lengths have been measured; "
            "evaluate both anew"
        )
    before = list(scores_first.values())
    after = [scores_second[key] for key in scores_first]
    weights = [float(weight_first[key]) for key in scores_first]
    n = len(before)
    only_first = sum(direction * (a - b) > 0 for a, b in zip(before, after))
    only_second = sum(direction * (b - a) > 0 for a, b in zip(before, after))
    share = share and all(0 <= score <= 1 for score in (*before, *after))
    if share and {*before, *after} <= {0.0, 1.0}:
        p_value = mcnemar_exact(only_first, only_second)
    else:
        # What adds up to the difference of the means is weight times score: it could as well have the other sign.
        weighted_before, weighted_after = (
            [w * score for w, score in zip(weights, scores)] for scores in (before, after)
        )
        p_value = sign_flip_test(weighted_before, weighted_after, seed=seed)
    mean_first, mean_second = weighted_mean(before, weights), weighted_mean(after, weights)
    interval = None
    if share:
        interval = paired_interval(before, after, seed=seed)
    elif len({b - a for a, b in zip(before, after)}) > 1:
        interval = paired_bootstrap(before, after, seed=seed, weights=weights)
    return Comparison(
        first=first,
        second=second,
        measure=measure,
        n=n,
        mean_first=mean_first,
        mean_second=mean_second,
        difference=mean_second - mean_first,
        interval=interval,
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
        verdict=verdict(first, second, direction * (mean_second - mean_first), p_value, n, share=share, alpha=alpha),
    )


def verdict(
    first: str,
    second: str,
    difference: float,
    p_value: float,
    n: int | str,
    *,
    share: bool,
    rows: tuple[MetricRow | None, MetricRow | None] = (None, None),
    num_tests: int = 1,
    alpha: float = 0.05,
) -> str:
    """Return the one sentence of evaluate, compare and report: which of two is better on the same questions.

    Args:
        difference: By how much the second is better: its value minus that of the first, or reversed where lower is
            better.
        p_value: Tests the hypothesis that they are equally good; corrected where there are several tests.
        n: The number of questions, or what else was compared.
        share: The metric is a share, whose differences are points.
        rows: The metric of the first and the second, where known: even the better one may not be above chance.
        num_tests: The number of tests that `p_value` was corrected for (Holm).
        alpha: One is called better where `p_value` is below.
    """
    test = p_text(p_value, alpha) + (f", Holm over {num_tests} tests" if num_tests > 1 else "")
    if p_value >= alpha:
        return f"not distinguishable ({test}, n = {n})"
    better, worse, row = (second, first, rows[1]) if difference > 0 else (first, second, rows[0])
    unit = metric_of(row.metric).unit if row is not None else None
    by = f"{100 * abs(difference):.1f} points" if share else f"{abs(difference):.4f} {unit or ''}".rstrip()
    return f"{better} is better than {worse} by {by} ({test}, n = {n}){_no_better_than_chance(row)}"


def verdict_of_intervals(first: str, label: str, before: Interval, after: Interval, sign: int) -> str:
    """Return the sentence for two values of which only intervals are known: one is better where these do not overlap.

    `first` and `before` are name and interval of the reference, `label` and `after` those of the other; `sign` is 1
    where higher is better, -1 where lower is.
    """
    if before.high >= after.low and after.high >= before.low:
        return "not distinguishable (intervals overlap; unpaired)"
    better = (after.low > before.high) == (sign > 0)
    winner, loser = (label, first) if better else (first, label)
    return f"{winner} is better than {loser} (intervals do not overlap; unpaired)"


def _no_better_than_chance(row: MetricRow | None) -> str:
    """Return what is added to a verdict where even the better of two is not above chance."""
    chance = row.baseline.get("chance") if row is not None and row.baseline else None
    guessed = isinstance(chance, float) and row is not None and row.interval is not None and row.interval.low <= chance
    return ", but not than chance" if guessed else ""


def scores_behind(row: MetricRow, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the score of each question that a metric is the mean of, as `id` and `score`.

    This works for shares of right answers, for pass@k, whose score is the unbiased estimate for the one question, and
    for the figures of `answer_bpb`, whose scores also have a `weight`. The list is empty where the metric is of another
    kind, or not taken over these records.
    """
    try:
        if metric_of(row.metric).unit == "bits per byte":
            scores = answer_scores(records, row.metric)
        else:
            scores = [{"id": record["id"], "score": _score(row, record)} for record in records]
    except (KeyError, ValueError):  # records of another kind, or of too few samples
        return []
    if row.value is None or len(scores) != row.n:
        return []
    # The value itself must come out of the answers, or they are not the ones it was taken over.
    weights = [entry.get("weight", 1) for entry in scores]
    mean = weighted_mean([entry["score"] for entry in scores], weights)
    return scores if math.isclose(mean, row.value, rel_tol=1e-9, abs_tol=1e-12) else []


def _score(row: MetricRow, record: Mapping[str, Any]) -> float:
    """Score one record in the way that the metric's name says; KeyError or ValueError where that is impossible."""
    if k := re.fullmatch(r"pass@(\d+)", row.metric):
        return pass_at_k(record["num_samples"], record["num_right"], int(k[1]))
    if row.count is None:
        raise KeyError(row.metric)
    match row.metric.rpartition("/")[0]:
        case "" | "strict":
            return float(record["correct"])
        case "loglikelihood":
            return float(record["likely_correct"])
        case "letter_regex":
            return float(record["regex_letter"] == record["expected"])
    raise KeyError(row.metric)
