"""What packing reads: documents in a fixed order, dealt to logical shards, each to be turned into tokens.

Text files are one kind of corpus, conversations rendered as text (`nanochat_pl.data.conversation_corpus`) another.
Packing needs only these protocols, so exact cursors and any number of ranks work for both.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nanochat_pl.data.batch import Cursor
from nanochat_pl.data.parquet import Address, DocumentStream, read_footer

__all__ = ["Corpus", "CorpusStream", "Encoder", "TextCorpus", "Tokens"]

Tokens = np.ndarray
"""(n,) int32: one document, BOS first."""


class Encoder(Protocol):
    """What a text corpus needs of a tokenizer."""

    @property
    def bos_id(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...


class CorpusStream(Protocol):
    """The documents of one logical shard, epoch after epoch; `DocumentStream` is one."""

    start: Address

    @property
    def rows(self) -> int:
        """Documents of this shard in one epoch."""

    def rows_before(self, address: Address) -> int:
        """Count this shard's documents before `address`, earlier epochs included."""

    def blocks(self) -> Iterator[tuple[Address, list[Any]]]:
        """Yield runs of consecutive documents, each with its first address."""

    def following(self, address: Address) -> Address:
        """Return the address of the next document."""

    def read(self, addresses: Sequence[Address]) -> list[Any]:
        """Read single documents."""


class Corpus(Protocol):
    """Documents and how they become tokens."""

    @property
    def bos_id(self) -> int: ...

    @property
    def identity(self) -> Cursor:
        """Entries of every cursor by which a resumed run knows that it reads the same documents."""

    def check(self, cursor: Cursor) -> None:
        """Raise ValueError unless `cursor` was written for these documents."""

    def stream(self, logical_shards: int, shard: int, position: Mapping[str, Any] | None) -> CorpusStream:
        """Return the documents of one logical shard from a position in it on; None = from its first document."""

    def encode(self, documents: list[Any]) -> list[Tokens]:
        """Turn documents into tokens; several threads call this at once."""


class TextCorpus:
    """The documents of parquet files.

    Args:
        files: in order.
        tokenizer: any object with `bos_id` and `encode` (see `nanochat_pl.tokenizer.Tokenizer`).
        cursor: that of the run to resume; a run from before documents were dealt evenly continues as it began.
        order_seed: seed of the order of the documents; None = that of the files.
        frac: fraction of the documents that are read.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        tokenizer: Encoder,
        cursor: Cursor | None = None,
        order_seed: int | None = None,
        frac: float = 1.0,
    ) -> None:
        self._files = [read_footer(path) for path in files]
        self._tokenizer = tokenizer
        self.bos_id = tokenizer.bos_id
        self.identity: Cursor = {"files": [[file.path.name, file.rows, len(file.group_rows)] for file in self._files]}
        self._even = cursor is None or "dealing" in cursor
        if self._even:
            self.identity["dealing"] = "even"
        self._order_seed = order_seed
        if order_seed is not None:
            self.identity["order_seed"] = order_seed
        self._frac = frac
        if frac != 1:
            self.identity["text_frac"] = frac

    def check(self, cursor: Cursor) -> None:
        """Refuse a cursor of another order, or of other files, naming the first that differs."""
        for key, now, default in (("order_seed", self._order_seed, None), ("text_frac", self._frac, 1.0)):
            if (then := cursor.get(key, default)) != now:
                before, after = ("null" if value is None else value for value in (then, now))
                raise ValueError(
                    f"the run to resume was made with data.{key}={before}, not {after}; set it back, or start a new "
                    "run with resume=null"
                )
        then, now = cursor.get("files", []), self.identity["files"]
        if then == now:
            return
        pairs = itertools.zip_longest(then, now)
        number, (old, new) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        old, new = ("no file" if f is None else f"{f[0]} ({f[1]:,} rows in {f[2]} row groups)" for f in (old, new))
        raise ValueError(
            f"the training files changed since the run to resume: file {number} was {old}, now it is {new} "
            f"({len(then)} files then, {len(now)} now); put the same files back, or start a new run with resume=null"
        )

    def stream(self, logical_shards: int, shard: int, position: Mapping[str, Any] | None) -> DocumentStream:
        """Return the documents of one logical shard (see `nanochat_pl.data.parquet.deal`)."""
        return DocumentStream(
            self._files,
            logical_shards,
            shard,
            position,
            even=self._even,
            order_seed=self._order_seed,
            frac=self._frac,
        )

    def encode(self, documents: list[str]) -> list[Tokens]:
        """Encode texts one by one, because a list would be encoded by further threads of the tokenizer."""
        encoded = []
        for text in documents:
            ids = self._tokenizer.encode(text)
            tokens = np.empty(len(ids) + 1, np.int32)
            tokens[0], tokens[1:] = self.bos_id, ids
            encoded.append(tokens)
        return encoded
