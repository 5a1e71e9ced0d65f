"""The loop of every evaluation that asks questions: render, answer, judge, log, and resume after an interruption.

`QuestionLoop` answers what the log has no record of, a chunk at a time. All evaluations of conversations also share
`render_prompts` and generation in batches.

A question longer than the context that a model was trained with is still read, as far as the rotary tables reach
(nanochat, 2025-11, and CORE here). A longer one loses its beginning and never its end, where the choices and the
question are. Each record says so, and the number of such questions is logged.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nanochat_pl.engine import Completion, Engine
from nanochat_pl.eval.results import Evaluation, ExampleLog, MetricRow
from nanochat_pl.tokenizer import Tokenizer

__all__ = [
    "ANSWER_ROOM_TOKENS",
    "CHUNK_ROWS",
    "Answered",
    "Progress",
    "Question",
    "QuestionLoop",
    "RenderedPrompt",
    "answer_greedily",
    "by_room",
    "render_prompts",
    "warn_of_long",
    "without_beginning",
]

log = logging.getLogger(__name__)

Question = Mapping[str, Any]
"""A conversation whose last message is the expected answer, with an `id` and what else its evaluation needs."""
Progress = Callable[[int, int], None]
"""Called with (answered, asked) as an evaluation proceeds."""

CHUNK_ROWS = 256
"""Questions answered between two writes of the log."""
ANSWER_ROOM_TOKENS = 32
"""Tokens kept free for an answer whatever the length of its question (or `max_new_tokens`, if fewer)."""


class QuestionLoop:
    """Questions, the log of their answers, and the time since the loop was made.

    Args:
        questions: Each has an `id` of its own, by which an interrupted evaluation finds its answers again.
        log: Answers already given, and where new ones are put; None = memory only.

    Raises:
        ValueError: No questions, one without an `id`, or two with the same.
    """

    def __init__(
        self,
        questions: Iterable[Question],
        log: ExampleLog | None = None,
        progress: Progress | None = None,
        chunk_rows: int | None = None,
    ) -> None:
        self.questions = list(questions)
        self._started, self._progress = time.perf_counter(), progress
        self._log = ExampleLog() if log is None else log
        self._chunks = self._log.pending(self.questions, chunk_rows or CHUNK_ROWS)

    @property
    def is_done(self) -> bool:
        """Whether the log holds all answers."""
        return not self._chunks

    def run(self, answer: Callable[[Sequence[Question]], Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """Call `answer` with each chunk of open questions, log the records, and return those of all questions."""
        for chunk in self._chunks:
            # On disk before the next chunk begins: what was answered is never asked again.
            self._log.append(list(answer(chunk)))
            if self._progress is not None:
                self._progress(len(self._log.records), len(self.questions))
        return self._log.in_order(self.questions)

    def evaluation(self, records: list[dict[str, Any]], rows: list[MetricRow]) -> Evaluation:
        """Return the outcome, with the time since the loop was made."""
        seconds = time.perf_counter() - self._started
        return Evaluation(records=records, rows=rows, seconds=seconds, num_answered=self._log.num_appended)


@dataclass(frozen=True)
class RenderedPrompt:
    """One question up to and including `<|assistant_start|>`."""

    ids: list[int]
    cut: bool
    """It lost its beginning."""


def render_prompts(
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    context_tokens: int,
    max_new_tokens: int,
    max_prompt_tokens: int | None = None,
) -> list[RenderedPrompt]:
    """Render each conversation without its last (the assistant's) message.

    Args:
        context_tokens: Positions that question and answer may take: the model's `rotary_rows`, or fewer.
        max_prompt_tokens: A longer prompt is cut, as is one that leaves less than `ANSWER_ROOM_TOKENS`; None = only the
            latter.

    Raises:
        ValueError: The limits leave no room for a prompt.
    """
    limit = context_tokens - min(max_new_tokens, ANSWER_ROOM_TOKENS)
    if max_prompt_tokens is not None:
        limit = min(limit, max_prompt_tokens)
    if limit < 4 or max_new_tokens < 1:
        raise ValueError(
            f"eval.max_new_tokens={max_new_tokens} leaves no room for a question in the model's context of "
            f"{context_tokens} tokens; lower it, or evaluate a model of a longer model.sequence_len"
        )
    user_start = tokenizer.special_id("<|user_start|>")
    prompts = []
    for question in questions:
        ids = list(tokenizer.render_for_completion(question, max_tokens=2**31))
        prompts.append(RenderedPrompt(without_beginning(ids, user_start, limit), cut=len(ids) > limit))
    return prompts


def without_beginning(ids: list[int], user_start: int, limit: int) -> list[int]:
    """Drop the oldest turns, then the beginning of the user's last one, until at most `limit` ids remain."""
    if len(ids) <= limit:
        return ids
    bos = ids[:1]
    turns = [index for index, token in enumerate(ids) if token == user_start]
    kept = next((ids[index:] for index in turns if len(ids) - index < limit), None)
    if kept is not None:
        return [*bos, *kept]
    return [*bos, user_start, *ids[len(ids) - (limit - 2) :]]


def by_room(lengths: Sequence[int], sequence_len: int, batch_size: int) -> Iterator[tuple[list[int], int]]:
    """Yield the numbers of the rows within the model's context, then of the longer ones, each with a batch size.

    A row beyond `sequence_len` takes the memory of several, so fewer of them are generated at once. `lengths` count the
    tokens of each row, prompt and answer.
    """
    within = [row for row, length in enumerate(lengths) if length <= sequence_len]
    beyond = [row for row, length in enumerate(lengths) if length > sequence_len]
    if within:
        yield within, batch_size
    if beyond:
        yield beyond, max(1, batch_size * sequence_len // max(lengths))


class Answered(NamedTuple):
    """A question and what the model wrote."""

    question: Question
    prompt: RenderedPrompt
    completion: Completion
    output: str


def answer_greedily(
    tokenizer: Tokenizer,
    engine: Engine,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    max_prompt_tokens: int | None,
    batch_size: int,
    seed: int,
) -> list[Answered]:
    """Let the model answer each question with the likeliest tokens, fewer at once where the questions are long."""
    config = engine.model.config
    prompts = render_prompts(
        tokenizer,
        questions,
        context_tokens=config.rotary_rows,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
    )
    completions: dict[int, Completion] = {}
    lengths = [len(prompt.ids) + max_new_tokens for prompt in prompts]
    for rows, at_once in by_room(lengths, config.sequence_len, batch_size):
        batch = [prompts[row].ids for row in rows]
        found = engine.generate(batch, max_new_tokens, temperature=0.0, seed=seed, batch_size=at_once)
        completions.update(zip(rows, found, strict=True))
    return [
        Answered(question, prompts[row], completions[row], tokenizer.decode(completions[row].tokens))
        for row, question in enumerate(questions)
    ]


def warn_of_long(task: str, records: Iterable[Mapping[str, Any]], sequence_len: int) -> None:
    """Warn how many questions are longer than the model's context, and how many of them lost their beginning."""
    longer = [record for record in records if record["prompt_cut"] or record["prompt_tokens"] > sequence_len]
    if longer:
        cut = sum(record["prompt_cut"] for record in longer)
        log.warning(
            "%s: %d questions are longer than the model's context of %d tokens; %d were read beyond it, %d lost their "
            "beginning",
            task,
            len(longer),
            sequence_len,
            len(longer) - cut,
            cut,
        )
