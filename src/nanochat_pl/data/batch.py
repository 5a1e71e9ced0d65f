"""What one optimizer step trains on, and the position in the data where the next one begins.

The cursor travels inside the batch: after training on a batch the exact position to resume from is known, however many
batches a background thread (`compute_ahead`) has prepared meanwhile.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

__all__ = ["BATCHES_AHEAD", "IGNORE", "Batch", "Cursor", "compute_ahead", "merge_cursors"]

IGNORE = -1
"""Target of a position that is not supervised (the model's loss leaves it out)."""

BATCHES_AHEAD = 2
"""Batches that a background thread keeps ready while one is trained on."""
Cursor = dict[str, Any]
"""Plain dicts, lists, ints and strings, which survive JSON and `torch.load(weights_only=True)`."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """One rank's part of one optimizer step: A micro-batches of B rows of T tokens."""

    inputs: torch.Tensor
    """(A, B, T) int64."""
    targets: torch.Tensor
    """(A, B, T) int64, `IGNORE` where nothing is to be learned."""
    positions: torch.Tensor | None = None
    """(A, B, T) int64: position of each token in its own conversation, 0 where one begins; None = rows are whole."""
    cursor: Cursor = field(default_factory=dict)
    """The position after this batch, for the logical shards of this rank."""
    rows: int = 0
    """Documents or conversations that begin in this batch."""
    tokens: int = 0
    """Input tokens of text, not counting padding."""
    epoch: float | None = None
    """Epochs of this rank's data consumed up to the end of this batch; None = epochs are not counted."""
    cropped: int | None = None
    """Tokens of documents that were dropped to fill the rows; None = the packing drops none."""

    @cached_property
    def supervised_tokens(self) -> int:
        """Number of targets that count in the loss."""
        # in numpy, because torch would start further threads for this
        targets = self.targets.cpu().numpy()
        return int(np.count_nonzero(targets != IGNORE))

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`; a copy to CUDA goes through pinned memory and is not waited for."""
        device = torch.device(device)

        def move(tensor: torch.Tensor) -> torch.Tensor:
            if device.type == "cuda" and tensor.device.type == "cpu":
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor.to(device)

        # counted before the move: on the GPU, counting would wait for the copy
        count = self.supervised_tokens
        moved = replace(
            self,
            inputs=move(self.inputs),
            targets=move(self.targets),
            positions=None if self.positions is None else move(self.positions),
        )
        moved.__dict__["supervised_tokens"] = count
        return moved


def merge_cursors(cursors: Sequence[Cursor]) -> Cursor:
    """Join the cursors of all ranks after the same step into one that any number of ranks can resume from.

    The states of all logical shards are collected, and `counts` are added up.

    Raises:
        ValueError: if they are not of the same step of the same data, or a logical shard is missing.
    """
    if not cursors:
        raise ValueError("there is no cursor to merge; pass one of every rank")
    common = [{key: value for key, value in cursor.items() if key not in ("shards", "counts")} for cursor in cursors]
    for other in common[1:]:
        if other != common[0]:
            keys = sorted(key for key in common[0].keys() | other.keys() if common[0].get(key) != other.get(key))
            raise ValueError(f"cursors of different steps or data cannot be merged; they differ in {', '.join(keys)}")
    if "counts" in cursors[0]:
        names = cursors[0]["counts"]
        common[0]["counts"] = {name: sum(cursor["counts"][name] for cursor in cursors) for name in names}
    if "shards" not in cursors[0]:
        return dict(common[0])
    shards = {shard: state for cursor in cursors for shard, state in cursor["shards"].items()}
    missing = [shard for shard in map(str, range(common[0]["logical_shards"])) if shard not in shards]
    if missing:
        raise ValueError(f"logical shards {', '.join(missing)} have no cursor; merge the cursors of every rank")
    return {**common[0], "shards": {shard: shards[shard] for shard in sorted(shards, key=int)}}


def compute_ahead(make: Callable[[], Result], ahead: int, name: str) -> Generator[Result, None, None]:
    """Yield `make()`, `make()`, … forever, up to `ahead` results computed early, in order, in one thread.

    An exception in `make` is raised where its result would have come, and ends the iterator. The thread only runs tasks
    that end by themselves, and never more of them than results may be ready. So closing or deleting the iterator, an
    exception on either side and the end of the interpreter all end the thread, and no result can be lost in between.

    Args:
        make: makes the next result; it is never called twice at the same time.
        ahead: number of results that may be ready while one is in use; 0 = call `make` in the consumer's thread.
    """
    if ahead == 0:
        while True:
            yield make()
    thread = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        pending = deque(thread.submit(make) for _ in range(ahead))
        while True:
            result = pending.popleft().result()
            pending.append(thread.submit(make))
            yield result
    finally:
        # not waited for: a generator may be collected in any thread, even in this one
        thread.shutdown(wait=False, cancel_futures=True)
