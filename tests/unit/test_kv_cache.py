"""Laws of the key/value cache: reading in pieces equals reading at once."""

import copy

import pytest
import torch

from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT, norm
from nanochat_pl.model.inference import FEW_NUMBERS, InferenceCopy, quick_norm
from nanochat_pl.model.kv_cache import KVCache
from tests.unit.tricks import TRICKS, WINDOWED

VOCAB = 61


MODELS: dict[str, dict] = {f"{heads} kv heads": {"n_kv_head": heads} for heads in (4, 2, 1)}
MODELS |= {name: {"n_kv_head": 2, "sequence_len": 9} | changes for name, changes in TRICKS.items()}


def trained(**changes) -> GPT:
    """Return a model in which nothing is at the value where it does nothing."""
    shape = {"sequence_len": 32, "vocab_size": VOCAB, "n_layer": 3, "n_head": 4, "n_embd": 32}
    model = GPT(GPTConfig(**shape | changes))
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> GPT:
    return trained(**MODELS[request.param])


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
    lengths, more = [12, 1, 5], 6
    idx = tokens(3, max(lengths) + more)
    cache = cache_for(model, 3)
    model(idx[:, : max(lengths)], kv_cache=cache)  # beyond a row's length this is padding
    cache.advance(lengths)
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
@pytest.mark.parametrize("name", WINDOWED)
def test_cached_decode_equals_full_forward_past_every_window(name):
    model = trained(n_kv_head=2, sequence_len=140, **TRICKS[name] | {"window_pattern": "SL"})
    assert model.windows == {128, 140}
    idx, lengths = tokens(3, 190), [180, 135, 2]
    whole = model(idx)
    sees_all = trained(n_kv_head=2, sequence_len=140, **TRICKS[name] | {"window_pattern": None})
    assert not torch.allclose(sees_all(idx)[:, -1], whole[:, -1], atol=1e-3), "the windows hide nothing"
    for chunks in ([150, 1, 39], [20, 130, 40], [*[1] * 4, 140, *[1] * 46]):
        cache = cache_for(model, 3, capacity=190)
        pieces = []
        for piece in idx.split(chunks, dim=1):
            pieces.append(model(piece, kv_cache=cache))
            cache.advance(piece.size(1))
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
    cache = cache_for(model, 3, capacity=190)
    model(idx[:, : max(lengths)], kv_cache=cache)  # beyond a row's length this is padding
    cache.advance(lengths)
    for step in range(10):
        piece = torch.stack([row[n + step : n + step + 1] for row, n in zip(idx, lengths, strict=True)])
        ours = model(piece, kv_cache=cache)[:, 0]
        cache.advance(1)
        theirs = torch.stack([whole[b, n + step] for b, n in enumerate(lengths)])
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_rows_can_leave_be_copied_and_be_added(model):
    idx = tokens(4, 12)
    cache = cache_for(model, 4, capacity=9)
    model(idx[:, :8], kv_cache=cache)
    cache.advance([8, 3, 6, 7])
    order = cache.drop_rows([0, 2])
    assert (sorted(order), [cache.lengths[order.index(row)] for row in (1, 3)]) == ([1, 3], [3, 7])
    small = cache_for(model, 2, capacity=5)
    model(idx[:2, :5], kv_cache=small)
    small.advance([4, 5])
    cache.reserve(5, 12)
    cache.add_rows(small, [0, 1, 0])
    rows = [*order, 0, 1, 0]
    assert cache.lengths == [{1: 3, 3: 7}[row] for row in order] + [4, 5, 4]
    for _ in range(4):
        logits = model(torch.stack([idx[row, n : n + 1] for row, n in zip(rows, cache.lengths)]), kv_cache=cache)[:, 0]
        cache.advance(1)
        for ours, row, n in zip(logits, rows, cache.lengths, strict=True):
            torch.testing.assert_close(ours, model(idx[row : row + 1, :n])[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("gone", [[], [0], [5], [0, 5], [1, 2, 3], [5, 4, 0], [0, 1, 2, 3, 4, 5], [4, 2]])
def test_drop_rows_keeps_the_content_of_the_other_rows(model, gone):
    cache = cache_for(model, 6, capacity=4)
    cache.k += torch.arange(6.0)[:, None, None, None]
    cache.v -= torch.arange(6.0)[:, None, None, None]
    cache.lengths = [1, 2, 3, 4, 1, 2]
    order = cache.drop_rows(gone)
    assert sorted(order) == [row for row in range(6) if row not in gone]
    for place, row in enumerate(order):
        assert cache.lengths[place] == [1, 2, 3, 4, 1, 2][row]
        assert (cache.k[:, place, :, : cache.lengths[place]] == row).all()
        assert (cache.v[:, place, :, : cache.lengths[place]] == -row).all()


@torch.inference_mode()
def test_overflow_is_refused_and_leaves_the_cache_as_it_was(model):
    cache = cache_for(model, 2, capacity=5)
    model(tokens(2, 4), kv_cache=cache)
    cache.advance([4, 2])
    before = cache.k.clone()
    with pytest.raises(ValueError, match=r"holds 5 tokens a row; 4 are taken and 2 more .*capacity=6"):
        model(tokens(2, 2), kv_cache=cache)
    assert torch.equal(cache.k, before)
    big = cache_for(model, 1)
    big.advance(9)
    with pytest.raises(ValueError, match=r"1 more rows of up to 9 tokens do not fit .* reserve"):
        cache.add_rows(big, [0])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_inference_copy_computes_the_same_and_follows_the_weights(model, dtype):
    source = copy.deepcopy(model)
    source.compute_dtype = dtype
    laid_out = InferenceCopy(source, dtype)
    atol = 1e-5 if dtype == torch.float32 else 0.05

    def check_equal() -> None:
        for idx in (tokens(2, 20), tokens(2, 1), tokens(1, 1)):  # many rows, few, and one, which reads other layouts
            torch.testing.assert_close(laid_out.follow()(idx), source(idx), atol=atol, rtol=1e-5)
        for rows in (1, 2):  # one token behind others, as decoding reads
            idx, cache = tokens(rows, 20), KVCache(source.config, rows, 20, source.device, dtype)
            laid_out.follow()(idx[:, :19], kv_cache=cache)
            cache.advance(19)
            last = laid_out.follow()(idx[:, 19:], kv_cache=cache)
            torch.testing.assert_close(last, source(idx)[:, 19:], atol=atol, rtol=1e-5)

    check_equal()
    before = laid_out.follow()
    for parameter in source.parameters():
        parameter.mul_(0.5)
    assert laid_out.follow() is before
    check_equal()
    source.load_state_dict({name: 2 * tensor for name, tensor in source.state_dict().items()}, assign=True)
    check_equal()
    source.transformer.h[1].mlp.c_fc.weight = torch.nn.Parameter(source.transformer.h[1].mlp.c_fc.weight * 0.5)
    check_equal()
    before = laid_out.follow()
    source.lm_head.weight.data.zero_()
    laid_out.refresh()
    for idx in (tokens(2, 20), tokens(1, 1)):
        assert laid_out.follow()(idx).count_nonzero() == 0
    ours, theirs = (
        {name: parameter.numel() for name, parameter in model.named_parameters()} for model in (before, source)
    )
    assert sum(ours.values()) == sum(theirs.values())
    assert {name for name in theirs if not name.endswith((".c_q.weight", ".c_k.weight", ".c_v.weight"))} == {
        name for name in ours if not name.endswith(".joined.weight")
    }


@torch.no_grad()
@pytest.mark.parametrize("width", [32, 256, 1280])
def test_the_norm_of_decoding_is_the_models(width):
    for scale in (1.0, 1e-2, 1e-4, 1e-8, 0.0, 1e4, 1e15):  # around and far below the epsilon
        x = scale * torch.randn(3, 1, width)
        torch.testing.assert_close(quick_norm(x), norm(x), atol=1e-30, rtol=2e-6)
    x = torch.randn(2, 1, 4, width)  # heads, too
    torch.testing.assert_close(quick_norm(x), norm(x), atol=0, rtol=2e-6)
    assert torch.equal(quick_norm(x.bfloat16()), norm(x.bfloat16()))
    prompt = torch.randn(1, FEW_NUMBERS // width + 1, width)
    assert torch.equal(quick_norm(prompt), norm(prompt))


def test_positions_and_cache_exclude_each_other(model):
    with pytest.raises(ValueError, match="exclude each other"):
        model(tokens(1, 2), positions=torch.tensor([[0, 1]]), kv_cache=cache_for(model, 1))
