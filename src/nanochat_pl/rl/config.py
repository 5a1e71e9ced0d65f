"""The schema of the `rl` section; it loads no torch."""

from dataclasses import dataclass
from enum import StrEnum

from nanochat_pl.config.values import positive

__all__ = ["Algorithm", "RLConfig"]


class Algorithm(StrEnum):
    """How rewards become a policy gradient (`nanochat_pl.rl`)."""

    reinforce = "reinforce"
    grpo = "grpo"
    dapo = "dapo"
    rloo = "rloo"


@dataclass(kw_only=True)
class RLConfig:
    """Reinforcement learning: what is sampled, how rewards are weighed, how the policy may move."""

    algorithm: Algorithm = Algorithm.reinforce
    prompts_per_step: int = 16
    """Questions of one rollout over all devices."""
    num_samples: int = 16
    """Answers sampled to each question: the group that advantages compare."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 1.0
    """Sampling temperature: below 1 likely tokens are favoured, above 1 unlikely ones."""
    top_k: int | None = 50
    """Sample from this many of the likeliest tokens only; null = from all."""
    rollout_batch: int = 64
    """Rows that the engine decodes at a time on one device."""
    steps_per_rollout: int = 1
    """Optimizer steps that share one rollout; above 1 the later ones are off-policy, which the clipped ratio bounds."""
    clip_low: float = 0.2
    """The ratio of new to old probability is clipped to [1 - clip_low, 1 + clip_high] (grpo, dapo)."""
    clip_high: float | None = None
    """null = clip_low for grpo, 0.28 for dapo."""
    kl_coef: float = 0.0
    """Weight of the KL divergence to the initial weights; above 0 a frozen copy of them is kept."""
    max_resamples: int = 3
    """dapo: how many more times questions are drawn to replace groups whose answers all score alike."""
    val_questions: int | None = 400
    """Questions of the fixed validation set that pass@k is measured on; null = all."""
    val_samples: int = 8
    """Answers to each of them: pass@1 to pass@val_samples."""

    def __post_init__(self) -> None:
        positive(self, "rl", "prompts_per_step", "max_new_tokens", "top_k", "rollout_batch", "steps_per_rollout")
        positive(self, "rl", "temperature", "clip_low", "clip_high", "val_questions", "val_samples")
        if self.num_samples < 2:
            raise ValueError(
                f"rl.num_samples={self.num_samples} leaves nothing to compare an answer with; set 2 or more"
            )
        if self.kl_coef < 0 or self.max_resamples < 0:
            raise ValueError(f"rl.kl_coef={self.kl_coef} and rl.max_resamples={self.max_resamples} must be 0 or more")
