"""One dial, one budget: the plan equals nanochat's table, and what does not divide is refused with the arithmetic."""

import subprocess
import sys

import pytest

from nanochat_pl.config.sizing import micro_batches, plan_horizon, shape_for_depth
from nanochat_pl.model.config import GPTConfig

BATCH = 524_288


def config_of(depth: int) -> GPTConfig:
    return GPTConfig(sequence_len=2048, vocab_size=65536, **shape_for_depth(depth))


@pytest.mark.parametrize("depth", [2, 4, 12, 20, 26, 32, 34])
def test_even_depths_have_the_classic_shape(depth):
    heads = depth // 2
    assert shape_for_depth(depth) == {"n_layer": depth, "n_head": heads, "n_kv_head": heads, "n_embd": 64 * depth}


@pytest.mark.parametrize("depth", range(1, 41))
def test_every_depth_makes_a_model(depth):
    config = config_of(depth)
    assert config.head_dim == 128
    assert 64 * depth <= config.n_embd < 64 * depth + 128


def test_other_dials_are_followed():
    assert shape_for_depth(5, aspect_ratio=32, head_dim=64)["n_embd"] == 192
    with pytest.raises(ValueError, match="depth=0"):
        shape_for_depth(0)


@pytest.mark.parametrize(
    ("depth", "steps", "tokens"),
    [
        (4, 1_400, 734_003_200),
        (12, 7_080, 3_711_959_040),
        (20, 21_400, 11_219_763_200),
        (26, 41_275, 21_639_987_200),
        (32, 71_680, 37_580_963_840),
    ],
)
def test_twenty_tokens_a_parameter_equals_nanochats_table(depth, steps, tokens):
    plan = plan_horizon(config_of(depth), BATCH, tokens_per_param=20)
    assert (plan.num_steps, plan.total_tokens) == (steps, tokens)
    assert plan.tokens_per_param == pytest.approx(20, rel=1e-3)


def test_ratio_rounds_down_and_flops_round_to_the_nearest():
    config = config_of(4)
    batch_flops = 144_703_488 * BATCH
    assert plan_horizon(config, BATCH, target_flops=10.4 * batch_flops).num_steps == 10
    assert plan_horizon(config, BATCH, target_flops=10.6 * batch_flops).num_steps == 11
    assert plan_horizon(config, BATCH, tokens_per_param=10.99 * BATCH / 36_700_160).num_steps == 10


def test_a_plan_of_steps_is_those_steps():
    plan = plan_horizon(config_of(4), 8192, num_steps=300)
    assert plan.num_steps == 300
    assert plan.total_tokens == 300 * 8192
    assert plan.total_flops == 300 * 8192 * 144_703_488


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({}, "none of them is set"),
        ({"num_steps": 5, "tokens_per_param": 20}, r"stage.num_steps=5, stage.tokens_per_param=20; set one"),
        ({"num_steps": 0}, r"stage.num_steps=0 is less than one step"),
        ({"target_flops": 1e9}, r"stage.target_flops=1000000000.0 is less than one step"),
    ],
)
def test_a_horizon_needs_exactly_one_budget_of_at_least_one_step(budgets, message):
    with pytest.raises(ValueError, match=message):
        plan_horizon(config_of(4), BATCH, **budgets)


def test_micro_batches_divide_the_batch():
    assert micro_batches(BATCH, 32, 2048, 8) == 1
    assert micro_batches(BATCH, 32, 2048, 1) == 8
    assert micro_batches(8192, 4, 512, 1) == 4


@pytest.mark.parametrize("total", [0, 1, 500_000, 600_000, 1_000_000])
def test_a_batch_that_does_not_divide_is_refused_with_a_batch_that_does(total):
    with pytest.raises(ValueError, match=r"device_batch 32 x sequence_len 2048 x world 8 = 524288") as error:
        micro_batches(total, 32, 2048, 8)
    remedy = int(str(error.value).split("set stage.total_batch_tokens=")[1].split()[0])
    assert micro_batches(remedy, 32, 2048, 8) >= 1


def test_empty_micro_batches_are_refused():
    with pytest.raises(ValueError, match=r"stage.device_batch=0"):
        micro_batches(8192, 0, 512, 1)


def test_planning_needs_no_torch():
    program = "import sys, nanochat_pl.config.sizing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
