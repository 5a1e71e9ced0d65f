"""Sums and differences, answered at once or with the column work written out: a task made for reinforcement learning.

Fine-tuning shows both ways. A small model is rarely right at once, and mostly right when it works column by column.
Nothing in the data says which way is better: only the reward for the right number can teach that.
"""

import hashlib
import random
from collections.abc import Mapping
from typing import Any, Unpack

from nanochat_pl.tasks.answers import right_number
from nanochat_pl.tasks.base import Conversation, RowChoice, Task

__all__ = ["Arithmetic", "column_work"]

_QUESTIONS = ("What is {a} {op} {b}?", "Compute {a} {op} {b}.", "How much is {a} {op} {b}?", "{a} {op} {b} = ?")
_TEST_IN = 8
"""One problem in this many belongs to the test split."""


def column_work(a: int, b: int, op: str) -> str:
    """Return `a op b` worked out digit by digit from the right, with carries: `7+8=15, 3+4+1=8` for 37 + 48.

    In a difference (a >= b) a digit that is too small borrows ten from the next: `11-6=5, 18-9=9, 4-1=3` for 591 - 196.
    """
    width = len(str(max(a, b)))
    steps, carry = [], 0
    for digit in range(width):
        x, y = a // 10**digit % 10, b // 10**digit % 10
        if op == "+":
            total = x + y + carry
            steps.append(f"{x}+{y}" + ("+1" if carry else "") + f"={total}")
            carry = total // 10
        else:
            top = x - carry
            carry = int(top < y)
            steps.append(f"{top + 10 * carry}-{y}={top + 10 * carry - y}")
    return ", ".join(steps)


class Arithmetic(Task):
    """`a + b` and `a - b` (a >= b) of non-negative whole numbers, generated: no file, no network.

    A hash of the problem decides which split it belongs to, so that no split can ever hold a problem of another,
    whatever the sizes. Extras of a conversation: `id`, `a`, `b`, `op`, `answer` (text).

    Args:
        split: train or test.
        worked: share of the answers, 0 to 1, with the column work written out; drawn anew every epoch.
        prefix: beginning of each question, for mixtures in which other tasks teach another way to do sums.
        chosen: which problems, see `Task`.

    Raises:
        ValueError: for another split, or a share or largest operand out of range.
    """

    graded = True

    def __init__(
        self,
        split: str = "train",
        *,
        size: int = 10_000,
        largest: int = 999,
        worked: float = 0.5,
        prefix: str = "",
        **chosen: Unpack[RowChoice],
    ):
        if split not in ("train", "test"):
            raise ValueError(f"split={split} of Arithmetic is not one of train, test")
        if not 0 <= worked <= 1 or largest < 9:
            raise ValueError(f"worked={worked} must lie between 0 and 1, and largest={largest} must be 9 or more")
        self._split, self._size, self._largest, self._worked = split, size, largest, worked
        self._prefix = prefix
        super().__init__(**chosen)

    @property
    def name(self) -> str:
        return f"Arithmetic {self._split}"

    @property
    def num_rows(self) -> int:
        return self._size

    def conversation(self, row: int, epoch: int) -> Conversation:
        a, b, op = self._problem(row)
        answer = str(a + b if op == "+" else a - b)
        rng = random.Random(f"{self._split}/{row}/{epoch}")
        text = f"#### {answer}"
        if rng.random() < self._worked:
            text = f"{column_work(a, b, op)}\n{text}"
        question = self._prefix + rng.choice(_QUESTIONS).format(a=a, b=b, op=op)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        return {"messages": messages, "id": f"{self._split}/{row}", "a": a, "b": b, "op": op, "answer": answer}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        """Return whether the number after `####` is right; an answer without one never is."""
        return right_number(completion, conversation["answer"])

    def _problem(self, row: int) -> tuple[int, int, str]:
        """Draw problems until one belongs to this split."""
        rng = random.Random(f"{self._split}/{row}")
        while True:
            a, b, op = rng.randint(0, self._largest), rng.randint(0, self._largest), rng.choice("+-")
            a, b = max(a, b), min(a, b)  # no negative differences; a sum is the same problem either way round
            digest = hashlib.sha256(f"{a}{op}{b}".encode()).digest()
            if (digest[0] % _TEST_IN == 0) == (self._split == "test"):
                return a, b, op
