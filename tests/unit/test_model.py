"""Laws of the model: initial weights, documents in packed rows, vocabulary padding, dtypes, compilation."""

import math

import pytest
import torch

from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT

SHAPE = {"sequence_len": 32, "vocab_size": 61, "n_layer": 2, "n_head": 4, "n_kv_head": 4, "n_embd": 32}


def make(seed: int = 0, compute_dtype: torch.dtype = torch.float32, **changes: object) -> GPT:
    """A model away from the zeros of its initial weights."""
    model = GPT(GPTConfig(**SHAPE | changes), compute_dtype)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: GPT, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def close(ours, theirs, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-4)


def test_the_first_loss_is_ln_of_the_vocabulary():
    model = GPT(GPTConfig(**SHAPE))
    model.init_weights()
    loss = model(tokens(2, 32), tokens(2, 32, seed=2))
    assert loss.item() == pytest.approx(math.log(61), rel=1e-6)


def test_initial_weights_depend_on_the_generator_alone():
    first, second = (GPT(GPTConfig(**SHAPE)) for _ in range(2))
    first.init_weights(torch.Generator().manual_seed(7))
    torch.manual_seed(7)
    second.init_weights()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_construction_draws_no_random_numbers_and_leaves_nan_weights():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = GPT(GPTConfig(**SHAPE))
    assert torch.equal(before, torch.get_rng_state())
    assert model(tokens(1, 4)).isnan().all()


def test_a_model_made_on_the_meta_device_can_be_filled():
    with torch.device("meta"):
        model = GPT(GPTConfig(**SHAPE))
    model.to_empty(device="cpu")
    model.init_weights(torch.Generator().manual_seed(0))
    usual = GPT(GPTConfig(**SHAPE))
    usual.init_weights(torch.Generator().manual_seed(0))
    assert torch.equal(model.cos, usual.cos)
    assert torch.equal(model(tokens(1, 8)), usual(tokens(1, 8)))


def test_roles_partition_the_parameters():
    model = make()
    roles = model.param_roles()
    assert set(roles) == {"matrix", "embedding", "unembedding"}
    named = [id(parameter) for group in roles.values() for parameter in group]
    assert sorted(named) == sorted(id(parameter) for parameter in model.parameters())
    assert all(parameter.dim() == 2 for parameter in roles["matrix"])


def test_no_token_sees_the_future():
    model, idx = make(), tokens(1, 16)
    changed = idx.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 61
    a, b = model(idx), model(changed)
    assert torch.equal(a[:, :9], b[:, :9])
    assert not torch.allclose(a[:, 9], b[:, 9])


DOCUMENTS = [[5, 1, 10], [16], [1, 1, 14]]


def positions_of(rows: list[list[int]]) -> torch.Tensor:
    return torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in rows])


@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_packed_documents_equal_each_document_alone(n_kv_head):
    model, idx, targets = make(n_kv_head=n_kv_head), tokens(3, 16), tokens(3, 16, seed=2)
    targets[0, 3], targets[2, 7:9] = -1, -1
    positions = positions_of(DOCUMENTS)
    logits = model(idx, positions=positions)
    packed = model(idx, targets, positions, reduction="sum")
    alone = torch.zeros(())
    for row, lengths in enumerate(DOCUMENTS):
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            close(logits[row, part], model(idx[row : row + 1, part])[0])
            alone = alone + model(idx[row : row + 1, part], targets[row : row + 1, part], reduction="sum")
            start += length
    close(packed, alone)
    for ours, theirs in zip(gradients(model, packed), gradients(model, alone), strict=True):
        close(ours, theirs, atol=1e-4)


def test_positions_of_one_document_equal_no_positions():
    model, idx = make(), tokens(2, 16)
    close(model(idx, positions=torch.arange(16).expand(2, -1)), model(idx))


def test_a_row_that_begins_inside_a_document_is_masked_too():
    """Scores depend on distances only, so where the cut document began does not matter (but for bf16 tables)."""
    model, idx = make(rope_table_dtype="float32"), tokens(1, 8)
    cut = torch.tensor([[4, 5, 6, 0, 1, 2, 3, 4]])
    logits = model(idx, positions=cut)
    close(logits[:, :3], model(idx[:, :3]), atol=1e-4)
    close(logits[:, 3:], model(idx[:, 3:]), atol=1e-4)


def test_padded_vocabulary_changes_nothing():
    model, padded = make(), GPT(GPTConfig(**SHAPE, pad_vocab_to=16))
    assert padded.lm_head.weight.shape == (64, 32)
    padded.init_weights()
    state = model.state_dict()
    for name in ("transformer.wte.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], torch.full((3, 32), 9.0)])  # padding of any value
    padded.load_state_dict(state)
    idx, targets = tokens(2, 16), tokens(2, 16, seed=2)
    assert padded(idx).shape == (2, 16, 61)
    close(padded(idx), model(idx))
    ours, theirs = padded(idx, targets), model(idx, targets)
    close(ours, theirs)
    for a, b in zip(gradients(padded, ours), gradients(model, theirs), strict=True):
        close(a[: len(b)], b)
        assert not a[len(b) :].any()


def test_padding_keeps_the_initial_weights():
    model, padded = (GPT(GPTConfig(**SHAPE, pad_vocab_to=n)) for n in (None, 16))
    for either in (model, padded):
        either.init_weights(torch.Generator().manual_seed(0))
    for name, tensor in padded.state_dict().items():
        expected = model.state_dict()[name]
        assert torch.equal(tensor[: len(expected)], expected), name
        assert not tensor[len(expected) :].any()


def test_bf16_computation_keeps_fp32_weights_gradients_and_loss():
    exact, rounded = make(), make(compute_dtype=torch.bfloat16)
    idx, targets = tokens(2, 16), tokens(2, 16, seed=2)
    assert rounded.hidden(idx).dtype == torch.bfloat16
    assert rounded(idx).dtype == torch.float32
    loss = rounded(idx, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact(idx, targets).item(), abs=0.05)
    loss.backward()
    assert {(p.dtype, p.grad.dtype) for p in rounded.parameters()} == {(torch.float32, torch.float32)}


def test_rows_beyond_the_rotary_tables_are_refused():
    model = make(sequence_len=4)
    assert model(tokens(1, 40)).shape == (1, 40, 61)
    with pytest.raises(ValueError, match=r"41 tokens is longer than the 40 positions .*raise model.sequence_len"):
        model(tokens(1, 41))


def test_rotary_tables_are_not_saved():
    assert not any("cos" in key or "sin" in key for key in make().state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 5}, r"model.n_embd=32 is not a multiple of model.n_head=5; set model.n_embd=35"),
        ({"n_kv_head": 3}, r"model.n_head=4 is not a multiple of model.n_kv_head=3; .*\[1, 2, 4\]"),
        ({"n_embd": 36}, r"model.n_embd=36 / model.n_head=4 = 9 channels a head is odd.*set model.n_embd=40"),
        ({"vocab_size": 0}, "model.vocab_size=0 must be a whole number of at least 1"),
        ({"softcap": 0.0}, r"model.softcap=0.0 must lie in \(0, 40\]"),
        ({"softcap": 100.0}, r"model.softcap=100.0 must lie in \(0, 40\]"),
        ({"rope_table_dtype": "float16"}, "set it to bfloat16, float32 or compute"),
        ({"rope_base": 1.0}, "model.rope_base=1.0"),
        ({"rope_base": math.inf}, r"model.rope_base=inf must lie in \(1, 1e\+09\]"),
        ({"window_context": 0}, "model.window_context='0' must be a number of tokens"),
        ({"window_context": "9"}, "model.window_context='9' must be a number of tokens"),
        ({"smear": True, "n_embd": 16, "n_head": 2, "n_kv_head": 2}, "model.smear=false, or model.n_embd=24 or more"),
        ({"value_embeddings": True, "n_embd": 8, "n_head": 2, "n_kv_head": 2}, "model.value_embeddings=false, or"),
        ({"pad_vocab_to": 0}, "model.pad_vocab_to=0"),
    ],
)
def test_impossible_shapes_are_refused_with_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**SHAPE | changes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")  # Dynamo does it
@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_compiled_training_is_one_graph_and_equals_eager(compute_dtype):
    torch.compiler.reset()
    idx, targets = tokens(3, 16), tokens(3, 16, seed=2)
    positions = positions_of(DOCUMENTS)
    for given, reduction in ((None, "none"), (positions, "sum")):
        eager, compiled = (make(compute_dtype=compute_dtype) for _ in range(2))
        compiled.compile(dynamic=False, fullgraph=True)
        ours = compiled(idx, targets, given, reduction=reduction).sum()
        theirs = eager(idx, targets, given, reduction=reduction).sum()
        tolerance = 1e-4 if compute_dtype == torch.float32 else 0.5
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=1e-3)
        pairs = zip(gradients(compiled, ours), gradients(eager, theirs), strict=True)
        worst = min(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item() for a, b in pairs)
        assert worst > (0.99999 if compute_dtype == torch.float32 else 0.99)
    explanation = torch._dynamo.explain(make())(idx, targets, positions)
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)
