"""Questions as the model reads them: whole where its positions reach, else without their beginning.

A question longer than the context that a model was trained with is still read, as far as the rotary tables reach
(nanochat, 2025-11, and CORE here). What is longer than that loses its beginning, never its end: there stand the choices
and what is asked. Both are recorded a question, counted, and said.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_pl.engine import Completion

__all__ = ["ANSWER_ROOM_TOKENS", "Prompt", "by_room", "generate_greedily", "render_prompts", "say_lengths"]

log = logging.getLogger(__name__)

ANSWER_ROOM_TOKENS = 32
"""Kept free for an answer whatever the length of its question (or `max_new_tokens`, if fewer)."""


@dataclass(frozen=True)
class Prompt:
    """One question up to and including `<|assistant_start|>`."""

    ids: list[int]
    cut: bool
    """It lost its beginning."""


def render_prompts(
    tokenizer: Any,
    questions: Sequence[Mapping[str, Any]],
    *,
    context_tokens: int,
    max_new_tokens: int,
    max_prompt_tokens: int | None = None,
) -> list[Prompt]:
    """Render each conversation without its last (the assistant's) message.

    Args:
        tokenizer: The tokenizer of the model.
        questions: Conversations.
        context_tokens: Positions that question and answer may take: the model's `rotary_rows`, or fewer.
        max_new_tokens: Most tokens of an answer.
        max_prompt_tokens: A longer prompt is cut, as is one that leaves less than `ANSWER_ROOM_TOKENS`; None = only the
            latter.

    Raises:
        ValueError: The limits leave no prompt.
    """
    limit = context_tokens - min(max_new_tokens, ANSWER_ROOM_TOKENS)
    if max_prompt_tokens is not None:
        limit = min(limit, max_prompt_tokens)
    if limit < 4 or max_new_tokens < 1:
        raise ValueError(
            f"eval.max_new_tokens={max_new_tokens} and eval.max_prompt_tokens={max_prompt_tokens} leave no room for a "
            f"question in the model's context of {context_tokens} tokens; evaluate a model of a longer "
            "model.sequence_len, or change these two"
        )
    user_start = tokenizer.special_id("<|user_start|>")
    prompts = []
    for question in questions:
        ids = list(tokenizer.render_for_completion(question, max_tokens=2**31))
        prompts.append(Prompt(_without_beginning(ids, user_start, limit), cut=len(ids) > limit))
    return prompts


def _without_beginning(ids: list[int], user_start: int, limit: int) -> list[int]:
    """Drop the oldest turns, then the beginning of the last one that the user has, until at most `limit` ids remain."""
    if len(ids) <= limit:
        return ids
    bos = ids[:1]
    turns = [place for place, token in enumerate(ids) if token == user_start]
    kept = next((ids[place:] for place in turns if len(ids) - place < limit), None)
    if kept is not None:
        return [*bos, *kept]
    return [*bos, user_start, *ids[len(ids) - (limit - 2) :]]


def by_room(lengths: Sequence[int], sequence_len: int, batch_size: int) -> Iterator[tuple[list[int], int]]:
    """Share rows out by what they take: yield the numbers of some, and how many of them to generate at once.

    Args:
        lengths: Tokens of each row, prompt and answer.
        sequence_len: The model's context. A row beyond it takes the memory of several, so that fewer run at once.
        batch_size: Most rows at once.
    """
    within = [row for row, length in enumerate(lengths) if length <= sequence_len]
    beyond = [row for row, length in enumerate(lengths) if length > sequence_len]
    if within:
        yield within, batch_size
    if beyond:
        yield beyond, max(1, batch_size * sequence_len // max(lengths))


def generate_greedily(
    engine: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int, seed: int
) -> list[Completion]:
    """Continue every prompt with the likeliest tokens; long ones fewer at once."""
    answered: dict[int, Completion] = {}
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    for rows, at_once in by_room(lengths, engine.model.config.sequence_len, batch_size):
        some = [prompts[row] for row in rows]
        found = engine.generate(some, max_new_tokens, temperature=0.0, seed=seed, batch_size=at_once)
        answered.update(zip(rows, found, strict=True))
    return [answered[row] for row in range(len(prompts))]


def say_lengths(task: str, records: Iterable[Mapping[str, Any]], sequence_len: int) -> None:
    """Log how many questions are longer than the model's context, and how many of them lost their beginning."""
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
