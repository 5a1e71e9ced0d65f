"""Learning rate, momentum and weight decay as pure functions of the step.

Nothing here has a memory: a run that resumes at step s is at once where the straight run was, whatever the number of
ranks. The shapes are nanochat's of 2025-11: linear warmup, plateau, linear warmdown for the learning rate; a linear
ramp for Muon's momentum; those of 2026 are options. Fine-tuning is the same function with `warmdown_frac=1` (a
straight line down).
"""

import math

from nanochat_pl.optim.config import OptimConfig

__all__ = ["lr_multiplier", "muon_momentum", "weight_decay_multiplier"]


def lr_multiplier(step: int, num_steps: int, cfg: OptimConfig) -> float:
    """Return the factor on every initial learning rate at `step`, in [0, 1].

    Warmup lasts `warmup_steps`, at most `warmup_max_frac` of the run, or else `round(warmup_frac * num_steps)` steps;
    warmdown lasts `round(warmdown_frac * num_steps)`. Where they overlap warmup counts, and the factor jumps at its
    end. `step` counts the steps already done, so the last trained one, `num_steps - 1`, is one notch above
    `final_lr_frac`; steps beyond `num_steps` keep the value at `num_steps`.
    """
    if step < 0 or num_steps < 1:
        raise ValueError(f"step={step} of num_steps={num_steps} is not in a run; expected step >= 0 and num_steps >= 1")
    if cfg.warmup_steps is None:
        warmup_steps = round(cfg.warmup_frac * num_steps)
    else:
        warmup_steps = _at_most(cfg.warmup_steps, cfg.warmup_max_frac, num_steps)
    warmdown_steps = round(cfg.warmdown_frac * num_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step <= num_steps - warmdown_steps:
        return 1.0
    if warmdown_steps == 0:  # beyond the horizon of a run without a warmdown
        return 1.0
    left = max(num_steps - step, 0) / warmdown_steps
    return left + (1 - left) * cfg.final_lr_frac


def muon_momentum(step: int, cfg: OptimConfig, num_steps: int | None = None) -> float:
    """Return Muon's momentum after `step` steps.

    It rises from `momentum_start` to `momentum`, stays, and falls to `momentum_final` while the learning rate falls.
    Where rise and fall overlap, the lower one counts, so that nothing jumps; with `momentum_ramp_wins` the rise alone.

    Args:
        step: Optimizer steps already done.
        cfg: Gives the fields named above, `momentum_ramp_steps` and `warmdown_frac`.
        num_steps: Horizon: steps of the whole run; None = far away.
    """
    rising = cfg.momentum
    if cfg.momentum_ramp_steps is not None:
        ramp_steps = _at_most(cfg.momentum_ramp_steps, cfg.momentum_ramp_max_frac, num_steps)
        done = min(step / ramp_steps, 1.0)
        rising = (1 - done) * cfg.momentum_start + done * cfg.momentum
        if cfg.momentum_ramp_wins and step < ramp_steps:
            return rising
    if cfg.momentum_final is None or num_steps is None:
        return rising
    warmdown_steps = round(cfg.warmdown_frac * num_steps)
    begun = step - (num_steps - warmdown_steps)
    if begun < 0 or warmdown_steps == 0:
        return rising
    return min(rising, cfg.momentum - (cfg.momentum - cfg.momentum_final) * min(begun / warmdown_steps, 1.0))


def weight_decay_multiplier(step: int, num_steps: int, cfg: OptimConfig) -> float:
    """Return the factor on Muon's weight decay after `step` steps: 1, or half a cosine from 1 to 0 over the run."""
    if cfg.matrix_weight_decay_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1.0)))


def _at_most(steps: int, fraction: float | None, num_steps: int | None) -> int:
    """Return `steps`, but no more than a fraction of the run where one is given; at least one."""
    if fraction is None or num_steps is None:
        return steps
    return min(steps, max(1, round(fraction * num_steps)))
