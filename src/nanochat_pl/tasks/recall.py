"""Free recall: questions about the microworld's facts, asked without choices.

Where multiple choice tests whether a model binds a letter to a text, this tests only whether the fact was learned: one
short answer, compared exactly. The files are those of `data/microworld.py`, or any with these two columns.
"""

from pathlib import Path
from typing import Any

from nanochat_pl.tasks.base import Conversation, Task

__all__ = ["ANSWER", "Recall"]

ANSWER = "The correct answer is {answer}."
"""The same beginning as a multiple-choice answer: what follows is recalled in the same place for both."""


class Recall(Task):
    """Rows `question`, `answer` (and `subject`, `topic`, `grade`, `fact`) as conversations of one question.

    Extras of a conversation: `id`, `question`, `answer` (the bare text), `subject`, `topic`, `grade`, `fact`.

    Args:
        path: folder with `<split>.parquet`.
        split: train, validation or test.
        persona: the system message; None = none.
        epochs, phase: see `Task`.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is no parquet file, or has no column `question` or `answer`.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        persona: str | None = None,
        epochs: int = 1,
        phase: int = 0,
    ):
        self._file = Path(path) / f"{split}.parquet"
        self._split, self._persona = split, persona
        self._records = _read(self._file)
        super().__init__(epochs=epochs, phase=phase)

    @property
    def name(self) -> str:
        return f"Recall {self._split} ({self._file.parent})"

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


def _read(file: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        raise FileNotFoundError(
            f"there is no {file}; data=microworld writes one, or set the task's path to a folder with one"
        )
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is truncated or not a parquet file; replace it ({error})") from error
    missing = [name for name in ("question", "answer") if name not in table.column_names]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)} (it has: {', '.join(table.column_names)})")
    return table.to_pylist()
