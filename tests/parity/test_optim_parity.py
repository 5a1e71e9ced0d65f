"""Our optimizers against recorded steps of nanochat classic: one matrix, whole training steps, schedules."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat_pl.model.gpt import GPT
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.groups import build_optimizers, check_roles, clip_gradients, set_schedule
from nanochat_pl.optim.muon import Muon
from nanochat_pl.optim.orthogonalize import newton_schulz
from nanochat_pl.optim.schedules import lr_multiplier, muon_momentum
from tests.parity.reference import load, main_weights, read

SHAPES = ("s0", "s1", "s2", "s3")  # tall, wide, square, wide


@pytest.fixture(scope="module")
def recorded(reference_root) -> dict[str, torch.Tensor]:
    with np.load(reference_root / "muon.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_equals_the_recorded_one(recorded, shape):
    """Both round each iteration to bfloat16, in another order; compiling the original moves it as far."""
    difference = newton_schulz(recorded[f"{shape}_grad_0"], 5, torch.bfloat16) - recorded[f"{shape}_ns_out_bf16"]
    assert difference.abs().max() < 4e-2
    assert difference.abs().mean() < 6e-3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ns_dtype", ["bfloat16", "float32"])
def test_three_muon_steps_equal_the_recorded_ones(recorded, shape, ns_dtype):
    param = torch.nn.Parameter(recorded[f"{shape}_param_0"].clone())
    muon = Muon([param], ns_dtype=ns_dtype)
    for step, (lr, momentum) in enumerate(recorded[f"{shape}_lr_momentum"].tolist()):
        muon.param_groups[0].update(lr=lr, momentum=momentum)
        param.grad = recorded[f"{shape}_grad_{step}"].clone()
        muon.step()
        buffer = muon.state[param]["momentum_buffer"]
        torch.testing.assert_close(buffer, recorded[f"{shape}_momentum_{step + 1}"], atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(param.detach(), recorded[f"{shape}_param_{step + 1}"], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["warmup", "floor", "long"])
def test_schedules_equal_the_recorded_ones(reference_root, name):
    recorded = read(reference_root / "base_train_run.json")["schedules"][name]
    cfg = OptimConfig(
        warmup_frac=recorded["warmup_ratio"],
        warmdown_frac=recorded["warmdown_ratio"],
        final_lr_frac=recorded["final_lr_frac"],
    )
    num_steps = recorded["num_iterations"]
    multipliers = [lr_multiplier(step, num_steps, cfg) for step in range(len(recorded["lr_multiplier"]))]
    momenta = [muon_momentum(step, cfg) for step in range(len(recorded["muon_momentum"]))]
    assert multipliers == pytest.approx(recorded["lr_multiplier"], abs=1e-12)
    assert momenta == pytest.approx(recorded["muon_momentum"], abs=1e-12)


def test_the_default_schedule_equals_that_of_the_recorded_run(reference_root):
    run = read(reference_root / "base_train_run.json")
    steps = range(len(run["lr_multiplier"]))
    assert [lr_multiplier(s, 20, OptimConfig()) for s in steps] == pytest.approx(run["lr_multiplier"], abs=1e-12)
    assert [muon_momentum(s, OptimConfig()) for s in steps] == pytest.approx(run["muon_momentum"], abs=1e-12)


def load_d4(reference_root: Path, step: int) -> tuple[GPT, tuple[Muon, torch.optim.AdamW]]:
    model = load(main_weights(reference_root, step))
    check_roles(model.param_roles(), model.named_parameters())
    return model, build_optimizers(model.param_roles(), model.config.n_embd, OptimConfig(ns_dtype="bfloat16"))


def adopt_nanochat_state(optimizers: tuple[Muon, torch.optim.AdamW], saved: list[dict]) -> None:
    """Lay nanochat's two states, [AdamW, Muon], onto ours: it cuts Muon's matrices into groups by their size."""
    muon, adamw = optimizers
    adamw_state, muon_state = saved
    ours = muon.param_groups[0]["params"]
    by_size: dict[int, list[int]] = {}
    for number, p in enumerate(ours):
        by_size.setdefault(p.numel(), []).append(number)
    order = [number for numbers in by_size.values() for number in numbers]
    state = {number: muon_state["state"][i] for i, number in enumerate(order)}
    muon.load_state_dict({"state": state, "param_groups": muon.state_dict()["param_groups"]})
    adamw.load_state_dict({"state": adamw_state["state"], "param_groups": adamw.state_dict()["param_groups"]})


def replay(reference_root: Path, first: int, last: int) -> tuple[GPT, list[tuple[float, float]], list[dict]]:
    """Train steps first ... last - 1 of the recording; return the model, our and the recorded (loss, norm)."""
    recorded = read(reference_root / "train_steps.json")
    with np.load(reference_root / "train_batches.npz") as arrays:
        batches = torch.from_numpy(arrays["batches"]).long()
    model, optimizers = load_d4(reference_root, first)
    if first:
        file = main_weights(reference_root).with_name(f"optim_{first:06d}_rank0.pt")
        adopt_nanochat_state(optimizers, torch.load(file, weights_only=True))
    cfg = OptimConfig(warmdown_frac=0.0, grad_clip=recorded["grad_clip"])
    figures = []
    for step in range(first, last):
        loss = model(batches[step, :, :-1], batches[step, :, 1:])
        loss.backward()
        norm = clip_gradients(model.parameters(), cfg.grad_clip)
        assert set_schedule(optimizers, step, len(batches), cfg) == recorded["steps"][step]["lr_multiplier"]
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        figures.append((loss.item(), norm.item()))
    return model, figures, recorded["steps"][first:last]


def assert_tensors_match(model: GPT, recorded: dict[str, dict]) -> None:
    for name, p in model.state_dict().items():
        expected = recorded[name]
        assert p.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=2e-3), name
        assert p.norm().item() == pytest.approx(expected["l2"], rel=2e-3), name


def assert_figures_match(ours: list[tuple[float, float]], recorded: list[dict]) -> None:
    """Compare loss and norm: closely for three steps; later, noise of 1e-6 moves the original itself as far."""
    for number, ((loss, norm), expected) in enumerate(zip(ours, recorded, strict=True)):
        assert loss == pytest.approx(expected["loss"], abs=2e-3 if number < 3 else 2e-2)
        assert norm == pytest.approx(expected["grad_norm"], abs=5e-3 if number < 3 else 5e-2)


def test_all_training_steps_equal_the_recorded_ones(reference_root):
    recorded_steps = read(reference_root / "train_steps.json")
    last = len(recorded_steps["steps"])
    model, ours, recorded = replay(reference_root, 0, last)
    assert_figures_match(ours, recorded)
    assert_tensors_match(model, recorded_steps[f"tensors_after_{last}"])


def test_a_saved_optimizer_state_continues_as_recorded(reference_root):
    recorded_steps = read(reference_root / "train_steps.json")
    last = len(recorded_steps["steps"])
    [saved] = main_weights(reference_root).parent.glob("optim_*_rank0.pt")
    model, ours, recorded = replay(reference_root, int(saved.name.split("_")[1]), last)
    assert_figures_match(ours, recorded)
    assert_tensors_match(model, recorded_steps[f"tensors_after_{last}"])
