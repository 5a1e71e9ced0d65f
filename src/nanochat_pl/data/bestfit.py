"""Rows filled with documents that are chosen by length from a buffer.

`bestfit` (nanochat, 2026-01): a row takes the largest document that fits into the room left in it; where none fits, the
shortest is cropped to fill the row and its tail is dropped. A document longer than a row never fits. It leaves the
buffer only as the shortest there is, so such documents crowd the buffer: many are never trained and much of what is
read is thrown away.

`bestfit_split` avoids that. Documents are first cut into pieces that fit a row (Ding et al. 2024, arXiv:2404.10830). A
piece that has waited for `WAIT_FRAC` buffers' worth of arrivals goes before all others: it opens the next row, or fits
into this one. The tail of a cropped piece replaces it in the buffer. So no document waits forever and no token is lost,
whatever the lengths.
"""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nanochat_pl.data.corpus import Tokens
from nanochat_pl.data.parquet import Address

__all__ = ["BUFFER_DOCUMENTS", "DocumentPiece", "FittedRows", "split_document"]

BUFFER_DOCUMENTS = 1000
"""Number of documents, or pieces of them, to choose from."""
WAIT_FRAC = 1.5
"""A piece goes before all others after this many arrivals, in sizes of the buffer."""


class DocumentPiece(NamedTuple):
    """A document or, where documents are split, a part of one."""

    address: Address
    """The document's address."""
    first: int
    """The token of the document at which it begins; where that is not 0, another BOS precedes it."""
    tokens: Tokens


def split_document(address: Address, tokens: Tokens, capacity: int) -> list[DocumentPiece]:
    """Cut a document into pieces of at most `capacity` tokens, including the BOS that each begins with."""
    firsts = [0, *range(capacity, len(tokens), capacity - 1)]
    return [_piece(address, tokens, first, capacity) for first in firsts]


def _piece(address: Address, tokens: Tokens, first: int, capacity: int) -> DocumentPiece:
    """Return a document's tokens from `first` on, up to where it is split next."""
    if first == 0:
        return DocumentPiece(address, 0, tokens[:capacity])
    last = capacity + -(-(first - capacity + 1) // (capacity - 1)) * (capacity - 1)
    return DocumentPiece(address, first, np.concatenate([tokens[:1], tokens[first:last]]))


class FittedRows:
    """Rows that each begin with a document and hold no padding.

    Args:
        documents: documents with their addresses, BOS first.
        capacity: tokens of a row.
        split: False is `bestfit`, True `bestfit_split`.
        buffer_documents: documents (or pieces) to choose from; more are read whenever there are fewer.
    """

    def __init__(
        self,
        documents: Iterable[tuple[Address, Tokens]],
        capacity: int,
        *,
        split: bool,
        buffer_documents: int = BUFFER_DOCUMENTS,
    ) -> None:
        self._documents = iter(documents)
        self._capacity = capacity
        self._split = split
        self._buffer_documents = buffer_documents
        self._held: dict[int, DocumentPiece] = {}  # by number of arrival, so that the first is the oldest
        # sorted by (length, -arrival): the right-most of those that fit is the largest and, among equals, the oldest
        self._by_length: list[tuple[int, int]] = []
        self._arrivals = 0
        self._begun = False
        self.last: Address | None = None
        """Address of the document read last."""
        self.cropped = 0
        """Tokens cut off and dropped so far; 0 where documents are split."""

    def next_row(self) -> Tokens:
        """Return a row of `capacity` tokens; a shorter one, or none, only where the documents have come to an end."""
        row: list[Tokens] = []
        room = self._capacity
        while room and self._fill():
            # a piece that has waited too long goes before all others
            arrival = self._overdue(room)
            if arrival is None:
                arrival = self._best(room)
            piece = self._take(arrival)
            row.append(piece.tokens[:room])
            tail = piece.tokens[room:]
            if self._split and len(tail):
                # the tail stays in the buffer, as old as its piece, with a BOS of its own
                # `first` does not count the BOS that precedes a piece which does not begin its document
                first = piece.first + room - (piece.first > 0)
                self._put(DocumentPiece(piece.address, first, np.concatenate([piece.tokens[:1], tail])), arrival)
            else:
                del self._held[arrival]
                self.cropped += len(tail)
            room -= len(row[-1])
        return np.concatenate(row) if row else np.empty(0, np.int32)

    def _overdue(self, room: int) -> int | None:
        """Return the arrival of the oldest piece if it has waited long enough and fits."""
        oldest = next(iter(self._held))
        waited = self._arrivals - oldest
        if self._split and waited > WAIT_FRAC * self._buffer_documents and len(self._held[oldest].tokens) <= room:
            return oldest
        return None

    def _best(self, room: int) -> int:
        """Return the arrival of the largest piece that fits, else of the shortest; among equals the oldest."""
        fits = bisect.bisect_left(self._by_length, (room + 1,)) - 1
        if fits < 0:
            shortest = self._by_length[0][0]
            fits = bisect.bisect_left(self._by_length, (shortest + 1,)) - 1
        return -self._by_length[fits][1]

    def _take(self, arrival: int) -> DocumentPiece:
        """Return a piece and forget its length; its entry in the order of arrival stays."""
        piece = self._held[arrival]
        del self._by_length[bisect.bisect_left(self._by_length, (len(piece.tokens), -arrival))]
        return piece

    def _fill(self) -> bool:
        """Read documents until the buffer is full; return whether anything is in it."""
        while len(self._held) < self._buffer_documents:
            address, tokens = next(self._documents, (None, None))
            if address is None or tokens is None:
                break
            self.last = address
            whole = [DocumentPiece(address, 0, tokens)]
            for piece in split_document(address, tokens, self._capacity) if self._split else whole:
                self._put(piece, self._arrivals)
                self._arrivals += 1
        if not self._begun and self._split:
            self._spread_ages()
        self._begun = True
        return bool(self._held)

    def _spread_ages(self) -> None:
        """Spread the ages of the first buffer's pieces; otherwise a run would begin with the largest pieces alone."""
        pieces = list(self._held.values())
        self._held.clear()
        self._by_length.clear()
        for number, piece in enumerate(pieces):
            self._put(piece, int(number * WAIT_FRAC))
        self._arrivals = int(len(pieces) * WAIT_FRAC)

    def _put(self, piece: DocumentPiece, arrival: int) -> None:
        self._held[arrival] = piece
        bisect.insort(self._by_length, (len(piece.tokens), -arrival))

    @property
    def held_documents(self) -> int:
        """Number of documents of which a piece is in the buffer."""
        return len({piece.address for piece in self._held.values()})

    def state(self) -> list[list]:
        """Return the buffer as plain data: epoch, file and row group, then its documents in the buffer.

        Where documents are split, two more lists follow: the token at which each piece begins, and its age in arrivals.
        """
        state = []
        for group, same in itertools.groupby(self._held.items(), key=lambda item: item[1].address[:3]):
            pieces = list(same)
            entry: list = [*group, [piece.address.doc for _, piece in pieces]]
            if self._split:
                entry += [[piece.first for _, piece in pieces], [self._arrivals - arrival for arrival, _ in pieces]]
            state.append(entry)
        return state

    @staticmethod
    def addresses(state: Sequence[Sequence]) -> list[Address]:
        """Return the address of each document or piece that a state describes, in the order of arrival."""
        return [Address(entry[0], entry[1], entry[2], doc) for entry in state for doc in entry[3]]

    def restore(self, state: Sequence[Sequence], documents: Iterable[Tokens]) -> None:
        """Fill the empty buffer as it was.

        Args:
            state: what `state()` returned.
            documents: the whole document at each of `addresses(state)`.

        Raises:
            ValueError: a document has no such piece.
        """
        self._begun = True
        addresses = self.addresses(state)
        if not self._split:
            for address, tokens in zip(addresses, documents, strict=True):
                self._put(DocumentPiece(address, 0, tokens), self._arrivals)
                self._arrivals += 1
            return
        firsts = [first for entry in state for first in entry[4]]
        ages = [age for entry in state for age in entry[5]]
        for address, tokens, first, age in zip(addresses, documents, firsts, ages, strict=True):
            if first >= len(tokens):
                raise ValueError(
                    f"the cursor points at token {first} of a document that has {len(tokens)} tokens ({address}); it "
                    "was written with another tokenizer: resume with that one"
                )
            self._put(_piece(address, tokens, first, self._capacity), -age)
