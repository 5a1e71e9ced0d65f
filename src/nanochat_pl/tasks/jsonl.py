"""Conversations of one's own: a file of them, one a line or all in a list, checked before anything is trained.

This is how an assistant gets an identity or a voice: some hundred conversations, mixed into fine-tuning several times.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.rows import read_json_values
from nanochat_pl.tasks.base import Conversation, RowChoice, Task, asked
from nanochat_pl.tasks.forms import Recognised, check_marks, recognise

__all__ = ["JSONL", "SPLITS", "read_conversations"]

log = logging.getLogger(__name__)

SPLITS = ("train", "validation")

_SHOWN = 20
"""So many faults are named one by one; the others are counted."""
_PARTS = ("text", "python", "python_output")


class JSONL(Task):
    """The conversations of a file of JSON Lines, or of one JSON list, in the forms people have, also side by side:

        [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Ahoy!"}]
        {"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Ahoy!"}]}
        {"conversations": [{"from": "human", "value": "Hello!"}, {"from": "gpt", "value": "Ahoy!"}]}
        {"instruction": "Greet.", "input": "", "output": "Ahoy!"}
        {"prompt": "Hello!", "completion": "Ahoy!"}

    User and assistant take turns, the user first, the assistant last; a system message may come before. Contents are
    strings; the assistant's may be a list of parts `{"type": "text" | "python" | "python_output", "text": ...}`, the
    latter two a call of the calculator and its answer. Other fields are ignored. Which forms were found, and how
    often, is logged.

    Extras of a conversation: `id` (name of the file and number of the line or element).

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
        ValueError: if there is none, or any line is malformed; the message names the lines and their faults.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path} of conversations; write one a line there, such as "
            '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}], set path to another file, or '
            "leave the task out with mixture.tasks.<name>=null"
        )
    conversations: list[Conversation] = []
    forms: Counter[str] = Counter()
    faults: list[str] = []
    unit = "line"
    for number, value, fault, unit in read_json_values(path, _are_conversations):
        try:
            if fault is not None:
                raise ValueError(fault)
            form, messages = _recognise(value)
            conversations.append({"messages": list(_read_messages(messages)), "id": f"{path.name}:{number}"})
            forms[form] += 1
        except ValueError as error:
            faults.append(f"  {path}:{number}: {error}" if unit == "line" else f"  {path}, element {number}: {error}")
    if faults:
        more = [f"  and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        listed = "\n".join([*faults[:_SHOWN], *more])
        count = len(faults) + len(conversations)
        raise ValueError(
            f"{len(faults)} of the {count} {unit}s of {path} are no conversations:\n{listed}\nmend or drop these "
            f"{unit}s; each must be a list of messages, or an object with `messages` or of another form (docs/data.md)"
        )
    if not conversations:
        raise ValueError(f"{path} holds no rows; write a conversation a line there, or give another path")
    said = ", ".join(f"{count:,} {form}" for form, count in forms.most_common())
    log.info("%s: %s conversations (form: %s)", path, f"{len(conversations):,}", said)
    return conversations


def _are_conversations(values: list[Any]) -> bool:
    """Tell a list of conversations from a list of messages, which is one conversation."""
    return all(isinstance(v, list) or (isinstance(v, dict) and not v.keys() & {"role", "from"}) for v in values)


def _recognise(value: Any) -> Recognised:
    """Read a value as a conversation of any form; the message of a ValueError is its fault."""
    if isinstance(value, dict):
        form, value = recognise(value)
    else:
        form = "list of messages"
    if not isinstance(value, list):
        raise ValueError(f"{_kind(value)} where a list of messages is needed")
    return Recognised(form, value)


def _read_messages(messages: list[Any]) -> Iterator[dict[str, Any]]:
    first = int(bool(messages) and isinstance(messages[0], dict) and messages[0].get("role") == "system")
    for i, message in enumerate(messages):
        where = f"message {i + 1}"
        if not isinstance(message, dict):
            raise ValueError(f"{where} is {_kind(message)}, not an object with role and content")
        check_marks(message, where)
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
