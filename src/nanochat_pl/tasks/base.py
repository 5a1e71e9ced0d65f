"""Tasks: sequences of conversations to train on or to ask.

A task knows its rows and how to word each as a conversation: a plain dict with `messages` and, where it can be scored,
what scoring needs. A task may word a row anew every epoch (other order of choices), so `epochs` belongs to the task:
its length counts every epoch. A `Mixture` shuffles several tasks into one; sizes and epochs are the weights.
"""

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, overload

__all__ = ["Conversation", "Mixture", "Task", "question_only"]

Conversation = dict[str, Any]
"""`{"messages": [{"role": ..., "content": ...}, ...]}` and extras for scoring."""


class Task(Sequence[Conversation]):
    """A sequence of conversations: rows `start, start + step, ...` below `stop`, `epochs` times over.

    Args:
        start, stop, step: which rows of the data set, as in a slice; stop None = all.
        epochs: how often the rows come; 2 weighs the task double in a mixture.
        phase: place in a mixture's course: all of phase 0 comes before anything of phase 1.

    Raises:
        ValueError: if `stop` is beyond the data set (unlike a slice: rows asked for and not there are a mistake).
    """

    ordered = False
    """The order of the rows means something (a curriculum): whoever reads them must not shuffle."""

    def __init__(self, *, start: int = 0, stop: int | None = None, step: int = 1, epochs: int = 1, phase: int = 0):
        stop = self.num_rows if stop is None else stop
        if not 0 <= start <= stop or step < 1 or epochs < 1:
            raise ValueError(
                f"start={start}, stop={stop}, step={step}, epochs={epochs} of {self.name} make no sense; "
                "0 <= start <= stop, step >= 1 and epochs >= 1 are needed"
            )
        if stop > self.num_rows:
            raise ValueError(
                f"{stop} rows of {self.name} were asked for and there are {self.num_rows}; "
                f"set stop={self.num_rows} or null"
            )
        self._rows = range(start, stop, step)
        self._epochs = epochs
        self.phase = phase

    @property
    def name(self) -> str:
        """What messages call this task."""
        return type(self).__name__

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Rows of the whole data set. Called by `Task.__init__`: load the rows before calling that."""

    @abstractmethod
    def conversation(self, row: int, epoch: int) -> Conversation:
        """Word one row for its `epoch`-th reading (from 0); equal arguments give equal conversations."""

    def __len__(self) -> int:
        return len(self._rows) * self._epochs

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        epoch, position = divmod(range(len(self))[index], len(self._rows))
        return self.conversation(self._rows[position], epoch)


class Mixture(Task):
    """Several tasks as one, in a fixed random order: every item of every task exactly once.

    The order is nanochat's (2025-11): all (task, item) pairs in order, shuffled by Python's `Random(seed)`. Tasks of
    different phases make a course: each phase is shuffled by itself and they follow each other. A mixture of one
    ordered task keeps its order.

    Args:
        tasks: name -> task.
        seed: of the order.

    Raises:
        ValueError: if there are no tasks, or if a task whose order matters would be mixed with others.
    """

    def __init__(self, tasks: Mapping[str, Sequence[Conversation]], seed: int = 42):
        if not tasks:
            raise ValueError("a mixture needs at least one task; add one under mixture.tasks")
        ordered = [name for name, task in tasks.items() if getattr(task, "ordered", False)]
        if ordered and len(tasks) > 1:
            raise ValueError(
                f"the order of {', '.join(ordered)} matters (curriculum=true), and a mixture of {len(tasks)} tasks is "
                "shuffled; set curriculum=false or train on that task alone"
            )
        self._tasks = dict(tasks)
        self._items: list[tuple[str, int]] = []
        phases = sorted({getattr(task, "phase", 0) for task in tasks.values()})
        for phase in phases:
            here = {name: task for name, task in tasks.items() if getattr(task, "phase", 0) == phase}
            items = [(name, i) for name, task in here.items() for i in range(len(task))]
            if not ordered:
                random.Random(seed).shuffle(items)
            self._items += items
        self.ordered = bool(ordered) or len(phases) > 1
        super().__init__()

    @property
    def num_rows(self) -> int:
        return len(self._items)

    def conversation(self, row: int, epoch: int) -> Conversation:
        """Return the item and, as extra `task`, the name of the task it comes from."""
        name, item = self._items[row]
        return {**self._tasks[name][item], "task": name}


def question_only(conversation: Mapping[str, Any]) -> Conversation:
    """Return the conversation with its last turn, the assistant's, left to say: its content is empty.

    What an evaluation shows to the model, and all that a person at the terminal has to write.

    Raises:
        ValueError: if the last turn is not the assistant's.
    """
    *asked, last = conversation["messages"]
    if last["role"] != "assistant" or not asked:
        raise ValueError(
            f"the last of {len(asked) + 1} messages is the {last['role']}'s; an answer to leave out is needed"
        )
    return {**conversation, "messages": [*asked, {"role": "assistant", "content": ""}]}
