"""ScienceQA (Lu et al., 2022): multiple-choice science questions as a tutor's conversations.

Reads the columns of `derek-thomas/ScienceQA` from parquet files: a folder of one's own, the microworld, or the hub's
files fetched into a folder. Pictures are never decoded; the file's null marks alone tell which rows have one. The
wording of a conversation is `format_question` and `format_answer`, also for evaluation and a typed question.
"""

import hashlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.paths import atomic_file
from nanochat_pl.tasks.answers import strict_letter
from nanochat_pl.tasks.base import Conversation, RowChoice, Task
from nanochat_pl.tasks.tables import find_split, hub_order, read_rows

__all__ = ["HUB_REPO", "PERSONA", "ScienceQA", "format_answer", "format_question"]

log = logging.getLogger(__name__)

HUB_REPO = "derek-thomas/ScienceQA"
PERSONA = (
    "You are a helpful science tutor. Answer the question with the letter and text of the correct choice, "
    "then explain why."
)
_REQUIRED = ("question", "choices", "answer")
_OPTIONAL = ("hint", "grade", "subject", "topic", "lecture", "solution")


def format_question(question: str, choices: Sequence[str], hint: str = "") -> str:
    """Word what the user says: the hint as context, the question, a blank line, the lettered choices."""
    lines = "\n".join(f"{chr(65 + i)}. {choice}" for i, choice in enumerate(choices))
    return "\n\n".join(part for part in (hint.strip(), question.strip(), lines) if part)


def format_answer(choices: Sequence[str], answer: int, solution: str = "", lecture: str = "") -> str:
    """Word what the tutor says: letter and text of the right choice, then explanation and background if given."""
    parts = [f"The correct answer is {chr(65 + answer)}. {choices[answer]}"]
    if solution.strip():
        parts.append(f"Explanation: {solution.strip()}")
    if lecture.strip():
        parts.append(f"Background: {lecture.strip()}")
    return "\n\n".join(parts)


class ScienceQA(Task):
    """Rows of one split of ScienceQA as conversations.

    Extras of a conversation: `id` (split/row of the file), `question`, `choices`, `letters`, `answer` (right letter),
    `subject`, `topic`, `grade`, `has_image`, `solution`, `hint` (empty where it is not shown).

    Args:
        path: folder with `<split>.parquet`, or `<split>-*.parquet` as on the hub (also in a subfolder `data`).
        split: train, validation or test.
        rows: so many rows, drawn as `Dataset.shuffle(seed=42).select(range(rows))` does; None = all, in file order.
        persona: the system message; None = none.
        hint, solution, lecture: include these columns.
        text_only: drop the rows that have a picture (before `rows` are drawn).
        shuffle_choices: draw a new order of the choices for each row and epoch; the letter follows its text.
        curriculum: easiest first, `grade1` to `grade12`; rows without a grade come last.
        formatted_dir: folder where the formatted split is saved, and read again instead of the source.
        hub: repository to fetch missing files from, into `path`; None = files must be there.
        offline: open no socket.
        chosen: which of these, see `Task`.

    Raises:
        FileNotFoundError: if the split's files are not there, or cannot be fetched.
        ValueError: if fewer rows are there than asked for, a column is missing, a row has fewer than 2 or more than 26
            choices, or its answer is not one of them.
    """

    graded = True

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        rows: int | None = None,
        persona: str | None = PERSONA,
        hint: bool = True,
        solution: bool = True,
        lecture: bool = True,
        text_only: bool = False,
        shuffle_choices: bool = False,
        curriculum: bool = False,
        formatted_dir: str | Path | None = None,
        hub: str | None = None,
        offline: bool = False,
        **chosen: Unpack[RowChoice],
    ):
        self.split, self.ordered = split, curriculum
        self._path, self._shuffle_choices = Path(path), shuffle_choices
        self._persona = persona
        self._included = {"hint": hint, "solution": solution, "lecture": lecture}
        options = {"rows": rows, "text_only": text_only, "curriculum": curriculum, "persona": persona, **self._included}
        options["path"] = str(path)
        saved = _formatted_file(Path(formatted_dir), split, options) if formatted_dir else None
        if saved is not None and saved.is_file():
            self._records = _read_formatted(saved)
        else:
            records = _read_split(self._path, split, hub, offline)
            self._records = self._select(records, rows, text_only, curriculum)
            if saved is not None:
                self._save(saved)
        super().__init__(**chosen)

    @property
    def name(self) -> str:
        return f"ScienceQA {self.split} ({self._path})"

    @property
    def num_rows(self) -> int:
        return len(self._records)

    def conversation(self, row: int, epoch: int) -> Conversation:
        record = self._records[row]
        choices, answer = record["choices"], record["answer"]
        if self._shuffle_choices:
            order = list(range(len(choices)))
            random.Random(f"{record['id']}/{epoch}").shuffle(order)
            choices, answer = [choices[i] for i in order], order.index(answer)
        shown = {name: record[name] if wanted else "" for name, wanted in self._included.items()}
        messages = [] if self._persona is None else [{"role": "system", "content": self._persona}]
        messages += [
            {"role": "user", "content": format_question(record["question"], choices, shown["hint"])},
            {"role": "assistant", "content": format_answer(choices, answer, shown["solution"], shown["lecture"])},
        ]
        kept = {key: record[key] for key in ("id", "question", "subject", "topic", "grade", "has_image", "solution")}
        letters = [chr(65 + i) for i in range(len(choices))]
        kept |= {"choices": choices, "letters": letters, "answer": letters[answer], "hint": shown["hint"]}
        return {"messages": messages, **kept}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        """Tell whether the answer commits to the right letter (`answers.strict_letter`), whatever else it says."""
        return strict_letter(completion, conversation["letters"]) == conversation["answer"]

    def _select(self, records: list[dict], rows: int | None, text_only: bool, curriculum: bool) -> list[dict]:
        if text_only:
            records = [record for record in records if not record["has_image"]]
        if rows is not None:
            if rows > len(records):
                kind = "rows without a picture" if text_only else "rows"
                raise ValueError(
                    f"{rows:,} rows of {self.name} were asked for and there are {len(records):,} {kind}; "
                    f"set the number of rows to {len(records)} or less, or to null for all"
                )
            records = hub_order(records)[:rows]
        if curriculum:
            records = sorted(records, key=lambda record: _grade(record["grade"]))
        return records

    def _save(self, file: Path) -> None:
        """Write the formatted split: the records, and the messages as they are worded without shuffling."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        shuffle, self._shuffle_choices = self._shuffle_choices, False
        rows = [record | {"messages": self.conversation(i, 0)["messages"]} for i, record in enumerate(self._records)]
        self._shuffle_choices = shuffle
        with atomic_file(file) as temporary:
            pq.write_table(pa.Table.from_pylist(rows), temporary)
        log.info("saved %s formatted conversations to %s", f"{len(rows):,}", file)


def _grade(text: str) -> int:
    digits = text.removeprefix("grade")
    return int(digits) if digits.isdecimal() else 99


def _read_split(path: Path, split: str, hub: str | None, offline: bool) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for file in find_split(path, split, repo=hub or HUB_REPO, fetch=hub is not None, offline=offline):
        rows = read_rows(file, _REQUIRED, _OPTIONAL)
        has_image = _has_image(file, len(rows))
        for i, row in enumerate(rows):
            _check(row, file, i)
            texts = {name: row.get(name) or "" for name in _OPTIONAL}
            kept = {"question": row["question"], "choices": row["choices"], "answer": int(row["answer"])}
            records.append({"id": f"{split}/{len(records)}", **kept, **texts, "has_image": has_image[i]})
    return records


def _has_image(file: Path, num_rows: int) -> list[bool]:
    """Tell which rows have a picture from the null marks of one small leaf, without reading a byte of any picture."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    if "image" not in schema.names:
        return [False] * num_rows
    kind = schema.field("image").type
    leaf = "image.path" if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0 else "image"
    return pq.read_table(file, columns=[leaf]).column(0).is_valid().to_pylist()


def _check(row: Mapping[str, Any], file: Path, number: int) -> None:
    choices, answer = row["choices"], row["answer"]
    where = f"{file}, row {number} (counted from 0)"
    if not row["question"] or choices is None or not 2 <= len(choices) <= 26:
        count = "no question" if not row["question"] else f"{len(choices or [])} choices"
        raise ValueError(
            f"{where} has {count}; a question and 2 to 26 choices (letters A-Z) are needed: mend or drop the row"
        )
    if answer is None or not 0 <= answer < len(choices):
        raise ValueError(
            f"{where} has answer={answer}, but its choices are numbered 0 to {len(choices) - 1}: mend or drop the row"
        )


def _formatted_file(folder: Path, split: str, options: Mapping[str, Any]) -> Path:
    """Name the file by source and options, so that another source or wording never reads this one by mistake."""
    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:10]
    return folder / f"scienceqa-{split}-{key}.parquet"


def _read_formatted(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    log.info("reading formatted conversations from %s", file)
    names = [name for name in pq.read_schema(file).names if name != "messages"]
    return pq.read_table(file, columns=names).to_pylist()
