"""Conversations -> batches of supervised tokens: one batch is exactly `total_batch_rows` conversations.

Packed (the default), the conversations of a step share as few rows as possible, with `positions` that begin again at
each, so that attention stays inside a conversation and no answer is ever cut to fill a row. Padded, each conversation
takes one row, as in nanochat's fine-tuning (2025-11). Both hold the same pairs of input and target, hence the same loss
once it is divided by the supervised tokens of the step. A conversation longer than a row is cut at its end, as in the
original, or dropped: then the next one replaces it, so that a step is always full.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from nanochat_pl.data.batch import BATCHES_AHEAD, IGNORE, Batch, Cursor, compute_ahead

__all__ = [
    "COUNTED_ROWS",
    "SAMPLED_ROWS",
    "ConversationBatches",
    "Lengths",
    "Renderer",
    "check_rows",
    "conversation_batches",
    "epoch_order",
    "measure_lengths",
    "num_row_steps",
    "render",
]

COUNTED_ROWS = 20_000
"""Up to this number of conversations, every one is rendered and counted, which takes about ten seconds."""
SAMPLED_ROWS = 4_096
"""Where there are more, this number of them is drawn: the mean length is then known to about one percent."""


class Renderer(Protocol):
    """What rendering conversations needs of a tokenizer."""

    @property
    def bos_id(self) -> int: ...

    def special_id(self, name: str) -> int: ...

    def render_conversation(
        self, conversation: Mapping[str, Any], max_tokens: int = 2048
    ) -> tuple[list[int], list[int]]: ...


@dataclass(frozen=True)
class Lengths:
    """Rendered lengths of a set of conversations, or of a sample of it.

    They determine the number of steps of an epoch in a stream of tokens, and where conversations that are too long are
    left out.
    """

    values: np.ndarray
    """(n,) int64: tokens of each measured conversation."""
    num_rows: int
    """Number of conversations in the set."""

    @property
    def exact(self) -> bool:
        """Whether every conversation was measured."""
        return len(self.values) == self.num_rows

    @property
    def total(self) -> int:
        """Tokens of all conversations, estimated where this is a sample."""
        return round(float(self.values.sum()) * self.num_rows / len(self.values))

    def num_within(self, most: int) -> int:
        """Count the conversations of at most `most` tokens, estimated where this is a sample."""
        return int((self.values <= most).sum()) * self.num_rows // len(self.values)

    @property
    def method(self) -> str:
        """A human-readable description of how they were measured."""
        if self.exact:
            return f"all {self.num_rows:,} conversations counted"
        return f"estimated from {len(self.values):,} of {self.num_rows:,} conversations"


class Example(NamedTuple):
    """One rendered conversation, shifted: at each input, `targets` is the next token or IGNORE."""

    inputs: np.ndarray
    targets: np.ndarray
    cut: bool


class ConversationBatches:
    """Endless batches of shuffled conversations, epoch after epoch; every `iter()` begins at the cursor given here.

    Each epoch is a fresh permutation drawn from (seed, epoch); rank r takes every W-th conversation of a step from
    the r-th on, so the conversations of a step do not depend on the number of ranks. A conversation of more than
    T+1 tokens is cut at its end or dropped. Packed, the number of micro-batches A differs from step to step and rank
    to rank. The cursor counts, over all ranks and resumed runs, how often a conversation was `cut`, `dropped` or
    `unsupervised` (without a token to learn from).

    Args:
        rows: conversations, `{"messages": [...]}` each.
        tokenizer: any object with `render_conversation` and `special_id`.
        total_batch_rows: conversations of one optimizer step over all ranks.
        batch_rows: B, rows of a micro-batch.
        sequence_len: T, tokens of a row; padded rows are as long as the longest conversation of the rank's step.
        packed: put several conversations into a row.
        drop_long: leave out conversations longer than a row instead of cutting them; every rank then renders those of
            all ranks once, to know which they are.
        shuffle: False keeps the order of the rows in every epoch (a curriculum).
        cursor: that of a batch trained on; None = the beginning.
        num_workers: 0 = render in the consumer's thread, else in one background thread.

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
        drop_long: bool = False,
        cursor: Cursor | None = None,
        num_workers: int = 1,
    ) -> None:
        _check_enough(len(rows), total_batch_rows)
        _check_shares(total_batch_rows, batch_rows, world_size, packed)
        self._identity: Cursor = {"num_rows": len(rows), "seed": seed}
        if cursor is not None:
            check_rows(cursor, self._identity)
        self._rows = rows
        self._tokenizer = tokenizer
        self._total_batch_rows = total_batch_rows
        self._batch_rows, self._sequence_len = batch_rows, sequence_len
        self._rank, self._world_size = rank, world_size
        self._packed = packed
        self._shuffle = shuffle
        self._drop_long = drop_long
        self._too_long: dict[int, bool] = {}
        self._start = (cursor["epoch"], cursor["row"]) if cursor else (0, 0)
        self._num_workers = num_workers
        counts = cursor.get("counts") if cursor else None
        self._counts = dict(counts or {"cut": 0, "dropped": 0, "unsupervised": 0})

    def __iter__(self) -> Iterator[Batch]:
        steps = self._steps()
        counts = dict(self._counts)
        ahead = BATCHES_AHEAD if self._num_workers else 0
        return compute_ahead(lambda: self._assemble(*next(steps), counts), ahead, "render")

    def _steps(self) -> Iterator[tuple[list[int], int, Cursor]]:
        """Yield the conversations of each step, how many were dropped on the way, and the cursor after them."""
        epoch, start = self._start
        total = self._total_batch_rows
        dropped = 0
        while True:
            order = epoch_order(len(self._rows), self._identity["seed"], epoch, self._shuffle)
            # what remains at the end of an epoch is less than a step, and is left out
            chosen: list[int] = []
            for row, index in enumerate(order[start:].tolist(), start + 1):
                if self._drop_long and self._is_too_long(index):
                    dropped += 1
                    continue
                chosen.append(index)
                if len(chosen) == total:
                    yield chosen, dropped, {"epoch": epoch, "row": row, **self._identity}
                    chosen, dropped = [], 0
            # once every conversation was measured, too few that fit would make this loop endless
            if self._drop_long and len(self._too_long) == len(order):
                _check_kept(len(order) - sum(self._too_long.values()), len(order), total, self._sequence_len)
            epoch, start = epoch + 1, 0

    def _is_too_long(self, index: int) -> bool:
        if index not in self._too_long:
            ids, _ = render(self._rows, index, self._tokenizer, self._sequence_len + 2)
            self._too_long[index] = len(ids) > self._sequence_len + 1
        return self._too_long[index]

    def _assemble(self, indices: list[int], dropped: int, cursor: Cursor, counts: dict[str, int]) -> Batch:
        # the W ranks share the conversations of the step, each of them every W-th
        ours = indices[self._rank :: self._world_size]
        examples = [_render(self._rows, index, self._tokenizer, self._sequence_len) for index in ours]
        counts["cut"] += sum(example.cut for example in examples)
        counts["unsupervised"] += sum(not (example.targets != IGNORE).any() for example in examples)
        counts["dropped"] += dropped if self._rank == 0 else 0  # every rank drops the same
        cursor["counts"] = dict(counts)
        pad_id = self._tokenizer.special_id("<|assistant_end|>")
        make_batch = _pack if self._packed else _pad
        batch = make_batch(examples, self._batch_rows, self._sequence_len, pad_id, cursor)
        return replace(batch, epoch=cursor["epoch"] + cursor["row"] / cursor["num_rows"])


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

    Every rank gets the same number of batches. Where the last one holds fewer conversations than there are ranks, the
    parts of some ranks have no supervised token.

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


def num_row_steps(
    rows: int, total_batch_rows: int, num_epochs: int, lengths: Lengths | None = None, sequence_len: int = 0
) -> int:
    """Return floor(rows / total_batch_rows) x num_epochs: the remainder of each epoch is left out.

    Args:
        lengths: where given, conversations longer than a row of `sequence_len` are dropped, so that an epoch has fewer.

    Raises:
        ValueError: if there are fewer rows than one step takes.
    """
    _check_enough(rows, total_batch_rows)
    if lengths is not None:
        kept = lengths.num_within(sequence_len + 1)
        _check_kept(kept, rows, total_batch_rows, sequence_len)
        rows = kept
    return rows // total_batch_rows * num_epochs


def measure_lengths(rows: Sequence[Mapping[str, Any]], tokenizer: Renderer, seed: int, num_workers: int = 1) -> Lengths:
    """Render conversations and count their tokens; equal arguments give equal lengths.

    Args:
        num_workers: number of threads; 0 = the caller's thread.
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
    """Render one conversation of many to ids and mask (see `Tokenizer.render_conversation`).

    Raises:
        ValueError: if it is not well formed; the message names its index.
    """
    try:
        return tokenizer.render_conversation(rows[index], max_tokens=max_tokens)
    except ValueError as error:
        raise ValueError(f"conversation {index} cannot be rendered: {error}") from error


def epoch_order(num_rows: int, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """Return the order of the rows in an epoch, drawn from (seed, epoch): (num_rows,) int64."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows) if shuffle else np.arange(num_rows)


def check_rows(cursor: Cursor, identity: Cursor) -> None:
    """Raise ValueError unless a cursor was written for as many conversations in the same order."""
    for key, value in identity.items():
        if cursor.get(key) != value:
            raise ValueError(
                f"the run to resume was made with {key}={cursor.get(key)} of the conversations, now it is {value}; "
                "give it the same conversations and data.order_seed (where that is null, seed), or start a new run "
                "with resume=null"
            )


def _render(rows: Sequence[Mapping[str, Any]], index: int, tokenizer: Renderer, sequence_len: int) -> Example:
    # one token more than a row can use shows whether anything was cut
    ids, mask = render(rows, index, tokenizer, sequence_len + 2)
    kept = np.array(ids[: sequence_len + 1], dtype=np.int64)
    supervised = np.array(mask[1 : sequence_len + 1], dtype=bool)
    return Example(kept[:-1], np.where(supervised, kept[1:], IGNORE), len(ids) > sequence_len + 1)


def _pack(examples: Sequence[Example], batch_rows: int, sequence_len: int, pad_id: int, cursor: Cursor) -> Batch:
    """Put conversations into rows of T, longest first, each into the first row that has room for it."""
    # choose a row for each conversation
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
    # begin with padding alone, which also fills the last micro-batch, then write the conversations over it
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
        # positions begin again at the padding that follows, so that it attends to no conversation
        positions[row, start:] = np.arange(sequence_len - start)
    shape = (micro_batches, batch_rows, sequence_len)
    tensors = [torch.from_numpy(array.reshape(shape)) for array in (inputs, targets, positions)]
    return Batch(tensors[0], tensors[1], tensors[2], cursor, len(examples), _num_tokens(examples))


def _pad(examples: Sequence[Example], batch_rows: int, sequence_len: int, pad_id: int, cursor: Cursor) -> Batch:
    """Put one conversation into each row and fill it up with `pad_id` to the longest of the step."""
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


def _check_enough(rows: int, total_batch_rows: int) -> None:
    if total_batch_rows > rows:
        raise ValueError(
            f"stage.total_batch_rows={total_batch_rows} is more than the {rows} conversations there are, so an epoch "
            f"has {rows} // {total_batch_rows} = 0 steps; set stage.total_batch_rows={rows} or lower, or add data"
        )


def _check_kept(kept: int, rows: int, total_batch_rows: int, sequence_len: int) -> None:
    if kept < total_batch_rows:
        raise ValueError(
            f"{kept} of {rows} conversations fit into stage.sequence_len={sequence_len}, fewer than the "
            f"stage.total_batch_rows={total_batch_rows} of one step; raise stage.sequence_len, lower "
            "stage.total_batch_rows, or set stage.long_conversations=cut"
        )


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
