"""How long conversations are once rendered: all of them where that takes seconds, else a sample of them.

The number of steps of an epoch follows from it wherever rows do not count as one each: in a stream of tokens, and
where conversations that are too long are left out.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

__all__ = ["COUNTED_ROWS", "SAMPLED_ROWS", "Lengths", "Renderer", "measure_lengths", "render"]

COUNTED_ROWS = 20_000
"""Up to so many conversations, every one is rendered and counted: about ten seconds."""
SAMPLED_ROWS = 4_096
"""Of more, so many are drawn: the mean length is then known to about one percent."""


class Renderer(Protocol):
    """What conversations ask of a tokenizer."""

    @property
    def bos_id(self) -> int: ...

    def special_id(self, name: str) -> int: ...

    def render_conversation(
        self, conversation: Mapping[str, Any], max_tokens: int = 2048
    ) -> tuple[list[int], list[int]]: ...


@dataclass(frozen=True)
class Lengths:
    """Rendered lengths of a set of conversations, or of a sample of it."""

    values: np.ndarray
    """(n,) int64, tokens of each conversation measured."""
    num_rows: int
    """Conversations there are."""

    @property
    def exact(self) -> bool:
        """Every conversation was measured."""
        return len(self.values) == self.num_rows

    @property
    def total(self) -> int:
        """Tokens of all conversations, estimated from the sample where it is one."""
        return round(float(self.values.sum()) * self.num_rows / len(self.values))

    def num_within(self, most: int) -> int:
        """Count the conversations of at most `most` tokens, estimated where this is a sample."""
        return int((self.values <= most).sum()) * self.num_rows // len(self.values)

    @property
    def method(self) -> str:
        """How they were measured, for people."""
        if self.exact:
            return f"all {self.num_rows:,} conversations counted"
        return f"estimated from {len(self.values):,} of {self.num_rows:,} conversations"


def measure_lengths(rows: Sequence[Mapping[str, Any]], tokenizer: Renderer, seed: int, num_workers: int = 1) -> Lengths:
    """Render conversations and count their tokens; equal arguments give equal lengths.

    Args:
        rows: conversations.
        tokenizer: renders them.
        seed: of the sample.
        num_workers: threads; 0 = the caller's.
    """
    indices = np.arange(len(rows))
    if len(rows) > COUNTED_ROWS:
        indices = np.sort(np.random.default_rng(seed).choice(len(rows), SAMPLED_ROWS, replace=False))

    def count(part: np.ndarray) -> list[int]:
        return [len(render(rows, index, tokenizer)[0]) for index in part.tolist()]

    parts = np.array_split(indices, max(1, len(indices) // 256))
    if num_workers:
        with ThreadPoolExecutor(num_workers, thread_name_prefix="count") as pool:
            counted = list(pool.map(count, parts))
    else:
        counted = [count(part) for part in parts]
    return Lengths(np.array([length for part in counted for length in part], dtype=np.int64), len(rows))


def render(
    rows: Sequence[Mapping[str, Any]], index: int, tokenizer: Renderer, max_tokens: int = 2**31
) -> tuple[list[int], list[int]]:
    """Render one conversation of many; an error names which.

    Returns:
        Ids and mask, see `Tokenizer.render_conversation`.

    Raises:
        ValueError: if it is not well formed.
    """
    try:
        return tokenizer.render_conversation(rows[index], max_tokens=max_tokens)
    except ValueError as error:
        raise ValueError(f"conversation {index} cannot be rendered: {error}") from error
