"""Conversations as a corpus: each is a document that begins with BOS, and every token is supervised, as in text.

These are the data of midtraining (nanochat, 2025-11). With packing `stream` a conversation longer than a row continues
in the next one, so nothing is cut; with best fit, rows begin with a conversation, and what does not fit is cropped or
split as text is. Differs: epochs are shuffled anew and counted in conversations consumed, where the original read one
fixed order.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nanochat_pl.data.batch import Batch, Cursor
from nanochat_pl.data.bestfit import FittedRows
from nanochat_pl.data.conversations import Lengths, Renderer, check_rows, epoch_order, render
from nanochat_pl.data.corpus import Tokens
from nanochat_pl.data.packing import fixed_batches
from nanochat_pl.data.parquet import Address

__all__ = ["ConversationCorpus", "ConversationStream", "conversation_text_batches", "num_token_steps"]

BLOCK_CONVERSATIONS = 32
"""Conversations that are rendered as one piece of work: some 10,000 tokens."""
SIMULATED_DOCUMENTS = 50_000
"""Packing this many shows how many rows best fit makes of more; it takes about a second."""
SIMULATED_ROWS = 64
"""Rows that are packed before their documents are counted again."""


class ConversationCorpus:
    """The corpus of a set of conversations (see `nanochat_pl.data.corpus.Corpus`).

    Logical shard s of L reads conversations s, s+L, … of each epoch's order. In an `Address`, file and row group are 0
    and `doc` counts in the shard.

    Args:
        rows: conversations, `{"messages": [...]}` each.
        tokenizer: any object with `bos_id` and `render_conversation`.
        shuffle: False keeps the order of the rows in every epoch (a curriculum).
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: Renderer, *, seed: int, shuffle: bool = True
    ) -> None:
        self.rows = rows
        self._tokenizer = tokenizer
        self.bos_id = tokenizer.bos_id
        self.identity: Cursor = {"num_rows": len(rows), "seed": seed}
        # a few orders are kept: shards are seldom an epoch apart, and reading a buffer again may need the one before
        self.order = functools.lru_cache(maxsize=4)(lambda epoch: epoch_order(len(rows), seed, epoch, shuffle))

    def check(self, cursor: Cursor) -> None:
        """Refuse a cursor of other conversations or another seed."""
        check_rows(cursor, self.identity)

    def stream(self, logical_shards: int, shard: int, position: Mapping[str, Any] | None) -> "ConversationStream":
        """Return the conversations of one logical shard, from a position on."""
        return ConversationStream(self, logical_shards, shard, position)

    def encode(self, documents: list[int]) -> list[Tokens]:
        """Render the conversations of these indexes."""
        return [np.array(render(self.rows, index, self._tokenizer)[0], np.int32) for index in documents]


class ConversationStream:
    """The conversations of one logical shard, epoch after epoch, from any address on, as indexes of rows.

    Raises:
        ValueError: if the shard gets no conversation, or `position` is not in this shard.
    """

    def __init__(
        self, corpus: ConversationCorpus, logical_shards: int, shard: int, position: Mapping[str, Any] | None
    ) -> None:
        self._corpus = corpus
        self._dealt = slice(shard, None, logical_shards)
        self.rows = len(range(len(corpus.rows))[self._dealt])
        if not self.rows:
            raise ValueError(
                f"logical shard {shard} of {logical_shards} gets none of the {len(corpus.rows)} conversations; "
                f"set data.logical_shards (and the number of devices) to {max(len(corpus.rows), 1)} or lower"
            )
        self.start = Address(0, 0, 0, 0)
        if position is not None:
            self.start = Address(*(position[name] for name in Address._fields))
            self._check(self.start)

    def rows_before(self, address: Address) -> int:
        """Count this shard's conversations before `address`, earlier epochs included."""
        return address.epoch * self.rows + address.doc

    def blocks(self) -> Iterator[tuple[Address, list[int]]]:
        """Yield runs of consecutive conversations of one epoch, each with its first address."""
        first = self.start.doc
        for epoch in itertools.count(self.start.epoch):
            ours = self._corpus.order(epoch)[self._dealt]
            for doc in range(first, len(ours), BLOCK_CONVERSATIONS):
                yield Address(epoch, 0, 0, doc), ours[doc : doc + BLOCK_CONVERSATIONS].tolist()
            first = 0

    def following(self, address: Address) -> Address:
        """Return the address of the shard's next conversation."""
        if address.doc + 1 < self.rows:
            return address._replace(doc=address.doc + 1)
        return Address(address.epoch + 1, 0, 0, 0)

    def read(self, addresses: Sequence[Address]) -> list[int]:
        """Return the rows at single addresses."""
        for address in addresses:
            self._check(address)
        return [int(self._corpus.order(address.epoch)[self._dealt][address.doc]) for address in addresses]

    def _check(self, address: Address) -> None:
        if address.epoch < 0 or address[1:3] != (0, 0) or not 0 <= address.doc < self.rows:
            raise ValueError(
                f"position {address._asdict()} is no conversation of this logical shard; it was written for other "
                "conversations or another data.logical_shards"
            )


def num_token_steps(
    lengths: Lengths, *, batch_rows: int, sequence_len: int, micro_batches: int, packing: str, num_epochs: int
) -> int:
    """Return the number of optimizer steps in `num_epochs` passes over the conversations, rounded down.

    With best fit the packing is simulated on the lengths alone, since they determine how much is cropped.

    Raises:
        ValueError: if that is less than one step.
    """
    if packing == "stream":
        # a micro-batch also consumes the one further token that is its last target
        steps = lengths.total * num_epochs // (micro_batches * (batch_rows * sequence_len + 1))
    else:
        rows = _fitted_rows(lengths, sequence_len + 1, packing == "bestfit_split", lengths.num_rows * num_epochs)
        steps = int(rows // (micro_batches * batch_rows))
    if steps < 1:
        batch_tokens = micro_batches * batch_rows * sequence_len
        raise ValueError(
            f"stage.total_batch_tokens={batch_tokens} is more than {num_epochs} epochs of the {lengths.num_rows:,} "
            f"conversations have ({lengths.total * num_epochs:,} tokens); lower stage.total_batch_tokens, set "
            "stage.num_steps, or add data"
        )
    return steps


def _fitted_rows(lengths: Lengths, capacity: int, split: bool, documents: int) -> float:
    """Return how many rows best fit makes of this many documents of these lengths if its buffer is always full."""
    endless = itertools.cycle(np.random.default_rng(0).permutation(lengths.values).tolist())
    simulated = ((Address(0, 0, 0, doc), np.broadcast_to(np.int32(0), (length,))) for doc, length in enumerate(endless))
    fitted, rows, used = FittedRows(simulated, capacity, split=split), 0, 0
    while used < min(documents, SIMULATED_DOCUMENTS):
        for _ in range(SIMULATED_ROWS):
            fitted.next_row()
        rows += SIMULATED_ROWS
        assert fitted.last is not None
        used = fitted.last.doc + 1 - fitted.held_documents
    return rows * documents / used


def conversation_text_batches(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Renderer,
    *,
    val_tokens: int,
    batch_rows: int,
    sequence_len: int,
    rank: int,
    world_size: int,
    packing: str,
) -> list[Batch]:
    """Pack the first conversations, in order: a validation set that never changes (see `fixed_batches`).

    Raises:
        ValueError: if there are no conversations.
    """
    if not len(rows):
        raise ValueError("there are no validation conversations; add a task under mixture.val_tasks")
    batches = fixed_batches(
        ConversationCorpus(rows, tokenizer, seed=0, shuffle=False),
        tokens=val_tokens,
        batch_rows=batch_rows,
        sequence_len=sequence_len,
        rank=rank,
        world_size=world_size,
        packing=packing,
        shared_last=True,
    )
    return list(batches)
