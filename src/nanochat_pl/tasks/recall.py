"""Free recall: questions about the microworld's facts, asked without choices.

Where multiple choice tests whether a model binds a letter to a text, this tests only whether the fact was learned: one
short answer, compared exactly. The files are those of the microworld (`world/`), or any with these two columns.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.tasks import columns
from nanochat_pl.tasks.answers import recalled_answer
from nanochat_pl.tasks.base import Conversation, RowChoice, Task
from nanochat_pl.tasks.tables import read_split

__all__ = ["ANSWER", "Recall"]

ANSWER = "The correct answer is {answer}."
"""It begins like a multiple-choice answer, so that both are recalled at the same position."""


class Recall(Task):
    """Rows `question`, `answer` (and `subject`, `topic`, `grade`, `fact`) as conversations of one question.

    Extras of a conversation: `id`, `question`, `answer` (the bare text), `subject`, `topic`, `grade`, `fact`.

    Args:
        path: folder with `<split>.parquet`.
        split: train, validation or test.
        persona: the system message; None = none.
        chosen: which rows, see `Task`.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if the file cannot be read, has no column `question` or `answer`, or a row has a blank one.
    """

    graded = True

    def __init__(
        self, path: str | Path, split: str = "train", *, persona: str | None = None, **chosen: Unpack[RowChoice]
    ):
        self._path, self._split, self._persona = Path(path), split, persona
        table = read_split(path, split, columns.recall())
        self._records = table.rows()
        for number, row in enumerate(self._records):
            if not recalled_answer(row["answer"]):  # an empty answer would be right
                raise ValueError(
                    f"{table.where(number)} of Recall's {split} split has an answer of marks alone: mend or drop "
                    "the row"
                )
        super().__init__(**chosen)

    @property
    def name(self) -> str:
        return f"Recall {self._split} ({self._path})"

    @property
    def num_rows(self) -> int:
        return len(self._records)

    def conversation(self, row: int, epoch: int) -> Conversation:
        record = self._records[row]
        messages = [] if self._persona is None else [{"role": "system", "content": self._persona}]
        messages += [
            {"role": "user", "content": record["question"]},
            {"role": "assistant", "content": ANSWER.format(answer=record["answer"])},
        ]
        return {"messages": messages, "id": f"{self._split}/{row}", **record}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        """Return whether the first line of the answer, normalised by `recalled_answer`, is right."""
        return recalled_answer(completion) == recalled_answer(conversation["answer"])
