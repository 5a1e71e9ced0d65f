"""LightningDataModules: documents or conversations in, one batch for each optimizer step out, with an exact cursor.

The cursor travels inside each batch. What a checkpoint stores is therefore the position of the batch that was
trained, not of one that a prefetcher has already taken; it is gathered from all ranks, because only rank 0 writes.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import lightning as L

from nanochat_pl.data.batch import Batch, merge_cursors
from nanochat_pl.runtime import gather, rank

log = logging.getLogger(__name__)


class StepBatches(L.LightningDataModule):
    """Feed step batches to the Trainer and remember the cursor of the one that was trained.

    Args:
        make_train: builds the endless iterator of training batches from a cursor (None = from the start).
        make_val: builds the fixed validation batches of this rank.
        num_steps: how many optimizer steps the run has.
    """

    def __init__(
        self,
        make_train: Callable[[dict | None], Iterable[Batch]],
        make_val: Callable[[], Iterable[Batch]],
        num_steps: int,
    ) -> None:
        super().__init__()
        self.make_train = make_train
        self.make_val = make_val
        self.num_steps = num_steps
        self.cursor: dict[str, Any] | None = None

    def train_dataloader(self) -> Iterable[Batch]:
        return _TrainLoader(self.make_train(self.cursor))

    def val_batches(self) -> Iterable[Batch]:
        """Return the validation batches, the same at each call."""
        return self.make_val()

    def transfer_batch_to_device(self, batch: Batch, device: Any, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        # Runs on the batch that training_step is about to get, after any prefetching.
        self.cursor = batch.cursor
        return batch

    def state_dict(self) -> dict[str, Any]:
        if self.cursor is None:
            return {}
        return {"cursor": merge_cursors(gather(self.cursor))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.cursor = state_dict.get("cursor")
        if rank() and self.cursor and "counts" in self.cursor:  # the first rank goes on from the sums of all
            self.cursor = {**self.cursor, "counts": dict.fromkeys(self.cursor["counts"], 0)}


class _TrainLoader:
    """The training batches as Lightning sees them: no length, nothing to shard, and a state that is kept elsewhere."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing, which marks the stream as resumable; `StepBatches.state_dict` has its cursor."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the stream was made from the cursor."""


def log_streams(rows: Sequence[int], what: str) -> None:
    """Log how much the logical shards hold; warn if one will be read far more often than another.

    Args:
        rows: the number of documents of each stream in one epoch.
        what: the word for them.
    """
    fewest, most = min(rows), max(rows)
    each = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
    log.info(
        "training data: %s %s in %s",
        f"{sum(rows):,}",
        what,
        f"{len(rows)} streams of {each}" if rows[1:] else "one stream",
    )
    if 2 * fewest < most:
        log.warning(
            "the smallest of %d streams (data.logical_shards) has %s %s, the largest %s; each gives the same number of "
            "rows to a step, so that the smallest repeats itself most: start a new run, which deals them evenly",
            len(rows),
            f"{fewest:,}",
            what,
            f"{most:,}",
        )
