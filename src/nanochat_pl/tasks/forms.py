"""The forms in which people keep conversations, each told by its keys and brought to messages of role and content.

Only the form is read here. Whether the messages are a conversation (turns, contents) is for the task to check.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["FORMS", "Recognised", "check_marks", "recognise"]

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

_WEIGHTS = ("weight", "loss", "train", "label")
"""Where other trainers keep whether, or how much, a message or an example counts."""
_CALLS = ("tool_calls", "function_call")


class Recognised(NamedTuple):
    """A conversation and the form it had."""

    form: str
    messages: Any


def recognise(value: Mapping[str, Any]) -> Recognised:
    """Read an object as a conversation.

    A system prompt beside the messages goes in front of them.

    Raises:
        ValueError: if it has none of the forms, or not what its form needs, or says what would be lost.
    """
    check_marks(value, "the object")
    form, messages = _recognise(value)
    system = value.get("system")
    if form == "Alpaca" or system is None or system == "" or not isinstance(messages, list):
        return Recognised(form, messages)
    if not isinstance(system, str):
        raise ValueError("`system` is no text")
    first = messages[0] if messages and isinstance(messages[0], Mapping) else {}
    if first.get("role") != "system":
        messages = [{"role": "system", "content": system}, *messages]
    elif first.get("content") != system:
        raise ValueError("`system` stands beside another system message; write one of them")
    return Recognised(form, messages)


def check_marks(value: Mapping[str, Any], where: str) -> None:
    """Refuse what says of a message or an example how it is to be learned, and calls of tools that would be dropped.

    Every answer is learned here, each as much as any other.

    Raises:
        ValueError: names the key.
    """
    for key in _WEIGHTS:
        mark = value.get(key)
        if isinstance(mark, bool if key == "label" else int | float) and mark != 1:  # a label may also be a class
            raise ValueError(
                f"{where} has `{key}` {mark!r}, but every answer is learned alike; leave the example out, or the key"
            )
    for key in _CALLS:
        if value.get(key):
            raise ValueError(f"{where} has `{key}`, which is not read; leave the example out, or say the call in parts")


def _recognise(value: Mapping[str, Any]) -> Recognised:
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
        if isinstance(turn, Mapping):
            check_marks(turn, f"message {number}")
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
