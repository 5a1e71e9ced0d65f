"""ChatCORE: one figure for a chat model, over the tasks of `chat.py`, each scaled so that guessing is 0.

(nanochat, 2025-11)
"""

from collections.abc import Mapping

from nanochat_pl.eval.results import MetricRow
from nanochat_pl.eval.stats import Interval, weighted_sum_interval

__all__ = ["CHATCORE_BASELINES", "CHATCORE_METRIC", "chatcore"]

CHATCORE_METRIC = "chatcore_metric"

CHATCORE_BASELINES = {
    "ARC-Easy": 0.25,
    "ARC-Challenge": 0.25,
    "MMLU": 0.25,
    "GSM8K": 0.0,
    "HumanEval": 0.0,
    "SpellingBee": 0.0,
}
"""The tasks of ChatCORE and what guessing scores in each (nanochat, 2025-11)."""


def chatcore(results: Mapping[str, MetricRow]) -> MetricRow:
    """Draw the tasks of ChatCORE together: the mean of (score - base) / (1 - base), 0 = guessing, 1 = all right.

    Over all six tasks of `CHATCORE_BASELINES` its task is `ChatCORE`; over the five without SpellingBee, as nanochat
    counts since 2026-07, `ChatCORE-5`: the two are not comparable. `baseline` names the tasks taken, with their bases.
    The interval recovers the tasks' variances from their own intervals (Zou and Donner, 2008), questions and tasks
    taken as independent; None if a task has none.

    Args:
        results: The score of each task by its name in `CHATCORE_BASELINES`; other tasks are not looked at.

    Raises:
        ValueError: One of the five is missing, or has no value.
    """
    bases = {name: base for name, base in CHATCORE_BASELINES.items() if name in results}
    without = [name for name in CHATCORE_BASELINES if name != "SpellingBee" and name not in bases]
    rows = {name: results[name] for name in bases}
    values = {name: row.value for name, row in rows.items() if row.value is not None}
    without += [name for name in bases if name not in values]
    if without:
        raise ValueError(
            f"ChatCORE needs a score of {', '.join(without)}: it is the mean over all of its tasks; evaluate them too"
        )
    value = sum((values[name] - base) / (1 - base) for name, base in bases.items()) / len(bases)
    intervals = {name: row.interval for name, row in rows.items() if row.interval is not None}
    interval = None
    if len(intervals) == len(bases):
        parts = [(1 / (1 - base) / len(bases), values[name], intervals[name]) for name, base in bases.items()]
        around = weighted_sum_interval(parts)
        offset = value - sum(weight * score for weight, score, _ in parts)
        interval = Interval(around.low + offset, around.high + offset, around.level)
    return MetricRow(
        task="ChatCORE" if len(bases) == len(CHATCORE_BASELINES) else f"ChatCORE-{len(bases)}",
        metric=CHATCORE_METRIC,
        value=value,
        n=sum(row.n for row in rows.values()),
        interval=interval,
        baseline=bases,
    )
