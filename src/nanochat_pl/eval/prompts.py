"""Questions as the model reads them, cut where they would leave no room for an answer.

An answer must fit behind its prompt into the model's context. Few questions are so long; those are cut at their end,
which can cost them their choices, so each cut is recorded and counted, never silent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ANSWER_ROOM_TOKENS", "Prompt", "render_prompts"]

ANSWER_ROOM_TOKENS = 32
"""Kept free for an answer whatever the length of its question (or `max_new_tokens`, if fewer)."""


@dataclass(frozen=True)
class Prompt:
    """One question up to and including `<|assistant_start|>`."""

    ids: list[int]
    cut: bool
    """It lost its end."""


def render_prompts(
    tokenizer: Any,
    questions: Sequence[Mapping[str, Any]],
    *,
    context_tokens: int,
    max_new_tokens: int,
    max_prompt_tokens: int,
) -> list[Prompt]:
    """Render each conversation without its last (the assistant's) message.

    Args:
        tokenizer: The tokenizer of the model.
        questions: Conversations.
        context_tokens: The model's `sequence_len`.
        max_new_tokens: Most tokens of an answer.
        max_prompt_tokens: A longer prompt is cut, as is one that leaves less than `ANSWER_ROOM_TOKENS`.

    Raises:
        ValueError: The limits leave no prompt.
    """
    limit = min(max_prompt_tokens, context_tokens - min(max_new_tokens, ANSWER_ROOM_TOKENS))
    if limit < 2 or max_new_tokens < 1:
        raise ValueError(
            f"eval.max_new_tokens={max_new_tokens} and eval.max_prompt_tokens={max_prompt_tokens} leave no room for a "
            f"question in the model's context of {context_tokens} tokens; evaluate a model of a longer "
            "model.sequence_len, or change these two"
        )
    user_end = tokenizer.special_id("<|user_end|>")
    prompts = []
    for question in questions:
        # <|assistant_start|> comes on top of max_tokens
        ids = list(tokenizer.render_for_completion(question, max_tokens=limit - 1))
        prompts.append(Prompt(ids, cut=ids[-2] != user_end))
    return prompts
