"""The columns that each task reads from tables: names, types, and which of them may be missing.

The types are `datasets.Features`. That library takes a second to load, so each declaration is a function.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from nanochat_pl.tasks.answers import choice_letters
from nanochat_pl.tasks.forms import MARKS, form_of, read_messages, recognise
from nanochat_pl.tasks.repairs import Unfit, written

if TYPE_CHECKING:
    import datasets

__all__ = ["Columns", "arc", "chats", "gsm8k", "humaneval", "mmlu", "recall", "scienceqa"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a task's table must hold."""

    required: "datasets.Features"
    optional: "datasets.Features | None" = None
    """Columns that may be missing, all of text; a null in one is an empty text."""
    choices: str | None = None
    """The column with a question's choices, which files have in several shapes."""
    answer: str | None = None
    """The column that says which of the choices is right: by number from 0, or by label if `labelled`."""
    filled: tuple[str, ...] = ()
    """Columns in which no text may be empty or white space, not even one of the choices."""
    rewrite: Callable[[Mapping[str, Any], Counter[str], Counter[str]], dict[str, Any]] | None = None
    """Makes a row of the required columns from a row of any layout; counts repairs, and rows by their form."""
    marks: tuple[str, ...] = ()
    """Further columns, not declared, that `rewrite` reads."""

    @cached_property
    def features(self) -> "datasets.Features":
        """All columns with their types."""
        import datasets

        return datasets.Features({**self.required, **(self.optional or {})})

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names of the required and of the optional columns."""
        return list(self.required), list(self.optional or {})

    @property
    def labelled(self) -> bool:
        """Whether the choices have labels."""
        return self.choices is not None and isinstance(self.required[self.choices], Mapping)

    def part(self, names: list[str]) -> "datasets.Features":
        """Return the types of some columns."""
        import datasets

        return datasets.Features({name: self.features[name] for name in names})

    def shape(self, value: Any, labels: dict[int, list[str]], row: int, repairs: Counter[str]) -> Any:
        """Convert the choices of one row to the declared shape.

        ARC's choices are an object of texts and labels, those of other sets a list of texts; some files have a list of
        objects. Each shape is made from the others: missing labels become A, B, C and so on.

        Args:
            labels: receives the row's labels where the declared shape has no room for them.

        Raises:
            Unfit: if it has none of these shapes.
        """
        if isinstance(value, str):
            value = written(value)
            repairs["choices written as text"] += 1
        labelled = self.labelled
        if isinstance(value, Mapping) and (texts := _lettered(value)):
            repairs["choices given by letter"] += 1
            value = {"text": texts, "label": choice_letters(texts)} if labelled else texts
        if isinstance(value, list) and value and all(isinstance(v, Mapping) and "text" in v for v in value):
            repairs["lists of labelled choices"] += 1
            value = {"text": [v["text"] for v in value], "label": [v.get("label") for v in value]}
            if value["label"] == [None] * len(value["label"]):
                del value["label"]
        if isinstance(value, Mapping) and "text" in value and isinstance(value["text"], list | tuple):
            texts = list(value["text"])
            own = value.get("label")
            if own is not None and (not isinstance(own, list | tuple) or len(own) != len(texts)):
                raise Unfit(f"{len(texts)} texts and other labels ({own}), where each choice needs one")
            if labelled:
                return {"text": texts, "label": choice_letters(texts) if own is None else list(own)}
            repairs["choices given with labels"] += 1
            if own is not None:
                labels[row] = [str(label) for label in own]
            return texts
        if labelled and isinstance(value, list | tuple):
            repairs["choices given without labels"] += 1
            return {"text": list(value), "label": choice_letters(value)}
        return value


def _lettered(value: Mapping[Any, Any]) -> list[Any]:
    """Return the texts of `{"A": ..., "B": ...}` in the order of the letters; none where the keys are no letters."""
    by_letter = {key.upper(): text for key, text in value.items() if isinstance(key, str)}
    if len(by_letter) < len(value) or sorted(by_letter) != choice_letters(value):
        return []
    texts = [by_letter[letter] for letter in sorted(by_letter)]
    # parquet gives every row all letters of the file, of which the last may hold nothing
    while texts and texts[-1] is None:
        texts.pop()
    return texts


def _features(kind: Any) -> Any:
    """Return a type as `datasets` has it; `kind` is `str` or `int`, a list of one type, or a dict of types."""
    from datasets import List, Value

    if isinstance(kind, dict):
        return {name: _features(part) for name, part in kind.items()}
    return List(_features(kind[0])) if isinstance(kind, list) else Value({str: "string", int: "int64"}[kind])


def _columns(required: dict[str, Any], optional: tuple[str, ...] = (), **options: Any) -> Columns:
    from datasets import Features

    texts = Features(_features(dict.fromkeys(optional, str))) if optional else None
    return Columns(required=Features(_features(required)), optional=texts, **options)


@cache
def scienceqa() -> Columns:
    """Return ScienceQA's columns; its pictures are never read as a column."""
    return _columns(
        {"question": str, "choices": [str], "answer": int},
        ("hint", "grade", "subject", "topic", "lecture", "solution"),
        choices="choices",
        answer="answer",
        filled=("question", "choices"),
    )


@cache
def mmlu() -> Columns:
    """Return MMLU's columns; choices may be blank, since the original reads whatever the hub has."""
    required = {"question": str, "choices": [str], "answer": int}
    return _columns(required, ("subject",), choices="choices", answer="answer", filled=("question",))


@cache
def arc() -> Columns:
    """Return ARC's columns; the answer is one of the labels."""
    required = {"question": str, "choices": {"text": [str], "label": [str]}, "answerKey": str}
    return _columns(required, ("id",), choices="choices", answer="answerKey", filled=("question", "choices"))


@cache
def gsm8k() -> Columns:
    """Return GSM8K's columns."""
    return _columns({"question": str, "answer": str}, filled=("question", "answer"))


@cache
def humaneval() -> Columns:
    """Return HumanEval's columns."""
    names = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    return _columns(dict.fromkeys(names, str), filled=("prompt", "test", "entry_point"))


@cache
def recall() -> Columns:
    """Return the columns of questions asked without choices."""
    optional = ("subject", "topic", "grade", "fact")
    return _columns({"question": str, "answer": str}, optional, filled=("question", "answer"))


@cache
def chats() -> Columns:
    """Return the one column of ready-made chats; rows of other layouts are read as `forms.py` knows them."""
    required = {"messages": [{"role": str, "content": str}]}
    return _columns(required, rewrite=_chat, marks=(*MARKS, "system"))


def _chat(row: Mapping[str, Any], repairs: Counter[str], forms: Counter[str]) -> dict[str, Any]:
    """Make the messages of a row of any form; ValueError if they are no conversation."""
    column = ""
    try:
        column = "column messages: " if form_of(row) == "messages" else ""
        form, messages = recognise(row, repairs)
        turns = list(read_messages(messages, repairs, closed=False, blank=("user", "assistant", "system")))
        if any(not isinstance(message["content"], str) for message in turns):
            raise ValueError("calls of the calculator are read from JSON Lines only (the task jsonl.JSONL)")
    except ValueError as error:
        raise ValueError(f"{column}{error}") from error
    forms[form] += 1
    return {"messages": turns}
