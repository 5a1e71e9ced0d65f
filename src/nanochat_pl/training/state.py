"""The state that the parts of one run share while it trains, so that no callback refers to another."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch

from nanochat_pl.paths import link_or_copy

__all__ = ["CheckpointFolder", "RunState"]


class CheckpointFolder:
    """The checkpoint files of a run: `last.ckpt`, `best.ckpt` and the newest of `step_NNNNNN.ckpt`.

    Args:
        folder: where the files go.
        every_steps: interval of step_NNNNNN.ckpt in optimizer steps; None writes none.
        keep: how many of them are kept.
    """

    def __init__(self, folder: Path, every_steps: int | None = None, keep: int = 1) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.keep = keep
        self.saved_step: int | None = None
        self.best: float | None = None
        self.best_step: int | None = None

    def save(self, trainer: L.Trainer) -> None:
        """Write the state of this step to last.ckpt, and to step_NNNNNN.ckpt when its interval says so.

        A step is written once, however many callbacks ask for it. All ranks must call this together.
        """
        step = trainer.global_step
        if self.saved_step == step:
            return
        last = self.folder / "last.ckpt"
        trainer.save_checkpoint(last)
        self.saved_step = step
        if trainer.is_global_zero and self.every_steps and step % self.every_steps == 0:
            link_or_copy(last, self.folder / f"step_{step:06d}.ckpt")
            # By age, not by name: a run set back to an earlier step keeps what it writes from there on.
            files = sorted(self.folder.glob("step_*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
            for old in files[: -self.keep]:
                old.unlink()

    def keep_if_best(self, trainer: L.Trainer, value: float, higher_is_better: bool = False) -> bool:
        """Make the state just saved the best one if `value` is the best so far, and return whether it is."""
        if math.isnan(value):
            return False
        if self.best is not None and not (value > self.best if higher_is_better else value < self.best):
            return False
        self.best, self.best_step = value, trainer.global_step
        if trainer.is_global_zero and self.saved_step == trainer.global_step:
            link_or_copy(self.folder / "last.ckpt", self.folder / "best.ckpt")
        return True


@dataclass
class RunState:
    """What the callbacks of one run share: each writes the fields that name it, and reads those of the others."""

    folder: Path
    checkpoints: CheckpointFolder
    facts: dict[str, Any] = field(default_factory=dict)
    """What summary.json contains besides the metrics: stage, sizes, initial weights, inputs."""

    flops_per_token: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """The last logged row of training, by `Progress`."""
    tokens: int = 0
    """Input tokens trained on since step 0, over all ranks and sessions, by `Progress`."""
    seconds: float = 0.0
    """Seconds of training since step 0 over all sessions, up to the last logged row, by `Progress`."""
    median_speed: float | None = None
    """Tokens a second, by `Progress`; None before two rows were logged."""
    seconds_per_step: float | None = None
    """The pace of the last logged row, without the first step of a session, which compiles, by `Progress`."""

    validation: dict[str, float] = field(default_factory=dict)
    """Metrics of the last validation, by `Validation`."""
    paused_seconds: float = 0.0
    """Seconds that this session spent on validation, samples and evaluations, by each of them."""

    signal: int | None = None
    """The signal that stops the run, by `Checkpoints`."""
    ended_unsaved: bool = False
    """A second signal ended the run before it could save, by `Checkpoints`."""

    def axes(self) -> dict[str, float]:
        """Return the possible x axes other than the step: tokens, FLOPs and seconds of training."""
        return {
            "tokens": self.tokens,
            "total_training_flops": float(self.tokens) * self.flops_per_token,
            "total_training_time": self.seconds,
        }

    def told_to_stop(self, trainer: L.Trainer) -> bool:
        """Return whether any rank got a signal, and let every rank know which. All ranks must call this together."""
        number = self.signal or 0
        if trainer.world_size > 1:
            own = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(own, reduce_op="max"))
        self.signal = self.signal or number or None
        return number > 0
