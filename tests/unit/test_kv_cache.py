"""Laws of the key/value cache: reading in pieces equals reading at once."""

import pytest
import torch

from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.model.kv_cache import KVCache

VOCAB = 61


@pytest.fixture(scope="module", params=[4, 2, 1], ids=lambda n: f"{n} kv heads")
def model(request) -> GPT:
    model = GPT(GPTConfig(sequence_len=32, vocab_size=VOCAB, n_layer=3, n_head=4, n_kv_head=request.param, n_embd=32))
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


def cache_for(model: GPT, batch: int, capacity: int = 20) -> KVCache:
    return KVCache(model.config, batch, capacity, model.device, torch.float32)


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [[20], [1] * 20, [7, 1, 1, 11], [1, 19]])
def test_cached_decode_equals_full_forward(model, chunks):
    idx = tokens(2, 20)
    cache = cache_for(model, 2)
    pieces = []
    for piece in idx.split(chunks, dim=1):
        pieces.append(model(piece, kv_cache=cache))
        cache.advance(piece.size(1))
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(idx), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, 3])
def test_ragged_rows_equal_each_row_alone(model, chunk):
    lengths, more = [9, 1, 5], 6
    idx = tokens(3, max(lengths) + more)
    cache = cache_for(model, 3)
    model(idx[:, : max(lengths)], kv_cache=cache)  # beyond a row's length this is padding
    cache.advance(torch.tensor(lengths))
    pieces = []
    for step in range(0, more, chunk):
        piece = torch.stack([row[n + step : n + step + chunk] for row, n in zip(idx, lengths, strict=True)])
        pieces.append(model(piece, kv_cache=cache))
        cache.advance(chunk)
    ours = torch.cat(pieces, dim=1)
    for b, n in enumerate(lengths):
        alone = model(idx[b : b + 1, : n + more])[0, n:]
        torch.testing.assert_close(ours[b], alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_rows_can_leave_be_copied_and_be_replaced(model):
    idx = tokens(3, 12)
    cache = cache_for(model, 3)
    model(idx[:, :8], kv_cache=cache)
    cache.advance(torch.tensor([8, 3, 6]))
    cache.select_rows(torch.tensor([2, 2, 0]))
    assert cache.lengths.tolist() == [6, 6, 8]
    small = cache_for(model, 1, capacity=4)
    model(idx[1:2, :4], kv_cache=small)
    small.advance(4)
    cache.write_rows(torch.tensor([1]), small)
    assert cache.lengths.tolist() == [6, 4, 8]
    assert cache.longest == 8
    logits = model(torch.stack([idx[2, 6:7], idx[1, 4:5], idx[0, 8:9]]), kv_cache=cache)[:, 0]
    for row, (b, n) in zip(logits, [(2, 6), (1, 4), (0, 8)], strict=True):
        torch.testing.assert_close(row, model(idx[b : b + 1, : n + 1])[0, -1], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_overflow_is_refused_and_leaves_the_cache_as_it_was(model):
    cache = cache_for(model, 2, capacity=5)
    model(tokens(2, 4), kv_cache=cache)
    cache.advance(torch.tensor([4, 2]))
    before = cache.k.clone()
    with pytest.raises(ValueError, match=r"holds 5 tokens a row; 4 are taken and 2 more .*capacity=6"):
        model(tokens(2, 2), kv_cache=cache)
    assert torch.equal(cache.k, before)
    big = cache_for(model, 1)
    big.advance(9)
    with pytest.raises(ValueError, match="rows of 9 tokens do not fit"):
        cache.write_rows(torch.tensor([0]), big)


def test_positions_and_cache_exclude_each_other(model):
    with pytest.raises(ValueError, match="exclude each other"):
        model(tokens(1, 2), positions=torch.tensor([[0, 1]]), kv_cache=cache_for(model, 1))
