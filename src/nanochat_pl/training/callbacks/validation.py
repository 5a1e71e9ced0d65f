"""Validation at the side of the training loop: saved first, measured on the same weights, the best kept."""

import logging
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

from nanochat_pl.eval.bpb import evaluate_loss
from nanochat_pl.training.callbacks import is_due, log_metrics
from nanochat_pl.training.callbacks.checkpoints import Checkpoints
from nanochat_pl.training.datamodules import StepBatches

log = logging.getLogger(__name__)


Measure = Callable[[Any], dict[str, float]]
"""From the module to the figures of the fixed validation set."""


def loss_measure(data: StepBatches, token_bytes: np.ndarray | None) -> Measure:
    """Make the measure of the stages that predict text: `val/loss` and, with the bytes of each token, `val/bpb`.

    Args:
        data: gives the validation batches.
        token_bytes: (V,); None measures the loss alone.
    """

    def measure(module: Any) -> dict[str, float]:
        # model.forward, not model(...): validation shapes must not make the compiled training step compile again.
        loss, bpb = evaluate_loss(module.model.forward, data.val_batches(), token_bytes, module.device)
        return {"val/loss": loss} | ({} if bpb is None else {"val/bpb": bpb})

    return measure


class Validation(Callback):
    """Measure the fixed validation set at step 0, on the timetable and at the end; save first, then measure.

    Args:
        measure: gives the figures of a module, the same on every rank.
        checkpoints: saves before, and keeps the best after.
        every_steps: cadence; None = at the end only.
        best: the figure that tells which checkpoint is the best.
        higher_is_better: in which direction.
    """

    def __init__(
        self,
        measure: Measure,
        checkpoints: Checkpoints,
        every_steps: int | None,
        best: str = "val/loss",
        higher_is_better: bool = False,
    ) -> None:
        self.measure = measure
        self.best = best
        self.higher_is_better = higher_is_better
        self.checkpoints = checkpoints
        self.every_steps = every_steps
        self.latest: dict[str, float] = {}
        self.seconds = 0.0
        self._measured_step: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_due(trainer, self.every_steps):
            self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_due(trainer, self.every_steps) and not trainer.should_stop:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if self._measured_step == step:
            return
        begin = time.perf_counter()
        if step > 0:
            self.checkpoints.save(trainer)
        if self.checkpoints.told_to_stop(trainer):  # while the step was saved: its validation is made on resume
            trainer.should_stop = True
            return
        model = pl_module.model
        model.eval()
        self.latest = self.measure(pl_module)
        model.train()
        self._measured_step = step
        best = step > 0 and self.checkpoints.consider(trainer, self.latest[self.best], self.higher_is_better)
        log_metrics(trainer, self.latest, step)
        self.seconds += time.perf_counter() - begin
        text = " | ".join(f"{name} {value:.4f}" for name, value in self.latest.items())
        log.info("step %05d/%05d | %s%s", step, trainer.max_steps, text, " | best so far" if best else "")
