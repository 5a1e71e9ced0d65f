"""Learning rate and momentum as pure functions of the step.

Nothing here has a memory: a run that resumes at step s is at once where the straight run was, whatever the number of
ranks. The shapes are nanochat's of 2025-11: linear warmup, plateau, linear warmdown for the learning rate; a linear
ramp for Muon's momentum. Fine-tuning is the same function with `warmdown_frac=1` (a straight line down).
"""

from nanochat_pl.optim.config import OptimConfig

__all__ = ["lr_multiplier", "muon_momentum"]


def lr_multiplier(step: int, num_steps: int, cfg: OptimConfig) -> float:
    """Return the factor on every initial learning rate at `step`, in [0, 1].

    Warmup and warmdown last `round(fraction * num_steps)` steps, so the last trained step, `num_steps - 1`, is one
    notch above `final_lr_frac`; `step` counts the steps already done, and steps beyond `num_steps` keep its value.
    """
    if step < 0 or num_steps < 1:
        raise ValueError(f"step={step} of num_steps={num_steps} is not in a run; expected step >= 0 and num_steps >= 1")
    warmup_steps = round(cfg.warmup_frac * num_steps)
    warmdown_steps = round(cfg.warmdown_frac * num_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step <= num_steps - warmdown_steps:
        return 1.0
    if warmdown_steps == 0:  # beyond the horizon of a run without a warmdown
        return 1.0
    left = max(num_steps - step, 0) / warmdown_steps
    return left + (1 - left) * cfg.final_lr_frac


def muon_momentum(step: int, cfg: OptimConfig) -> float:
    """Return Muon's momentum after `step` steps: a ramp from `momentum_start`, then constant at `momentum`."""
    if cfg.momentum_ramp_steps is None:
        return cfg.momentum
    done = min(step / cfg.momentum_ramp_steps, 1.0)
    return (1 - done) * cfg.momentum_start + done * cfg.momentum
