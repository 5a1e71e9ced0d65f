"""What one optimizer step trains on, and the place in the data where the next one begins.

The cursor travels inside the batch: whoever has trained on a batch holds the exact place to go on from,
however many batches a background thread has prepared meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

__all__ = ["IGNORE", "Batch", "Cursor", "merge_cursors"]

IGNORE = -1
"""Target of a position that is not supervised (the model's loss leaves it out)."""

Cursor = dict[str, Any]
"""Plain dicts, lists, ints and strings: survives JSON and `torch.load(weights_only=True)`."""


@dataclass(frozen=True)
class Batch:
    """One rank's part of one optimizer step: A micro-batches of B rows of T tokens."""

    inputs: torch.Tensor
    """(A, B, T) int64."""
    targets: torch.Tensor
    """(A, B, T) int64, `IGNORE` where nothing is to be learned."""
    positions: torch.Tensor | None = None
    """(A, B, T) int64: place of each token in its own conversation, 0 where one begins; None = rows are whole."""
    cursor: Cursor = field(default_factory=dict)
    """Where the data go on after this batch, for the logical shards of this rank."""
    rows: int = 0
    """Documents or conversations that begin in this batch."""
    tokens: int = 0
    """Input tokens of text in it, padding not counted."""
    epoch: float | None = None
    """Rows of this rank's data consumed up to its end, over those of one epoch; None = epochs are not counted."""
    cropped: int | None = None
    """Tokens of documents that were dropped to fill its rows; None = its packing drops none."""

    @cached_property
    def supervised_tokens(self) -> int:
        """Number of targets that count in the loss."""
        # numpy: torch would start its threads for this, beside those that train
        targets = self.targets.cpu().numpy()
        return int(np.count_nonzero(targets != IGNORE))

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`; towards CUDA through pinned memory, without waiting for the copy."""
        device = torch.device(device)

        def move(tensor: torch.Tensor) -> torch.Tensor:
            if device.type == "cuda" and tensor.device.type == "cpu":
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor.to(device)

        # counted while the targets are where they are: on the GPU it would wait for the copy
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

    Places of logical shards are put side by side, `counts` added up.

    Raises:
        ValueError: if they are not of the same step of the same data, or a logical shard is missing.
    """
    if not cursors:
        raise ValueError("there is no cursor to merge; pass one of every rank")
    own = ("shards", "counts")
    common = [{key: value for key, value in cursor.items() if key not in own} for cursor in cursors]
    for other in common[1:]:
        if other != common[0]:
            keys = sorted(key for key in common[0].keys() | other.keys() if common[0].get(key) != other.get(key))
            raise ValueError(f"cursors of different steps or data cannot be merged; they differ in {', '.join(keys)}")
    if "counts" in cursors[0]:
        names = cursors[0]["counts"]
        common[0]["counts"] = {name: sum(cursor["counts"][name] for cursor in cursors) for name in names}
    if "shards" not in cursors[0]:
        return dict(common[0])
    shards = {shard: place for cursor in cursors for shard, place in cursor["shards"].items()}
    missing = [shard for shard in map(str, range(common[0]["logical_shards"])) if shard not in shards]
    if missing:
        raise ValueError(f"logical shards {', '.join(missing)} have no cursor; merge the cursors of every rank")
    return {**common[0], "shards": {shard: shards[shard] for shard in sorted(shards, key=int)}}
