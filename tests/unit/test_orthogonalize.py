"""Newton-Schulz keeps singular directions and evens out their lengths."""

import pytest
import torch

from nanochat_pl import runtime
from nanochat_pl.optim import orthogonalize
from nanochat_pl.optim.orthogonalize import choose_ns_dtype, equilibrate_rows, newton_schulz, polar_express

SHAPES = [(24, 24), (24, 64), (64, 24), (1, 7), (7, 1)]


def random_matrices(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one(shape, dtype):
    values = torch.linalg.svdvals(newton_schulz(random_matrices(*shape), 5, dtype).float())
    if shape == (24, 24):  # the smallest singular values of a square need not have arrived
        values = values[:-2]
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_directions_are_kept(shape):
    matrix = random_matrices(*shape).double()
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.mT @ newton_schulz(matrix, 5, torch.float64) @ vh.mT
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_length_of_the_input_does_not_matter(dtype, scale):
    matrix = random_matrices(32, 48)
    torch.testing.assert_close(
        newton_schulz(matrix * scale, 5, dtype), newton_schulz(matrix, 5, dtype), atol=2e-2, rtol=0
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_transpose_commutes(shape):
    matrix = random_matrices(*shape)
    torch.testing.assert_close(newton_schulz(matrix.mT, 5, torch.float32), newton_schulz(matrix, 5, torch.float32).mT)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_equals_its_matrices_one_by_one(shape):
    batch = random_matrices(2, 3, *shape)
    together = newton_schulz(batch, 5, torch.float32)
    assert together.shape == batch.shape
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(together[i, j], newton_schulz(batch[i, j], 5, torch.float32))


def test_the_input_is_left_as_it_is():
    matrix = random_matrices(8, 8)
    before = matrix.clone()
    newton_schulz(matrix, 5, torch.float32)
    assert torch.equal(matrix, before)


def test_zero_stays_zero():
    assert not newton_schulz(torch.zeros(2, 4, 6), 5, torch.bfloat16).any()


@pytest.mark.parametrize("fast", [True, False])
def test_auto_takes_bfloat16_exactly_where_the_device_is_fast_at_it(monkeypatch, fast):
    monkeypatch.setattr(runtime, "has_fast_bf16", lambda device: fast)
    choose_ns_dtype.cache_clear()
    try:
        assert choose_ns_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if fast else torch.float32)
    finally:
        choose_ns_dtype.cache_clear()


def test_a_named_dtype_holds_everywhere():
    assert choose_ns_dtype("float32", torch.device("cpu")) == torch.float32
    assert choose_ns_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match=r"set optim\.ns_dtype to auto, float32 or bfloat16"):
        choose_ns_dtype("fp8", torch.device("cpu"))


def test_bfloat16_by_rounding_float32_is_what_the_device_computes(monkeypatch):
    matrices = random_matrices(2, 48, 96)
    found = []
    for rounded in (False, True):
        monkeypatch.setattr(orthogonalize, "_rounding", lambda *_, rounded=rounded: rounded)
        found.append(newton_schulz(matrices, 5, torch.bfloat16))
    own, by_rounding = found
    assert by_rounding.dtype == torch.bfloat16
    exact = newton_schulz(matrices, 5, torch.float32)
    apart = [(x.float() - exact).abs().mean().item() for x in found]
    assert apart[1] <= 1.5 * apart[0]
    torch.testing.assert_close(by_rounding, own, atol=2e-2, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_express_comes_nearer_to_one_than_newton_schulz(shape):
    matrices = random_matrices(3, *shape)
    results = [step(matrices, 5, torch.float32) for step in (polar_express, newton_schulz)]
    far = [(torch.linalg.svdvals(result) - 1).abs().mean() for result in results]
    assert far[0] < far[1] and far[0] < 0.15
    assert torch.equal(polar_express(torch.zeros(2, *shape), 5, torch.float32), torch.zeros(2, *shape))


def test_equilibrated_rows_have_the_mean_norm_of_the_matrix_and_their_directions():
    matrices = random_matrices(2, 5, 7)
    even = equilibrate_rows(matrices)
    norms = torch.linalg.vector_norm(even, dim=-1)
    mean = torch.linalg.vector_norm(matrices, dim=(-2, -1)) / 5**0.5
    torch.testing.assert_close(norms, mean[:, None].expand(2, 5))
    torch.testing.assert_close(torch.cosine_similarity(even, matrices, dim=-1), torch.ones(2, 5))
