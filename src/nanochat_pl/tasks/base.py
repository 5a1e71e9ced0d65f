"""Tasks: sequences of conversations to train on or to evaluate with.

A task knows its rows and how to word each as a conversation: a plain dict with `messages` and, where it can be graded,
what grading needs. A task may word a row anew every epoch (with another order of choices), so `epochs` belongs to the
task: its length counts every epoch. A `Mixture` shuffles several tasks into one, a `Sequence` joins them end to end;
sizes and epochs are the weights. `overlap` finds the questions that would be both trained on and evaluated.
"""

import copy
import random
from abc import abstractmethod
from collections import abc
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, Self, TypedDict, overload

__all__ = ["Conversation", "Mixture", "RowChoice", "Sequence", "Task", "overlap", "question_key"]

Conversation = dict[str, Any]
"""`{"messages": [{"role": ..., "content": ...}, ...]}` and extras for grading."""

_PART_SEED = 42
"""Seed of the draw of the rows that a part of an epoch takes."""


class RowChoice(TypedDict, total=False):
    """Which rows, how often, and when in a mixture: the options that a task's constructor passes on to `Task`."""

    start: int
    stop: int | None
    step: int
    at_most: int | None
    epochs: float
    phase: int


class Task(abc.Sequence[Conversation]):
    """A sequence of conversations: rows `start, start + step, ...` below `stop`, `epochs` times over.

    Args:
        start, stop, step: which rows of the data set, as in a slice; stop None = all.
        at_most: the most rows taken of these: a cap, where `stop` is a demand; None = all.
        epochs: how often the rows come, which is the task's weight in a mixture: 2 = every row twice, 0.3 = that
            share of them, 2.5 = every row twice and half of them once more. The rows of a part of an epoch are drawn at
            random without repetition, and are the same each time.
        phase: position in a mixture: everything of phase 0 comes before anything of phase 1.

    Raises:
        ValueError: if `stop` is beyond the data set (unlike in a slice, where missing rows are no error).
    """

    ordered = False
    """The order of the rows means something (a curriculum), so that readers must not shuffle them."""
    graded = False
    """An answer can be right or wrong: `grade` works."""
    kind: Literal["generative", "categorical"] = "generative"
    """How chat evaluation asks for answers: written out, or as the likeliest of the letters."""
    grading_threads = 1
    """How many answers are graded at a time; more than one helps where grading waits for programs."""
    runs_programs = False
    """Grading runs what the model wrote; the argument `sandbox` says how to isolate it, `isolation` what works here."""
    on_hub = False
    """Missing files can be fetched: the task takes the arguments `fetch` and `offline`."""

    def __init__(
        self,
        *,
        start: int = 0,
        stop: int | None = None,
        step: int = 1,
        at_most: int | None = None,
        epochs: float = 1,
        phase: int = 0,
    ):
        stop = self.num_rows if stop is None else stop
        if not 0 <= start <= stop or step < 1 or epochs <= 0 or (at_most is not None and at_most < 1):
            raise ValueError(
                f"start={start}, stop={stop}, step={step}, at_most={at_most}, epochs={epochs} of {self.name} make no "
                "sense; 0 <= start <= stop, step >= 1, at_most >= 1 and epochs > 0 are needed"
            )
        if stop > self.num_rows:
            raise ValueError(
                f"{stop} rows of {self.name} were asked for and there are {self.num_rows}; "
                f"set stop={self.num_rows} or null, or at_most={stop} for what there is up to that"
            )
        self._rows = range(start, stop, step)[:at_most]
        self._whole_epochs = int(epochs)
        part = round((epochs - self._whole_epochs) * len(self._rows))
        self._part = sorted(random.Random(_PART_SEED).sample(range(len(self._rows)), part))
        if self._rows and not len(self):
            raise ValueError(f"epochs={epochs} of the {len(self._rows)} rows of {self.name} is less than half a row")
        self.phase = phase

    @property
    def name(self) -> str:
        """The name of this task in messages."""
        return type(self).__name__

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Rows of the whole data set. `Task.__init__` asks for it: load the rows before calling that."""

    @abstractmethod
    def conversation(self, row: int, epoch: int) -> Conversation:
        """Word one row for its `epoch`-th reading (from 0); equal arguments give equal conversations."""

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        """Return whether an answer is right.

        Args:
            conversation: one of this task's.
            completion: what the assistant said, decoded; it contains tool tokens by name.

        Raises:
            ValueError: if this task has nothing to grade by.
        """
        raise ValueError(
            f"{self.name} cannot be graded: its conversations have no right answer; ask or reward a task that has one "
            "(such as GSM8K or MMLU)"
        )

    def reward(self, conversation: Mapping[str, Any], completion: str) -> float:
        """Return the reward of an answer in reinforcement learning: 1 for a right one, else 0.

        Raises:
            ValueError: if this task has nothing to grade by.
        """
        return self.grade(conversation, completion)  # True is 1

    def __len__(self) -> int:
        return len(self._rows) * self._whole_epochs + len(self._part)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        epoch, position = divmod(range(len(self))[index], len(self._rows))
        if epoch == self._whole_epochs:
            position = self._part[position]
        return self.conversation(self._rows[position], epoch)


class Mixture(Task):
    """Several tasks as one, in a fixed random order: every item of every task exactly once.

    The order is nanochat's (2025-11): all (task, item) pairs in order, shuffled by Python's `Random(seed)`. Phases
    follow each other, and each is shuffled by itself. A mixture of one ordered task keeps its order.

    Args:
        tasks: name -> task; None = left out.

    Raises:
        ValueError: if there are no tasks, or if a task whose order matters would be mixed with others.
    """

    def __init__(self, tasks: Mapping[str, abc.Sequence[Conversation] | None], seed: int = 42):
        self._tasks = {name: task for name, task in tasks.items() if task is not None}
        if not self._tasks:
            raise ValueError("a mixture needs at least one task; add one under mixture.tasks")
        self.graded = all(getattr(task, "graded", False) for task in self._tasks.values())
        self._items = self._arrange(seed)
        super().__init__()

    @property
    def tasks(self) -> Mapping[str, abc.Sequence[Conversation]]:
        """The members by name."""
        return self._tasks

    def _arrange(self, seed: int) -> list[tuple[str, int]]:
        ordered = [name for name, task in self._tasks.items() if getattr(task, "ordered", False)]
        if ordered and len(self._tasks) > 1:
            raise ValueError(
                f"the order of {', '.join(ordered)} matters (a curriculum), and a mixture of {len(self._tasks)} tasks "
                "is shuffled; set curriculum=false, put them into a Sequence, or train on that task alone"
            )
        phases = sorted({getattr(task, "phase", 0) for task in self._tasks.values()})
        arranged: list[tuple[str, int]] = []
        for phase in phases:
            here = {name: task for name, task in self._tasks.items() if getattr(task, "phase", 0) == phase}
            items = _items(here)
            if not ordered:
                random.Random(seed).shuffle(items)
            arranged += items
        self.ordered = bool(ordered) or len(phases) > 1
        return arranged

    @property
    def num_rows(self) -> int:
        return len(self._items)

    def conversation(self, row: int, epoch: int) -> Conversation:
        """Return the item with the name of the task it comes from as extra `task` (`outer/inner` where nested)."""
        name, item = self._items[row]
        member = self._tasks[name]
        conversation = member[item]
        path = f"{name}/{conversation['task']}" if isinstance(member, Mixture) else name
        return {**conversation, "task": path}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        """Let the task that the conversation comes from grade the answer."""
        member, inner = self._member(conversation)
        return member.grade(inner, completion)

    def reward(self, conversation: Mapping[str, Any], completion: str) -> float:
        """Let the task that the conversation comes from reward the answer."""
        member, inner = self._member(conversation)
        return member.reward(inner, completion)

    def without(self, items: Collection[int]) -> Self:
        """Return the same mixture without the items of these indexes; the others keep their order."""
        fewer, dropped = copy.copy(self), set(items)
        fewer._items = [item for index, item in enumerate(self._items) if index not in dropped]
        Task.__init__(fewer)
        return fewer

    def _member(self, conversation: Mapping[str, Any]) -> tuple[Task, Conversation]:
        path = str(conversation.get("task"))
        for name, member in self._tasks.items():
            if path == name or (isinstance(member, Mixture) and path.startswith(f"{name}/")):
                if not isinstance(member, Task):
                    raise ValueError(f"{name} cannot be graded: it is no Task but a {type(member).__name__}")
                return member, {**conversation, "task": path.removeprefix(f"{name}/")}
        raise ValueError(f"the conversation's task is {path}, which is none of {', '.join(self._tasks)}")


class Sequence(Mixture):
    """Several tasks one after another, in the order given, each in its own order: a curriculum, never shuffled.

    Differs from phases: those follow each other too, but each is shuffled by itself.

    Args:
        tasks: name -> task; None = left out.

    Raises:
        ValueError: if there are no tasks, or one has a phase, which has no effect here.
    """

    def __init__(self, tasks: Mapping[str, abc.Sequence[Conversation] | None]):
        super().__init__(tasks)

    def _arrange(self, seed: int) -> list[tuple[str, int]]:
        phased = [name for name, task in self._tasks.items() if getattr(task, "phase", 0)]
        if phased:
            raise ValueError(
                f"the phase of {', '.join(phased)} has no effect in a Sequence, whose tasks come in the order given; "
                "leave phase out and set the order"
            )
        self.ordered = True
        return _items(self._tasks)


def _items(tasks: Mapping[str, abc.Sequence[Conversation]]) -> list[tuple[str, int]]:
    return [(name, item) for name, task in tasks.items() for item in range(len(task))]


def question_key(conversation: Mapping[str, Any]) -> str:
    """Return what a conversation asks, with case and white space folded: equal questions have equal keys.

    The key is the first message of the user. For a multiple-choice question (extras `question`, `choices`, perhaps
    `hint`) it consists of hint, question and the sorted choices, so that neither their order nor the wording around
    them counts.
    """
    if conversation.get("choices") and conversation.get("question"):
        texts = [conversation.get("hint") or "", conversation["question"]]
        choices = sorted(map(_fold, conversation["choices"]))
        return "\n".join([*map(_fold, texts), *choices])
    return _fold(next((m["content"] for m in conversation["messages"] if m["role"] == "user"), ""))


def overlap(rows: Iterable[Mapping[str, Any]], others: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the indexes of those conversations of `rows` that ask what one of `others` asks (see `question_key`)."""
    questions = {question_key(conversation) for conversation in others}
    return [index for index, conversation in enumerate(rows) if question_key(conversation) in questions]


def _fold(text: str) -> str:
    return " ".join(text.split()).casefold()
