"""A user's conversations: a file with one a line or all in a list, checked before anything is trained.

This is how an assistant gets an identity or a voice: a few hundred conversations, mixed into fine-tuning several times.
"""

import logging
import random
from collections import Counter
from pathlib import Path
from typing import Unpack

from nanochat_pl.rows import read_json_values
from nanochat_pl.tasks.base import Conversation, RowChoice, Task, question_key
from nanochat_pl.tasks.forms import are_conversations, read_messages, recognise

__all__ = ["JSONL", "SPLITS", "read_conversations"]

log = logging.getLogger(__name__)

SPLITS = ("train", "validation")

_SHOWN = 20
"""This many faults are named one by one; the others are counted."""


class JSONL(Task):
    """The conversations of a file of JSON Lines, or of one JSON list, in any mixture of these forms:

        [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Ahoy!"}]
        {"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Ahoy!"}]}
        {"conversations": [{"from": "human", "value": "Hello!"}, {"from": "gpt", "value": "Ahoy!"}]}
        {"instruction": "Greet.", "input": "", "output": "Ahoy!"}
        {"prompt": "Hello!", "completion": "Ahoy!"}

    User and assistant take turns, the user first, the assistant last; a system message may come before. Contents are
    strings or lists of parts `{"type": "text", "text": ...}`; the assistant's may have parts of the types python and
    python_output, a call of the calculator and its output. Other fields are ignored. The log says how many
    conversations had each form.

    Extras of a conversation: `id` (name of the file and number of the line or element).

    Args:
        path: the file, UTF-8; empty lines are ignored.
        split: train or validation: two parts of the same file.
        val_fraction: share of the conversations, 0 to 1, that belongs to validation, drawn at random; those that begin
            with the same question are kept together. 0 = train on all.
        seed: seed of that draw; both splits need the same.
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
    repairs: Counter[str] = Counter()
    faults: list[str] = []
    unit = "line"
    for number, value, fault, unit in read_json_values(path, are_conversations):
        try:
            if fault is not None:
                raise ValueError(fault)
            if isinstance(value, dict):
                form, messages = recognise(value, repairs)
            else:
                form, messages = "list of messages", value
            conversations.append({"messages": list(read_messages(messages, repairs)), "id": f"{path.name}:{number}"})
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
    counted = ", ".join(f"{count:,} {form}" for form, count in forms.most_common())
    log.info("%s: %s conversations (form: %s)", path, f"{len(conversations):,}", counted)
    if repairs:
        log.info("repaired in %s: %s", path, ", ".join(f"{count:,} {kind}" for kind, count in repairs.items()))
    return conversations


def _held_out(conversations: list[Conversation], fraction: float, seed: int) -> set[int]:
    """Draw the conversations of the validation split: at most this share, and all or none with one first question."""
    groups: dict[str, list[int]] = {}
    for i, conversation in enumerate(conversations):
        groups.setdefault(question_key(conversation), []).append(i)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted = round(len(conversations) * fraction)
    held_out: set[int] = set()
    for group in order:
        if len(held_out) + len(group) <= wanted:
            held_out |= set(group)
    return held_out
