"""CORE: how much a base model knows and can do, over 22 tasks, each scaled so that guessing is 0 and all right is 1.

A base model cannot be asked. It reads solved examples and a question, and what counts is which of the given endings
has the least loss per token (multiple choice), after which of two beginnings an ending has the least loss (schema), or
whether the model would have written the ending itself, greedily (language modelling). The rules are nanochat's
(2025-11), to the token; `core_tasks.py` holds the prompts and `core_scoring.py` the computation.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch.distributed as dist

from nanochat_pl.eval.answer_bpb import AnswerFields, answer_rows, mean_over_tasks
from nanochat_pl.eval.answer_scoring import answer_fields, num_bytes, warn_of_unmeasured
from nanochat_pl.eval.ask import Progress, Question, QuestionLoop
from nanochat_pl.eval.core_scoring import LineEncoder, Row, RowScore, common_prefix, score_items
from nanochat_pl.eval.core_tasks import CorePrompts, CoreTask, TaskType, make_prompts
from nanochat_pl.eval.results import PROMPT_TAIL_CHARS, Evaluation, ExampleLog, MetricRow, proportion_row
from nanochat_pl.eval.stats import Interval, weighted_sum_interval
from nanochat_pl.model.gpt import GPT
from nanochat_pl.runtime import gather
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["CoreRecord", "core_csv", "evaluate_core", "make_rows", "summarize_core"]


class CoreRecord(TypedDict):
    """One answered question, a line of `examples.jsonl`. (The log adds `config`, `answer_bpb` its `AnswerFields`.)"""

    id: str
    """`<task>/<index>`, where the index counts in the order asked."""
    task: str
    type: TaskType
    prompt: str
    """The end of what precedes the choices or the continuation; for a schema, the ending that its choices share."""
    choices: list[str]
    """Empty for language modelling."""
    expected: str
    output: str
    """The choice picked; for language modelling the most likely tokens in the continuation's place."""
    picked: int | None
    """Index of the choice."""
    losses: list[float | None]
    """Mean loss of each choice, or of the continuation, nats per token; None where a choice has no token of its own."""
    correct: bool
    prompt_tokens: int
    """Length of the longest row, including what is scored."""
    num_fewshot: int
    """Solved examples in front of the question."""
    cropped: int
    """Tokens that the longest row lost at its beginning."""


def evaluate_core(
    model: GPT,
    tokenizer: Tokenizer,
    tasks: Sequence[CoreTask],
    *,
    max_per_task: int | None = None,
    max_batch_tokens: int | None = None,
    answer_bpb: bool = True,
    rank: int = 0,
    world_size: int = 1,
    log: ExampleLog | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask every question of the tasks; return records (`CoreRecord`) and metrics (`summarize_core`).

    A prompt may be up to ten times as long as the context (all positions the model knows), as in nanochat; a longer one
    loses its beginning, which is counted.

    Args:
        model: Its weights are only read, so it may be the one in training.
        tasks: From `core_tasks.load_bundle`; the metric is the mean over those given.
        max_per_task: Ask this many questions of each task, chosen by a fixed shuffle. They are also the pool of
            few-shot examples, so that scores of different `max_per_task` are not comparable. None = all.
        max_batch_tokens: As in `core_scoring.score_items`.
        answer_bpb: Also measure whole answers (`answer_bpb.py`), from the same forwards. The accuracy's rows are scored
            only where choices differ.
        rank: Which share of each task this process answers.
        world_size: Number of processes; beyond 1 all must call, in a process group, and all get all records.
        log: Answers that this process gave already, and where to put new ones. Its configuration must hold
            `max_per_task` and each task's `fingerprint()`. None = memory only.

    Raises:
        ValueError: No tasks, two of one label, a share that does not exist, or broken weights.
    """
    started = time.perf_counter()
    log = log or ExampleLog()
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} of world_size={world_size} does not exist; expected 0 to {world_size - 1}")
    if world_size > 1 and not dist.is_initialized():
        raise ValueError(f"world_size={world_size} needs a process group to share results in; call it from the trainer")
    by_label = {task.label: task for task in tasks}
    if not tasks or len(by_label) < len(tasks):
        raise ValueError(
            f"CORE needs one task or more, each of its own label, got {[task.label for task in tasks]}; "
            "check the list of tasks and the bundle's core.yaml"
        )
    samples = {task.label: task.sample(max_per_task) for task in tasks}
    questions = [
        {"id": f"{label}/{index}", "task": label, "index": index}
        for label, sample in samples.items()
        for index in range(rank, len(sample), world_size)
    ]
    encoder, last_label, limit = LineEncoder(tokenizer), "", model.config.rotary_rows

    def answer(chunk: Sequence[Question]) -> list[dict[str, Any]]:
        nonlocal last_label
        rendered = []
        for question in chunk:
            task, sample = by_label[question["task"]], samples[question["task"]]
            if task.label != last_label:  # no other task has its lines
                encoder.forget()
                last_label = task.label
            prompts = make_prompts(task, sample, question["index"])
            rows = make_rows(task.type, encoder.encode(prompts.texts))
            begins = _answer_begins(encoder, prompts, rows) if answer_bpb else None
            rendered.append(_CoreQuestion(question["id"], task, sample[question["index"]], prompts, rows, begins))
        items = [[_cropped(row, limit) for row in question.read] for question in rendered]
        scores = score_items(model, items, max_batch_tokens)
        return [_judge(question, score, limit, tokenizer) for question, score in zip(rendered, scores, strict=True)]

    # A rank may have no question of its own: there are fewer than ranks.
    records = QuestionLoop(questions, log, progress).run(answer) if questions else []
    num_answered = log.num_appended
    if world_size > 1:
        shares = gather((records, num_answered))
        by_id = {record["id"]: record for share, _ in shares for record in share}
        records = [by_id[f"{label}/{index}"] for label, sample in samples.items() for index in range(len(sample))]
        num_answered = sum(number for _, number in shares)
    for task in tasks:
        warn_of_unmeasured(task.label, [record for record in records if record["task"] == task.label])
    return Evaluation(
        records=records,
        rows=summarize_core(records, tasks),
        seconds=time.perf_counter() - started,
        num_answered=num_answered,
    )


def make_rows(kind: TaskType, ids: Sequence[Sequence[int]]) -> list[Row]:
    """Find what is scored: where choices begin to differ, where contexts cease to, or where the continuation begins.

    `ids` are those of each text of `CorePrompts`. Differs: nanochat stops at a continuation whose first token also
    takes in the context's end; here that token is the first one scored.
    """
    if kind == "multiple_choice":
        start = common_prefix(ids)
        return [Row(row, start) for row in ids]
    if kind == "schema":
        shared = common_prefix([row[::-1] for row in ids])
        return [Row(row, max(1, len(row) - shared)) for row in ids]
    return [Row(ids[1], common_prefix(ids))]


def summarize_core(records: Sequence[Mapping[str, Any]], tasks: Sequence[CoreTask]) -> list[MetricRow]:
    """Return all metrics of the records of all `tasks`.

    Each task has `accuracy`, `centered` ((a - c) / (1 - c) of accuracy a and chance c), `prompt_cropped_rate`, and the
    means `num_fewshot` and `prompt_tokens`; where answers were measured, also the rows of `answer_bpb.answer_rows`. The
    last row is `core_metric` of the task `CORE`: the mean of `centered`, with an interval computed from those of the
    tasks. Before it come the means over tasks of `answer_bpb` and `answer_margin`, which bear its name as well.

    Raises:
        ValueError: A task without records.
    """
    rows: list[MetricRow] = []
    parts = []
    for task in tasks:
        own = [record for record in records if record["task"] == task.label]
        if not own:
            raise ValueError(f"there are no records of {task.label} to summarize")
        baseline, chance = {"chance": task.baseline}, task.baseline
        accuracy = proportion_row(task.label, "accuracy", [r["correct"] for r in own], baseline=baseline)
        assert accuracy.value is not None and accuracy.interval is not None
        n, around = len(own), accuracy.interval
        centered = _centered(accuracy.value, chance)
        bounds = Interval(_centered(around.low, chance), _centered(around.high, chance), around.level)
        parts.append((1 / len(tasks), centered, bounds))
        rows += [
            accuracy,
            MetricRow(
                task=task.label, metric="centered", value=centered, n=n, interval=bounds, baseline={"chance": 0.0}
            ),
            proportion_row(task.label, "prompt_cropped_rate", [r["cropped"] > 0 for r in own]),
            *(
                MetricRow(task=task.label, metric=key, value=sum(r[key] for r in own) / n, n=n)
                for key in ("num_fewshot", "prompt_tokens")
            ),
            *answer_rows(own, task.label),
        ]
    return [
        *rows,
        *mean_over_tasks(rows, "CORE", "answer_bpb"),
        *mean_over_tasks(rows, "CORE", "answer_margin"),
        MetricRow(
            task="CORE",
            metric="core_metric",
            value=sum(weight * value for weight, value, _ in parts),
            n=len(records),
            interval=weighted_sum_interval(parts),
            baseline={"chance": 0.0},
        ),
    ]


def core_csv(rows: Sequence[MetricRow]) -> str:
    """Return the table that nanochat writes: columns Task, Accuracy, Centered, a line for each task, and last CORE."""
    found = {(row.task, row.metric): row.value for row in rows}
    lines = [("Task", "Accuracy", "Centered")]
    lines += [
        (task, f"{value:.6f}", f"{found[task, 'centered']:.6f}")
        for (task, metric), value in found.items()
        if metric == "accuracy"
    ]
    lines.append(("CORE", "", f"{found['CORE', 'core_metric']:.6f}"))
    return "".join(f"{task:<35}, {accuracy:<10}, {centered:<10}\n" for task, accuracy, centered in lines)


def _centered(accuracy: float, chance: float) -> float:
    return (accuracy - chance) / (1 - chance)


def _cropped(row: Row, limit: int) -> Row:
    """Keep the last `limit` tokens."""
    lost = max(0, len(row.ids) - limit)
    return Row(row.ids[lost:], max(1, row.start - lost)) if lost else row


def _answer_begins(encoder: LineEncoder, prompts: CorePrompts, rows: Sequence[Row]) -> list[int]:
    """Return the place in each row of the first token of the answer: the first that is not of what is given.

    A token that takes in the end of what is given belongs to the answer, as it does to a continuation (`make_rows`).
    """
    texts = list(dict.fromkeys(prompts.given))
    ids = dict(zip(texts, encoder.encode(texts), strict=True))
    return [common_prefix([ids[given], row.ids]) for given, row in zip(prompts.given, rows, strict=True)]


@dataclass(frozen=True)
class _CoreQuestion:
    id: str
    task: CoreTask
    example: Mapping[str, Any]
    prompts: CorePrompts
    rows: list[Row]
    """What decides about right and wrong."""
    begins: list[int] | None
    """Where the answer begins in each row; None = answers are not measured."""

    @property
    def read(self) -> list[Row]:
        """The rows, scored from the first token on that anything asks for."""
        if self.begins is None:
            return self.rows
        return [Row(row.ids, min(row.start, begin)) for row, begin in zip(self.rows, self.begins, strict=True)]


def _last(score: RowScore, count: int) -> RowScore:
    """Return the scores of the last `count` tokens."""
    begin = len(score.losses) - count
    return RowScore(score.losses[begin:], score.predictions[begin:])


def _answers(question: _CoreQuestion, scores: Sequence[RowScore], limit: int) -> AnswerFields | dict[str, Any]:
    """Return the fields of the answers; those that lost their beginning are not measured."""
    if question.begins is None:
        return {}
    bits: list[float | None] = []
    for row, begin, score in zip(question.rows, question.begins, scores, strict=True):
        whole = begin > len(row.ids) - limit
        bits.append(sum(_last(score, len(row.ids) - begin).losses) / math.log(2) if whole else None)
    texts = question.prompts.texts[-len(bits) :]
    sizes = [num_bytes(text[len(given) :]) for text, given in zip(texts, question.prompts.given, strict=True)]
    bits = [found if size else None for found, size in zip(bits, sizes)]
    return answer_fields(bits, sizes, question.example.get("gold", 0))


def _judge(question: _CoreQuestion, scores: Sequence[RowScore], limit: int, tokenizer: Tokenizer) -> dict[str, Any]:
    task, example, rows = question.task, question.example, question.rows
    answers = _answers(question, scores, limit)
    scores = [_last(score, len(row.ids) - max(row.start, len(row.ids) - limit + 1)) for row, score in zip(rows, scores)]
    losses = [score.mean_loss for score in scores]
    choices: list[str] = []
    picked: int | None = None
    prompt = question.prompts.texts[0]
    if task.type == "language_modeling":
        wrote = scores[0].predictions
        expected, output = example["continuation"], tokenizer.decode(wrote)
        correct = wrote == list(rows[0].ids[-len(wrote) :])
    else:
        # The first of the lowest. Differs: a choice without a token of its own cannot win; in nanochat its NaN does,
        # if it comes first.
        surprise = [math.inf if loss is None else loss for loss in losses]
        picked = surprise.index(min(surprise))
        choices = list(example["choices" if task.type == "multiple_choice" else "context_options"])
        prompt = prompt.removesuffix(choices[0]) if task.type == "multiple_choice" else example["continuation"]
        expected, output, correct = choices[example["gold"]], choices[picked], picked == example["gold"]
    longest = max(len(row.ids) for row in rows)
    record = CoreRecord(
        id=question.id,
        task=task.label,
        type=task.type,
        prompt=prompt[-PROMPT_TAIL_CHARS:],
        choices=choices,
        expected=expected,
        output=output,
        picked=picked,
        losses=losses,
        correct=correct,
        prompt_tokens=min(longest, limit),
        num_fewshot=question.prompts.num_fewshot,
        cropped=max(0, longest - limit),
    )
    return {**record, **answers}
