"""Laws that hold for each trick of the architecture alone and for all of them together; cached decoding has its own in
`test_kv_cache.py`."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from nanochat_pl.model import attention
from nanochat_pl.model.accounting import flops_per_token, num_parameters, parameters_by_role
from nanochat_pl.model.attention import causal_attention
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT, Linear
from nanochat_pl.model.inference import InferenceCopy
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.groups import build_optimizers, check_roles
from tests.unit.tricks import TRICKS, WINDOWED

VOCAB = 61
SHAPE = {"vocab_size": VOCAB, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 32}


def trained(**changes) -> GPT:
    """Return a model in which nothing is at the value where it does nothing."""
    model = GPT(GPTConfig(**{"sequence_len": 9} | SHAPE | changes))
    generator = torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


@pytest.fixture(scope="module", params=TRICKS)
def model(request) -> GPT:
    return trained(**TRICKS[request.param])


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours_nor_on_what_follows(model: GPT):
    idx = tokens(3, 20)
    together = model(idx)
    for row, logits in zip(idx, together, strict=True):
        assert_close(model(row[None])[0], logits)
        assert_close(model(row[None, :11])[0], logits[:11])


@torch.inference_mode()
def test_packed_documents_equal_each_document_alone(model: GPT):
    idx, lengths = tokens(2, 20), [[3, 12, 5], [1, 1, 18]]
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    packed = model(idx, positions=positions)
    for row, logits, own in zip(idx, packed, lengths, strict=True):
        for document, ours in zip(row.split(own), logits.split(own), strict=True):
            assert_close(ours, model(document[None])[0])


@torch.inference_mode()
@pytest.mark.parametrize("name", WINDOWED)
def test_packed_documents_longer_than_a_window_equal_each_document_alone(name: str):
    model = trained(sequence_len=200, **TRICKS[name] | {"window_pattern": "S"})
    assert model.windows == {128, 200}
    idx, lengths = tokens(2, 200), [[45, 155], [150, 50]]
    packed = model(idx, positions=torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths]))
    for row, logits, own in zip(idx, packed, lengths, strict=True):
        for document, ours in zip(row.split(own), logits.split(own), strict=True):
            assert_close(ours, model(document[None])[0])


@torch.inference_mode()
@pytest.mark.parametrize("sequence_len", [200, 600, 2000])
def test_a_model_keeps_its_windows_where_rows_have_another_length(sequence_len: int):
    model = trained(sequence_len=600, window_pattern="SL", n_layer=4)
    config = model.config.with_sequence_len(sequence_len)
    assert (config.sequence_len, config.with_sequence_len(600)) == (sequence_len, model.config)
    other = GPT(config)
    other.load_state_dict(model.state_dict())
    idx = tokens(1, 700)
    assert_close(other(idx), model(idx))
    assert flops_per_token(config.with_sequence_len(600)) == flops_per_token(model.config)
    assert trained(sequence_len=600).config.with_sequence_len(200) == trained(sequence_len=200).config


@torch.inference_mode()
def test_smear_across_documents_is_the_only_thing_that_crosses_them():
    idx, positions = tokens(1, 8), torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    crossing = trained(smear=True, smear_across_documents=True)
    alone = trained(smear=True)
    ours, theirs = crossing(idx, positions=positions)[0], alone(idx, positions=positions)[0]
    assert_close(ours[:3], theirs[:3])
    assert not torch.allclose(ours[3], theirs[3], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_inference_copy_computes_the_same(model: GPT, dtype: torch.dtype):
    idx = tokens(3, 12)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.6, "rtol": 0.0}
    torch.testing.assert_close(InferenceCopy(model, dtype).follow()(idx), model(idx), **tolerance)


def test_parameters_are_counted_as_built_and_each_has_one_role(model: GPT):
    roles = model.param_roles()
    check_roles(roles, model.named_parameters())
    assert {role: sum(p.numel() for p in params) for role, params in roles.items()} == parameters_by_role(model.config)
    assert num_parameters(model.config) == sum(p.numel() for p in model.parameters())
    optimized = [
        p for o in build_optimizers(roles, 32, OptimConfig()) for group in o.param_groups for p in group["params"]
    ]
    assert {id(p) for p in optimized} == {id(p) for p in model.parameters()}


def test_flops_are_those_of_the_matrices_and_of_what_layers_see(model: GPT):
    config = model.config
    multiplied = sum(module.weight.numel() for module in model.modules() if isinstance(module, Linear))
    seen = sum(min(config.window(layer) or 9, 9) for layer in range(3))
    assert flops_per_token(config) == 6 * multiplied + 12 * 32 * seen


def test_every_parameter_gets_a_gradient(model: GPT):
    model.zero_grad()
    idx = tokens(2, 20)
    model(idx, idx.roll(-1, 1)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("n_layer", [1, 2])
def test_where_the_middle_is_the_end_backing_out_does_nothing_and_nothing_moves_it(n_layer: int):
    """nanochat's subtracts a share of the very vector that is normed next: the same for every share below 1."""
    model, idx = trained(backout=True, n_layer=n_layer), tokens(2, 20)
    with torch.no_grad():
        model.backout_lambda.zero_()
        x = model.hidden(idx)
        for share, sign in ((0.2, 1), (0.9, 1), (-3.0, 1), (1.2, -1)):
            model.backout_lambda.fill_(share)
            torch.testing.assert_close(model.hidden(idx), sign * x, atol=1e-5, rtol=1e-4)
    model(idx, idx.roll(-1, 1)).backward()
    assert not model.backout_lambda.grad.any()


def test_from_three_blocks_on_backing_out_does_something():
    model, idx = trained(backout=True), tokens(2, 20)
    with torch.no_grad():
        logits = model(idx)
        model.backout_lambda.zero_()
        assert not torch.allclose(model(idx), logits, atol=1e-2)


def test_initial_weights_are_whole_and_the_first_loss_is_near_ln_of_the_vocabulary(model: GPT):
    new = GPT(model.config)
    new.init_weights(torch.Generator().manual_seed(3))
    assert all(p.isfinite().all() for p in new.parameters())
    assert new(tokens(2, 20), tokens(2, 20).roll(-1, 1)).item() == pytest.approx(
        torch.tensor(VOCAB).log().item(), abs=0.02
    )


def test_the_lambdas_of_the_layers_begin_as_nanochats_do_to_the_bit():
    for layers in range(1, 41):
        shape = {"vocab_size": 2, "sequence_len": 2, "n_layer": layers, "n_head": 1, "n_kv_head": 1, "n_embd": 2}
        model = GPT(GPTConfig(**shape, residual_lambdas=True, input_lambdas=True))
        model.init_weights()
        for lambdas, first, fall in ((model.resid_lambdas, 1.15, 0.10), (model.x0_lambdas, 0.20, 0.15)):
            theirs = torch.tensor([first - fall * i / max(layers - 1, 1) for i in range(layers)])
            assert lambdas.tolist() == theirs.tolist()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("length", "window"), [(1, 3), (4, 3), (5, 3), (6, 3), (7, 3), (24, 8), (25, 8), (31, 8), (9, 1)]
)
def test_a_window_shows_the_last_tokens_and_nothing_else(length: int, window: int, kv_heads: int):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 6, generator=generator) for heads in (4, kv_heads, kv_heads))
    t = torch.arange(length)
    seen = (t[:, None] >= t) & (t[:, None] - t <= window)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    torch.testing.assert_close(causal_attention(q, k, v, window), expected)


def documents_alone(q, k, v, starts_of_queries, starts_of_keys, most_queries, most_keys, *, window_size):
    """torch's varlen_attn as its documentation says, on a CPU."""
    assert starts_of_queries.dtype == torch.int32 and (starts_of_queries == starts_of_keys).all()
    ends = starts_of_queries.tolist()
    assert most_queries == most_keys == max(after - before for before, after in itertools.pairwise(ends))
    assert ends[0] == 0 and ends[-1] == len(q) == len(k) and q.shape == k.shape
    left, right = window_size
    parts = []
    for before, after in itertools.pairwise(ends):
        t = torch.arange(after - before)
        seen = (t[None, :] >= t[:, None] - left) & (t[None, :] <= t[:, None] + right)
        own = (x[before:after].transpose(0, 1) for x in (q, k, v))
        parts.append(F.scaled_dot_product_attention(*own, attn_mask=seen).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_flash_attention_is_given_the_rows_as_documents_with_their_window(kv_heads: int, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(3, 25, heads, 8, generator=generator).transpose(1, 2).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    )
    results = [causal_attention(q, k, v, 8)]
    monkeypatch.setattr(attention, "_is_for_flash", lambda q: True)
    monkeypatch.setattr(attention, "varlen_attn", documents_alone)
    results.append(causal_attention(q, k, v, 8))
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(y.square().sum(), (q, k, v)) for y in results]
    torch.testing.assert_close(*gradients)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_on_a_gpu_flash_attention_equals_the_mask(kv_heads: int, compiled: bool):
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, 300, 64, generator=generator, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    )
    t = torch.arange(300, device="cuda")
    seen = (t[:, None] >= t) & (t[:, None] - t <= 128)
    expected = F.scaled_dot_product_attention(*(x.float() for x in (q, k, v)), attn_mask=seen, enable_gqa=True)
    ours = (torch.compile(causal_attention) if compiled else causal_attention)(q, k, v, 128)
    assert attention._is_for_flash(q)
    torch.testing.assert_close(ours.float(), expected, atol=0.02, rtol=0.02)
    for mine, theirs in zip(*(torch.autograd.grad(y.float().square().sum(), (q, k, v)) for y in (ours, expected))):
        torch.testing.assert_close(mine.float(), theirs.float(), atol=0.05, rtol=0.05)


def test_windows_follow_the_pattern_and_end_with_a_long_one():
    config = GPTConfig(sequence_len=2048, n_layer=6, window_pattern="SSSL")
    assert [config.window(layer) for layer in range(6)] == [512, 512, 512, 2048, 512, 2048]
    assert [GPTConfig(sequence_len=T, window_pattern="SL").window(0) for T in (128, 512, 513, 1024)] == [
        128,
        128,
        256,
        256,
    ]
    assert GPTConfig(n_layer=2).window(0) is None
