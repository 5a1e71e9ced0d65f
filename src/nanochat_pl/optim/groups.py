"""The optimizers of a model by the roles of its parameters, and their use in a training step.

A model names the role of each parameter, the config the hyper-parameters of each role; neither knows the other.
`ROLES` is the one table of roles: a model need not have parameters of each. Schedule and clipping cover all of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from nanochat_pl.optim.config import ROLES, OptimConfig
from nanochat_pl.optim.muon import Muon
from nanochat_pl.optim.schedules import lr_multiplier, muon_momentum, weight_decay_multiplier

__all__ = ["build_optimizers", "check_roles", "clip_gradients", "set_schedule"]


class OptimizerRule(NamedTuple):
    """How one kind of optimizer is built."""

    make: Callable[..., torch.optim.Optimizer]
    settings: Callable[[OptimConfig], dict[str, Any]]
    """Its arguments besides the parameters and their learning rates."""
    lr_scale: Callable[[OptimConfig, int], float]
    """The factor on the learning rates, by the config and the model's width."""


def _muon_settings(cfg: OptimConfig) -> dict[str, Any]:
    same = ("nesterov", "ns_steps", "ns_dtype", "orthogonalizer", "row_equilibration", "frobenius_snap")
    settings = {name: getattr(cfg, name) for name in (*same, "second_moment_beta")}
    decay = {"weight_decay": cfg.matrix_weight_decay, "cautious": cfg.cautious_weight_decay}
    return {"momentum": muon_momentum(0, cfg), **settings, **decay}


def _adamw_settings(cfg: OptimConfig) -> dict[str, Any]:
    return {"betas": (cfg.adam_beta1, cfg.adam_beta2), "eps": cfg.adam_eps, "weight_decay": cfg.weight_decay}


def _by_width(cfg: OptimConfig, width: int) -> float:
    """AdamW's rates fall with the square root of the width, since they were tuned at `reference_width`."""
    return (width / cfg.reference_width) ** -0.5


OPTIMIZERS: dict[str, OptimizerRule] = {
    "muon": OptimizerRule(Muon, _muon_settings, lambda cfg, width: 1.0),
    "adamw": OptimizerRule(torch.optim.AdamW, _adamw_settings, _by_width),
}
"""Every optimizer that a role may have, by its name in `optim.matrix_optimizer`."""


def check_roles(
    roles: Mapping[str, Sequence[Parameter]], named_parameters: Iterable[tuple[str, Parameter]] | None = None
) -> None:
    """Check that all roles are known, and that each parameter has exactly one role.

    Args:
        roles: Parameters by role, as `GPT.param_roles()` returns them.
        named_parameters: `model.named_parameters()`; with it, a parameter without a role is found too.

    Raises:
        ValueError: If a role is unknown, or a parameter is in two roles, in none, or not the model's.
    """
    for role in roles:
        if role not in ROLES:
            raise ValueError(
                f"parameter role {role!r} has no optimizer; known roles are {', '.join(ROLES)}: "
                f"add it to ROLES in optim/config.py"
            )
    names = {id(p): name for name, p in named_parameters or ()}
    role_of: dict[int, str] = {}
    for role, params in roles.items():
        for p in params:
            name = names.get(id(p), f"a parameter of shape {tuple(p.shape)}")
            if id(p) in role_of:
                raise ValueError(
                    f"{name} is in two roles, {role_of[id(p)]!r} and {role!r}; it would be updated twice a step: "
                    f"leave one in param_roles()"
                )
            if names and id(p) not in names:
                raise ValueError(f"role {role!r} holds {name} that the model does not list in its parameters()")
            role_of[id(p)] = role
    orphans = [name for key, name in names.items() if key not in role_of]
    if orphans:
        raise ValueError(f"{', '.join(orphans)}: no role, so no optimizer would train them; add them to param_roles()")


def build_optimizers(
    roles: Mapping[str, Sequence[Parameter]], width: int, cfg: OptimConfig
) -> list[torch.optim.Optimizer]:
    """Build the optimizers of a model, one named group a role, each group with its `initial_lr`.

    Args:
        roles: Parameters by role, as `GPT.param_roles()` returns them, on their device already.
        width: Channels of the model; AdamW's learning rates are scaled by (width / reference_width)^-0.5.
        cfg: Hyper-parameters.

    Returns:
        The optimizers that have parameters, in the order of `OPTIMIZERS`: Muon, then AdamW.

    Raises:
        ValueError: As `check_roles`, or if Muon is given a parameter that is not a matrix.
    """
    check_roles(roles)
    optimizers: list[torch.optim.Optimizer] = []
    for kind, rule in OPTIMIZERS.items():
        # One named group a role: the schedule, the log and the diagnostics know parameters by these names.
        groups: list[dict[str, Any]] = []
        for name, role in ROLES.items():
            if roles.get(name) and role.optimizer(cfg) == kind:
                scale = rule.lr_scale(cfg, width) if role.by_width else 1.0
                lr = role.learning_rate(cfg) * scale * cfg.init_lr_frac
                group = {"params": list(roles[name]), "name": name, "lr": lr, "initial_lr": lr}
                if kind == "adamw":
                    group |= {"weight_decay": cfg.role_weight_decay[name]} if name in cfg.role_weight_decay else {}
                    group |= {"betas": tuple(cfg.role_betas[name])} if name in cfg.role_betas else {}
                groups.append(group)
        if not groups:
            continue
        settings = rule.settings(cfg)
        if rule.make is torch.optim.AdamW:
            settings["fused"] = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
        optimizers.append(rule.make(groups, **settings))
    return optimizers


def set_schedule(optimizers: Iterable[torch.optim.Optimizer], step: int, num_steps: int, cfg: OptimConfig) -> float:
    """Set learning rates, Muon's momentum and its weight decay for the update after `step` updates.

    `num_steps` counts the updates of the whole run. Returns the current multiplier of all learning rates, for the log.
    """
    multiplier = lr_multiplier(step, num_steps, cfg)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * multiplier
            if isinstance(optimizer, Muon):
                group["momentum"] = muon_momentum(step, cfg, num_steps)
                group["weight_decay"] = cfg.matrix_weight_decay * weight_decay_multiplier(step, num_steps, cfg)
    return multiplier


@torch.no_grad()
def clip_gradients(parameters: Iterable[Parameter], max_norm: float | None) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `max_norm`; one norm over all parameters.

    Call it on averaged gradients: each rank then finds the same norm, and a step's length does not depend on how the
    batch was shared out (nanochat, 2025-11, clipped each rank's own part before averaging).

    Parameters without a gradient are skipped; `max_norm=None` only measures. Returns the norm before clipping, 0-dim,
    on the gradients' device (no wait for a GPU).
    """
    params = list(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    if max_norm is None:
        return norm
    if norm.device.type == "cpu" and norm + 1e-6 <= max_norm:  # multiplying by 1 would only cost a pass over memory
        return norm
    torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm)
    return norm
