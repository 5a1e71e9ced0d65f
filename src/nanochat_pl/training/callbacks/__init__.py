"""The callbacks, one in each file; here is what they have in common.

A step number counts the updates made so far, as the original's loop does: validation at step s sees the weights after
s updates, and `train/loss` at step s is the loss of the update that follows. A resumed run therefore repeats the
validation of the step it resumes from and its log continues without a seam.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from nanochat_pl.training.loggers import MetricsFile
from nanochat_pl.training.state import RunState

DATA_WAIT_S = "data_wait_s"
"""Seconds waited for data since the last row; `Progress`, which knows the time of the steps, turns it into a share."""


class RunCallback(Callback):
    """A callback of this package: it shares the state of its run with the others, and has a priority."""

    priority: ClassVar[int] = 0
    """Callbacks are called in the order of their priorities, the highest first; those of users have 0."""

    def __init__(self, run: RunState) -> None:
        self.run = run


def by_priority(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks in the order in which Lightning is to call them; equal priorities keep theirs."""
    return sorted(callbacks, key=lambda callback: -getattr(callback, "priority", 0))


@runtime_checkable
class StepMetrics(Protocol):
    """A callback that measures logged steps: `Progress` asks it for its metrics and logs them with its own."""

    def step_metrics(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return this rank's metrics of which the mean over ranks is logged, and those of which the maximum is."""
        ...


def log_metrics(trainer: L.Trainer, run: RunState, metrics: dict[str, float], step: int) -> None:
    """Send one row to every logger; rows for a dashboard always include all possible x axes.

    metrics.csv has tokens, FLOPs and time in the rows of `Progress` only; its readers join rows by step.
    """
    for logger in trainer.loggers:
        row = metrics if isinstance(logger, MetricsFile) else run.axes() | metrics
        logger.log_metrics({"step": step, **row}, step)  # W&B draws over a column, not over its own argument


def is_logged(step: int, every_steps: int, num_steps: int | float) -> bool:
    """Return whether the update after `step` updates gets a row in the log: at each interval, and the last one."""
    return step % every_steps == 0 or step + 1 == num_steps


def is_due(trainer: L.Trainer, every_steps: int | None) -> bool:
    """Return whether something is due that happens every `every_steps` steps and at the end; None = at the end only."""
    step = trainer.global_step
    return step >= trainer.max_steps or (every_steps is not None and step % every_steps == 0)


def over_ranks(
    trainer: L.Trainer, device: torch.device, means: dict[str, Any], maxima: dict[str, Any]
) -> dict[str, float]:
    """Reduce metrics over all ranks and return them as numbers, waiting for the device once.

    Args:
        trainer: its strategy reduces.
        device: where the metrics are reduced.
        means: metrics (numbers or 0-dim tensors) to average over ranks.
        maxima: metrics to take the maximum of. Names are the same on every rank, as in `means`.
    """
    figures = means | maxima
    waiting = {name: value.float() for name, value in figures.items() if isinstance(value, torch.Tensor)}
    if trainer.world_size == 1:  # plain numbers need no transfer
        return figures | dict(zip(waiting, torch.stack(list(waiting.values())).tolist(), strict=True))
    numbers = torch.tensor([float(value) for name, value in figures.items() if name not in waiting])
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    moved = dict(zip((name for name in figures if name not in waiting), numbers.to(device, non_blocking=True)))
    packed = waiting | moved
    reduced = []
    for part, how in ((means, "mean"), (maxima, "max")):
        if part:
            own = torch.stack([packed[name].to(device) for name in part])
            reduced.append(trainer.strategy.reduce(own, reduce_op=how))
    return dict(zip(figures, torch.cat(reduced).tolist(), strict=True))
