"""Is one checkpoint better than another, or are these the same figures twice?

Two accuracies whose intervals overlap may still differ, and two that look different may not: what decides is the
questions that only one of the two got right. Both must have been asked the same questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_pl.eval.stats import Interval, mcnemar_exact, paired_bootstrap

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two checkpoints on the same questions; differences are second minus first."""

    first: str
    second: str
    measure: str
    """The field of the records that was compared."""
    n: int
    accuracy_first: float
    accuracy_second: float
    difference: float
    interval: Interval
    """Of the difference, by paired bootstrap."""
    only_first: int
    """Questions only the first got right."""
    only_second: int
    p_value: float
    """McNemar's exact test, two-sided."""
    verdict: str


def compare(
    records_first: Sequence[Mapping[str, Any]],
    records_second: Sequence[Mapping[str, Any]],
    *,
    first: str = "first",
    second: str = "second",
    measure: str = "correct",
    alpha: float = 0.05,
    seed: int = 0,
) -> Comparison:
    """Compare two checkpoints question by question, matched by `id`.

    Args:
        records_first: Records of an evaluation; any order.
        records_second: Records over the same questions.
        first: Name of the first checkpoint in the verdict.
        second: Name of the second.
        measure: A true/false field of the records: `correct`, or `likely_correct` for the likelihood of letters.
        alpha: The verdict names a winner where p < alpha.
        seed: For the bootstrap.

    Raises:
        ValueError: The two did not answer the same questions, or none.
    """
    right_first = {record["id"]: bool(record[measure]) for record in records_first}
    right_second = {record["id"]: bool(record[measure]) for record in records_second}
    if right_first.keys() != right_second.keys() or not right_first:
        raise ValueError(
            f"{first} answered {len(right_first)} questions, {second} {len(right_second)}, "
            f"{len(right_first.keys() & right_second.keys())} in common: a comparison needs the same "
            "questions; evaluate both with the same task, split and row limit"
        )
    before = [right_first[key] for key in right_first]
    after = [right_second[key] for key in right_first]
    n = len(before)
    only_first = sum(a and not b for a, b in zip(before, after))
    only_second = sum(b and not a for a, b in zip(before, after))
    p_value = mcnemar_exact(only_first, only_second)
    difference = (only_second - only_first) / n
    p_text = f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"
    if p_value < alpha:
        better, worse = (second, first) if difference > 0 else (first, second)
        verdict = f"{better} is better than {worse} by {abs(difference):.1%} ({p_text}, n = {n})"
    else:
        verdict = f"not distinguishable ({p_text}, n = {n})"
    return Comparison(
        first=first,
        second=second,
        measure=measure,
        n=n,
        accuracy_first=sum(before) / n,
        accuracy_second=sum(after) / n,
        difference=difference,
        interval=paired_bootstrap(before, after, seed=seed),
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
        verdict=verdict,
    )
