"""Documents -> rows of tokens, all of them supervised, with a cursor that is exact to the token.

The documents of a corpus are dealt to a fixed number of logical shards. Micro-batch m of the whole run, counted over
all ranks, comes from logical shard m mod L and belongs to rank m mod W: the order of the data is a property of
L alone. Ranks and threads only decide who does the work, so W and `num_workers` may change at every resume.
`stream` cuts one endless token stream (nanochat, 2025-11); with best fit every row begins with a document
(see `nanochat_pl.data.bestfit`).
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat_pl.data.background import compute_ahead
from nanochat_pl.data.batch import IGNORE, Batch, Cursor, merge_cursors
from nanochat_pl.data.bestfit import BUFFER_DOCUMENTS, FittedRows
from nanochat_pl.data.corpus import Corpus, Encoder, Stream, TextCorpus, Tokens
from nanochat_pl.data.parquet import Address

__all__ = ["PACKINGS", "Batch", "Cursor", "PackedBatches", "TokenBatches", "fixed_batches", "merge_cursors"]

PACKINGS = ("stream", "bestfit", "bestfit_split")
BATCHES_AHEAD = 2
"""Batches that lie ready beside the one in training."""


Encode = Callable[[list[Any]], list[Tokens]]
Place = dict[str, Any]
"""A logical shard's entry in the cursor."""


class _Documents:
    """Encoded documents of one logical shard, a few blocks ahead in the pool's threads."""

    def __init__(self, stream: Stream, encode: Encode, pool: Executor | None, blocks_ahead: int) -> None:
        self.stream = stream
        self.encode = encode
        self._encoded = self._encode_ahead(pool, blocks_ahead) if pool else self._encode_inline()

    def __iter__(self) -> Iterator[tuple[Address, Tokens]]:
        for (epoch, file, row_group, first), documents in self._encoded:
            for doc, tokens in enumerate(documents, first):
                yield Address(epoch, file, row_group, doc), tokens

    def _encode_inline(self) -> Iterator[tuple[Address, list[Tokens]]]:
        return ((address, self.encode(documents)) for address, documents in self.stream.blocks())

    def _encode_ahead(self, pool: Executor, blocks_ahead: int) -> Iterator[tuple[Address, list[Tokens]]]:
        pending: deque[tuple[Address, Future[list[Tokens]]]] = deque()
        for address, block in self.stream.blocks():
            pending.append((address, pool.submit(self.encode, block)))
            if len(pending) > blocks_ahead:
                address, documents = pending.popleft()
                yield address, documents.result()


class _Stream:
    """One endless token stream; its place is the first token that no micro-batch has taken."""

    def __init__(self, documents: _Documents, place: Place | None) -> None:
        self._documents = documents
        self._iterator = iter(documents)
        self._address = documents.stream.start
        self._tokens: Tokens = np.empty(0, np.int32)
        self._used = 0
        self.cropped: int | None = None
        if place is not None and place["token"]:
            self._address, self._tokens = next(self._iterator)
            self._used = place["token"]
            if self._used >= len(self._tokens):
                raise ValueError(
                    f"the cursor points at token {self._used} of a document that has {len(self._tokens)} tokens "
                    f"({self._address}); it was written with another tokenizer: resume with that one"
                )

    def fill(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Write the next B·T tokens and their successors; the one token more is used up too, as in the original."""
        needed = inputs.size + 1
        pieces = []
        while needed:
            if self._used == len(self._tokens):
                self._address, self._tokens = next(self._iterator)
                self._used = 0
            piece = self._tokens[self._used : self._used + needed]
            pieces.append(piece)
            self._used += len(piece)
            needed -= len(piece)
        tokens = np.concatenate(pieces)
        inputs[:] = tokens[:-1].reshape(inputs.shape)
        targets[:] = tokens[1:].reshape(inputs.shape)

    def place(self) -> Place:
        at_end = self._used == len(self._tokens) and len(self._tokens) > 0
        address = self._documents.stream.following(self._address) if at_end else self._address
        return {**address._asdict(), "token": 0 if at_end else self._used}

    def consumed(self) -> int:
        """Count the documents used up so far, earlier epochs included."""
        stream = self._documents.stream
        at_end = self._used == len(self._tokens) and len(self._tokens) > 0
        return stream.rows_before(self._address) + at_end


class _BestFit:
    """Rows of documents chosen from a buffer; its place is the next unread document and the buffer's.

    Args:
        documents: of the logical shard.
        place: where to go on; None = at the first document.
        capacity: tokens of a row, T+1.
        split: see `nanochat_pl.data.bestfit`.
        buffer_documents: documents to choose from.
    """

    def __init__(
        self, documents: _Documents, place: Place | None, capacity: int, split: bool, buffer_documents: int
    ) -> None:
        self._documents = documents
        self._split = split
        self._rows = FittedRows(documents, capacity, split=split, buffer_documents=buffer_documents)
        if place is not None:
            addresses = FittedRows.addresses(place["buffer"])
            once = list(dict.fromkeys(addresses))
            held = dict(zip(once, documents.encode(documents.stream.read(once))))
            self._rows.restore(place["buffer"], (held[address] for address in addresses))

    def fill(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Write B rows; each is T+1 tokens long, begins with BOS and holds no padding."""
        for inputs_row, targets_row in zip(inputs, targets):
            row = self._rows.next_row()
            inputs_row[:], targets_row[:] = row[:-1], row[1:]

    def place(self) -> Place:
        return {**self._next()._asdict(), "buffer": self._rows.place()}

    def consumed(self) -> int:
        """Count the documents used up so far, earlier epochs included; what the buffer holds is not."""
        return self._documents.stream.rows_before(self._next()) - self._rows.held_documents

    def _next(self) -> Address:
        """Give the address of the first document that was not read."""
        stream, last = self._documents.stream, self._rows.last
        return stream.start if last is None else stream.following(last)

    @property
    def cropped(self) -> int | None:
        """Tokens dropped so far since this pass over the data began; None = none ever are."""
        return None if self._split else self._rows.cropped


class PackedBatches:
    """Batches of a corpus's tokens, forever; every `iter()` begins again at the cursor given here.

    Args:
        corpus: the documents.
        batch_rows: B, rows of a micro-batch.
        sequence_len: T, tokens of a row.
        micro_batches: G, micro-batches of one optimizer step over all ranks.
        logical_shards: L, fixed for the whole run.
        num_workers: threads that encode, beside one that packs; 0 = everything in the consumer's thread.
        cursor: of a batch trained on, or several ranks' merged; None = the beginning.
        packing: one of `PACKINGS`.
        buffer_documents: documents per logical shard that best fit chooses from.

    Raises:
        ValueError: if the numbers do not divide, a logical shard gets no documents, or the cursor was written for
            other documents, logical shards or packing.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        batch_rows: int,
        sequence_len: int,
        micro_batches: int,
        logical_shards: int,
        rank: int,
        world_size: int,
        num_workers: int = 1,
        cursor: Cursor | None = None,
        packing: str = "stream",
        buffer_documents: int = BUFFER_DOCUMENTS,
    ) -> None:
        _check_divides("data.logical_shards", logical_shards, world_size)
        _check_divides("micro-batches of a step (stage.total_batch_tokens / tokens of one)", micro_batches, world_size)
        if packing not in PACKINGS:
            raise ValueError(f"data.packing={packing} is not one of {', '.join(PACKINGS)}")
        self._corpus = corpus
        self._shape = (micro_batches // world_size, batch_rows, sequence_len)
        self._micro_batches = micro_batches
        self._rank, self._world_size = rank, world_size
        self._num_workers = num_workers
        self._buffer_documents = buffer_documents
        self._source: Cursor = {"packing": str(packing), "logical_shards": logical_shards, **corpus.identity}
        own = range(rank, logical_shards, world_size)
        if cursor is not None:
            _check_cursor(cursor, self._source, own)
            corpus.check(cursor)
        self._start: Cursor = cursor or {"step": 0, "micro_batch": 0, "shards": {}}
        places = self._start["shards"]
        # all of them on every rank, so that a shard without documents stops every rank and not one of many
        streams = [corpus.stream(logical_shards, shard, places.get(str(shard))) for shard in range(logical_shards)]
        self._streams = {shard: streams[shard] for shard in own}
        self.stream_rows = [stream.rows for stream in streams]
        """Documents of each logical shard in one epoch."""

    def __iter__(self) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self._num_workers, thread_name_prefix="encode") if self._num_workers else None
        try:
            yield from compute_ahead(_Assembly(self, pool).next_batch, BATCHES_AHEAD if pool else 0, "pack")
        finally:
            if pool:
                pool.shutdown(wait=False, cancel_futures=True)


class TokenBatches(PackedBatches):
    """Batches of pretraining tokens.

    Args:
        files: parquet files of documents, in order.
        tokenizer: any object with `bos_id` and `encode` (see `nanochat_pl.tokenizer.Tokenizer`).
        options: see `PackedBatches`.
    """

    def __init__(self, files: Sequence[str | Path], tokenizer: Encoder, **options: Any) -> None:
        super().__init__(TextCorpus(files, tokenizer, options.get("cursor")), **options)


def fixed_batches(
    corpus: Corpus,
    *,
    tokens: int,
    batch_rows: int,
    sequence_len: int,
    rank: int,
    world_size: int,
    packing: str,
    num_workers: int = 0,
    shared_last: bool = False,
) -> Iterator[Batch]:
    """Yield this rank's share of a set that never changes: the corpus's first documents, in order, none of them twice.

    The set is `tokens` long, or what there is. It is laid out as one logical shard, and micro-batch m of it goes to
    rank m mod W, so that its text does not depend on the number of ranks; some ranks may get one batch more. Where the
    documents end before the last micro-batch does, the rest of it has nothing to learn.

    Args:
        corpus: the documents.
        tokens: input tokens over all ranks.
        batch_rows, sequence_len, packing, num_workers: see `PackedBatches`.
        shared_last: with `stream`, the last target of a micro-batch is also the first input of the next one; in
            training it is not (nanochat, 2025-11).

    Yields:
        Batches of one micro-batch, (1, B, T).

    Raises:
        ValueError: the documents hold no token to predict.
    """
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="encode") if num_workers else None
    try:
        documents = iter(_Documents(corpus.stream(1, 0, None), corpus.encode, pool, num_workers + 1))
        once = itertools.takewhile(lambda document: document[0].epoch == 0, documents)
        if packing == "stream":
            rows = _cut(once, batch_rows * sequence_len, sequence_len, shared_last)
        else:
            fitted = FittedRows(once, sequence_len + 1, split=packing == "bestfit_split")
            rows = itertools.takewhile(lambda row: len(row) > 1, (fitted.next_row() for _ in itertools.count()))
        for number in range(max(1, tokens // (batch_rows * sequence_len))):
            laid = list(itertools.islice(rows, batch_rows))
            if not laid and number == 0:
                raise ValueError("the validation set holds no token to predict; give it documents that are not empty")
            if not laid:
                return
            if number % world_size != rank:
                continue
            inputs = np.full((1, batch_rows, sequence_len), corpus.bos_id)
            targets = np.full_like(inputs, IGNORE)
            for row, piece in enumerate(laid):
                inputs[0, row, : len(piece) - 1], targets[0, row, : len(piece) - 1] = piece[:-1], piece[1:]
            count = sum(len(piece) - 1 for piece in laid)
            yield Batch(torch.from_numpy(inputs), torch.from_numpy(targets), tokens=count)
    finally:
        if pool:
            pool.shutdown(wait=False, cancel_futures=True)


def _cut(
    documents: Iterable[tuple[Address, Tokens]], size: int, sequence_len: int, shared_last: bool
) -> Iterator[Tokens]:
    """Cut one stream of tokens into rows of T+1, in groups of `size` input tokens.

    Each row begins with the last token of the one before; the first of a group only if `shared_last`.
    """
    held: list[Tokens] = []
    count = 0
    for _, tokens in itertools.chain(documents, [(None, None)]):
        if tokens is not None:
            held.append(tokens)
            count += len(tokens)
            if count <= size:
                continue
        joined = np.concatenate(held) if held else np.empty(0, np.int32)
        while len(joined) > size or (tokens is None and len(joined) > 1):
            group = joined[: size + 1]
            for first in range(0, len(group) - 1, sequence_len):
                yield group[first : first + sequence_len + 1]
            joined = joined[size if shared_last else size + 1 :]
        held, count = [joined], len(joined)


class _Assembly:
    """One pass over the data: the state of every logical shard of this rank, and how far the run has come."""

    def __init__(self, batches: PackedBatches, pool: Executor | None) -> None:
        self._batches = batches
        self._pool = pool
        self._step = batches._start["step"]
        self._micro_batch = batches._start["micro_batch"]
        self._packers: dict[int, _Stream | _BestFit] | None = None
        self._cropped = 0

    def next_batch(self) -> Batch:
        batches = self._batches
        if self._packers is None:  # here, not in __init__: a buffer to fill again is work for the thread
            self._packers = {shard: self._packer(shard, stream) for shard, stream in batches._streams.items()}
        inputs, targets = (torch.empty(batches._shape, dtype=torch.int64) for _ in range(2))
        ours = (
            index
            for index in range(self._micro_batch, self._micro_batch + batches._micro_batches)
            if index % batches._world_size == batches._rank
        )
        for index, rows, next_rows in zip(ours, inputs.numpy(), targets.numpy(), strict=True):
            self._packers[index % batches._source["logical_shards"]].fill(rows, next_rows)
        self._step += 1
        self._micro_batch += batches._micro_batches
        places = {str(shard): packer.place() for shard, packer in self._packers.items()}
        begun = int(np.count_nonzero(inputs.numpy() == batches._corpus.bos_id))
        cursor = {"step": self._step, "micro_batch": self._micro_batch, **batches._source, "shards": places}
        consumed = sum(packer.consumed() for packer in self._packers.values())
        epoch = consumed / sum(stream.rows for stream in batches._streams.values())
        return Batch(
            inputs,
            targets,
            cursor=cursor,
            rows=begun,
            tokens=inputs.numel(),
            epoch=epoch,
            cropped=self._newly_cropped(self._packers.values()),
        )

    def _newly_cropped(self, packers: Iterable[_Stream | _BestFit]) -> int | None:
        """Count the tokens dropped since the last batch; a document is cropped in one go, so no cursor carries them."""
        counts = [packer.cropped for packer in packers if packer.cropped is not None]
        if not counts:
            return None
        before, self._cropped = self._cropped, sum(counts)
        return self._cropped - before

    def _packer(self, shard: int, stream: Stream) -> _Stream | _BestFit:
        batches = self._batches
        place = batches._start["shards"].get(str(shard))
        documents = _Documents(stream, batches._corpus.encode, self._pool, batches._num_workers + 1)
        packing, capacity = batches._source["packing"], batches._shape[2] + 1
        if packing == "stream":
            return _Stream(documents, place)
        return _BestFit(documents, place, capacity, packing == "bestfit_split", batches._buffer_documents)


def _check_divides(name: str, count: int, world_size: int) -> None:
    if count < 1 or count % world_size:
        below = count // world_size * world_size
        remedy = f"{below} or {below + world_size}" if below else str(world_size)
        raise ValueError(
            f"{name} = {count} cannot be shared equally by {world_size} ranks ({count} / {world_size} = "
            f"{count / world_size:g}); make it {remedy}, or change trainer.devices"
        )


def _check_cursor(cursor: Cursor, source: Cursor, own: range) -> None:
    for key, remedy in (("packing", "data.packing"), ("logical_shards", "data.logical_shards")):
        if cursor[key] != source[key]:
            raise ValueError(f"the run to resume was made with {remedy}={cursor[key]}, not {source[key]}; set it back")
    missing = [str(shard) for shard in own if str(shard) not in cursor["shards"]]
    if missing:
        raise ValueError(
            f"the cursor has no place for logical shards {', '.join(missing)} (it has "
            f"{', '.join(cursor['shards'])}); merge the cursors of all ranks with merge_cursors first"
        )
