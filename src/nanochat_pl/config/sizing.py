"""From a few dials to a whole run: depth -> shape, budget -> steps, batch -> micro-batches.

Pure functions, so that a plan can be printed and refused before torch is imported. The rules are nanochat's
(2025-11): one dial, depth, from which width and heads follow; the horizon in steps, in tokens per parameter, or in
FLOPs.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from nanochat_pl.model.accounting import flops_per_token, num_parameters, parameters_by_role
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.optim.config import OptimConfig

__all__ = [
    "Plan",
    "batch_for_horizon",
    "micro_batches",
    "plan_horizon",
    "scale_optim",
    "scaling_parameters",
    "shape_for_depth",
]


ASPECT_RATIO = 64
"""nanochat's channels for each layer."""
REFERENCE_DEPTH = 12
"""The rules of 2026 were measured at this depth, from which others are scaled."""
REFERENCE_RATIO = 12
"""Tokens for each of `scaling_parameters` at that measurement."""
REFERENCE_BATCH_TOKENS = 2**19
"""Tokens of one of its steps."""


def shape_for_depth(depth: int, aspect_ratio: int = ASPECT_RATIO, head_dim: int = 128) -> dict[str, int]:
    """Return n_layer, n_head, n_kv_head and n_embd of a model `depth` blocks deep.

    The width is `aspect_ratio` x depth, rounded up to whole heads. Differs: nanochat's odd depths have heads of other
    widths (d1, d3, d7) or fail (d5); even depths are the same.

    Raises:
        ValueError: when a dial is below 1.
    """
    for name, value in (("depth", depth), ("aspect_ratio", aspect_ratio), ("head_dim", head_dim)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    n_head = -(-aspect_ratio * depth // head_dim)
    return {"n_layer": depth, "n_head": n_head, "n_kv_head": n_head, "n_embd": n_head * head_dim}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a run is and what it costs."""

    num_steps: int
    """Optimizer steps."""

    total_batch_tokens: int
    """Tokens of one optimizer step, over all ranks and micro-batches."""

    num_parameters: int
    """All parameters of the model, embeddings included."""

    flops_per_token: int
    """FLOPs of forward and backward for one token."""


def plan_horizon(
    config: GPTConfig,
    total_batch_tokens: int,
    *,
    num_steps: int | None = None,
    tokens_per_param: float | None = None,
    target_flops: float | None = None,
) -> Plan:
    """Settle the number of optimizer steps from exactly one of three budgets.

    Args:
        config: the model.
        total_batch_tokens: tokens of one optimizer step.
        num_steps: the steps themselves.
        tokens_per_param: tokens for each parameter, all parameters counted; steps are rounded down.
        target_flops: FLOPs of the whole run; steps are rounded to the nearest.

    Raises:
        ValueError: when none or several budgets are given, or when the budget is below one step.
    """
    budgets = {"num_steps": num_steps, "tokens_per_param": tokens_per_param, "target_flops": target_flops}
    chosen = {name: value for name, value in budgets.items() if value is not None}
    if len(chosen) != 1:
        found = ", ".join(f"stage.{name}={value}" for name, value in chosen.items()) or "none of them is set"
        raise ValueError(
            f"exactly one of stage.num_steps, stage.tokens_per_param, stage.target_flops sets the horizon, but {found}"
            "; set one and leave the others null"
        )
    if total_batch_tokens < 1:
        raise ValueError(f"stage.total_batch_tokens={total_batch_tokens} must be at least 1")
    parameters, flops = num_parameters(config), flops_per_token(config)
    if num_steps is not None:
        steps = num_steps
    elif tokens_per_param is not None:
        steps = int(tokens_per_param * parameters // total_batch_tokens)
    else:
        assert target_flops is not None
        steps = round(target_flops / (flops * total_batch_tokens))
    if steps < 1:
        [(name, value)] = chosen.items()
        raise ValueError(
            f"stage.{name}={value} is less than one step of {total_batch_tokens:,} tokens "
            f"({total_batch_tokens / parameters:.3g} tokens a parameter, {flops * total_batch_tokens:.3g} FLOPs); "
            f"raise it, lower stage.total_batch_tokens, or set stage.num_steps"
        )
    return Plan(
        num_steps=steps, total_batch_tokens=total_batch_tokens, num_parameters=parameters, flops_per_token=flops
    )


def scaling_parameters(config: GPTConfig) -> int:
    """Count the parameters that scaling rules go by: the blocks' matrices and the unembedding (nanochat, 2026-01)."""
    roles = parameters_by_role(config)
    return roles["matrix"] + roles["unembedding"]


def scale_optim(
    optim: OptimConfig, config: GPTConfig, batch_tokens: int | None, num_steps: int, aspect_ratio: int = ASPECT_RATIO
) -> OptimConfig:
    """Return the hyper-parameters for a batch and a horizon, as the scaling rules of `optim` say (nanochat, 2026).

    Args:
        optim: rates and decay of the reference batch and the reference horizon.
        config: the model.
        batch_tokens: tokens of one optimizer step; None = the stage does not count them, and nothing is scaled.
        num_steps: steps of the run.
        aspect_ratio: channels for each layer of the reference, the dial of `shape_for_depth`.
    """
    if batch_tokens is None:
        return optim
    changes: dict[str, Any] = {}
    batch_scale = 1.0
    if optim.reference_batch_tokens is not None:
        batch_scale = (batch_tokens / optim.reference_batch_tokens) ** 0.5
        for field in fields(optim):
            if field.name.endswith("_lr") and (field.name != "smear_lr" or optim.scale_smear):
                changes[field.name] = getattr(optim, field.name) * batch_scale
    reference = scaling_parameters(_at_reference_depth(config, aspect_ratio))
    horizon = {
        "none": 1.0,
        "ratio": reference / scaling_parameters(config),
        "actual": REFERENCE_RATIO * reference / (num_steps * batch_tokens),
    }
    changes["matrix_weight_decay"] = optim.matrix_weight_decay * batch_scale * horizon[optim.wd_horizon]
    return replace(optim, **changes)


def _at_reference_depth(config: GPTConfig, aspect_ratio: int) -> GPTConfig:
    shape: dict[str, Any] = dict(shape_for_depth(REFERENCE_DEPTH, aspect_ratio, config.head_dim))
    return replace(config, **shape)


def batch_for_horizon(config: GPTConfig, aspect_ratio: int = ASPECT_RATIO) -> int:
    """Return the tokens of a step that suit a model trained on a given number of tokens for each parameter.

    It is the power of two next to 2^19 (P / P12)^0.383, P the `scaling_parameters` and P12 those of a model of depth 12
    with the same `aspect_ratio` and width of heads (nanochat, 2026-02).
    """
    ratio = scaling_parameters(config) / scaling_parameters(_at_reference_depth(config, aspect_ratio))
    return int(2 ** round(math.log2(REFERENCE_BATCH_TOKENS * ratio**0.383)))


def micro_batches(total_batch_tokens: int, device_batch: int, sequence_len: int, world: int) -> int:
    """Return how many micro-batches each rank runs in one optimizer step.

    Args:
        total_batch_tokens: tokens of one optimizer step over all ranks.
        device_batch: rows of a micro-batch.
        sequence_len: tokens of a row.
        world: number of ranks.

    Raises:
        ValueError: when the batch is not a whole number of micro-batches on every rank.
    """
    together = device_batch * sequence_len * world
    if together < 1:
        raise ValueError(
            f"stage.device_batch={device_batch}, stage.sequence_len={sequence_len} and world={world} must be at least 1"
        )
    if total_batch_tokens < 1 or total_batch_tokens % together:
        nearest = max(1, round(total_batch_tokens / together)) * together
        raise ValueError(
            f"stage.total_batch_tokens={total_batch_tokens} is not a multiple of device_batch {device_batch} x "
            f"sequence_len {sequence_len} x world {world} = {together}; set stage.total_batch_tokens={nearest} or "
            f"{'lower' if total_batch_tokens < together else 'change'} stage.device_batch"
        )
    return total_batch_tokens // together
