"""Validation during training: the state is saved first, measured on the same weights, and the best one kept."""

import logging
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np

from nanochat_pl.eval.bpb import evaluate_loss
from nanochat_pl.eval.metrics import metric_of
from nanochat_pl.training.callbacks import RunCallback, is_due, log_metrics
from nanochat_pl.training.callbacks.diagnostics import learned_scalars
from nanochat_pl.training.datamodules import StepBatches
from nanochat_pl.training.state import RunState

log = logging.getLogger(__name__)

Measure = Callable[[Any], dict[str, float]]
"""Maps the module to the metrics of the fixed validation set."""


def loss_measure(data: StepBatches, token_bytes: np.ndarray | None) -> Measure:
    """Return the measure of the stages that predict text: `val/loss` and, with the bytes of each token, `val/bpb`.

    Args:
        data: the data module with the validation batches.
        token_bytes: (V,), the bytes of each token; None measures the loss alone.
    """

    def measure(module: Any) -> dict[str, float]:
        # model.forward, not model(...): validation shapes must not make the compiled training step compile again.
        loss, bpb = evaluate_loss(module.model.forward, data.val_batches(), token_bytes, module.device)
        return {"val/loss": loss} | ({} if bpb is None else {"val/bpb": bpb})

    return measure


class Validation(RunCallback):
    """Measure the fixed validation set at step 0, at each interval and at the end; save first, then measure.

    Args:
        measure: returns the metrics of a module, the same on every rank.
        every_steps: interval in optimizer steps; None = at the end only.
        best: the metric that decides which checkpoint is the best, in the direction that `eval.metrics` gives it.
    """

    priority = 70  # after the log of the step, before what shows its metrics

    def __init__(self, run: RunState, measure: Measure, every_steps: int | None, best: str = "val/loss") -> None:
        super().__init__(run)
        self.measure = measure
        self.every_steps = every_steps
        self.best = best
        self.higher_is_better = metric_of(best).direction > 0
        self._measured_step: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_due(trainer, self.every_steps):
            self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if is_due(trainer, self.every_steps) and not trainer.should_stop:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if self._measured_step == step:
            return
        begin = time.perf_counter()
        # 1) The state that is about to be measured is on disk first: a crash in the validation costs no step.
        if step > 0:
            self.run.checkpoints.save(trainer)
        if self.run.told_to_stop(trainer):  # the signal came while the step was saved; the validation is done on resume
            trainer.should_stop = True
            return
        # 2) The same batches each time: what differs between two validations is the weights alone.
        module: Any = pl_module
        module.eval()
        found = self.run.validation = self.measure(module)
        module.train()
        self._measured_step = step
        # 3) The best state so far gets a second name for the bytes just written.
        best = step > 0 and self.run.checkpoints.keep_if_best(trainer, found[self.best], self.higher_is_better)
        log_metrics(trainer, self.run, found | learned_scalars(module.model), step)
        self.run.paused_seconds += time.perf_counter() - begin
        text = " | ".join(f"{name} {value:.4f}" for name, value in found.items())
        log.info("step %05d/%05d | %s%s", step, trainer.max_steps, text, " | best so far" if best else "")
