"""The recipe of 2026 against recorded outputs of nanochat (2026-07): logits, gradients, six steps, schedules.

The shape has fewer key/value heads than heads, and both kinds of windows; no tensor is where it does nothing.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanochat_pl.checkpoint import nanochat
from nanochat_pl.checkpoint.formats import model_config
from nanochat_pl.model.accounting import flops_per_token, num_parameters, parameters_by_role
from nanochat_pl.model.config import MODERN, GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.groups import build_optimizers, set_schedule

RATE = 0.25
"""The recording multiplied the default rates by this, but not that of smear and backout."""


@pytest.fixture(scope="module")
def folder(reference_root: Path) -> Path:
    if not (reference_root / "modern").is_dir():
        pytest.skip(f"there is no {reference_root / 'modern'}")
    return reference_root / "modern"


@pytest.fixture(scope="module")
def trajectory(folder: Path) -> dict:
    return json.loads((folder / "trajectory_float32.json").read_text())


@pytest.fixture(scope="module")
def io(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "io.safetensors")


def start(folder: Path, trajectory: dict, dtype: torch.dtype = torch.float32) -> GPT:
    shape = trajectory["config"]
    names = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    model = GPT(GPTConfig(**{name: shape[name] for name in names}, **MODERN, smear_across_documents=True), dtype)
    model.load_state_dict(load_file(folder / "start.safetensors"))
    return model


def optim_config(trajectory: dict) -> OptimConfig:
    groups = {"unembedding": 0, "embedding": 1, "value_embedding": 2, "residual_lambda": 3}
    groups |= {"input_lambda": 4, "smear": 5}
    recorded = {role: trajectory["groups"][place] for role, place in groups.items()}
    return OptimConfig(
        matrix_lr=0.02 * RATE,
        embedding_lr=0.3 * RATE,
        unembedding_lr=0.008 * RATE,
        value_embedding_lr=0.15 * RATE,
        residual_lambda_lr=0.005 * RATE,
        input_lambda_lr=0.5 * RATE,
        role_betas={role: group["betas"] for role, group in recorded.items()},
        role_weight_decay={role: group["wd"] for role, group in recorded.items()},
        grad_clip=None,
        warmup_steps=2,
        warmdown_frac=0.65,
        final_lr_frac=0.05,
        momentum=0.97,
        momentum_ramp_steps=400,
        momentum_final=0.9,
        momentum_ramp_wins=True,
        orthogonalizer="polar_express",
        row_equilibration=True,
        frobenius_snap=True,
        second_moment_beta=0.9,
        matrix_weight_decay=trajectory["wd"][0],
        matrix_weight_decay_schedule="cosine",
        cautious_weight_decay=True,
        ns_dtype="float32",
    )


def test_the_names_of_the_weights_and_their_order_are_nanochats(folder: Path, trajectory: dict):
    model = start(folder, trajectory)
    names = list(model.state_dict())
    assert names[:4] == ["resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda"]
    assert names[-4:] == ["lm_head.weight", "smear_gate.weight", "value_embeds.1.weight", "value_embeds.3.weight"]


def test_logits_and_gradients_equal_the_recorded_ones(folder: Path, trajectory: dict, io: dict[str, torch.Tensor]):
    model = start(folder, trajectory)
    torch.testing.assert_close(model(io["ids"][0]), io["logits0"], atol=1e-5, rtol=0)
    model(io["ids"][0], io["targets"][0]).backward()
    recorded = load_file(folder / "grads_step1.safetensors")
    for name, parameter in model.named_parameters():
        apart = torch.linalg.vector_norm(parameter.grad - recorded[name]) / torch.linalg.vector_norm(recorded[name])
        assert apart < 1e-4, name


def test_counts_and_flops_equal_the_recorded_ones(folder: Path, trajectory: dict):
    config = start(folder, trajectory).config
    counts, theirs = parameters_by_role(config), trajectory["scaling"]
    assert flops_per_token(config) == trajectory["flops_per_token"]
    assert num_parameters(config) == theirs["total"]
    assert (counts["matrix"], counts["value_embedding"]) == (theirs["transformer_matrices"], theirs["value_embeds"])
    assert counts["residual_lambda"] + counts["input_lambda"] + counts["smear"] == theirs["scalars"]


def test_six_optimizer_steps_equal_the_recorded_ones(folder: Path, trajectory: dict, io: dict[str, torch.Tensor]):
    model, cfg = start(folder, trajectory), optim_config(trajectory)
    optimizers = build_optimizers(model.param_roles(), model.config.n_embd, cfg)
    muon = optimizers[0].param_groups[0]
    rates = {group["name"]: group["initial_lr"] for optimizer in optimizers for group in optimizer.param_groups}
    assert list(rates.values())[1:] == pytest.approx([group["lr"] for group in trajectory["groups"][:6]])
    for step in range(6):
        multiplier = set_schedule(optimizers, step, 6, cfg)
        assert multiplier == pytest.approx(trajectory["lr_multipliers"][step], abs=1e-12)
        assert muon["momentum"] == pytest.approx(trajectory["momenta"][step], abs=1e-12)
        assert muon["weight_decay"] == pytest.approx(trajectory["wd"][step], abs=1e-12)
        loss = model(io["ids"][step], io["targets"][step])
        assert loss.item() == pytest.approx(trajectory["losses"][step], abs=2e-5)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step in (0, 5):
            recorded = load_file(folder / f"after_step{step + 1}.safetensors")
            for name, parameter in model.named_parameters():
                difference = parameter.detach() - recorded[name]
                assert difference.abs().max() < 2e-4, name
                assert torch.linalg.vector_norm(difference) < 1e-4 * torch.linalg.vector_norm(recorded[name]), name


def test_losses_in_bfloat16_stay_near_the_recorded_ones(folder: Path, trajectory: dict, io: dict[str, torch.Tensor]):
    recorded = json.loads((folder / "trajectory_bfloat16.json").read_text())
    model, cfg = start(folder, trajectory, torch.bfloat16), optim_config(trajectory)
    optimizers = build_optimizers(model.param_roles(), model.config.n_embd, cfg)
    for step in range(6):
        set_schedule(optimizers, step, 6, cfg)
        loss = model(io["ids"][step], io["targets"][step])
        assert loss.item() == pytest.approx(recorded["losses"][step], abs=0.01)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_a_folder_of_nanochats_opens_and_computes_the_recorded_logits(
    folder: Path, trajectory: dict, io: dict[str, torch.Tensor], tmp_path: Path
):
    shape = {name: value for name, value in trajectory["config"].items() if name != "padded_vocab"}
    file = tmp_path / "model_000000.pt"
    torch.save(load_file(folder / "start.safetensors"), file)
    config, state, notes = nanochat.read_weights(file, model_config({"model_config": shape}, tmp_path))
    model = GPT(config)
    model.load_state_dict(state)
    torch.testing.assert_close(model(io["ids"][0]), io["logits0"], atol=1e-5, rtol=0)
    assert any("assumed" in note for note in notes)
