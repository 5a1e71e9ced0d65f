"""The model computes what nanochat's did: recorded logits, losses, gradients, rotary tables, initial weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat_pl.model.accounting import flops_per_token
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from tests.parity.reference import gqa_weights, initial_weights, main_weights, meta_of
from tests.parity.reference import load as load_weights

CHECKPOINTS = {"main": main_weights, "gqa": gqa_weights}


@pytest.fixture(scope="module")
def recorded(reference_root: Path) -> dict[str, np.ndarray]:
    with np.load(reference_root / "model.npz") as file:
        return dict(file)


def load(reference_root: Path, name: str) -> GPT:
    return load_weights(CHECKPOINTS[name](reference_root))


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
    blocks = dict(model.named_parameters())
    gradients = [key for key in recorded if key.startswith("grad_")]
    assert len(gradients) >= 2
    for key in gradients:  # grad_mlp_c_proj_3 is that of block 3, mlp.c_proj
        part, _, block = key.removeprefix("grad_").rpartition("_")
        name = part.replace("mlp_", "mlp.") if part.startswith("mlp_") else f"attn.{part.removeprefix('attn_')}"
        close(blocks[f"transformer.h.{block}.{name}.weight"].grad, recorded[key], atol=1e-6)
    norms = json.loads((reference_root / "grad_norms.json").read_text())
    ours = {name: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    assert ours == pytest.approx(norms, rel=1e-5)


def test_state_dict_has_nanochats_keys_and_order(reference_root):
    weights = main_weights(reference_root)
    assert list(load(reference_root, "main").state_dict()) == list(torch.load(weights, weights_only=True))


def test_rotary_tables_equal_the_recorded(reference_root):
    model = load(reference_root, "main")
    rotary = json.loads((reference_root / "rotary.json").read_text())
    assert list(model.cos.shape) == rotary["shape"]
    assert str(model.cos.dtype) == rotary["dtype"]
    rows = [key for key in rotary if "_row_" in key]
    assert len(rows) >= 2
    for key in rows:
        table = model.cos if key.startswith("cos") else model.sin
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
    weights = initial_weights(reference_root)
    model = GPT(GPTConfig(**meta_of(weights)["model_config"]))
    torch.manual_seed(42)
    model.init_weights()
    theirs = torch.load(weights, weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
