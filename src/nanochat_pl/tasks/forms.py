"""The forms in which people store conversations: each is recognised by its keys and converted to role and content.

This module also decides what makes messages a conversation (turns, contents, nothing that would be lost), both for
JSON Lines and for tables.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from nanochat_pl.tasks.repairs import Unfit, fit_text, shown, written

__all__ = ["FORMS", "MARKS", "Recognised", "are_conversations", "form_of", "read_messages", "recognise"]

FORMS = {
    "messages": "`messages`: a list of role and content",
    "ShareGPT": "`conversations`: a list of from (human, gpt, system) and value",
    "Alpaca": "`instruction`, perhaps `input` and `system`, and `output`",
    "prompt and completion": "`prompt` and `completion`",
}
"""The forms of an object, by the names that messages use for them."""

_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
}
"""Names of speakers, in lower case, and their roles."""

_WEIGHTS = ("weight", "loss", "loss_weight", "loss_mask", "train", "training", "train_on_turn", "label")
"""Keys by which other trainers say whether, or how much, a message or an example counts."""
_CALLS = ("tool_calls", "function_call")
MARKS = (*_WEIGHTS, *_CALLS)
"""Keys that may hold something that would be lost."""
_WRITTEN_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")
"""The beginning of a list of messages written as text."""
_PARTS = ("text", "python", "python_output")


class Recognised(NamedTuple):
    """A conversation and the form it had."""

    form: str
    messages: Any


def recognise(value: Mapping[str, Any], repairs: Counter[str]) -> Recognised:
    """Read an object as a conversation.

    A system prompt outside the messages is put in front of them.

    Args:
        value: the object; null, NaN and empty texts count as missing, as a table of mixed rows has them.

    Raises:
        ValueError: if it has none of the forms, or not what its form needs, or says what would be lost.
    """
    _check_marks(value, "the object")
    form = form_of(value)
    messages = _READERS[form](value, repairs)
    system = value.get("system") if _is_there(value, "system") else None
    if form == "Alpaca" or system is None or not isinstance(messages, list):
        return Recognised(form, messages)
    if not isinstance(system, str):
        raise ValueError("`system` is no text")
    first = messages[0] if messages and isinstance(messages[0], Mapping) else {}
    if first.get("role") != "system":
        messages = [{"role": "system", "content": system}, *messages]
    elif first.get("content") != system:
        raise ValueError("`system` stands beside another system message; write one of them")
    return Recognised(form, messages)


def are_conversations(values: list[Any]) -> bool:
    """Return whether a list holds conversations, not the messages of a single one."""
    return all(isinstance(v, list) or (isinstance(v, dict) and not v.keys() & {"role", "from"}) for v in values)


def form_of(value: Mapping[str, Any]) -> str:
    """Return the form of an object: the first whose keys are there.

    Raises:
        ValueError: if it has none.
    """
    if _is_there(value, "messages"):
        return "messages"
    if _is_there(value, "conversations"):
        return "ShareGPT"
    if (_is_there(value, "instruction") or _is_there(value, "input")) and "output" in value:
        return "Alpaca"
    if _is_there(value, "prompt") and "completion" in value:
        return "prompt and completion"
    needed = {"messages": ("messages",), "ShareGPT": ("conversations",), "Alpaca": ("instruction", "output")}
    for form, keys in (needed | {"prompt and completion": ("prompt", "completion")}).items():
        if all(key in value for key in keys):  # empty: the check of its messages says so
            return form
    raise ValueError(
        f"an object without `messages` (it has: {', '.join(map(str, value)) or 'nothing'}) and of no other known form "
        f"({'; '.join(list(FORMS.values())[1:])})"
    )


def _is_there(value: Mapping[str, Any], key: str) -> bool:
    content = value.get(key)
    if isinstance(content, list | tuple | Mapping):
        return len(content) > 0
    return content is not None and content != "" and content == content  # a NaN, an empty cell, differs from itself


def _check_marks(value: Mapping[str, Any], where: str) -> None:
    """Refuse marks that say how much a message counts (here all count alike), and tool calls that would be dropped."""
    for key in _WEIGHTS:
        if key in value and _is_less(value[key], key):
            raise ValueError(
                f"{where} has `{key}` {shown(value[key])}, but every answer is learned alike; leave the example "
                "out, or the key"
            )
    for key in _CALLS:
        if value.get(key) and _is_there(value, key) and value[key] not in ("[]", "null", "None"):
            raise ValueError(f"{where} has `{key}`, which is not read; leave the example out, or say the call in parts")


def _is_less(mark: Any, key: str) -> bool:
    """Return whether a mark says that an answer counts less, or more, than others; CSV files have marks as text."""
    if isinstance(mark, list | tuple):
        return any(_is_less(item, key) for item in mark)
    if isinstance(mark, str):
        text = mark.strip().lower()
        if text in ("false", "no"):
            return True
        try:
            mark = float(text)
        except ValueError:
            return False
    kinds = bool if key == "label" else int | float | Decimal  # a label may also be a class
    return isinstance(mark, kinds) and mark == mark and mark != 1


def read_messages(
    messages: Any, repairs: Counter[str], *, closed: bool = True, blank: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Check that messages are a conversation, and yield each as role and content.

    Args:
        messages: user and assistant in turn, the user first, after an optional system message.
        closed: the last message must be the assistant's.
        blank: roles whose contents may be empty or white space.

    Raises:
        ValueError: names the message and what is wrong with it.
    """
    if not isinstance(messages, list):
        raise ValueError(f"{_kind(messages)} where a list of messages is needed")
    first, role = 0, ""
    for i, message in enumerate(messages):
        where = f"message {i + 1}"
        if not isinstance(message, Mapping):
            raise ValueError(f"{where} is {_kind(message)}, not an object with role and content")
        if len(message) > 2:
            _check_marks(message, where)
        if missing := [key for key in ("role", "content") if key not in message]:
            raise ValueError(f"{where} has no {' and no '.join(missing)} (it has: {', '.join(message) or 'nothing'})")
        role, content = message["role"], message["content"]
        if role not in ("user", "assistant") and isinstance(role, str) and role != "system":
            role = _role(role, repairs) or role
        if i == 0 and role == "system":
            first = 1
        expected = "system" if i < first else ("user", "assistant")[(i - first) % 2]
        if role != expected:
            raise ValueError(
                f"{where} has the role {shown(role)} where {shown(expected)} is due: user and assistant take turns"
            )
        if type(content) is not str:
            content = _read_parts(content, role, f"{where} ({role})", repairs)
        texts = [content] if isinstance(content, str) else [part["text"] for part in content]
        if role not in blank and not any(map(str.strip, texts)):
            raise ValueError(f"{where} ({role}) has an empty content")
        yield {"role": role, "content": content}
    if len(messages) - first < 2:
        raise ValueError(
            f"too few messages ({len(messages)}); user and assistant take turns, and one of each is needed at least"
        )
    if closed and role != "assistant":
        raise ValueError("the last message is the user's: there is no answer to learn")


def _role(speaker: str, repairs: Counter[str]) -> str | None:
    role = _SPEAKERS.get(speaker.strip().lower())
    if role is not None:
        repairs["speakers read as their role"] += 1
    return role


def _read_parts(content: Any, role: str, where: str, repairs: Counter[str]) -> str | list[dict[str, str]]:
    """Read a list of parts; if all are text, as clients of OpenAI's API write them, they become one text."""
    if isinstance(content, bytes | int | float | Decimal) and not isinstance(content, bool):
        return fit_text(content, repairs)
    if not isinstance(content, list):
        raise ValueError(f"{where} has {_kind(content)} as content; a string or a list of parts is needed")
    kinds = _PARTS if role == "assistant" else _PARTS[:1]
    parts = []
    for i, part in enumerate(content, 1):
        if not isinstance(part, Mapping) or part.get("type") not in kinds or not isinstance(part.get("text"), str):
            raise ValueError(f'{where}, part {i} is not {{"type": {" | ".join(kinds)}, "text": a string}}')
        parts.append({"type": part["type"], "text": part["text"]})
    if all(part["type"] == "text" for part in parts):
        repairs["contents of text parts made one text"] += 1
        return "".join(part["text"] for part in parts)
    return parts


def _kind(value: Any) -> str:
    """Return the kind of a JSON value, for error messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float | Decimal) else "a value of another kind")


def _listed(value: Any, repairs: Counter[str]) -> Any:
    """Parse a list that is written as text, as in CSV files."""
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "(", "array(")):
            return value
        value = written(value)
        repairs["lists written as text"] += 1
    return list(value) if isinstance(value, tuple) else value


def _messages(value: Mapping[str, Any], repairs: Counter[str]) -> Any:
    return _listed(value["messages"], repairs)


def _sharegpt(value: Mapping[str, Any], repairs: Counter[str]) -> Any:
    turns = _listed(value["conversations"], repairs)
    if not isinstance(turns, list):
        return turns
    messages = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping) or turn.get("from") is None or "value" not in turn:
            messages.append(turn)  # role and content beneath this name, or a fault that is named with the messages
            continue
        _check_marks(turn, f"message {number}")
        speaker = turn["from"]
        role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None and isinstance(speaker, str):
            role = _role(speaker, repairs)
        if role is None:
            raise ValueError(f"message {number} is from {shown(speaker)}, which is none of {', '.join(_SPEAKERS)}")
        messages.append({"role": role, "content": turn["value"]})
    return messages


def _alpaca(value: Mapping[str, Any], repairs: Counter[str]) -> list[dict[str, Any]]:
    named = ("system", "instruction", "input", "output")
    texts = {key: value[key] if _is_there(value, key) or value.get(key) == "" else None for key in named}
    texts = {key: text if text is None else _text(text, key, repairs) for key, text in texts.items()}
    if value.get("history") and _is_there(value, "history") and value["history"] != "[]":
        raise ValueError("`history` beside `instruction` is not read; write the whole conversation as `messages`")
    question = "\n\n".join(text for text in (texts["instruction"], texts["input"]) if text and text.strip())
    return [
        *([{"role": "system", "content": texts["system"]}] if texts["system"] else []),
        {"role": "user", "content": question},
        {"role": "assistant", "content": texts["output"]},
    ]


def _text(value: Any, key: str, repairs: Counter[str]) -> str:
    if isinstance(value, str):
        return value
    try:
        return fit_text(value, repairs)
    except Unfit as error:
        raise ValueError(f"`{key}` is no text but {shown(value)}") from error


def _prompted(value: Mapping[str, Any], repairs: Counter[str]) -> list[Any]:
    parts: list[Any] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        part = value[key]
        if isinstance(part, str) and _WRITTEN_MESSAGES.match(part):
            part = _listed(part, repairs)
        if isinstance(part, list):
            parts += part
        else:
            parts.append({"role": role, "content": _text(part, key, repairs)})
    return parts


_READERS = {"messages": _messages, "ShareGPT": _sharegpt, "Alpaca": _alpaca, "prompt and completion": _prompted}
