"""The tokens that a model reads of a client's conversation, within a context of limited length.

In training a model has seen at most one system message, then turns that begin with the user's. Clients send other
forms too, and OpenAI's API accepts them all, so each of them has one rule (`take_turns`):

- System messages before the first turn become one. A later one becomes a message of the user in its place.
- Neighbouring messages of one role become one message, with an empty line between them. Neighbouring texts of one
  message become one text.
- If the assistant begins, an empty message of the user is put before it.
- If the assistant's message is the last, it is continued.

If the conversation does not fit, `fit` drops the oldest turns first, a question together with its answer, so that a
conversation remains; the system message stays. `FittedPrompt.dropped` and `.truncated` tell how much was dropped.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from nanochat_pl.serve.settings import Policy
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["ContextFull", "FittedPrompt", "Message", "fit", "fit_text", "take_turns"]

Message = Mapping[str, Any]
BETWEEN = "\n\n"
"""Separates joined messages, as `Tokenizer.render_conversation` joins a system message with the user's first."""


class ContextFull(ValueError):
    """The conversation does not fit into the model's context."""


@dataclass(frozen=True)
class FittedPrompt:
    """The tokens that a model reads before it answers."""

    ids: list[int]
    """From `<|bos|>` to `<|assistant_start|>`, or to the end of an answer that is continued; or the ids of a text."""
    dropped: int = 0
    """How many of the first messages were dropped."""
    truncated: bool = False
    """Whether the last message (or the plain text) lost its beginning."""


def take_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation in the form of training: at most one system message, then user and assistant by turns.

    Args:
        messages: one or more, with `role` system, user or assistant; `content` is text, or for an assistant also a
            list of parts.

    Returns:
        New messages; they equal the old ones if these are by turns already.
    """
    system: list[str] = []
    contents: list[tuple[str, list[Any]]] = []  # role -> contents of neighbouring messages
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system" and not contents:
            system.append(content)
            continue
        role = "user" if role == "system" else role
        if not contents or contents[-1][0] != role:
            contents.append((role, []))
        contents[-1][1].append(content)
    turns = [{"role": role, "content": _joined(several)} for role, several in contents]
    if turns and turns[0]["role"] == "assistant":
        turns.insert(0, {"role": "user", "content": ""})
    head = _joined(system)
    if not turns:  # nothing but system messages: they are the question
        return [{"role": "user", "content": head}]
    return [*([{"role": "system", "content": head}] if head else []), *turns]


def fit(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    sequence_len: int,
    max_new_tokens: int,
    policy: Policy = "drop",
) -> FittedPrompt:
    """Render a conversation for its next answer, and leave room for that answer.

    The room is `max_new_tokens`, or a quarter of the context if that is less.

    Args:
        messages: an optional system message, then user and assistant by turns. If the last is the assistant's, the
            answer continues it.
        tokenizer: the model's.
        sequence_len: number of tokens in its context.
        max_new_tokens: the longest answer.
        policy: `drop` drops the oldest turns, and cuts the beginning of a last message that does not fit by itself;
            `refuse` raises instead.

    Raises:
        ContextFull: under `refuse` if not all of it fits; under `drop` if the system message alone leaves no room.
        ValueError: roles or contents are not as above; the error names the message.
    """
    budget = _budget(sequence_len, max_new_tokens, policy)
    ids = _opened(messages, tokenizer)  # also checks every message
    if len(ids) <= budget:
        return FittedPrompt(ids)
    if policy == "refuse":
        raise ContextFull(
            f"the conversation has {len(ids)} tokens; this model's maximum context length is {sequence_len} tokens, "
            f"of which {budget} can be read if an answer is to have room. Shorten it, begin a new one, or let its "
            "oldest turns go (context=drop)"
        )
    system, turns = list(messages[:1]), list(messages[1:])
    if system[0].get("role") != "system":
        system, turns = [], list(messages)
    kept: FittedPrompt | None = None
    last = len(turns) - 1 - (turns[-1]["role"] == "assistant")  # the user's last message
    tail: list[int] = []
    for first in range(last, -1, -2):
        turn, render = turns[first : first + 2], _opened if first == last else _rendered
        ids = [*render([*system, *turn], tokenizer), *tail]
        if len(ids) > budget:
            break
        kept = FittedPrompt(ids, dropped=first)
        tail = [*render(turn, tokenizer)[1:], *tail]
    return kept or _cut(system, turns[last:], last, tokenizer, sequence_len, budget)


def fit_text(
    text: str, tokenizer: Tokenizer, sequence_len: int, max_new_tokens: int, policy: Policy = "drop"
) -> FittedPrompt:
    """Encode plain text to be continued; like `fit`, but without turns.

    Raises:
        ContextFull: under `refuse` if it does not fit.
    """
    budget = _budget(sequence_len, max_new_tokens, policy)
    ids = tokenizer.encode(text)
    if len(ids) + 1 <= budget:
        return FittedPrompt([tokenizer.bos_id, *ids])
    if policy == "refuse":
        raise ContextFull(
            f"the text has {len(ids) + 1} tokens; this model's maximum context length is {sequence_len} tokens, of "
            f"which {budget} can be read if a continuation is to have room. Shorten it, or let its beginning go "
            "(context=drop)"
        )
    return FittedPrompt([tokenizer.bos_id, *_end(ids, budget - 1, tokenizer)], truncated=True)


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
    """Render a conversation up to the position where its answer begins or continues."""
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
) -> FittedPrompt:
    """Keep the system message and the end of the last turn, which is a question and perhaps an answer to continue."""
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
    return FittedPrompt([*head, *question, *close, *begun], dropped=dropped, truncated=True)


def _end(ids: Sequence[int], size: int, tokenizer: Tokenizer) -> list[int]:
    """Return at most the last `size` tokens, beginning with a whole character."""
    start = max(0, len(ids) - size)
    while start and start < len(ids) and tokenizer.decode_bytes([ids[start]])[0] & 0xC0 == 0x80:
        start += 1
    return list(ids[start:])


def _joined(contents: Sequence[Any]) -> Any:
    """Join the contents of one role; neighbouring texts become one, since separate ones would be other tokens."""
    contents = [content for content in contents if content]
    if all(isinstance(content, str) for content in contents):
        return BETWEEN.join(contents)
    parts: list[Any] = []
    for content in contents:
        between = [{"type": "text", "text": BETWEEN}] if parts else []
        for part in (*between, *([{"type": "text", "text": content}] if isinstance(content, str) else content)):
            if part["type"] == "text" and parts and parts[-1]["type"] == "text":
                parts[-1] = {"type": "text", "text": parts[-1]["text"] + part["text"]}
            else:
                parts.append(part)
    return parts
