"""Schedules are pure functions of the step, and a config out of range is refused with its remedy."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.schedules import lr_multiplier, muon_momentum, weight_decay_multiplier


def curve(num_steps: int, **settings: float) -> list[float]:
    return [lr_multiplier(step, num_steps, OptimConfig(**settings)) for step in range(num_steps + 1)]


def test_warmup_rises_to_one_plateau_stays_and_warmdown_falls_to_the_floor():
    values = curve(20, warmup_frac=0.2, warmdown_frac=0.4, final_lr_frac=0.1)
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]
    assert values[4:13] == [1.0] * 9
    assert values[13:] == pytest.approx([1 - 0.9 * k / 8 for k in range(1, 9)])
    assert values[20] == pytest.approx(0.1)


def test_fine_tuning_falls_in_a_straight_line_from_the_first_step():
    assert curve(8, warmdown_frac=1.0) == [1 - step / 8 for step in range(9)]


@pytest.mark.parametrize("warmdown_frac", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("final_lr_frac", [0.0, 0.3])
def test_beyond_the_horizon_the_multiplier_stays_where_it_ended(warmdown_frac, final_lr_frac):
    cfg = OptimConfig(warmdown_frac=warmdown_frac, final_lr_frac=final_lr_frac)
    assert {lr_multiplier(step, 10, cfg) for step in (10, 11, 1000)} == {final_lr_frac if warmdown_frac else 1.0}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 7])
def test_the_multiplier_of_a_trained_step_is_never_zero(num_steps):
    for warmup_frac, warmdown_frac in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (0.1, 0.2)):
        values = curve(num_steps, warmup_frac=warmup_frac, warmdown_frac=warmdown_frac)
        assert all(0 < value <= 1 for value in values[:-1])


@pytest.mark.parametrize(("step", "num_steps"), [(-1, 10), (0, 0)])
def test_a_step_outside_any_run_is_refused(step, num_steps):
    with pytest.raises(ValueError, match="step >= 0 and num_steps >= 1"):
        lr_multiplier(step, num_steps, OptimConfig())


def test_momentum_ramps_up_and_stays():
    cfg = OptimConfig(momentum=0.9, momentum_start=0.5, momentum_ramp_steps=4)
    assert [muon_momentum(step, cfg) for step in range(5)] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert muon_momentum(10**6, cfg) == 0.9


def test_momentum_without_a_ramp_is_constant():
    assert {muon_momentum(step, OptimConfig(momentum_ramp_steps=None)) for step in (0, 1, 300)} == {0.95}


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"matrix_lr": -0.1}, r"optim\.matrix_lr=-0\.1 should be a number >= 0; the default is optim\.matrix_lr=0\.02"),
        ({"embedding_lr": float("nan")}, "optim.embedding_lr=nan should be"),
        ({"unembedding_lr": float("inf")}, "optim.unembedding_lr=inf should be"),
        ({"weight_decay": -1}, "optim.weight_decay=-1 should be"),
        ({"adam_beta2": 1.0}, r"optim\.adam_beta2=1\.0 should be a number in \[0, 1\)"),
        ({"adam_eps": 0.0}, "optim.adam_eps=0.0 should be a number > 0"),
        ({"reference_width": 0}, "optim.reference_width=0 should be"),
        ({"momentum": 1.5}, "optim.momentum=1.5 should be"),
        ({"momentum_ramp_steps": 0}, "optim.momentum_ramp_steps=0 should be a whole number >= 1, or null"),
        ({"ns_steps": 0}, "optim.ns_steps=0 should be a whole number >= 1"),
        ({"ns_dtype": "float16"}, "optim.ns_dtype=float16 should be one of auto, float32, bfloat16"),
        ({"grad_clip": 0.0}, "optim.grad_clip=0.0 should be a number > 0, or null"),
        ({"init_lr_frac": 0.0}, "optim.init_lr_frac=0.0 should be"),
        ({"final_lr_frac": 1.1}, "optim.final_lr_frac=1.1 should be a fraction"),
        (
            {"warmup_frac": 0.5, "warmdown_frac": 0.6},
            r"= 1\.1 is more than the whole run; set optim\.warmdown_frac=0\.5",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_remedy(settings, remedy):
    with pytest.raises(ValueError, match=remedy):
        OptimConfig(**settings)


def test_warmup_and_warmdown_may_fill_the_run_despite_rounding():
    for tenth in range(11):
        OptimConfig(warmup_frac=tenth / 10, warmdown_frac=1 - tenth / 10)


def test_config_and_schedules_import_without_torch():
    code = "import sys, nanochat_pl.optim.config, nanochat_pl.optim.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


MODERN = OptimConfig(
    warmup_steps=40,
    warmdown_frac=0.65,
    final_lr_frac=0.05,
    momentum=0.97,
    momentum_ramp_steps=400,
    momentum_final=0.9,
    momentum_ramp_wins=True,
)


@pytest.mark.parametrize(
    ("num_steps", "step", "rate", "momentum"),
    [
        *((200, 0, 0.025, 0.85), (200, 39, 1, 0.8617), (200, 70, 1, 0.871), (200, 71, 0.9927, 0.8713)),
        *((200, 199, 0.0573, 0.9097), (528, 185, 1, 0.9055), (528, 399, 0.4073, 0.9697), (528, 400, 0.4045, 0.9261)),
        *((528, 527, 0.0528, 0.9002), (2520, 400, 1, 0.97), (2520, 882, 1, 0.97), (2520, 883, 0.9994, 0.97)),
        (2520, 2519, 0.0506, 0.90),
    ],
)
def test_the_schedules_of_2026_are_nanochats(num_steps: int, step: int, rate: float, momentum: float):
    assert lr_multiplier(step, num_steps, MODERN) == pytest.approx(rate, abs=6e-5)
    assert muon_momentum(step, MODERN, num_steps) == pytest.approx(momentum, abs=1e-4)


@pytest.mark.parametrize("num_steps", [10, 200, 528, 2520])
def test_the_momentum_does_not_jump_where_the_lower_of_rise_and_fall_counts(num_steps: int):
    cfg = replace(MODERN, momentum_ramp_wins=False, momentum_ramp_max_frac=0.15)
    momenta = [muon_momentum(step, cfg, num_steps) for step in range(num_steps)]
    steepest = max(0.12 / max(1, round(0.15 * num_steps)), 0.07 / round(0.65 * num_steps))
    assert max(abs(one - other) for one, other in pairwise(momenta)) <= steepest + 1e-9
    assert momenta[0] == pytest.approx(0.85) and momenta[-1] < 0.92


def test_short_runs_warm_up_for_a_share_of_their_steps_only():
    cfg = OptimConfig(warmup_steps=40, warmup_max_frac=0.02)
    assert [lr_multiplier(0, num_steps, cfg) for num_steps in (10, 200, 10_000)] == [1, 0.25, 0.025]


def test_weight_decay_stays_or_falls_along_half_a_cosine():
    assert weight_decay_multiplier(5, 10, OptimConfig()) == 1
    cosine = OptimConfig(matrix_weight_decay_schedule="cosine")
    assert [weight_decay_multiplier(step, 8, cosine) for step in (0, 4, 8, 9)] == pytest.approx([1, 0.5, 0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orthogonalizer": "svd"}, "should be one of newton_schulz, polar_express"),
        ({"orthogonalizer": "polar_express", "ns_steps": 6}, "at most 5 with optim.orthogonalizer=polar_express"),
        ({"warmup_steps": 3, "warmup_frac": 0.1}, "set one of them"),
        ({"warmup_steps": 0}, "or null"),
        ({"second_moment_beta": 1.0}, r"a number in \[0, 1\), or null"),
        ({"role_betas": {"smears": [0.8, 0.9]}}, "optim.role_betas names smears; the roles are matrix, "),
        ({"role_betas": {"smear": [0.8]}}, r"should be two numbers in \[0, 1\)"),
        ({"role_weight_decay": {"smear": -1.0}}, "should be a number >= 0"),
        ({"role_weight_decay": {"matrix": 0.1}}, "is not read by Muon, .*optim.matrix_weight_decay"),
        ({"role_betas": {"matrix": [0.8, 0.9]}}, "is not read by Muon, .*optim.matrix_optimizer=adamw"),
        ({"momentum_final": 0.96}, "momentum_final=0.96 should be at most optim.momentum, or null"),
        ({"wd_horizon": "long"}, "should be one of none, ratio, actual"),
        ({"matrix_weight_decay": -0.1}, "should be a number >= 0"),
    ],
)
def test_settings_of_2026_out_of_range_are_refused_with_what_is_expected(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**changes)
