"""Conversations -> batches of supervised tokens: one batch is exactly `total_batch_rows` conversations.

Packed (the default), the conversations of a step are laid into as few rows as fit, `positions` beginning again
with each, so that attention stays inside a conversation and no answer is ever cut to make a row full. Padded,
one conversation takes one row, as in nanochat's fine-tuning (2025-11). Both hold the same pairs of input and
target, hence the same loss once it is divided by the supervised tokens of the step.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from nanochat_pl.data.background import compute_ahead
from nanochat_pl.data.batch import IGNORE, Batch, Cursor

__all__ = ["ConversationBatches", "conversation_batches", "num_steps"]

BATCHES_AHEAD = 2
"""Batches that lie ready beside the one in training."""


class Renderer(Protocol):
    """What this module asks of a tokenizer."""

    def special_id(self, name: str) -> int: ...

    def render_conversation(
        self, conversation: Mapping[str, Any], max_tokens: int = 2048
    ) -> tuple[list[int], list[int]]: ...


class Example(NamedTuple):
    """One rendered conversation, shifted: at each input, `targets` is the next token or IGNORE."""

    inputs: np.ndarray
    targets: np.ndarray
    truncated: bool


def num_steps(rows: int, total_batch_rows: int, num_epochs: int) -> int:
    """Return floor(rows / total_batch_rows) x num_epochs: the remainder of each epoch is left out.

    Raises:
        ValueError: if there are fewer rows than one step takes.
    """
    if total_batch_rows > rows:
        raise ValueError(
            f"stage.total_batch_rows={total_batch_rows} is more than the {rows} conversations there are, so an epoch "
            f"has {rows} // {total_batch_rows} = 0 steps; set stage.total_batch_rows={rows} or lower, or add data"
        )
    return rows // total_batch_rows * num_epochs


class ConversationBatches:
    """Batches of shuffled conversations, epoch after epoch, forever; every `iter()` begins at the cursor given here.

    Each epoch is a fresh permutation drawn from (seed, epoch); rank r takes every W-th conversation of a step from
    the r-th on, so the conversations of a step do not depend on the number of ranks. A conversation of more than
    T+1 tokens is cut at its end. Packed, the number of micro-batches A differs from step to step and rank to rank.

    Args:
        rows: conversations, `{"messages": [...]}` each.
        tokenizer: any object with `render_conversation` and `special_id`.
        total_batch_rows: conversations of one optimizer step over all ranks.
        batch_rows: B, rows of a micro-batch.
        sequence_len: T, tokens of a row (padded: the most; rows are as long as the longest of the rank's step).
        packed: lay several conversations into a row.
        seed: of the order.
        shuffle: False keeps the order of the rows in every epoch (a curriculum).
        cursor: of a batch trained on; None = the beginning.
        num_workers: 0 = render in the consumer's thread, else in one background thread.

    Attributes:
        truncated: conversations met so far (each counted once) that were cut.
        unsupervised: those among them that have no supervised token left.

    Raises:
        ValueError: if the numbers do not divide, there are too few rows, or the cursor has other rows or seed.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Renderer,
        *,
        total_batch_rows: int,
        batch_rows: int,
        sequence_len: int,
        rank: int,
        world_size: int,
        packed: bool,
        seed: int,
        shuffle: bool = True,
        cursor: Cursor | None = None,
        num_workers: int = 1,
    ) -> None:
        num_steps(len(rows), total_batch_rows, 1)
        _check_shares(total_batch_rows, batch_rows, world_size, packed)
        if cursor is not None:
            for key, value in (("num_rows", len(rows)), ("seed", seed)):
                if cursor[key] != value:
                    raise ValueError(
                        f"the run to resume was made with {key}={cursor[key]} of the conversations, now it is {value}; "
                        "give it the same conversations and seed, or start a new run with resume=null"
                    )
        self._rows = rows
        self._tokenizer = tokenizer
        self._total_batch_rows = total_batch_rows
        self._batch_rows, self._sequence_len = batch_rows, sequence_len
        self._rank, self._world_size = rank, world_size
        self._packed = packed
        self._seed = seed
        self._shuffle = shuffle
        self._start = (cursor["epoch"], cursor["row"]) if cursor else (0, 0)
        self._num_workers = num_workers
        self._truncated: set[int] = set()
        self._unsupervised: set[int] = set()

    @property
    def truncated(self) -> int:
        return len(self._truncated)

    @property
    def unsupervised(self) -> int:
        return len(self._unsupervised)

    def __iter__(self) -> Iterator[Batch]:
        steps = self._steps()
        ahead = BATCHES_AHEAD if self._num_workers else 0
        for batch, cut in compute_ahead(lambda: self._assemble(*next(steps)), ahead, "render"):
            # counted when a batch is handed out, so that the figures do not depend on what the thread is doing
            self._truncated |= cut.keys()
            self._unsupervised |= {row for row, supervised in cut.items() if not supervised}
            yield batch

    def _steps(self) -> Iterator[tuple[list[int], Cursor]]:
        """Yield the conversations of each step and the cursor behind them."""
        epoch, row = self._start
        total = self._total_batch_rows
        while True:
            order = np.arange(len(self._rows))
            if self._shuffle:
                order = np.random.default_rng([self._seed, epoch]).permutation(order)
            while row + total <= len(order):
                indices = order[row : row + total].tolist()
                row += total
                yield indices, {"epoch": epoch, "row": row, "num_rows": len(order), "seed": self._seed}
            epoch, row = epoch + 1, 0

    def _assemble(self, indices: list[int], cursor: Cursor) -> tuple[Batch, dict[int, bool]]:
        ours = indices[self._rank :: self._world_size]
        examples = [_render(self._rows, index, self._tokenizer, self._sequence_len) for index in ours]
        pad_id = self._tokenizer.special_id("<|assistant_end|>")
        lay = _pack if self._packed else _pad
        batch = lay(examples, self._batch_rows, self._sequence_len, pad_id, cursor)
        cut = {i: bool((e.targets != IGNORE).any()) for i, e in zip(ours, examples) if e.truncated}
        return batch, cut


def conversation_batches(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Renderer,
    *,
    num_rows: int | None,
    total_batch_rows: int,
    batch_rows: int,
    sequence_len: int,
    rank: int,
    world_size: int,
) -> Iterator[Batch]:
    """Yield the first `num_rows` conversations in order, packed, once: a validation set that never changes.

    Every rank gets the same number of batches; where the last one holds fewer conversations than there are ranks,
    some ranks' part of it has no supervised token.

    Args:
        num_rows: None = all.
        total_batch_rows: conversations of one batch over all ranks; the last may hold fewer.

    Raises:
        ValueError: if there are fewer conversations than `num_rows`.
    """
    num_rows = len(rows) if num_rows is None else num_rows
    if not 1 <= num_rows <= len(rows):
        raise ValueError(f"stage.val_rows={num_rows}, but there are {len(rows)} validation conversations; null = all")
    pad_id = tokenizer.special_id("<|assistant_end|>")
    for first in range(0, num_rows, total_batch_rows):
        end = min(first + total_batch_rows, num_rows)
        examples = [_render(rows, i, tokenizer, sequence_len) for i in range(first + rank, end, world_size)]
        yield _pack(examples, batch_rows, sequence_len, pad_id, {"epoch": 0, "row": end})


def _render(rows: Sequence[Mapping[str, Any]], index: int, tokenizer: Renderer, sequence_len: int) -> Example:
    try:
        # one token more than a row can use tells whether anything was cut
        ids, mask = tokenizer.render_conversation(rows[index], max_tokens=sequence_len + 2)
    except ValueError as error:
        raise ValueError(f"conversation {index} cannot be rendered: {error}") from error
    kept = np.array(ids[: sequence_len + 1], dtype=np.int64)
    supervised = np.array(mask[1 : sequence_len + 1], dtype=bool)
    return Example(kept[:-1], np.where(supervised, kept[1:], IGNORE), len(ids) > sequence_len + 1)


def _pack(examples: Sequence[Example], batch_rows: int, sequence_len: int, pad_id: int, cursor: Cursor) -> Batch:
    """Lay conversations into rows of T, longest first, each into the first row that has room for it.

    What is left of a row is padding with positions of its own, so that it attends to no conversation either; rows
    of nothing else fill up the last micro-batch.
    """
    packed: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda example: -len(example.inputs)):
        length = len(example.inputs)
        row = next((row for row, left in enumerate(room) if left >= length), len(packed))
        if row == len(packed):
            packed.append([])
            room.append(sequence_len)
        packed[row].append(example)
        room[row] -= length
    micro_batches = max(-(-len(packed) // batch_rows), 1)
    inputs = np.full((micro_batches * batch_rows, sequence_len), pad_id)
    targets = np.full_like(inputs, IGNORE)
    positions = np.tile(np.arange(sequence_len), (len(inputs), 1))
    for row, row_examples in enumerate(packed):
        start = 0
        for example in row_examples:
            end = start + len(example.inputs)
            inputs[row, start:end], targets[row, start:end] = example.inputs, example.targets
            positions[row, start:end] = np.arange(end - start)
            start = end
        positions[row, start:] = np.arange(sequence_len - start)
    shape = (micro_batches, batch_rows, sequence_len)
    tensors = [torch.from_numpy(array.reshape(shape)) for array in (inputs, targets, positions)]
    return Batch(tensors[0], tensors[1], tensors[2], cursor, len(examples), _num_tokens(examples))


def _pad(examples: Sequence[Example], batch_rows: int, sequence_len: int, pad_id: int, cursor: Cursor) -> Batch:
    """Lay one conversation into each row, filled up to the longest of the step with `pad_id`."""
    longest = max(max(len(example.inputs) for example in examples), 1)
    inputs = np.full((len(examples), longest), pad_id)
    targets = np.full_like(inputs, IGNORE)
    for row, example in enumerate(examples):
        inputs[row, : len(example.inputs)], targets[row, : len(example.targets)] = example.inputs, example.targets
    shape = (len(examples) // batch_rows, batch_rows, longest)
    tensors = [torch.from_numpy(array.reshape(shape)) for array in (inputs, targets)]
    return Batch(tensors[0], tensors[1], None, cursor, len(examples), _num_tokens(examples))


def _num_tokens(examples: Sequence[Example]) -> int:
    return sum(len(example.inputs) for example in examples)


def _check_shares(total_batch_rows: int, batch_rows: int, world_size: int, packed: bool) -> None:
    unit = world_size if packed else world_size * batch_rows
    if total_batch_rows < 1 or total_batch_rows % unit:
        per_unit = f"world {world_size}"
        other = "change trainer.devices"
        if not packed:
            per_unit += f" x stage.device_batch {batch_rows} = {unit}"
            other = "lower stage.device_batch, or set stage.packed=true"
        below = total_batch_rows // unit * unit
        remedy = f"{below} or {below + unit}" if below > 0 else str(unit)
        raise ValueError(
            f"stage.total_batch_rows={total_batch_rows} is not a multiple of {per_unit}; set stage.total_batch_rows="
            f"{remedy}, or {other}"
        )
