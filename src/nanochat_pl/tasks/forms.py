"""The forms in which people keep conversations, each told by its keys and brought to messages of role and content.

Only the form is read here. Whether the messages are a conversation (turns, contents) is for the task to check.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["FORMS", "Recognised", "recognise"]

FORMS = {
    "messages": "`messages`: a list of role and content",
    "ShareGPT": "`conversations`: a list of from (human, gpt, system) and value",
    "Alpaca": "`instruction`, perhaps `input` and `system`, and `output`",
    "prompt and completion": "`prompt` and `completion`",
}
"""The forms of an object, by the name they are called in messages."""

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}


class Recognised(NamedTuple):
    """A conversation and the form it had."""

    form: str
    messages: Any


def recognise(value: Mapping[str, Any]) -> Recognised:
    """Read an object as a conversation.

    Raises:
        ValueError: if it has none of the forms, or not what its form needs.
    """
    if value.get("messages") is not None:
        return Recognised("messages", value["messages"])
    if value.get("conversations") is not None:
        return Recognised("ShareGPT", _sharegpt(value["conversations"]))
    if value.get("instruction") is not None and "output" in value:
        return Recognised("Alpaca", _alpaca(value))
    if value.get("prompt") is not None and "completion" in value:
        return Recognised("prompt and completion", _prompted(value))
    if "messages" in value:
        return Recognised("messages", value["messages"])
    raise ValueError(
        f"an object without `messages` (it has: {', '.join(map(str, value)) or 'nothing'}) and of no other known form "
        f"({'; '.join(list(FORMS.values())[1:])})"
    )


def _sharegpt(turns: Any) -> Any:
    if not isinstance(turns, list):
        return turns
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
            messages.append(turn)  # role and content beneath this name, or a fault that the task names
            continue
        role = _SPEAKERS.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            raise ValueError(f"message {number} is from {turn['from']!r}, which is none of {', '.join(_SPEAKERS)}")
        messages.append({"role": role, "content": turn["value"]})
    return messages


def _alpaca(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    texts = {key: value.get(key) for key in ("system", "instruction", "input", "output")}
    for key, text in texts.items():
        if text is not None and not isinstance(text, str):
            raise ValueError(f"`{key}` is no text")
    if value.get("history"):
        raise ValueError("`history` beside `instruction` is not read; write the whole conversation as `messages`")
    asked = "\n\n".join(text for text in (texts["instruction"], texts["input"]) if text and text.strip())
    return [
        *([{"role": "system", "content": texts["system"]}] if texts["system"] else []),
        {"role": "user", "content": asked},
        {"role": "assistant", "content": texts["output"]},
    ]


def _prompted(value: Mapping[str, Any]) -> list[Any]:
    parts = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        part = value[key]
        if isinstance(part, list):
            parts += part
        elif isinstance(part, str):
            parts.append({"role": role, "content": part})
        else:
            raise ValueError(f"`{key}` is neither a text nor a list of messages")
    return parts
