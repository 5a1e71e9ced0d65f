"""Best fit with split documents: nothing waits for ever, nothing much is lost, and the mix of lengths stays."""

import itertools

import numpy as np
import pytest

from nanochat_pl.data.bestfit import BUFFER_DOCUMENTS, WAIT_FRAC, FittedRows, split_document
from nanochat_pl.data.parquet import Address, DocumentStream, list_shards

BOS = -1


def documents(lengths):
    """Documents whose tokens say which document and which token they are, epoch after epoch."""
    for number in itertools.count():
        doc = number % len(lengths)
        tokens = number * 1_000_000 + np.arange(lengths[doc])
        tokens[0] = BOS
        yield Address(number // len(lengths), 0, 0, doc), tokens


def pack(lengths, sequence_len, epochs=3, **options):
    """Pack as many tokens as `epochs` epochs hold; yield each row with the number of documents read till then."""
    rows = FittedRows(documents(lengths), sequence_len + 1, **{"split": True} | options)
    for _ in range(int(epochs * sum(lengths)) // (sequence_len + 1)):
        row = rows.next_row()
        yield row, rows.last.epoch * len(lengths) + rows.last.doc + 1, rows.cropped


def check_laws(lengths, sequence_len):
    """Check that every document comes in bounded time, that nothing is thrown away, and that the mix stays."""
    capacity = sequence_len + 1
    packed = list(pack(lengths, sequence_len))
    pieces = np.array([len(split_document(Address(0, 0, 0, 0), np.zeros(n), capacity)) for n in lengths]).mean()
    seen, delay, shares = set(), 0, []
    for part in np.array_split(np.arange(len(packed)), 4):
        long = total = 0
        for row, read, _ in (packed[i] for i in part):
            assert len(row) == capacity and row[0] == BOS
            numbers, counts = np.unique(row[row != BOS] // 1_000_000, return_counts=True)
            seen.update((numbers % len(lengths)).tolist())
            delay = max(delay, read - 1 - int(numbers.min(initial=read)))
            long += sum(count for n, count in zip(numbers.tolist(), counts) if lengths[n % len(lengths)] > capacity)
            total += counts.sum()
        shares.append(long / total)
    # a document of nothing but its BOS has no token of its own to find
    assert seen == {doc for doc, length in enumerate(lengths) if length > 1}
    assert packed[-1][2] == 0
    # the oldest of the buffer goes before all others, one in a row at least
    assert delay * pieces < (WAIT_FRAC + 1) * BUFFER_DOCUMENTS * 1.5
    assert max(shares) - min(shares) < 0.08, shares


LENGTHS = {
    "as on the web": lambda rng, n: np.exp(rng.normal(np.log(640), 1, n)),
    "of every length": lambda rng, n: rng.integers(2, 6000, n),
    "all a little longer than half a row": lambda rng, n: np.full(n, 1230),
    "very short": lambda rng, n: rng.integers(2, 80, n),
    "very short or very long": lambda rng, n: np.where(rng.random(n) < 0.5, 20, rng.integers(3000, 9000, n)),
}


@pytest.mark.slow
@pytest.mark.parametrize("sequence_len", [512, 2048])
@pytest.mark.parametrize("kind", LENGTHS)
def test_every_document_comes_soon_and_the_mix_of_lengths_stays(kind, sequence_len):
    lengths = LENGTHS[kind](np.random.default_rng(0), 3000).astype(int)
    check_laws(np.maximum(lengths, 2).tolist(), sequence_len)


@pytest.mark.slow
@pytest.mark.parametrize("logical_shards", [1, 8])
def test_real_documents_come_soon_and_their_mix_of_lengths_stays(data_root, reference_root, logical_shards):
    from nanochat_pl.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(reference_root / "base" / "tokenizer")
    files = list_shards(data_root / "fineweb_like").train
    stream = DocumentStream(files, logical_shards, logical_shards - 1)
    # the reference's small vocabulary makes two tokens of what a usual one makes one of
    lengths = [len(tokenizer.encode(text)) // 2 + 1 for text, _ in itertools.islice(stream, stream.rows)]
    for sequence_len in (512, 2048):
        check_laws(lengths, sequence_len)


def test_the_original_rule_starves_long_documents_and_throws_text_away():
    """What `bestfit` is kept for is parity alone."""
    lengths = np.maximum(2, LENGTHS["as on the web"](np.random.default_rng(0), 1000).astype(int)).tolist()
    packed = list(pack(lengths, 512, split=False))
    seen = {int(n) % len(lengths) for row, *_ in packed for n in np.unique(row[row != BOS] // 1_000_000)}
    assert len(seen) < 0.95 * len(lengths)
    assert packed[-1][2] > 0.4 * len(packed) * 513


def test_every_token_of_a_document_is_in_one_of_its_pieces_with_a_bos_before_it():
    for length, capacity in itertools.product(range(1, 30), (2, 3, 7, 40)):
        tokens = np.arange(length)
        tokens[0] = BOS
        pieces = split_document(Address(0, 0, 0, 0), tokens, capacity)
        assert all(piece.tokens[0] == BOS and len(piece.tokens) <= capacity for piece in pieces)
        assert [id for piece in pieces for id in piece.tokens[1:]] == tokens[1:].tolist()
        assert all(len(piece.tokens) == capacity for piece in pieces[:-1])


@pytest.mark.parametrize("buffer_documents", [1, 7, 50])
def test_every_token_that_is_read_is_in_one_row(buffer_documents):
    rng = np.random.default_rng(buffer_documents)
    lengths = rng.integers(1, 60, 40).tolist()
    rows = FittedRows(itertools.islice(documents(lengths), 200), 32, split=True, buffer_documents=buffer_documents)
    packed = []
    while len(row := rows.next_row()):
        packed.append(row)
    tokens = np.concatenate(packed)
    ids = sorted(tokens[tokens != BOS].tolist())
    assert ids == sorted(id for _, whole in itertools.islice(documents(lengths), 200) for id in whole[1:].tolist())
    assert all(len(row) == 32 for row in packed[:-1])


@pytest.mark.parametrize("is_split", [False, True])
def test_a_buffer_restored_at_any_row_continues_exactly(is_split):
    lengths = np.random.default_rng(5).integers(1, 120, 60).tolist()
    whole = [tokens for _, tokens in itertools.islice(documents(lengths), 3000)]
    options = {"split": is_split, "buffer_documents": 9}
    straight = FittedRows(documents(lengths), 24, **options)
    expected = [straight.next_row() for _ in range(200)]
    for stop in (1, 2, 17, 100):
        first = FittedRows(documents(lengths), 24, **options)
        for _ in range(stop):
            first.next_row()
        state = first.state()
        read = first.last.epoch * len(lengths) + first.last.doc + 1
        second = FittedRows(itertools.islice(documents(lengths), read, None), 24, **options)
        held = [whole[a.epoch * len(lengths) + a.doc] for a in FittedRows.addresses(state)]
        second.restore(state, held)
        assert second.state() == state
        for row in expected[stop:]:
            assert second.next_row().tolist() == row.tolist()


def test_a_buffer_of_another_tokenizer_is_refused():
    rows = FittedRows(documents([100]), 24, split=True, buffer_documents=9)
    rows.next_row()
    held = [np.zeros(10, np.int32) for _ in FittedRows.addresses(rows.state())]
    with pytest.raises(ValueError, match=r"of a document that has 10 tokens .* written with another tokenizer"):
        FittedRows(documents([100]), 24, split=True).restore(rows.state(), held)
