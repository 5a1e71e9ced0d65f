"""Conversations of one's own: a text file with one conversation a line, checked as a whole before anything is trained.

This is how an assistant gets an identity or a voice: some hundred conversations, mixed into fine-tuning several times.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.tasks.base import Conversation, RowChoice, Task, asked

__all__ = ["JSONL", "SPLITS", "read_conversations"]

SPLITS = ("train", "validation")

_SHOWN = 20
"""So many faults are named one by one; the others are counted."""
_PARTS = ("text", "python", "python_output")


class JSONL(Task):
    """The conversations of a JSON Lines file, in either of the two common layouts, which may stand side by side:

        [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Ahoy!"}]
        {"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Ahoy!"}]}

    User and assistant take turns, the user first, the assistant last; a system message may come before. Contents are
    strings; the assistant's may be a list of parts `{"type": "text" | "python" | "python_output", "text": ...}`, the
    latter two a call of the calculator and its answer. Fields beside `messages`, `role` and `content` are ignored.

    Extras of a conversation: `id` (name of the file and line number).

    Args:
        path: the file, UTF-8; empty lines are passed over.
        split: train or validation: two parts of the same file.
        val_fraction: share of the conversations, 0 to 1, that belongs to validation, drawn at random; those that begin
            with the same question are kept together. 0 = train on all.
        seed: of that draw; give both splits the same.
        chosen: which of the split's conversations, see `Task`.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: for another split, a fraction out of range, a split without conversations, or malformed lines: all
            of them at once, each with its number and fault.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        val_fraction: float = 0.1,
        seed: int = 42,
        **chosen: Unpack[RowChoice],
    ):
        if split not in SPLITS or not 0 <= val_fraction < 1:
            raise ValueError(
                f"split={split}, val_fraction={val_fraction} of {path}: the split must be one of {', '.join(SPLITS)}, "
                "the fraction 0 or more and below 1"
            )
        self._path, self._split = Path(path), split
        conversations = read_conversations(self._path)
        held_out = _held_out(conversations, val_fraction, seed)
        wanted = [c for i, c in enumerate(conversations) if (i in held_out) == (split == "validation")]
        if not wanted:
            raise ValueError(
                f"the {split} split of {path} has none of its {len(conversations)} conversations with "
                f"val_fraction={val_fraction}; give more conversations (that begin differently) or another val_fraction"
            )
        self._conversations = wanted
        super().__init__(**chosen)

    @property
    def name(self) -> str:
        return f"JSONL {self._split} ({self._path})"

    @property
    def num_rows(self) -> int:
        return len(self._conversations)

    def conversation(self, row: int, epoch: int) -> Conversation:
        return self._conversations[row]


def read_conversations(path: Path) -> list[Conversation]:
    """Read and check every line.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if any line is malformed; the message names the lines and their faults.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path} of conversations; write one a line there, such as "
            '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}], set path to another file, or '
            "leave the task out with mixture.tasks.<name>=null"
        )
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    conversations: list[Conversation] = []
    faults: list[str] = []
    # Not splitlines(): that would also split at separators which may stand in a JSON string as they are.
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            messages = _read_line(line)
        except ValueError as error:
            faults.append(f"  {path}:{number}: {error}")
        else:
            conversations.append({"messages": messages, "id": f"{path.name}:{number}"})
    if faults:
        count = len(faults) + len(conversations)
        more = [f"  and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        listed = "\n".join([*faults[:_SHOWN], *more])
        raise ValueError(
            f"{len(faults)} of the {count} lines of {path} are no conversations:\n{listed}\n{_remedy(content)}"
        )
    return conversations


def _read_line(line: bytes) -> list[dict[str, Any]]:
    """Read one line; the message of a ValueError is its fault."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {line[error.start]:#04x} at {error.start})") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from error
    if isinstance(value, dict):
        if "messages" not in value:
            raise ValueError(f"an object without `messages` (it has: {', '.join(value) or 'nothing'})")
        value = value["messages"]
    if not isinstance(value, list):
        raise ValueError(f"{_kind(value)} where a list of messages is needed")
    return list(_read_messages(value))


def _read_messages(messages: list[Any]) -> Iterator[dict[str, Any]]:
    first = int(bool(messages) and isinstance(messages[0], dict) and messages[0].get("role") == "system")
    for i, message in enumerate(messages):
        where = f"message {i + 1}"
        if not isinstance(message, dict):
            raise ValueError(f"{where} is {_kind(message)}, not an object with role and content")
        if missing := [key for key in ("role", "content") if key not in message]:
            raise ValueError(f"{where} has no {' and no '.join(missing)} (it has: {', '.join(message) or 'nothing'})")
        role, content = message["role"], message["content"]
        expected = "system" if i < first else ("user", "assistant")[(i - first) % 2]
        if role != expected:
            raise ValueError(f"{where} has the role {role!r} where {expected!r} is due: user and assistant take turns")
        yield {"role": role, "content": _read_content(content, role, f"{where} ({role})")}
    if len(messages) - first < 2:
        raise ValueError(
            f"too few messages ({len(messages)}); one of the user and one of the assistant are needed at least"
        )
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last message is the user's: there is no answer to learn")


def _read_content(content: Any, role: str, where: str) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        if not content.strip():
            raise ValueError(f"{where} has an empty content")
        return content
    if role != "assistant" or not isinstance(content, list):
        needed = "a string or a list of parts" if role == "assistant" else "a string"
        raise ValueError(f"{where} has {_kind(content)} as content; {needed} is needed")
    parts = []
    for i, part in enumerate(content, 1):
        if not isinstance(part, dict) or part.get("type") not in _PARTS or not isinstance(part.get("text"), str):
            raise ValueError(f'{where}, part {i} is not {{"type": {" | ".join(_PARTS)}, "text": a string}}')
        parts.append({"type": part["type"], "text": part["text"]})
    if not any(part["text"].strip() for part in parts):
        raise ValueError(f"{where} has an empty content")
    return parts


def _kind(value: Any) -> str:
    """Name a JSON value's kind for people."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _remedy(content: bytes) -> str:
    """Say what to do about malformed lines; a file that is one JSON value as a whole is a frequent mistake."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        whole = None
    nested = isinstance(whole, list) and all(
        isinstance(v, list) or (isinstance(v, dict) and "messages" in v) for v in whole
    )
    if nested or (whole is not None and b"\n" in content.strip()):
        return (
            f"the file as a whole is {_kind(whole)} (plain JSON); write each conversation on one line of its own, "
            "without commas between the lines"
        )
    return "mend or drop these lines; each must be a list of messages, or an object with `messages` (docs/data.md)"


def _held_out(conversations: list[Conversation], fraction: float, seed: int) -> set[int]:
    """Draw the conversations of the validation split: at most this share, of the same first question all or none."""
    groups: dict[str, list[int]] = {}
    for i, conversation in enumerate(conversations):
        groups.setdefault(asked(conversation), []).append(i)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted = round(len(conversations) * fraction)
    held_out: set[int] = set()
    for group in order:
        if len(held_out) + len(group) <= wanted:
            held_out |= set(group)
    return held_out
