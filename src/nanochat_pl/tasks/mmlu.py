"""MMLU (Hendrycks et al., 2021): four choices each, 57 subjects; its auxiliary questions are what midtraining reads."""

import logging
from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.tasks import columns
from nanochat_pl.tasks.answers import check_strict
from nanochat_pl.tasks.base import Conversation, RowChoice, Task
from nanochat_pl.tasks.multiple_choice import is_right_letter, multiple_choice
from nanochat_pl.tasks.tables import Table, hub_order, read_split

__all__ = ["HUB_FOLDER", "HUB_REPO", "LETTERS", "MMLU", "SPLITS"]

log = logging.getLogger(__name__)

HUB_REPO = "cais/mmlu"
HUB_FOLDER = "all"
SPLITS = ("auxiliary_train", "dev", "validation", "test")
LETTERS = ("A", "B", "C", "D")


class MMLU(Task):
    """Rows `question`, `choices`, `answer` (0 to 3), `subject`; the answer is a bare letter.

    Extras of a conversation: `id` (split/row of the file), `question`, `choices`, `letters`, `answer` (right letter),
    `subject` (empty for the auxiliary questions).

    Args:
        path: folder with `<split>.parquet` (or .csv, .json, .jsonl), or the hub's files. Their columns may lie in a
            single column `train`, as in the hub's older form of the auxiliary questions.
        split: auxiliary_train (to learn from), dev, validation or test.
        shuffle: take the rows in the order of `Dataset.shuffle(seed=42)`, as the original does; false = the file's.
        strict: how answers are read: stated (the letter that an answer states) or original (nanochat's rule), see
            docs/evaluation.md.
        fetch: fetch what is missing from the hub.
        offline: open no socket.
        chosen: which rows, see `Task`.

    Raises:
        FileNotFoundError: if the split is not there, or cannot be fetched.
        ValueError: for another split, a missing column, a value that cannot be read as its column's (see `columns`), or
            a row without four choices and an answer among them.
    """

    graded = True
    kind = "categorical"
    on_hub = True

    def __init__(
        self,
        path: str | Path,
        split: str = "auxiliary_train",
        *,
        shuffle: bool = True,
        strict: str = "stated",
        fetch: bool = False,
        offline: bool = False,
        **chosen: Unpack[RowChoice],
    ):
        if split not in SPLITS:
            raise ValueError(f"split={split} of MMLU is not one of {', '.join(SPLITS)}")
        table = read_split(path, split, columns.mmlu(), repo=HUB_REPO, folder=HUB_FOLDER, fetch=fetch, offline=offline)
        self.split, self.strict = split, check_strict(strict)
        records = [_record(row, table, split, number) for number, row in enumerate(table.rows())]
        if blank := sum(not all(choice.strip() for choice in record["choices"]) for record in records):
            log.warning("%d of the %d questions of %s have an empty choice", blank, len(records), self.name)
        self._records = hub_order(records) if shuffle else records
        super().__init__(**chosen)

    @property
    def name(self) -> str:
        return f"MMLU {self.split}"

    @property
    def num_rows(self) -> int:
        return len(self._records)

    def conversation(self, row: int, epoch: int) -> Conversation:
        return multiple_choice(self._records[row])

    def grade(self, conversation: Any, completion: str) -> bool:
        """Tell whether the answer commits to the right letter."""
        return is_right_letter(conversation, completion, self.strict)


def _record(row: dict[str, Any], table: Table, split: str, number: int) -> dict[str, Any]:
    choices, answer = row["choices"], row["answer"]
    if len(choices) != len(LETTERS) or answer not in range(len(LETTERS)):
        raise ValueError(
            f"{table.where(number)} of MMLU's {split} split has {len(choices)} choices and answer={answer}; "
            "four choices and an answer from 0 to 3 are needed: mend or drop the row"
        )
    return {
        "id": f"{split}/{number}",
        "question": row["question"],
        "choices": choices,
        "letters": list(LETTERS),
        "answer": LETTERS[answer],
        "subject": row.get("subject") or "",
    }
