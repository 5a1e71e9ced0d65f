"""Hyper-parameters of the optimizers and their schedules, as one checked dataclass.

This is the schema of the `optim` group of the configuration: no default is written anywhere else, and a value out of
range is refused here, with the remedy in the message, before a model is built or data is touched. It imports no torch.
The numbers are nanochat's of 2025-11; learning rates are those of a model `reference_width` wide.
"""

import math
from dataclasses import dataclass

__all__ = ["MATRIX_OPTIMIZERS", "NS_DTYPES", "OptimConfig"]

NS_DTYPES = ("auto", "float32", "bfloat16")
MATRIX_OPTIMIZERS = ("muon", "adamw")
"""The names of `optim.groups.OPTIMIZERS`, which needs torch."""


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
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW; Muon has none."""
    adam_beta1: float = 0.8
    """Decay of AdamW's mean of gradients, in [0, 1)."""
    adam_beta2: float = 0.95
    """Decay of AdamW's mean of squared gradients, in [0, 1)."""
    adam_eps: float = 1e-10
    """Added to the root of AdamW's mean square."""
    reference_width: int = 768
    """Channels at which AdamW's learning rates hold; at width C they are scaled by (C / reference_width)^-0.5."""
    momentum: float = 0.95
    """Muon's momentum, once its ramp is over, in [0, 1)."""
    momentum_start: float = 0.85
    """Muon's momentum at step 0 of the ramp, in [0, 1)."""
    momentum_ramp_steps: int | None = 300
    """Steps over which Muon's momentum rises linearly from `momentum_start` to `momentum`; null = no ramp."""
    nesterov: bool = True
    """Orthogonalize the gradient mixed with the momentum (True) or the momentum alone."""
    ns_steps: int = 5
    """Newton-Schulz iterations of each update."""
    ns_dtype: str = "auto"
    """Arithmetic of those iterations: float32, bfloat16, or auto = bfloat16 where the device is fast at it."""
    grad_clip: float | None = 1.0
    """Largest global L2 norm of the averaged gradient; a longer one is scaled down to it; null = only measured."""
    init_lr_frac: float = 1.0
    """Every learning rate starts at this fraction of its value (fine-tuning lowers it)."""
    warmup_frac: float = 0.0
    """Fraction of the steps over which the learning rate rises linearly."""
    warmdown_frac: float = 0.2
    """Fraction of the steps, the last ones, over which the learning rate falls linearly; 1.0 = it falls all the way."""
    final_lr_frac: float = 0.0
    """Fraction of the learning rate that the warmdown heads for."""

    def __post_init__(self) -> None:
        positive, not_negative, below_one = "a number > 0", "a number >= 0", "a number in [0, 1)"
        for name in ("matrix_lr", "embedding_lr", "unembedding_lr", "weight_decay"):
            self._require(name, getattr(self, name) >= 0, not_negative)
        for name in ("adam_beta1", "adam_beta2", "momentum", "momentum_start"):
            self._require(name, 0 <= getattr(self, name) < 1, below_one)
        for name in ("adam_eps", "reference_width", "init_lr_frac"):
            self._require(name, getattr(self, name) > 0, positive)
        for name in ("warmup_frac", "warmdown_frac", "final_lr_frac"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a fraction in [0, 1]")
        self._require("ns_steps", self.ns_steps >= 1, "a whole number >= 1")
        self._require("ns_dtype", self.ns_dtype in NS_DTYPES, f"one of {', '.join(NS_DTYPES)}")
        self._require(
            "matrix_optimizer", self.matrix_optimizer in MATRIX_OPTIMIZERS, f"one of {', '.join(MATRIX_OPTIMIZERS)}"
        )
        if self.momentum_ramp_steps is not None:
            self._require(
                "momentum_ramp_steps", self.momentum_ramp_steps >= 1, "a whole number >= 1, or null (no ramp)"
            )
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
