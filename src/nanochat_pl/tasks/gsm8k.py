"""GSM8K (Cobbe et al., 2021): grade-school word problems, worked out with a calculator; the answer is checked.

The data mark each sum as `<<48/2=24>>`. In a conversation this becomes a call of the calculator tool and its output, so
that the model learns to ask, not to compute.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from nanochat_pl.tasks import columns
from nanochat_pl.tasks.answers import final_answer, right_number
from nanochat_pl.tasks.base import Conversation
from nanochat_pl.tasks.hub import HubOptions, HubTask

__all__ = ["GSM8K", "solution_parts"]

_CALL = re.compile(r"(<<[^>]+>>)")


def solution_parts(solution: str) -> list[dict[str, str]]:
    """Split a worked solution into parts of a turn: text, and a call and its output for each `<<expression=result>>`.

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


class GSM8K(HubTask):
    """Rows `question` and `answer` (worked solution, `#### ` and the number).

    Extras of a conversation: `id` (split/row of the file), `question`, `answer` (the number as text, without commas).

    The splits are train and test; `HubTask` explains the arguments and the errors.

    Args:
        path: folder with `<split>.parquet`, or the hub's files.
        split: train or test.
        options: see `HubTask`.

    Raises:
        FileNotFoundError: if the split is not there, or cannot be fetched.
        ValueError: if a column is missing, or a solution names no answer.
    """

    hub_repo, hub_folder = "openai/gsm8k", "main"
    columns = staticmethod(columns.gsm8k)

    def __init__(self, path: str | Path, split: str = "train", **options: Unpack[HubOptions]):
        super().__init__(path, split, **options)

    def record(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        answer = final_answer(_CALL.sub("", row["answer"]))  # the text of a call is no answer
        if not row["question"] or answer is None:
            raise ValueError("no question, or no answer after ####")
        return {
            "id": f"{self.split}/{number}",
            "question": row["question"],
            "solution": row["answer"],
            "answer": answer,
        }

    def conversation(self, row: int, epoch: int) -> Conversation:
        record = self._records[row]
        messages = [
            {"role": "user", "content": record["question"]},
            {"role": "assistant", "content": solution_parts(record["solution"])},
        ]
        return {"messages": messages, **{key: record[key] for key in ("id", "question", "answer")}}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        """Return whether the number after `####` is right; an answer without one never is."""
        return right_number(completion, conversation["answer"], self.strict)
