"""The model computes what nanochat's did: recorded logits, losses, gradients, rotary tables, initial weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat_pl.model.accounting import flops_per_token
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT

CHECKPOINTS = {
    "main": ("base_checkpoints/d4/model_000000.pt", "base_checkpoints/d4/meta_000000.json"),
    "gqa": ("chatsft_checkpoints/d2/model_000007.pt", "chatsft_checkpoints/d2/meta_000007.json"),
}


@pytest.fixture(scope="module")
def recorded(reference_root: Path) -> dict[str, np.ndarray]:
    with np.load(reference_root / "model.npz") as file:
        return dict(file)


def load(reference_root: Path, name: str) -> GPT:
    weights, meta = (reference_root / "base" / path for path in CHECKPOINTS[name])
    model = GPT(GPTConfig(**json.loads(meta.read_text())["model_config"]))
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in state.items()})
    return model


def ids(recorded: dict[str, np.ndarray], key: str) -> torch.Tensor:
    return torch.from_numpy(recorded[key]).long()


def close(ours: torch.Tensor, theirs: object, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours.detach(), torch.as_tensor(theirs).view_as(ours), atol=atol, rtol=1e-5)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_equal_the_recorded(reference_root, recorded, name):
    model = load(reference_root, name)
    close(model(ids(recorded, f"{name}_ids")), recorded[f"{name}_logits"])
    close(model(ids(recorded, f"{name}_long_ids"))[:, -1], recorded[f"{name}_long_last_logits"])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_losses_equal_the_recorded(reference_root, recorded, name, reduction):
    model = load(reference_root, name)
    loss = model(ids(recorded, f"{name}_ids"), ids(recorded, f"{name}_targets"), reduction=reduction)
    close(loss, recorded[f"{name}_loss_{reduction}"])


def test_gradients_equal_the_recorded(reference_root, recorded):
    model = load(reference_root, "main")
    model(ids(recorded, "main_ids"), ids(recorded, "main_targets")).backward()
    close(model.transformer.h[0].attn.c_q.weight.grad, recorded["grad_c_q_0"], atol=1e-6)
    close(model.transformer.h[3].mlp.c_proj.weight.grad, recorded["grad_mlp_c_proj_3"], atol=1e-6)
    norms = json.loads((reference_root / "grad_norms.json").read_text())
    ours = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    assert ours == pytest.approx(norms, rel=1e-5)


def test_state_dict_has_nanochats_keys_and_order(reference_root):
    weights = reference_root / "base" / CHECKPOINTS["main"][0]
    assert list(load(reference_root, "main").state_dict()) == list(torch.load(weights, weights_only=True))


def test_rotary_tables_equal_the_recorded(reference_root):
    model = load(reference_root, "main")
    rotary = json.loads((reference_root / "rotary.json").read_text())
    assert list(model.cos.shape) == rotary["shape"]
    assert str(model.cos.dtype) == rotary["dtype"]
    for key, table in (("cos_row_5", model.cos), ("sin_row_5", model.sin), ("cos_row_77", model.cos)):
        assert table[0, int(key.split("_")[-1]), 0].tolist() == rotary[key]


def test_flops_per_token_equal_the_recorded(reference_root):
    rotary = json.loads((reference_root / "rotary.json").read_text())
    assert flops_per_token(load(reference_root, "main").config) == rotary["flops_per_token"]
    assert flops_per_token(load(reference_root, "gqa").config) == rotary["gqa_flops_per_token"]


def test_seed_42_draws_the_recorded_initial_weights(reference_root):
    curve = json.loads((reference_root / "curve_d4.json").read_text())
    torch.manual_seed(curve["seed"])
    model = GPT(GPTConfig(**curve["model_config"]))
    model.init_weights()
    sums = {name: tensor.double().abs().sum().item() for name, tensor in model.state_dict().items()}
    assert sums == pytest.approx(curve["initial_abs_sums"], rel=1e-9)


def test_seed_42_draws_the_initial_checkpoint_of_the_recorded_run(reference_root):
    folder = reference_root / "base/base_checkpoints/init_d1"
    model = GPT(GPTConfig(**json.loads((folder / "meta_000000.json").read_text())["model_config"]))
    torch.manual_seed(42)
    model.init_weights()
    theirs = torch.load(folder / "model_000000.pt", weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
