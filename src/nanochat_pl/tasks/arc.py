"""ARC (Clark et al., 2018): science questions of school examinations, an easy and a challenging set."""

from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.tasks import columns
from nanochat_pl.tasks.answers import check_strict
from nanochat_pl.tasks.base import Conversation, RowChoice, Task
from nanochat_pl.tasks.multiple_choice import is_right_letter, multiple_choice
from nanochat_pl.tasks.tables import Table, hub_order, name_apart, read_split

__all__ = ["ARC", "HUB_REPO", "SUBSETS"]

HUB_REPO = "allenai/ai2_arc"
SUBSETS = ("ARC-Easy", "ARC-Challenge")
"""Folders of the repository, and below `path`."""


class ARC(Task):
    """Rows `question`, `choices` (`text` and `label`), `answerKey`; the answer is a bare label.

    Extras of a conversation: `id` (the row's own, else split/row), `question`, `choices`, `letters` (the row's own
    labels: mostly A to D, also 1 to 4 or A to E), `answer` (right label).

    Args:
        path: folder with the folders ARC-Easy and ARC-Challenge, which hold `<split>.parquet` or the hub's files.
        subset: ARC-Easy or ARC-Challenge.
        split: train, validation or test.
        shuffle: take the rows in the order of `Dataset.shuffle(seed=42)`, as the original does; false = the file's.
        strict: how answers are read: stated (the letter that an answer states) or original (nanochat's rule), see
            docs/evaluation.md.
        fetch: fetch what is missing from the hub.
        offline: open no socket.
        chosen: which rows, see `Task`.

    Raises:
        FileNotFoundError: if the split is not there, or cannot be fetched.
        ValueError: for another subset, a missing column, or a row whose answer is none of its labels.
    """

    graded = True
    kind = "categorical"
    on_hub = True

    def __init__(
        self,
        path: str | Path,
        subset: str = "ARC-Easy",
        split: str = "train",
        *,
        shuffle: bool = True,
        strict: str = "stated",
        fetch: bool = False,
        offline: bool = False,
        **chosen: Unpack[RowChoice],
    ):
        if subset not in SUBSETS:
            raise ValueError(f"subset={subset} of ARC is not one of {', '.join(SUBSETS)}")
        table = read_split(
            Path(path) / subset,
            split,
            columns.arc(),
            repo=HUB_REPO,
            folder=subset,
            fetch=fetch,
            offline=offline,
        )
        self.subset, self.split, self.strict = subset, split, check_strict(strict)
        records = [_record(row, table, f"{subset} {split}", number) for number, row in enumerate(table.rows())]
        name_apart(records, "id")
        self._records = hub_order(records) if shuffle else records
        super().__init__(**chosen)

    @property
    def name(self) -> str:
        return f"{self.subset} {self.split}"

    @property
    def num_rows(self) -> int:
        return len(self._records)

    def conversation(self, row: int, epoch: int) -> Conversation:
        return multiple_choice(self._records[row])

    def grade(self, conversation: Any, completion: str) -> bool:
        """Tell whether the answer commits to the right label."""
        return is_right_letter(conversation, completion, self.strict)


def _record(row: dict[str, Any], table: Table, where: str, number: int) -> dict[str, Any]:
    texts, labels, answer = row["choices"]["text"], row["choices"]["label"], row["answerKey"]
    is_labelled = len(texts) == len(labels) == len(set(labels)) and all(label.strip() for label in labels)
    if not is_labelled or answer not in labels:
        raise ValueError(
            f"{table.where(number)} of {where} has {len(texts)} choices, the labels {', '.join(labels)} and "
            f"answerKey={answer}; a label of its own for each choice is needed, the answer's among them: mend or drop "
            "the row"
        )
    return {
        "id": row.get("id") or f"{where}/{number}",
        "question": row["question"],
        "choices": texts,
        "letters": labels,
        "answer": answer,
    }
