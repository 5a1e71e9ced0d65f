"""LightningDataModules: documents or conversations in, one batch an optimizer step out, with an exact cursor.

The cursor travels inside each batch. What a checkpoint stores is therefore the position of the batch that was
trained, not of one that a prefetcher has already taken; it is gathered from all ranks, because only rank 0 writes.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from nanochat_pl.data.batch import Batch, merge_cursors
from nanochat_pl.data.conversation_corpus import ConversationCorpus, conversation_text_batches
from nanochat_pl.data.conversations import ConversationBatches, conversation_batches
from nanochat_pl.data.corpus import TextCorpus
from nanochat_pl.data.packing import PackedBatches, TokenBatches, fixed_batches
from nanochat_pl.runtime import rank, world_size

log = logging.getLogger(__name__)


class StepBatches(L.LightningDataModule):
    """Feed step batches to the Trainer and remember the cursor of the one that was trained.

    Args:
        make_train: builds the endless iterator of training batches from a cursor (None = from the start).
        make_val: builds the fixed validation batches of this rank.
    """

    def __init__(
        self, make_train: Callable[[dict | None], Iterable[Batch]], make_val: Callable[[], Iterable[Batch]]
    ) -> None:
        super().__init__()
        self.make_train = make_train
        self.make_val = make_val
        self.cursor: dict[str, Any] | None = None

    def train_dataloader(self) -> Iterable[Batch]:
        return _Stream(self.make_train(self.cursor))

    def val_batches(self) -> Iterable[Batch]:
        """Give the same validation batches each time it is called."""
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
        cursors: list[Any] = [self.cursor]
        if world_size() > 1:
            cursors = [None] * world_size()
            dist.all_gather_object(cursors, self.cursor)
        return {"cursor": merge_cursors(cursors)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.cursor = state_dict.get("cursor")
        if rank() and self.cursor and "counts" in self.cursor:  # the first rank goes on from the sums of all
            self.cursor = {**self.cursor, "counts": dict.fromkeys(self.cursor["counts"], 0)}


class ConversationCounts(Callback):
    """Say at the end how many conversations were cut, dropped or had nothing to learn from, earlier runs included.

    Args:
        data: the conversations' data module.
        facts: of the summary; gets an entry `conversations`.
    """

    def __init__(self, data: StepBatches, facts: dict[str, Any]) -> None:
        self.data = data
        self.facts = facts

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = self.data.state_dict().get("cursor", {}).get("counts")
        if counts is None:
            return
        self.facts["conversations"] = counts
        log.info("conversations: %s", ", ".join(f"{count:,} {name}" for name, count in counts.items()))


class _Stream:
    """What Lightning sees of the training batches: no length, nothing to shard, and a state that is kept elsewhere."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def state_dict(self) -> dict[str, Any]:
        """Say that the stream resumes; its place is the cursor in `StepBatches.state_dict`."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the stream was made from the cursor."""


def say_streams(rows: Sequence[int], what: str) -> None:
    """Say how much the logical shards hold; warn where one will be read far more often than another.

    Args:
        rows: documents of each stream in one epoch.
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


def text_data(
    train_files: list[Path],
    val_file: Path,
    tokenizer: Any,
    *,
    device_batch: int,
    sequence_len: int,
    micro_batches: int,
    logical_shards: int | None,
    num_workers: int,
    packing: str,
    val_tokens: int,
) -> StepBatches:
    """Make the data module of the stages that read a stream of documents.

    Args:
        micro_batches: micro-batches of one optimizer step over all ranks.
        logical_shards: null = one a rank at the run's start; a resumed run keeps what its cursor says.
        val_tokens: tokens at the beginning of the validation file, over all ranks: the fixed validation set.
    """

    laid: list[Batch] = []  # once, at the first validation, in half the memory of the batches

    def train(cursor: dict | None) -> TokenBatches:
        batches = TokenBatches(
            train_files,
            tokenizer,
            batch_rows=device_batch,
            sequence_len=sequence_len,
            micro_batches=micro_batches,
            logical_shards=logical_shards or (cursor["logical_shards"] if cursor else world_size()),
            rank=rank(),
            world_size=world_size(),
            num_workers=num_workers,
            cursor=cursor,
            packing=packing,
        )
        say_streams(batches.stream_rows, "documents")
        return batches

    def validation() -> Iterator[Batch]:
        if not laid:
            batches = fixed_batches(
                TextCorpus([val_file], tokenizer),
                tokens=val_tokens,
                batch_rows=device_batch,
                sequence_len=sequence_len,
                rank=rank(),
                world_size=world_size(),
                packing=packing,
                num_workers=num_workers,
            )
            laid.extend(replace(batch, inputs=batch.inputs.int(), targets=batch.targets.int()) for batch in batches)
        return (replace(batch, inputs=batch.inputs.long(), targets=batch.targets.long()) for batch in laid)

    return StepBatches(train, validation)


def transcript_data(
    rows: Any,
    val_rows: Any,
    tokenizer: Any,
    *,
    device_batch: int,
    sequence_len: int,
    micro_batches: int,
    logical_shards: int | None,
    num_workers: int,
    packing: str,
    seed: int,
    val_tokens: int,
) -> StepBatches:
    """Make the data module of the stages that read conversations as a stream of tokens.

    Args:
        rows: training conversations, a sequence.
        val_rows: validation conversations; the first ones in order, `val_tokens` long, are the fixed validation set.
        micro_batches, logical_shards: see `text_data`.
    """
    transcripts = ConversationCorpus(rows, tokenizer, seed=seed, shuffle=not getattr(rows, "ordered", False))
    laid: list[list[Batch]] = []  # once, at the first validation

    def train(cursor: dict | None) -> PackedBatches:
        batches = PackedBatches(
            transcripts,
            batch_rows=device_batch,
            sequence_len=sequence_len,
            micro_batches=micro_batches,
            logical_shards=logical_shards or (cursor["logical_shards"] if cursor else world_size()),
            rank=rank(),
            world_size=world_size(),
            num_workers=num_workers,
            cursor=cursor,
            packing=packing,
        )
        say_streams(batches.stream_rows, "conversations")
        return batches

    def validation() -> list[Batch]:
        if not laid:
            batches = conversation_text_batches(
                val_rows,
                tokenizer,
                val_tokens=val_tokens,
                batch_rows=device_batch,
                sequence_len=sequence_len,
                rank=rank(),
                world_size=world_size(),
                packing=packing,
            )
            laid.append(batches)
        return laid[0]

    return StepBatches(train, validation)


def conversation_data(
    rows: Any,
    val_rows: Any,
    tokenizer: Any,
    *,
    total_batch_rows: int,
    device_batch: int,
    sequence_len: int,
    packed: bool,
    drop_long: bool,
    seed: int,
    num_val_rows: int | None,
    num_workers: int,
) -> StepBatches:
    """Make the data module of the stages that learn from the assistant's words alone.

    Args:
        rows: training conversations, a sequence.
        val_rows: validation conversations; the first `num_val_rows` in order are the fixed validation set.
        num_val_rows: null = all of them.
    """

    def train(cursor: dict | None) -> ConversationBatches:
        return ConversationBatches(
            rows,
            tokenizer,
            total_batch_rows=total_batch_rows,
            batch_rows=device_batch,
            sequence_len=sequence_len,
            rank=rank(),
            world_size=world_size(),
            packed=packed,
            drop_long=drop_long,
            seed=seed,
            shuffle=not getattr(rows, "ordered", False),
            cursor=cursor,
            num_workers=num_workers,
        )

    def validation() -> Iterable[Batch]:
        return conversation_batches(
            val_rows,
            tokenizer,
            num_rows=num_val_rows,
            total_batch_rows=total_batch_rows,
            batch_rows=device_batch,
            sequence_len=sequence_len,
            rank=rank(),
            world_size=world_size(),
        )

    return StepBatches(train, validation)
