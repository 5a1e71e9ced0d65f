"""ARC (Clark et al., 2018): science questions of school examinations, an easy and a challenging set."""

from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.tasks import columns
from nanochat_pl.tasks.base import Conversation
from nanochat_pl.tasks.hub import HubOptions, HubTask
from nanochat_pl.tasks.multiple_choice import is_right_letter, multiple_choice

__all__ = ["ARC", "SUBSETS"]

SUBSETS = ("ARC-Easy", "ARC-Challenge")
"""Folders of the repository, and below `path`."""


class ARC(HubTask):
    """Rows `question`, `choices` (`text` and `label`), `answerKey`; the answer is a bare label.

    Extras of a conversation: `id` (the row's own, else split/row), `question`, `choices`, `letters` (the row's own
    labels: mostly A to D, also 1 to 4 or A to E), `answer` (right label).

    Args:
        path: folder with the folders ARC-Easy and ARC-Challenge, which hold `<split>.parquet` or the hub's files.
        subset: ARC-Easy or ARC-Challenge.
        split: train, validation or test.
        options: see `HubTask`.

    Raises:
        FileNotFoundError: if the split is not there, or cannot be fetched.
        ValueError: for another subset, a missing column, or a row whose answer is none of its labels.
    """

    kind = "categorical"
    hub_repo = "allenai/ai2_arc"
    columns = staticmethod(columns.arc)

    def __init__(self, path: str | Path, subset: str = "ARC-Easy", split: str = "train", **options: Unpack[HubOptions]):
        if subset not in SUBSETS:
            raise ValueError(f"subset={subset} of ARC is not one of {', '.join(SUBSETS)}")
        self.subset = self.hub_folder = subset
        super().__init__(Path(path) / subset, split, **options)

    @property
    def name(self) -> str:
        return f"{self.subset} {self.split}"

    @property
    def described(self) -> str:
        return self.name

    def record(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        texts, labels, answer = row["choices"]["text"], row["choices"]["label"], row["answerKey"]
        is_labelled = len(texts) == len(labels) == len(set(labels)) and all(label.strip() for label in labels)
        if not is_labelled or answer not in labels:
            raise ValueError(
                f"{len(texts)} choices, the labels {', '.join(labels)} and answerKey={answer}; a label of its own for "
                "each choice is needed, the answer's among them"
            )
        return {
            "id": row.get("id") or f"{self.name}/{number}",
            "question": row["question"],
            "choices": texts,
            "letters": labels,
            "answer": answer,
        }

    def conversation(self, row: int, epoch: int) -> Conversation:
        return multiple_choice(self._records[row])

    def grade(self, conversation: Any, completion: str) -> bool:
        """Return whether the answer commits to the right label."""
        return is_right_letter(conversation, completion, self.strict)
