"""Conversations as clients send them, laid out as the models were trained: user and assistant by turns.

A model has seen one system message in front, then turns that begin with the user's. Clients send more than that, and
OpenAI's API answers all of it, so each further form has one rule here:

- System messages before the first turn become one. A later one is read as the user's words, in its place.
- Neighbouring messages of one role become one message. All that are joined are parted by an empty line. Neighbouring
  texts of one message are one text.
- Where the assistant begins, an empty message of the user's stands before it.
- A last message of the assistant's is not answered but continued, see `serve.context.fit`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["take_turns"]

BETWEEN = "\n\n"
"""Parts messages that are joined, as `Tokenizer.render_conversation` joins a system message with the user's first."""


def take_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation with at most one system message in front, then user and assistant by turns.

    Args:
        messages: one or more, with `role` system, user or assistant; `content` is text, or of an assistant a list of
            parts.

    Returns:
        New messages. What is by turns already comes back as it is.
    """
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system" and not turns:
            system.append(content)
            continue
        role = "user" if role == "system" else role
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = _joined(turns[-1]["content"], content)
        else:
            turns.append({"role": role, "content": content})
    for turn in turns:
        if not isinstance(turn["content"], str):
            turn["content"] = _runs(turn["content"])
    if turns and turns[0]["role"] == "assistant":
        turns.insert(0, {"role": "user", "content": ""})
    head = BETWEEN.join(filter(None, system))
    if not turns:  # nothing but system messages: they are what is asked
        return [{"role": "user", "content": head}]
    return [*([{"role": "system", "content": head}] if head else []), *turns]


def _joined(first: Any, second: Any) -> Any:
    """Join two contents of one role."""
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return first + BETWEEN + second
    return [*_parts(first), {"type": "text", "text": BETWEEN}, *_parts(second)]


def _runs(parts: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Join texts behind each other: cut apart they would be other tokens."""
    runs: list[Any] = []
    for part in parts:
        if part["type"] == "text" and runs and runs[-1]["type"] == "text":
            runs[-1] = {"type": "text", "text": runs[-1]["text"] + part["text"]}
        else:
            runs.append(part)
    return runs


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
