"""Hyper-parameters of the optimizers and their schedules, as one checked dataclass.

This is the schema of the `optim` group of the configuration: no default is written anywhere else, and a value out of
range is refused here, with the remedy in the message, before a model is built or data is touched. It imports no torch.
The numbers are nanochat's of 2025-11; learning rates are those of a model `reference_width` wide.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["MATRIX_OPTIMIZERS", "NS_DTYPES", "ORTHOGONALIZERS", "ROLES", "OptimConfig", "Role"]

NS_DTYPES = ("auto", "float32", "bfloat16")
ORTHOGONALIZERS = ("newton_schulz", "polar_express")
MATRIX_OPTIMIZERS = ("muon", "adamw")
"""The names of `optim.groups.OPTIMIZERS`, which needs torch."""
CHOICES = {
    "ns_dtype": NS_DTYPES,
    "matrix_optimizer": MATRIX_OPTIMIZERS,
    "orthogonalizer": ORTHOGONALIZERS,
    "matrix_weight_decay_schedule": ("constant", "cosine"),
    "wd_horizon": ("none", "ratio", "actual"),
}
"""The fields that name one of several ways."""


@dataclass(kw_only=True)
class OptimConfig:
    """How the optimizers move the weights: by default Muon moves the matrices, AdamW the rest."""

    matrix_optimizer: str = "muon"
    """What moves the weight matrices of the blocks: muon, or adamw as all other parameters."""
    matrix_lr: float = 0.02
    """Learning rate of the blocks' weight matrices; Muon's is the same at every width, AdamW's is scaled as below."""
    embedding_lr: float = 0.2
    """AdamW's learning rate for the token embedding, at `reference_width`."""
    unembedding_lr: float = 0.004
    """AdamW's learning rate for the output layer, at `reference_width`."""
    value_embedding_lr: float = 0.15
    """AdamW's learning rate for the tables of value embeddings, at `reference_width` (nanochat, 2026-03)."""
    residual_lambda_lr: float = 0.005
    """AdamW's learning rate for the scalars on the residual stream, the same at every width (nanochat, 2026-03)."""
    input_lambda_lr: float = 0.5
    """AdamW's learning rate for the scalars on the embedding, the same at every width (nanochat, 2026-03)."""
    smear_lr: float = 0.2
    """AdamW's learning rate for smear's gate and scalar and for backout's, the same at every width (nanochat, 2026-03).
    """
    short_conv_lr: float = 0.02
    """AdamW's learning rate for short convolutions, the same at every width."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    role_weight_decay: dict[str, float] = field(default_factory=dict)
    """AdamW's weight decay of single roles, where it differs from `weight_decay`: {embedding: 0.001}."""
    role_betas: dict[str, list[float]] = field(default_factory=dict)
    """AdamW's two betas of single roles, where they differ from the ones below: {embedding: [0.8, 0.995]}."""
    adam_beta1: float = 0.8
    """Decay of AdamW's mean of gradients, in [0, 1)."""
    adam_beta2: float = 0.95
    """Decay of AdamW's mean of squared gradients, in [0, 1)."""
    adam_eps: float = 1e-10
    """Added to the root of AdamW's mean square."""
    reference_width: int = 768
    """Channels at which AdamW's learning rates hold; at width C they are scaled by (C / reference_width)^-0.5."""
    reference_batch_tokens: int | None = None
    """Tokens of a step at which all learning rates hold; with B tokens they are scaled by (B / this)^0.5, and so is
    `matrix_weight_decay`; null = not scaled (nanochat, 2026-01: 524288)."""
    scale_smear: bool = True
    """Whether `reference_batch_tokens` scales `smear_lr`, too; in nanochat it does not."""
    momentum: float = 0.95
    """Muon's momentum, once its ramp is over, in [0, 1)."""
    momentum_start: float = 0.85
    """Muon's momentum at step 0 of the ramp, in [0, 1)."""
    momentum_ramp_steps: int | None = 300
    """Steps over which Muon's momentum rises linearly from `momentum_start` to `momentum`; null = no ramp."""
    momentum_ramp_max_frac: float | None = None
    """Largest fraction of the run that the ramp of Muon's momentum may take; null = no such limit."""
    momentum_final: float | None = None
    """Muon's momentum at the end, towards which it falls while the learning rate does; null = it stays."""
    momentum_ramp_wins: bool = False
    """Where ramp and fall of Muon's momentum overlap, take the ramp alone, as nanochat does, though the momentum then
    jumps at its end."""
    nesterov: bool = True
    """Orthogonalize the gradient mixed with the momentum (True) or the momentum alone."""
    ns_steps: int = 5
    """Iterations that make an update orthogonal; at most 5 with orthogonalizer=polar_express."""
    ns_dtype: str = "auto"
    """Arithmetic of the `ns_steps` iterations: float32, bfloat16, or auto = bfloat16 where the device is fast at it."""
    orthogonalizer: str = "newton_schulz"
    """What makes an update orthogonal: newton_schulz (2024) or polar_express (2025), which comes nearer."""
    row_equilibration: bool = False
    """Give all rows of an update the same norm before it is made orthogonal (MuonEq, 2026)."""
    frobenius_snap: bool = False
    """Give each orthogonal update exactly the Frobenius norm that it should have (Muon+, 2026)."""
    second_moment_beta: float | None = None
    """Decay of the mean square by which rows of an update are evened out (NorMuon, 2025), in [0, 1); null = none."""
    matrix_weight_decay: float = 0.0
    """Decoupled weight decay of Muon."""
    matrix_weight_decay_schedule: str = "constant"
    """How `matrix_weight_decay` goes on: constant, or cosine = it falls to zero along half a cosine."""
    wd_horizon: str = "none"
    """Scale `matrix_weight_decay` by the length of the run (nanochat, 2026-02): `ratio` = by the parameters of a model
    of depth 12 over this one's, as if both saw equally many tokens for each; `actual` = by 12 tokens for each parameter
    of that model over the tokens of this run; none = take it as it is. Only block matrices and the unembedding count
    as parameters here."""
    cautious_weight_decay: bool = False
    """Let a matrix's weight decay only where the update makes it smaller anyway (Liang et al. 2024)."""
    grad_clip: float | None = 1.0
    """Largest global L2 norm of the averaged gradient; a longer one is scaled down to it; null = only measured."""
    init_lr_frac: float = 1.0
    """Every learning rate starts at this fraction of its value (fine-tuning lowers it)."""
    warmup_frac: float = 0.0
    """Fraction of the steps over which the learning rate rises linearly."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises linearly, in place of `warmup_frac`."""
    warmup_max_frac: float | None = None
    """Largest fraction of the run that `warmup_steps` may take, which short runs need; null = no such limit."""
    warmdown_frac: float = 0.2
    """Fraction of the steps, the last ones, over which the learning rate falls linearly; 1.0 = it falls all the way."""
    final_lr_frac: float = 0.0
    """Fraction of the learning rate that the warmdown heads for."""

    def __post_init__(self) -> None:
        positive, not_negative, below_one = "a number > 0", "a number >= 0", "a number in [0, 1)"
        for name in (
            "weight_decay",
            "matrix_weight_decay",
            *(name for name in self.__dataclass_fields__ if name.endswith("_lr")),
        ):
            self._require(name, getattr(self, name) >= 0, not_negative)
        for name in ("adam_beta1", "adam_beta2", "momentum", "momentum_start", "momentum_final", "second_moment_beta"):
            value = getattr(self, name)
            optional = name in ("momentum_final", "second_moment_beta")
            expected = below_one + ", or null" * optional
            self._require(name, (value is None and optional) or (value is not None and 0 <= value < 1), expected)
        for name in ("adam_eps", "reference_width", "init_lr_frac"):
            self._require(name, getattr(self, name) > 0, positive)
        for name in ("warmup_frac", "warmdown_frac", "final_lr_frac"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a fraction in [0, 1]")
        for name in ("warmup_max_frac", "momentum_ramp_max_frac"):
            value = getattr(self, name)
            self._require(name, value is None or 0 < value <= 1, "a fraction in (0, 1], or null")
        if self.momentum_final is not None:
            self._require("momentum_final", self.momentum_final <= self.momentum, "at most optim.momentum, or null")
        self._require("ns_steps", self.ns_steps >= 1, "a whole number >= 1")
        for name, known in CHOICES.items():
            self._require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        if self.orthogonalizer == "polar_express":
            self._require("ns_steps", self.ns_steps <= 5, "at most 5 with optim.orthogonalizer=polar_express")
        for name, none in (
            ("momentum_ramp_steps", "no ramp"),
            ("warmup_steps", "warmup_frac counts"),
            ("reference_batch_tokens", "rates are not scaled"),
        ):
            value = getattr(self, name)
            if value is not None:
                self._require(name, value >= 1, f"a whole number >= 1, or null ({none})")
        if self.warmup_steps is not None and self.warmup_frac:
            raise ValueError(
                f"optim.warmup_steps={self.warmup_steps} and optim.warmup_frac={self.warmup_frac} both say how long "
                "the learning rate rises; set one of them"
            )
        for name in ("role_weight_decay", "role_betas"):
            if unknown := [role for role in getattr(self, name) if role not in ROLES]:
                raise ValueError(f"optim.{name} names {', '.join(unknown)}; the roles are {', '.join(ROLES)}")
            if "matrix" in getattr(self, name) and self.matrix_optimizer == "muon":
                raise ValueError(
                    f"optim.{name}.matrix is not read by Muon, which moves the matrices; set "
                    "optim.matrix_weight_decay or optim.momentum, or optim.matrix_optimizer=adamw"
                )
        for role, decay in self.role_weight_decay.items():
            if not 0 <= decay < math.inf:
                raise ValueError(f"optim.role_weight_decay.{role}={decay} should be a number >= 0")
        for role, betas in self.role_betas.items():
            if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
                raise ValueError(f"optim.role_betas.{role}={list(betas)} should be two numbers in [0, 1)")
        if self.grad_clip is not None:
            self._require("grad_clip", self.grad_clip > 0, "a number > 0, or null (measure the norm, never clip)")
        if self.warmup_frac + self.warmdown_frac > 1 + 1e-9:  # 1 but for rounding is the whole run
            raise ValueError(
                f"optim.warmup_frac={self.warmup_frac} + optim.warmdown_frac={self.warmdown_frac} = "
                f"{self.warmup_frac + self.warmdown_frac:g} is more than the whole run; "
                f"set optim.warmdown_frac={1 - self.warmup_frac:g} or less, or a shorter warmup"
            )

    def _require(self, name: str, holds: bool, expected: str) -> None:
        value = getattr(self, name)
        if not holds or (isinstance(value, float) and not math.isfinite(value)):
            default = type(self).__dataclass_fields__[name].default
            raise ValueError(f"optim.{name}={value} should be {expected}; the default is optim.{name}={default}")


class Role(NamedTuple):
    """The optimizer and the learning rate of the parameters of one role."""

    optimizer: Callable[[OptimConfig], str]
    learning_rate: Callable[[OptimConfig], float]
    """Before the optimizer's own scale; `init_lr_frac` is applied to all roles alike."""
    by_width: bool = True
    """Whether the optimizer's scale by the width applies: it is for tables and matrices, not for single numbers."""
    has_scalars: bool = False
    """Whether its vectors hold single numbers, one a layer or one in all, each of which is worth a curve in the log."""


# `unembedding` comes before `embedding`, because nanochat's saved AdamW states count the output layer first.
ROLES: dict[str, Role] = {
    "matrix": Role(lambda cfg: cfg.matrix_optimizer, lambda cfg: cfg.matrix_lr),
    "unembedding": Role(lambda cfg: "adamw", lambda cfg: cfg.unembedding_lr),
    "embedding": Role(lambda cfg: "adamw", lambda cfg: cfg.embedding_lr),
    "value_embedding": Role(lambda cfg: "adamw", lambda cfg: cfg.value_embedding_lr),
    "residual_lambda": Role(lambda cfg: "adamw", lambda cfg: cfg.residual_lambda_lr, by_width=False, has_scalars=True),
    "input_lambda": Role(lambda cfg: "adamw", lambda cfg: cfg.input_lambda_lr, by_width=False, has_scalars=True),
    "smear": Role(lambda cfg: "adamw", lambda cfg: cfg.smear_lr, by_width=False, has_scalars=True),
    "short_conv": Role(lambda cfg: "adamw", lambda cfg: cfg.short_conv_lr, by_width=False),
}
"""Every role of a parameter, by its name in `GPT.param_roles()`."""
