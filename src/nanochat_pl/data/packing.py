"""Documents -> rows of tokens, all of them supervised, with a cursor that is exact to the token.

The documents of a corpus are dealt to a fixed number of logical shards. Micro-batch m of the whole run, counted over
all ranks, comes from logical shard m mod L and belongs to rank m mod W: the order of the data is a property of
L alone. Ranks and threads only decide who does the work, so W and `num_workers` may change at every resume.
`stream` cuts one endless token stream (nanochat, 2025-11); with best fit every row begins with a document
(see `nanochat_pl.data.bestfit`).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat_pl.data.batch import BATCHES_AHEAD, IGNORE, Batch, Cursor, compute_ahead
from nanochat_pl.data.bestfit import BUFFER_DOCUMENTS, FittedRows
from nanochat_pl.data.corpus import Corpus, CorpusStream, Encoder, TextCorpus, Tokens
from nanochat_pl.data.parquet import Address

__all__ = ["PACKINGS", "PackedBatches", "TokenBatches", "fixed_batches"]

PACKINGS = ("stream", "bestfit", "bestfit_split")

Encode = Callable[[list[Any]], list[Tokens]]
ShardState = dict[str, Any]
"""A logical shard's entry in the cursor."""


class PackedBatches:
    """Endless batches of a corpus's tokens; every `iter()` begins again at the cursor given here.

    Args:
        batch_rows: B, rows of a micro-batch.
        sequence_len: T, tokens of a row.
        micro_batches: G, micro-batches of one optimizer step over all ranks.
        logical_shards: L, fixed for the whole run.
        num_workers: threads that encode, while one more packs; 0 = everything happens in the consumer's thread.
        cursor: that of a batch trained on, or several ranks' merged; None = the beginning.
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
        states = self._start["shards"]
        # every rank makes all streams, so that a shard without documents stops every rank, not only one
        streams = [corpus.stream(logical_shards, shard, states.get(str(shard))) for shard in range(logical_shards)]
        self._streams = {shard: streams[shard] for shard in own}
        self.stream_rows = [stream.rows for stream in streams]
        """Documents of each logical shard in one epoch."""

    def __iter__(self) -> Iterator[Batch]:
        pool = _encoders(self._num_workers)
        try:
            # a generator starts at its first `next`, so the thread refills the buffers of a resumed run
            packed = self._pack(pool)
            yield from compute_ahead(packed.__next__, BATCHES_AHEAD if pool else 0, "pack")
        finally:
            if pool:  # no function of this module is called here: it may be gone when the interpreter ends
                pool.shutdown(wait=False, cancel_futures=True)

    def _pack(self, pool: Executor | None) -> Iterator[Batch]:
        """Yield the batches of one pass over the data, from the cursor on."""
        packers = {shard: self._packer(shard, stream, pool) for shard, stream in self._streams.items()}
        rows_per_epoch = sum(stream.rows for stream in self._streams.values())
        step, micro_batch, cropped = self._start["step"], self._start["micro_batch"], 0
        _, batch_rows, _ = self._shape
        while True:
            inputs, targets = (torch.empty(self._shape, dtype=torch.int64) for _ in range(2))
            # of the step's G micro-batches, numbered through the whole run, every W-th is this rank's
            step_indices = range(micro_batch, micro_batch + self._micro_batches)
            own_indices = [index for index in step_indices if index % self._world_size == self._rank]
            for index, into, targets_into in zip(own_indices, inputs.numpy(), targets.numpy(), strict=True):
                packer = packers[index % self._source["logical_shards"]]
                _write_rows(packer.next_rows(batch_rows), into, targets_into)
            step, micro_batch = step + 1, micro_batch + self._micro_batches

            # where each logical shard continues after this batch; a checkpoint stores it, for any number of ranks
            states = {str(shard): packer.state() for shard, packer in packers.items()}
            cursor = {"step": step, "micro_batch": micro_batch, **self._source, "shards": states}

            # a document is cropped in one go, so the cursor need not carry this count
            before, cropped = cropped, sum(packer.cropped for packer in packers.values())
            yield Batch(
                inputs,
                targets,
                cursor=cursor,
                rows=int(np.count_nonzero(inputs.numpy() == self._corpus.bos_id)),
                tokens=inputs.numel(),
                epoch=sum(packer.consumed() for packer in packers.values()) / rows_per_epoch,
                cropped=cropped - before if self._source["packing"] == "bestfit" else None,
            )

    def _packer(self, shard: int, stream: CorpusStream, pool: Executor | None) -> "_StreamPacker | _BestFitPacker":
        documents = _EncodedDocuments(stream, self._corpus.encode, pool, self._num_workers + 1)
        state, sequence_len = self._start["shards"].get(str(shard)), self._shape[2]
        if self._source["packing"] == "stream":
            return _StreamPacker(documents, sequence_len, state)
        split = self._source["packing"] == "bestfit_split"
        return _BestFitPacker(documents, sequence_len, split, state, self._buffer_documents)


class TokenBatches(PackedBatches):
    """Batches of pretraining tokens.

    Args:
        files: parquet files of documents, in order.
        tokenizer: any object with `bos_id` and `encode` (see `nanochat_pl.tokenizer.Tokenizer`).
        order_seed: seed of the order of the documents; None = that of the files.
        frac: fraction of the documents that are read.
        options: see `PackedBatches`.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        tokenizer: Encoder,
        order_seed: int | None = None,
        frac: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(TextCorpus(files, tokenizer, options.get("cursor"), order_seed, frac), **options)


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

    The set has `tokens` tokens, or fewer where the documents end before. It is packed as one logical shard, and its
    micro-batch m goes to rank m mod W, so that its text does not depend on the number of ranks; some ranks may get one
    batch more. Where the documents end inside the last micro-batch, the rest of it has nothing to learn.

    Args:
        tokens: input tokens over all ranks.
        batch_rows, sequence_len, packing, num_workers: see `PackedBatches`.
        shared_last: with `stream`, the last target of a micro-batch is also the first input of the next one; in
            training it is not (nanochat, 2025-11).

    Yields:
        Batches of one micro-batch, (1, B, T).

    Raises:
        ValueError: the documents hold no token to predict.
    """
    pool = _encoders(num_workers)
    try:
        stream = corpus.stream(1, 0, None)
        documents = _EncodedDocuments(stream, corpus.encode, pool, num_workers + 1, one_epoch=True)
        packer: _StreamPacker | _BestFitPacker
        if packing == "stream":
            packer = _StreamPacker(documents, sequence_len, shared_last=shared_last)
        else:
            packer = _BestFitPacker(documents, sequence_len, packing == "bestfit_split")
        for number in range(max(1, tokens // (batch_rows * sequence_len))):
            rows = packer.next_rows(batch_rows)
            if not rows and number == 0:
                raise ValueError("the validation set holds no token to predict; give it documents that are not empty")
            if not rows:
                return
            if number % world_size != rank:
                continue
            inputs = np.full((1, batch_rows, sequence_len), corpus.bos_id)
            targets = np.full_like(inputs, IGNORE)
            _write_rows(rows, inputs[0], targets[0])
            count = sum(len(row) - 1 for row in rows)
            yield Batch(torch.from_numpy(inputs), torch.from_numpy(targets), tokens=count)
    finally:
        if pool:
            pool.shutdown(wait=False, cancel_futures=True)


class _EncodedDocuments:
    """The documents of one logical shard as tokens, encoded a few blocks ahead by the pool's threads."""

    def __init__(
        self, stream: CorpusStream, encode: Encode, pool: Executor | None, blocks_ahead: int, one_epoch: bool = False
    ) -> None:
        self.stream = stream
        self.encode = encode
        self._encoded = self._encode_ahead(pool, blocks_ahead) if pool else self._encode_inline()
        self._one_epoch = one_epoch

    def __iter__(self) -> Iterator[tuple[Address, Tokens]]:
        for (epoch, file, row_group, first), documents in self._encoded:
            if epoch and self._one_epoch:
                return
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


class _StreamPacker:
    """Rows cut from one stream of tokens; its state is the position of the first token not yet taken."""

    cropped = 0

    def __init__(
        self,
        documents: _EncodedDocuments,
        sequence_len: int,
        state: ShardState | None = None,
        shared_last: bool = False,
    ) -> None:
        self._documents = documents
        self._iterator = iter(documents)
        self._sequence_len = sequence_len
        self._address = documents.stream.start
        self._tokens: Tokens = np.empty(0, np.int32)
        self._used = 0  # tokens of the current document
        self._shared_last = shared_last
        self._last: Tokens = self._tokens  # the token that the next rows begin with, where it is shared
        if state is not None and state["token"]:
            self._address, self._tokens = next(self._iterator)
            self._used = state["token"]
            if self._used >= len(self._tokens):
                raise ValueError(
                    f"the cursor points at token {self._used} of a document that has {len(self._tokens)} tokens "
                    f"({self._address}); it was written with another tokenizer: resume with that one"
                )

    def next_rows(self, count: int) -> list[Tokens]:
        """Cut the next `count`·T tokens into rows, each of them with the token that follows it: T+1.

        The one further token after the last row is consumed too, as in the original. At the end of the documents there
        are fewer rows, the last of them shorter.
        """
        tokens = self._take(count * self._sequence_len + 1)
        return [tokens[i : i + self._sequence_len + 1] for i in range(0, len(tokens) - 1, self._sequence_len)]

    def _take(self, count: int) -> Tokens:
        pieces = [self._last]
        count -= len(self._last)
        while count:
            if self._used == len(self._tokens):
                document = next(self._iterator, None)
                if document is None:
                    break
                (self._address, self._tokens), self._used = document, 0
            piece = self._tokens[self._used : self._used + count]
            pieces.append(piece)
            self._used += len(piece)
            count -= len(piece)
        tokens = np.concatenate(pieces)
        if self._shared_last:
            self._last = tokens[-1:]
        return tokens

    @property
    def _at_end(self) -> bool:
        """Whether the current document is used up."""
        return self._used == len(self._tokens) and len(self._tokens) > 0

    def state(self) -> ShardState:
        stream = self._documents.stream
        address, token = (stream.following(self._address), 0) if self._at_end else (self._address, self._used)
        return {**address._asdict(), "token": token}

    def consumed(self) -> int:
        """Count the documents used up so far, earlier epochs included."""
        return self._documents.stream.rows_before(self._address) + self._at_end


class _BestFitPacker:
    """Rows of documents chosen from a buffer; its state is the next unread document's address and the buffer."""

    def __init__(
        self,
        documents: _EncodedDocuments,
        sequence_len: int,
        split: bool,
        state: ShardState | None = None,
        buffer_documents: int = BUFFER_DOCUMENTS,
    ) -> None:
        self._documents = documents
        self._rows = FittedRows(documents, sequence_len + 1, split=split, buffer_documents=buffer_documents)
        if state is not None:
            # the cursor names the documents of the buffer, and their tokens are read again
            addresses = FittedRows.addresses(state["buffer"])
            distinct = list(dict.fromkeys(addresses))
            tokens = dict(zip(distinct, documents.encode(documents.stream.read(distinct))))
            self._rows.restore(state["buffer"], (tokens[address] for address in addresses))

    def next_rows(self, count: int) -> list[Tokens]:
        """Return `count` rows of T+1 tokens without padding, BOS first; fewer and shorter ones where documents end."""
        rows: list[Tokens] = []
        while len(rows) < count and len(row := self._rows.next_row()) > 1:
            rows.append(row)
        return rows

    def state(self) -> ShardState:
        return {**self._next_address()._asdict(), "buffer": self._rows.state()}

    def consumed(self) -> int:
        """Count the documents used up so far, earlier epochs included; those in the buffer are not."""
        return self._documents.stream.rows_before(self._next_address()) - self._rows.held_documents

    def _next_address(self) -> Address:
        """Return the address of the first document that was not read."""
        stream, last = self._documents.stream, self._rows.last
        return stream.start if last is None else stream.following(last)

    @property
    def cropped(self) -> int:
        """Tokens dropped so far in this pass over the data."""
        return self._rows.cropped


def _write_rows(rows: Iterable[Tokens], inputs: np.ndarray, targets: np.ndarray) -> None:
    """Write rows of up to T+1 tokens into (B, T) arrays, as T inputs and the tokens that follow them."""
    for row, inputs_row, targets_row in zip(rows, inputs, targets):
        inputs_row[: len(row) - 1], targets_row[: len(row) - 1] = row[:-1], row[1:]


def _encoders(num_workers: int) -> ThreadPoolExecutor | None:
    return ThreadPoolExecutor(num_workers, thread_name_prefix="encode") if num_workers else None


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
