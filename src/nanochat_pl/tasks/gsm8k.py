"""GSM8K (Cobbe et al., 2021): grade-school word problems, worked out with a calculator; the answer is checked.

The data mark each sum as `<<48/2=24>>`. In a conversation this becomes a call of the calculator tool and the tool's
answer, so that the model learns to ask, not to compute.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.tasks import columns
from nanochat_pl.tasks.answers import check_strict, final_answer, right_number
from nanochat_pl.tasks.base import Conversation, RowChoice, Task
from nanochat_pl.tasks.tables import Table, hub_order, read_split

__all__ = ["GSM8K", "HUB_FOLDER", "HUB_REPO", "solution_parts"]

HUB_REPO = "openai/gsm8k"
HUB_FOLDER = "main"

_CALL = re.compile(r"(<<[^>]+>>)")


def solution_parts(solution: str) -> list[dict[str, str]]:
    """Split a worked solution into parts of a turn: text, and for each `<<expression=result>>` a call and its answer.

    The result is what follows the last `=`, empty where there is none. Text parts may be empty.
    """
    parts = []
    for piece in _CALL.split(solution):
        if piece.startswith("<<") and piece.endswith(">>"):
            expression, equals, result = piece[2:-2].rpartition("=")
            parts.append({"type": "python", "text": expression if equals else result})
            parts.append({"type": "python_output", "text": result if equals else ""})
        else:
            parts.append({"type": "text", "text": piece})
    return parts


class GSM8K(Task):
    """Rows `question` and `answer` (worked solution, `#### ` and the number).

    Extras of a conversation: `id` (split/row of the file), `question`, `answer` (the number as text, without commas).

    Args:
        path: folder with `<split>.parquet`, or the hub's files.
        split: train or test.
        shuffle: take the rows in the order of `Dataset.shuffle(seed=42)`, as the original does; false = the file's.
        strict: how answers are read: stated (the number that an answer states) or original (nanochat's rule), see
            docs/evaluation.md.
        fetch: fetch what is missing from the hub.
        offline: open no socket.
        chosen: which rows, see `Task`.

    Raises:
        FileNotFoundError: if the split is not there, or cannot be fetched.
        ValueError: if a column is missing, or a solution names no answer.
    """

    graded = True
    on_hub = True

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        shuffle: bool = True,
        strict: str = "stated",
        fetch: bool = False,
        offline: bool = False,
        **chosen: Unpack[RowChoice],
    ):
        table = read_split(path, split, columns.gsm8k(), repo=HUB_REPO, folder=HUB_FOLDER, fetch=fetch, offline=offline)
        self.split, self.strict = split, check_strict(strict)
        records = [_record(row, table, split, number) for number, row in enumerate(table.rows())]
        self._records = hub_order(records) if shuffle else records
        super().__init__(**chosen)

    @property
    def name(self) -> str:
        return f"GSM8K {self.split}"

    @property
    def num_rows(self) -> int:
        return len(self._records)

    def conversation(self, row: int, epoch: int) -> Conversation:
        record = self._records[row]
        messages = [
            {"role": "user", "content": record["question"]},
            {"role": "assistant", "content": solution_parts(record["solution"])},
        ]
        return {"messages": messages, **{key: record[key] for key in ("id", "question", "answer")}}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        """Tell whether the number behind `####` is the right one; without such a number it never is."""
        return right_number(completion, conversation["answer"], self.strict)


def _record(row: dict[str, Any], table: Table, split: str, number: int) -> dict[str, Any]:
    answer = final_answer(_CALL.sub("", row["answer"]))  # what a tool is told is no answer
    if not row["question"] or answer is None:
        raise ValueError(
            f"{table.where(number)} of GSM8K's {split} split has no question, or no answer after ####: mend or drop "
            "the row"
        )
    return {"id": f"{split}/{number}", "question": row["question"], "solution": row["answer"], "answer": answer}
