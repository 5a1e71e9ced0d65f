"""A conversation into a context of limited length: what a model is shown of it, and what had to go.

Oldest turns go first, a question together with its answer, so that what is left is still a conversation; the system
message stays. Who speaks with the model is told how much went: `Prompt.dropped`, `Prompt.truncated`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nanochat_pl.tokenizer import Tokenizer

__all__ = ["ContextFull", "Message", "Policy", "Prompt", "fit", "fit_text"]

Message = Mapping[str, Any]
Policy = Literal["drop", "refuse"]


class ContextFull(ValueError):
    """The conversation does not fit into the model's context."""


@dataclass(frozen=True)
class Prompt:
    """What a model reads before it answers."""

    ids: list[int]
    """From `<|bos|>` to `<|assistant_start|>` and the beginning of an answer that is continued, or plain text's."""
    dropped: int = 0
    """Messages that were left out at the front."""
    truncated: bool = False
    """Whether the last message (or the plain text) lost its beginning."""


def fit(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    sequence_len: int,
    max_new_tokens: int,
    policy: Policy = "drop",
) -> Prompt:
    """Lay a conversation out for its next answer so that the answer has room.

    Room is kept for `max_new_tokens`, or for a quarter of the context where that is less.

    Args:
        messages: an optional system message, then user and assistant by turns. Where the last is the assistant's, the
            answer goes on from its end.
        tokenizer: the model's.
        sequence_len: tokens of its context.
        max_new_tokens: the longest answer that is asked for.
        policy: `drop` leaves the oldest turns out, and cuts a last message that does not fit by itself at its front;
            `refuse` raises instead.

    Raises:
        ContextFull: under `refuse` when not all of it fits; under `drop` when the system message alone leaves no room.
        ValueError: for roles or contents that are not as above, naming the message.
    """
    budget = _budget(sequence_len, max_new_tokens, policy)
    ids = _opened(messages, tokenizer)  # also checks every message
    if len(ids) <= budget:
        return Prompt(ids)
    if policy == "refuse":
        raise ContextFull(
            f"the conversation has {len(ids)} tokens; this model's maximum context length is {sequence_len} tokens, "
            f"of which {budget} can be read if an answer is to have room. Shorten it, begin a new one, or let its "
            "oldest turns go (context=drop)"
        )
    system, turns = list(messages[:1]), list(messages[1:])
    if system[0].get("role") != "system":
        system, turns = [], list(messages)
    kept: Prompt | None = None
    last = len(turns) - 1 - (turns[-1]["role"] == "assistant")  # the user's last message
    tail: list[int] = []
    for first in range(last, -1, -2):
        turn, laid_out = turns[first : first + 2], _opened if first == last else _rendered
        ids = [*laid_out([*system, *turn], tokenizer), *tail]
        if len(ids) > budget:
            break
        kept = Prompt(ids, dropped=first)
        tail = [*laid_out(turn, tokenizer)[1:], *tail]
    return kept or _cut(system, turns[last:], last, tokenizer, sequence_len, budget)


def fit_text(
    text: str, tokenizer: Tokenizer, sequence_len: int, max_new_tokens: int, policy: Policy = "drop"
) -> Prompt:
    """Lay plain text out to be continued; as `fit`, but without turns.

    Raises:
        ContextFull: under `refuse` when it does not fit.
    """
    budget = _budget(sequence_len, max_new_tokens, policy)
    ids = tokenizer.encode(text)
    if len(ids) + 1 <= budget:
        return Prompt([tokenizer.bos_id, *ids])
    if policy == "refuse":
        raise ContextFull(
            f"the text has {len(ids) + 1} tokens; this model's maximum context length is {sequence_len} tokens, of "
            f"which {budget} can be read if a continuation is to have room. Shorten it, or let its beginning go "
            "(context=drop)"
        )
    return Prompt([tokenizer.bos_id, *_end(ids, budget - 1, tokenizer)], truncated=True)


def _budget(sequence_len: int, max_new_tokens: int, policy: str) -> int:
    """Return how many tokens a prompt may have."""
    if policy not in get_args(Policy):
        raise ValueError(f"context policy {policy!r} is unknown; choose one of {', '.join(get_args(Policy))}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be 0 or more")
    return sequence_len - min(max_new_tokens, -(-sequence_len // 4))


def _rendered(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    return tokenizer.render_conversation({"messages": list(messages)}, max_tokens=sys.maxsize)[0]


def _opened(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Render a conversation up to where its answer begins or goes on."""
    ids = _rendered(messages, tokenizer)
    if messages[-1]["role"] == "assistant":
        return ids[:-1]  # without <|assistant_end|>
    return [*ids, tokenizer.special_id("<|assistant_start|>")]


def _cut(
    system: Sequence[Message],
    turn: Sequence[Message],
    dropped: int,
    tokenizer: Tokenizer,
    sequence_len: int,
    budget: int,
) -> Prompt:
    """Keep the system message and the end of the last turn: of the user's message, and of an answer to be continued."""
    head = [tokenizer.bos_id, tokenizer.special_id("<|user_start|>")]
    if system:  # as `render_conversation` joins it to the user's first message
        head += tokenizer.encode(f"{system[0]['content']}\n\n")
    close = [tokenizer.special_id("<|user_end|>"), tokenizer.special_id("<|assistant_start|>")]
    room = budget - len(head) - len(close)
    if room < 1:
        raise ContextFull(
            f"the system message alone has {len(head) - 2} tokens; this model's maximum context length is "
            f"{sequence_len} tokens, of which {budget - 4} can be read if an answer is to have room: shorten it"
            if system
            else f"a context with room for {budget} tokens of prompt is too short for any conversation"
        )
    question = tokenizer.encode(turn[0]["content"])
    begun = _opened(turn, tokenizer)[1 + len(question) + len(close) + 1 :]
    begun = _end(begun, room, tokenizer)
    question = _end(question, room - len(begun), tokenizer)
    return Prompt([*head, *question, *close, *begun], dropped=dropped, truncated=True)


def _end(ids: Sequence[int], size: int, tokenizer: Tokenizer) -> list[int]:
    """Return at most the last `size` tokens, beginning with a whole character."""
    start = max(0, len(ids) - size)
    while start and start < len(ids) and tokenizer.decode_bytes([ids[start]])[0] & 0xC0 == 0x80:
        start += 1
    return list(ids[start:])
