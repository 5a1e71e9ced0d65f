"""MMLU (Hendrycks et al., 2021): four choices each, 57 subjects; its auxiliary questions are what midtraining reads."""

import logging
from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.tasks import columns
from nanochat_pl.tasks.base import Conversation
from nanochat_pl.tasks.hub import HubOptions, HubTask
from nanochat_pl.tasks.multiple_choice import is_right_letter, multiple_choice

__all__ = ["LETTERS", "MMLU", "SPLITS"]

log = logging.getLogger(__name__)

SPLITS = ("auxiliary_train", "dev", "validation", "test")
LETTERS = ("A", "B", "C", "D")


class MMLU(HubTask):
    """Rows `question`, `choices`, `answer` (0 to 3), `subject`; the answer is a bare letter.

    Extras of a conversation: `id` (split/row of the file), `question`, `choices`, `letters`, `answer` (right letter),
    `subject` (empty for the auxiliary questions).

    Args:
        path: folder with `<split>.parquet` (or .csv, .json, .jsonl), or the hub's files. Their columns may lie in a
            single column `train`, as in the hub's older form of the auxiliary questions.
        split: auxiliary_train (to learn from), dev, validation or test.
        options: see `HubTask`.

    Raises:
        FileNotFoundError: if the split is not there, or cannot be fetched.
        ValueError: for another split, a missing column, a value that cannot be read as its column's (see `columns`), or
            a row without four choices and an answer among them.
    """

    kind = "categorical"
    hub_repo, hub_folder = "cais/mmlu", "all"
    columns = staticmethod(columns.mmlu)

    def __init__(self, path: str | Path, split: str = "auxiliary_train", **options: Unpack[HubOptions]):
        if split not in SPLITS:
            raise ValueError(f"split={split} of MMLU is not one of {', '.join(SPLITS)}")
        super().__init__(path, split, **options)
        if blank := sum(not all(choice.strip() for choice in record["choices"]) for record in self._records):
            log.warning("%d of the %d questions of %s have an empty choice", blank, len(self._records), self.name)

    def record(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        choices, answer = row["choices"], row["answer"]
        if len(choices) != len(LETTERS) or answer not in range(len(LETTERS)):
            raise ValueError(
                f"{len(choices)} choices and answer={answer}; four choices and an answer from 0 to 3 are needed"
            )
        return {
            "id": f"{self.split}/{number}",
            "question": row["question"],
            "choices": choices,
            "letters": list(LETTERS),
            "answer": LETTERS[answer],
            "subject": row.get("subject") or "",
        }

    def conversation(self, row: int, epoch: int) -> Conversation:
        return multiple_choice(self._records[row])

    def grade(self, conversation: Any, completion: str) -> bool:
        """Return whether the answer commits to the right letter."""
        return is_right_letter(conversation, completion, self.strict)
