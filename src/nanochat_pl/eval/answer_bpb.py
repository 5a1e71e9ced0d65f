"""Answer-BPB: bits that a model needs for each byte of the reference answer, given the question.

Where accuracy is still chance this moves: a model that knows a little more finds the right answer a little likelier
long before it would give it. With choices the wrong ones are measured as well, and the margin by which the right one
is cheaper. A record of an answered question keeps its own bits and bytes (`AnswerFields`), so that two checkpoints are
compared question by question. `answer_scoring.py` computes them; here they become figures.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from nanochat_pl.eval.results import MetricRow, mean_row
from nanochat_pl.eval.stats import weighted_sum_interval

__all__ = ["AnswerFields", "answer_rows", "answer_scores", "mean_over_tasks"]


class AnswerFields(TypedDict):
    """What a record holds of its answers where they were measured."""

    answer_bits: float | None
    """-log2 p(answer | question); None = not measured, as the answer is empty or leaves no room for a question."""
    answer_bytes: int
    """UTF-8 bytes of the answer."""
    wrong_bits: list[float | None]
    """The same of each wrong choice; empty where there are none."""
    wrong_bytes: list[int]


def answer_scores(records: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return `id`, `score` and `weight` of each question that has a score; the figure is their weighted mean.

    `answer_bpb` and `wrong_bpb` are all bits over all bytes: the mean over questions weighted by bytes. A mean that
    weighs questions alike would hang on answers of a single byte. `answer_margin` of a question is the mean of the
    bits per byte of its wrong choices minus that of the answer, and questions weigh alike. Over several tasks, tasks
    weigh alike. Questions that were not measured, and all before this measure existed, have no score.

    Raises:
        KeyError: The metric is none of these three.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for record in records:
        if (pair := _score(record, metric)) is not None:
            found.append((str(record.get("task") or ""), {"id": record["id"], "score": pair[0], "weight": pair[1]}))
    of_task: dict[str, float] = {}
    for task, entry in found:
        of_task[task] = of_task.get(task, 0.0) + entry["weight"]
    if len(of_task) > 1:
        return [{**entry, "weight": entry["weight"] / of_task[task]} for task, entry in found]
    return [entry for _, entry in found]


def _score(record: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    """Return score and weight of one question, or None."""
    gold, size = record.get("answer_bits"), record.get("answer_bytes")
    wrong = [
        (bits, n) for bits, n in zip(record.get("wrong_bits", ()), record.get("wrong_bytes", ())) if bits is not None
    ]
    match metric:
        case "answer_bpb":
            return None if gold is None or not size else (gold / size, size)
        case "wrong_bpb":
            total = sum(n for _, n in wrong)
            return (sum(bits for bits, _ in wrong) / total, total) if wrong else None
        case "answer_margin":
            if gold is None or not size or not wrong:
                return None
            return sum(bits / n for bits, n in wrong) / len(wrong) - gold / size, 1
    raise KeyError(metric)


def answer_rows(records: Sequence[Mapping[str, Any]], task: str, seed: int = 0) -> list[MetricRow]:
    """Return the rows `answer_bpb` and, where there are wrong choices, `wrong_bpb` and `answer_margin` of one task.

    `n` counts the questions measured. Records without these fields give no rows.
    """
    if not any("answer_bits" in record for record in records):
        return []

    def row(metric: str) -> MetricRow:
        scores = answer_scores(records, metric)
        weights = [entry["weight"] for entry in scores]
        alike = len(set(weights)) <= 1
        return mean_row(task, metric, [s["score"] for s in scores], weights=None if alike else weights, seed=seed)

    with_choices = any(record.get("wrong_bits") for record in records)
    return [row("answer_bpb"), *([row("wrong_bpb"), row("answer_margin")] if with_choices else [])]


def mean_over_tasks(rows: Sequence[MetricRow], task: str, metric: str) -> list[MetricRow]:
    """Return the row of the mean of a metric over the tasks that have it, named `task`; none where no task has it.

    The interval is composed of those of the tasks, and None where one of them has none.
    """
    own = [row for row in rows if row.metric == metric and row.value is not None and row.group is None]
    if not own:
        return []
    parts = [(1 / len(own), row.value, row.interval) for row in own]
    known = [(weight, value, around) for weight, value, around in parts if value is not None and around is not None]
    return [
        MetricRow(
            task=task,
            metric=metric,
            value=sum(weight * (value or 0.0) for weight, value, _ in parts),
            n=sum(row.n for row in own),
            interval=weighted_sum_interval(known) if len(known) == len(parts) else None,
        )
    ]
