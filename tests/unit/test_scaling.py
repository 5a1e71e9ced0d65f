"""One dial, one budget: the plan equals nanochat's table, and what does not divide is refused with the arithmetic."""

import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from omegaconf import DictConfig

from nanochat_pl.config.checks import check_stage
from nanochat_pl.config.command_line import CommandLine
from nanochat_pl.config.compose import check, compose_jobs, config_dir, to_plain
from nanochat_pl.config.schema import TrainConfig
from nanochat_pl.config.sizing import (
    batch_for_horizon,
    micro_batches,
    plan_horizon,
    scale_optim,
    scaling_parameters,
    shape_for_depth,
)
from nanochat_pl.model.accounting import flops_per_token, num_parameters
from nanochat_pl.model.config import MODERN, GPTConfig
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.tokenizer import Tokenizer

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
    assert (plan.num_steps, plan.num_steps * plan.total_batch_tokens) == (steps, tokens)
    assert tokens / plan.num_parameters == pytest.approx(20, rel=1e-3)


def test_ratio_rounds_down_and_flops_round_to_the_nearest():
    config = config_of(4)
    batch_flops = 144_703_488 * BATCH
    assert plan_horizon(config, BATCH, target_flops=10.4 * batch_flops).num_steps == 10
    assert plan_horizon(config, BATCH, target_flops=10.6 * batch_flops).num_steps == 11
    assert plan_horizon(config, BATCH, tokens_per_param=10.99 * BATCH / 36_700_160).num_steps == 10


def test_a_plan_of_steps_is_those_steps():
    plan = plan_horizon(config_of(4), 8192, num_steps=300)
    assert plan.num_steps == 300
    assert (plan.total_batch_tokens, plan.flops_per_token) == (8192, 144_703_488)


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


@pytest.mark.parametrize(
    ("vocab_size", "sequence_len", "depth", "total", "scaling", "flops", "batch", "decay"),
    [
        (2_560, 256, 2, 1_376_298, 720_908, 4_915_416, 65_536, 11.93),
        (2_560, 256, 4, 5_767_250, 3_801_136, 24_773_040, 131_072, 3.201),
        (8_192, 512, 8, 50_331_882, 29_360_320, 187_172_112, 262_144, 0.6152),
        (8_192, 512, 12, 135_266_786, 91_226_544, 572_132_016, 524_288, 0.28),
        (32_768, 2_048, 6, 73_531_538, 23_199_852, 167_510_808, 262_144, 0.9396),
        (32_768, 2_048, 24, 1_384_122_122, 729_810_624, 4_775_225_616, 1_048_576, 0.0597),
        (32_768, 2_048, 32, 2_818_575_450, 1_677_724_672, 10_770_991_248, 2_097_152, 0.0368),
    ],
)
def test_sizes_and_scaling_of_the_modern_model_are_nanochats(
    vocab_size: int, sequence_len: int, depth: int, total: int, scaling: int, flops: int, batch: int, decay: float
):
    config = GPTConfig(vocab_size=vocab_size, sequence_len=sequence_len, **shape_for_depth(depth), **MODERN)
    assert (num_parameters(config), scaling_parameters(config)) == (total, scaling)
    assert (flops_per_token(config), batch_for_horizon(config)) == (flops, batch)
    optim = OptimConfig(reference_batch_tokens=2**19, matrix_weight_decay=0.28, wd_horizon="ratio", scale_smear=False)
    scaled, factor = scale_optim(optim, config, batch, 100), (batch / 2**19) ** 0.5
    assert scaled.matrix_weight_decay == pytest.approx(decay, rel=2e-3)
    assert (scaled.matrix_lr, scaled.smear_lr) == (pytest.approx(0.02 * factor), optim.smear_lr)
    # The real horizon is the one of the rule where a run has as many tokens for each parameter.
    actual = scale_optim(replace(optim, wd_horizon="actual"), config, batch, 12 * scaling // batch)
    assert actual.matrix_weight_decay == pytest.approx(decay, rel=1e-2)


def test_the_reference_of_scaling_has_the_aspect_and_the_heads_of_the_model():
    optim = OptimConfig(reference_batch_tokens=2**19, matrix_weight_decay=0.28, wd_horizon="ratio")
    for aspect_ratio, head_dim in ((64, 128), (32, 64), (96, 128), (48, 32)):
        shape = shape_for_depth(12, aspect_ratio, head_dim)
        config = GPTConfig(vocab_size=8_192, sequence_len=512, **shape, **MODERN)
        assert batch_for_horizon(config, aspect_ratio) == 2**19
        assert scale_optim(optim, config, 2**19, 100, aspect_ratio).matrix_weight_decay == pytest.approx(0.28)
    narrow = ["model=modern", "stage.sequence_len=512", "depth=12", "model.aspect_ratio=32", "model.head_dim=64"]
    assert composed(*narrow, "stage.total_batch_tokens=auto")[0].stage.total_batch_tokens == 2**19


def composed(*overrides: str) -> tuple[TrainConfig, DictConfig]:
    [job] = compose_jobs("train", CommandLine(["run_name=r", *overrides], False, config_dir()))
    return job.checked, job.config


@pytest.mark.parametrize(
    ("vocab_size", "sequence_len", "depth", "batch"),
    [(2_560, 256, 2, 65_536), (8_192, 512, 4, 131_072), (8_192, 512, 8, 262_144), (32_768, 2_048, 24, 1_048_576)],
)
def test_a_batch_of_auto_is_nanochats_number_in_the_config_of_the_run(vocab_size, sequence_len, depth, batch, tmp_path):
    shape = [f"tokenizer.vocab_size={vocab_size}", f"stage.sequence_len={sequence_len}", f"depth={depth}"]
    auto = ["model=modern", "stage.total_batch_tokens=auto", *shape]
    checked, config = composed(*auto)
    assert checked.stage.total_batch_tokens == config.stage.total_batch_tokens == batch
    assert to_plain(config)["stage"]["total_batch_tokens"] == batch
    Tokenizer([bytes([byte]) for byte in range(256)]).save(tmp_path)  # of another size than the config says
    checked, _ = composed(*auto, f"tokenizer.path={tmp_path}")
    of_that = GPTConfig(vocab_size=265, sequence_len=sequence_len, **shape_for_depth(depth), **MODERN)
    assert checked.stage.total_batch_tokens == batch_for_horizon(of_that)
    assert check(config, TrainConfig).stage.total_batch_tokens == batch, "a config that is composed anew stays as it is"


def test_a_batch_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("BATCH", "8192")
    assert composed("stage.total_batch_tokens=${oc.env:BATCH}")[0].stage.total_batch_tokens == 8192


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=sft", "stage.total_batch_tokens=auto"], r"stage=sft counts its batch in conversations: .*=null"),
        (["stage=rl", "stage.total_batch_tokens=auto"], r"stage=rl counts its batch in questions"),
        (["stage=mid", "stage.total_batch_tokens=auto"], r"stage=mid has its model from a checkpoint: .*<a number>"),
        (["stage.total_batch_tokens=auto", "stage.device_batch=3"], r"=\d+ is not a multiple of device_batch 3"),
        (["stage.total_batch_tokens=automatic"], r"=automatic should be a whole number, auto or null"),
        (["stage.total_batch_tokens=8192.5"], r"=8192.5 should be a whole number, auto or null"),
        (["stage.total_batch_tokens=true"], r"=True should be a whole number"),
        (["stage.total_batch_tokens=0"], r"must be positive"),
        (["stage.total_batch_tokens=auto", "tokenizer.path=nowhere"], r"tokenizer\.path=nowhere does not exist"),
    ],
)
def test_a_batch_of_auto_where_it_means_nothing_is_refused(overrides, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        check_stage(composed(*overrides)[0])


def test_nothing_is_scaled_by_default():
    config = GPTConfig(**shape_for_depth(4))
    assert scale_optim(OptimConfig(), config, 4096, 10) == OptimConfig()
    assert scale_optim(OptimConfig(reference_batch_tokens=2**19), config, None, 10).matrix_lr == 0.02
    uncounted = OptimConfig(reference_batch_tokens=2**19, matrix_weight_decay=0.28, wd_horizon="ratio")
    assert scale_optim(uncounted, config, None, 10) == uncounted  # such as rewards: no batch, no horizon in tokens


def test_the_choice_model_modern_is_the_era_that_nanochats_folders_are_read_as():
    assert yaml.safe_load((config_dir() / "model" / "modern.yaml").read_text()) == MODERN
