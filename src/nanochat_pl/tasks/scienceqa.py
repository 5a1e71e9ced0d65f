"""ScienceQA (Lu et al., 2022): multiple-choice science questions as a tutor's conversations.

The columns of `derek-thomas/ScienceQA` are read from tables: a user's folder, the microworld, or the hub's files
fetched into a folder. Pictures are never decoded; null marks alone show which rows of a parquet file have one.
`format_question` and `format_answer` word a conversation in training, in evaluation and for a typed question.
"""

import hashlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.paths import atomic_file
from nanochat_pl.tasks import columns
from nanochat_pl.tasks.answers import choice_letters, strict_letter
from nanochat_pl.tasks.base import Conversation, RowChoice, Task
from nanochat_pl.tasks.tables import find_split, hub_order, read_rows, read_table

__all__ = ["HUB_REPO", "PERSONA", "ScienceQA", "format_answer", "format_question"]

log = logging.getLogger(__name__)

HUB_REPO = "derek-thomas/ScienceQA"
PERSONA = (
    "You are a helpful science tutor. Answer the question with the letter and text of the correct choice, "
    "then explain why."
)


def format_question(question: str, choices: Sequence[str], hint: str = "") -> str:
    """Return the user's message: the hint as context, the question, a blank line, the lettered choices."""
    lines = "\n".join(f"{chr(65 + i)}. {choice}" for i, choice in enumerate(choices))
    return "\n\n".join(part for part in (hint.strip(), question.strip(), lines) if part)


def format_answer(choices: Sequence[str], answer: int, solution: str = "", lecture: str = "") -> str:
    """Return the tutor's answer: letter and text of the right choice, then explanation and background if given."""
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
        path: folder with `<split>.parquet` (or .csv, .json, .jsonl), or `<split>-*.parquet` as on the hub (also in a
            subfolder `data`).
        split: train, validation or test.
        rows: number of rows, drawn as `Dataset.shuffle(seed=42).select(range(rows))` does; None = all, in file order.
        persona: the system message; None = none.
        hint, solution, lecture: include these columns.
        text_only: drop the rows that have a picture (before `rows` are drawn).
        shuffle_choices: draw a new order of the choices for each row and epoch; the letter follows its text.
        curriculum: easiest first, `grade1` to `grade12`; rows without a grade come last.
        formatted_dir: folder where the formatted split is saved, and from which it is read again as long as the
            source's files have the same content, or are gone.
        hub: repository to fetch missing files from, into `path`; None = files must be there.
        offline: open no socket.
        chosen: which of these, see `Task`.

    Raises:
        FileNotFoundError: if the split's files are not there, or cannot be fetched.
        ValueError: if fewer rows are there than asked for, a column is missing, a value cannot be read as its column's
            (see `columns`), a row has fewer than 2 or more than 26 choices, or its answer is not one of them.
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
        try:
            files = find_split(path, split, repo=hub or HUB_REPO, fetch=hub is not None, offline=offline)
        except FileNotFoundError as missing:
            self._records = _read_without_source(formatted_dir, split, options, missing)
        else:
            self._records = self._prepare(files, formatted_dir, options)
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
        letters = choice_letters(choices)
        kept |= {"choices": choices, "letters": letters, "answer": letters[answer], "hint": shown["hint"]}
        return {"messages": messages, **kept}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        """Return whether the answer commits to the right letter (`answers.strict_letter`), whatever else it says."""
        return strict_letter(completion, conversation["letters"]) == conversation["answer"]

    def _prepare(
        self, files: Sequence[Path], formatted_dir: str | Path | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Read the source and choose its rows, or read the rows that were saved for the same content and options."""
        name = None
        if formatted_dir:
            name = Path(formatted_dir) / _formatted_name(self.split, options, _content_key(files))
            if name.is_file():
                return _read_formatted(name)
        records = _read_split(files, self.split)
        self._records = self._select(records, options["rows"], options["text_only"], options["curriculum"])
        if name is not None:
            self._save(name)
        return self._records

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


def _read_split(files: Sequence[Path], split: str) -> list[dict[str, Any]]:
    table = read_table(files, columns.scienceqa())
    has_image = [here for file, count in table.files for here in _has_image(file, count)]
    records = []
    for number, row in enumerate(table.rows()):
        _check(row, table.where(number))
        texts = {name: row.get(name, "") for name in columns.scienceqa().names[1]}
        kept = {"question": row["question"], "choices": row["choices"], "answer": row["answer"]}
        records.append({"id": f"{split}/{number}", **kept, **texts, "has_image": has_image[number]})
    return records


def _has_image(file: Path, num_rows: int) -> list[bool]:
    """Return for each row whether it has a picture: its path or its bytes are there."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if file.suffix != ".parquet":
        return [_is_picture(row.get("image")) for row in read_rows(file, (), ("image",))]
    schema = pq.read_schema(file)
    if "image" not in schema.names:
        return [False] * num_rows
    kind = schema.field("image").type
    leaves = [name for name in ("path", "bytes") if pa.types.is_struct(kind) and kind.get_field_index(name) >= 0]
    found: list[bool] = []
    with pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            if not leaves:
                found += map(_is_picture, parquet.read_row_group(group, columns=["image"]).column(0).to_pylist())
                continue
            here: list[bool] = []
            # first the small leaf with the paths; pictures are read only where one has no path
            for leaf in leaves:
                part = parquet.read_row_group(group, columns=[f"image.{leaf}"]).column(0)
                records = part.is_valid().to_pylist()
                values = part.combine_chunks().flatten()[0]
                lengths = [0] * len(part) if pa.types.is_null(values.type) else pc.binary_length(values).to_pylist()
                here = [a or bool(length) for a, length in zip(here or [False] * len(part), lengths)]
                if here == records:  # every picture is found
                    break
            found += here
    return found


def _is_picture(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(value.get(name) for name in ("path", "bytes"))
    return bool(value) and value == value  # a NaN, which is no picture, differs from itself


def _check(row: Mapping[str, Any], where: str) -> None:
    choices, answer = row["choices"], row["answer"]
    if not 2 <= len(choices) <= 26:
        raise ValueError(f"{where} has {len(choices)} choices; 2 to 26 (letters A-Z) are needed: mend or drop the row")
    if not 0 <= answer < len(choices):
        raise ValueError(
            f"{where} has answer={answer}, but its choices are numbered 0 to {len(choices) - 1}: mend or drop the row"
        )


def _read_without_source(
    folder: str | Path | None, split: str, options: Mapping[str, Any], missing: FileNotFoundError
) -> list[dict[str, Any]]:
    """Read the rows last saved from a source that is gone; raise `missing` where there are none."""
    saved = Path(folder).glob(_formatted_name(split, options, "*")) if folder else ()
    newest = max(saved, key=lambda file: file.stat().st_mtime_ns, default=None)
    if newest is None:
        raise missing
    log.warning("the %s split is not in %s; its rows are those saved from it before", split, options["path"])
    return _read_formatted(newest)


def _formatted_name(split: str, options: Mapping[str, Any], content: str) -> str:
    """Return the name of a saved split, from source, options and content, so that nothing else is read in its place."""
    key = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:10]
    return f"scienceqa-{split}-{key}-{content}.parquet"


def _content_key(files: Sequence[Path]) -> str:
    """Return a hash of the files' content, so that rows saved before they changed are not read."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:10]


def _read_formatted(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    log.info("reading formatted conversations from %s", file)
    try:
        names = [name for name in pq.read_schema(file).names if name != "messages"]
        return pq.read_table(file, columns=names).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is truncated or not a parquet file; delete it, and it is made again") from error
