"""FP8: the products of a training step within the error of 8 bits, and nothing else than before anywhere else."""

import math

import pytest
import torch
from torch import Tensor

from nanochat_pl.config.schema import TrainConfig, TrainerConfig
from nanochat_pl.model.config import MODERN, GPTConfig
from nanochat_pl.model.fp8 import BACKWARD, FORWARD, Float8Linear, quantize, use_fp8
from nanochat_pl.model.gpt import GPT, Linear
from nanochat_pl.model.inference import InferenceCopy
from nanochat_pl.runtime import check_fp8
from nanochat_pl.training.run import fit

ROUNDING = {FORWARD: 2**-4, BACKWARD: 2**-3}
"""The largest relative error of rounding to 3 and to 2 bits behind the first, where numbers are not subnormal."""


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [FORWARD, BACKWARD])
@pytest.mark.parametrize("size", [1e-9, 1.0, 3e4, 1e30])
def test_rounding_keeps_the_largest_number_and_errs_by_the_bits_of_the_format(dtype, size):
    x = size * torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    x8, scale = quantize(x, dtype)
    back = x8.float() * scale
    assert x8.dtype == dtype and scale.shape == () and scale.dtype == torch.float32
    assert float(x8.float().abs().max()) == torch.finfo(dtype).max
    normal = x.abs() > x.abs().max() / 1000
    assert float(((back - x) / x)[normal].abs().max()) <= ROUNDING[dtype] * 1.001


@pytest.mark.parametrize("dtype", [FORWARD, BACKWARD])
def test_zero_stays_zero_large_numbers_saturate_and_what_is_not_finite_is_not_hidden(dtype):
    for x in (torch.zeros(4, 16), torch.full((4, 16), 1e-30), torch.full((4, 16), torch.finfo(torch.float32).max)):
        x8, scale = quantize(x, dtype)
        assert torch.isfinite(x8.float()).all() and torch.isfinite(scale)
        assert float((x8.float() * scale - x).abs().max()) <= ROUNDING[dtype] * float(x.max()) + 1e-12
    for wrong in (math.nan, math.inf):
        x8, scale = quantize(torch.tensor([[1.0, wrong]]), dtype)
        assert torch.isnan(x8.float() * scale).any()


def layer(in_features: int = 128, out_features: int = 256) -> Float8Linear:
    made = Float8Linear(in_features, out_features)
    torch.nn.init.normal_(made.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return made


@pytest.mark.parametrize("shape", [(64, 128), (2, 3, 16, 128)])
def test_product_and_gradients_are_those_of_the_rounded_factors_and_near_the_exact_ones(shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.bfloat16).requires_grad_()
    fp8 = layer()
    y = fp8(x)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.bfloat16)
    y.backward(grad)
    assert y.dtype == x.dtype and fp8.weight.grad is not None and fp8.weight.grad.dtype == torch.float32
    assert x.grad is not None and x.grad.shape == x.shape

    def emulated(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        tensor8, scale = quantize(tensor.detach().flatten(0, -2), dtype)
        return tensor8.float() * scale

    exact = x.detach().flatten(0, -2).float(), fp8.weight.detach(), grad.flatten(0, -2).float()
    rounded = emulated(x, FORWARD), emulated(fp8.weight, FORWARD), emulated(grad, BACKWARD)
    found = y.flatten(0, -2), x.grad.flatten(0, -2), fp8.weight.grad
    for (a, w, g), error in ((rounded, 0.004), (exact, 0.08)):  # a product in bfloat16; 3 and 2 bits in each factor
        for got, expected in zip(found, (a @ w.t(), g @ w, g.t() @ a), strict=True):
            assert relative(got, expected) < error
    assert relative(found[0], exact[0] @ exact[1].t()) > 0.02, "it is FP8"


def test_nothing_to_learn_from_gives_zero_gradients_and_no_nan():
    x = torch.zeros(32, 128, dtype=torch.bfloat16, requires_grad=True)
    fp8 = layer()
    fp8(x).backward(torch.zeros(32, 256, dtype=torch.bfloat16))
    assert fp8.weight.grad is not None and not fp8.weight.grad.any()
    assert x.grad is not None and not x.grad.any()


def test_outside_of_training_and_where_tiles_do_not_fit_a_layer_is_an_ordinary_one():
    fp8, plain = layer(), Linear(128, 256)
    plain.load_state_dict(fp8.state_dict())
    x = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(fp8(x), plain(x))
    assert torch.equal(fp8(x[:30]), plain(x[:30])), "30 tokens"
    with torch.no_grad():
        assert torch.equal(fp8(x), plain(x))
    assert torch.equal(fp8.eval()(x), plain(x))


def models(compute_dtype: torch.dtype = torch.bfloat16) -> tuple[GPT, GPT]:
    """A modern model with FP8 and one without, of equal weights that are nowhere trivial."""
    config = GPTConfig(n_layer=2, n_head=2, n_kv_head=1, n_embd=256, vocab_size=120, sequence_len=64, **MODERN)
    fp8, plain = GPT(config, compute_dtype), GPT(config, compute_dtype)
    generator = torch.Generator().manual_seed(0)
    fp8.init_weights(generator)
    for block in fp8.blocks:
        for matrix in (block.attn.c_proj, block.mlp.c_proj):
            torch.nn.init.normal_(matrix.weight, std=0.02, generator=generator)
    plain.load_state_dict(fp8.state_dict())
    use_fp8(fp8)
    return fp8, plain


def tokens() -> tuple[Tensor, Tensor]:
    ids = torch.randint(120, (2, 65), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1], ids[:, 1:]


def test_the_large_matrices_of_the_blocks_change_and_the_weights_keep_names_roles_and_bits():
    fp8, plain = models()
    changed = {name for name, module in fp8.named_modules() if isinstance(module, Float8Linear)}
    kinds = {name.partition("h.")[2][2:] for name in changed}
    assert kinds == {"attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    assert [*fp8.state_dict()] == [*plain.state_dict()]
    assert all(torch.equal(one, two) for one, two in zip(fp8.parameters(), plain.parameters(), strict=True))
    roles = [{role: [tuple(p.shape) for p in ps] for role, ps in m.param_roles().items()} for m in (fp8, plain)]
    assert roles[0] == roles[1]
    assert type(fp8.lm_head) is Linear


def test_evaluation_and_decoding_are_those_of_the_model_without(tmp_path):
    fp8, plain = models()
    idx, targets = tokens()
    assert torch.equal(fp8.eval()(idx, targets), plain(idx, targets))
    fp8.train()
    copies = [InferenceCopy(model, torch.float32).follow() for model in (fp8, plain)]
    assert not any(isinstance(module, Float8Linear) for module in copies[0].modules())
    with torch.no_grad():
        assert torch.equal(copies[0](idx), copies[1](idx))


def test_a_model_learns_as_it_does_without():
    idx, targets = tokens()
    losses = []
    for model in models():
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(6):
            loss = model(idx, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] < 3.5 < math.log(120)
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_compiler_sees_one_graph():
    fp8, found = layer(), []
    x = torch.randn(2, 32, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    compiled = torch.compile(fp8.forward, backend="aot_eager", fullgraph=True, dynamic=False)
    for forward in (fp8.forward, compiled):
        fp8.zero_grad()
        y = forward(x)
        y.float().square().sum().backward()
        assert fp8.weight.grad is not None
        found.append((y.detach(), fp8.weight.grad.clone()))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_model_without_a_large_matrix_is_refused():
    with pytest.raises(ValueError, match=r"trainer\.fp8=true .*128 x 128.*model\.n_embd=64 has none; set trainer\.fp8"):
        use_fp8(GPT(GPTConfig(n_layer=1, n_head=2, n_kv_head=2, n_embd=64, vocab_size=120)))


def test_a_device_that_cannot_multiply_so_is_refused_before_anything_is_made(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"a GPU of compute capability 8\.9 .* but the device is cpu; set trainer"):
        check_fp8("cpu", torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match=r"but this is NVIDIA A100 of 8\.0; set trainer\.fp8=false"):
        check_fp8("cuda", torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_fp8("cuda", torch.bfloat16)
    with pytest.raises(ValueError, match=r"but trainer\.compute_dtype is float32"):
        check_fp8("cuda", torch.float32)
    cfg = TrainConfig(trainer=TrainerConfig(accelerator="cpu", fp8=True), run_name="r")  # type: ignore[arg-type]
    monkeypatch.setattr("nanochat_pl.training.run.prepare_data", lambda cfg: pytest.fail("data was prepared first"))
    with pytest.raises(ValueError, match=r"trainer\.fp8=true needs a GPU"):
        fit(cfg, {}, tmp_path, [], None)
    assert not [*tmp_path.iterdir()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_products_are_those_that_a_cpu_emulates():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no FP8 on this GPU")
    x = torch.randn(256, 128, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    grad = torch.randn(256, 256, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    found = []
    for device in ("cpu", "cuda"):
        fp8 = layer().to(device)
        read = x.to(device).requires_grad_()
        y = fp8(read)
        y.backward(grad.to(device))
        found.append([tensor.detach().cpu().float() for tensor in (y, read.grad, fp8.weight.grad)])
    for one, two in zip(*found, strict=True):
        assert relative(two, one) < 0.01
