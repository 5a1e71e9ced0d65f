"""The summary of a run: its facts, how it ended and its last metrics."""

import json
import math
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from nanochat_pl.config.run_folder import unfinished
from nanochat_pl.paths import write_atomically
from nanochat_pl.training.callbacks import RunCallback
from nanochat_pl.training.record import earlier_seconds
from nanochat_pl.training.signals import Stopped
from nanochat_pl.training.state import RunState

WRITE_EVERY_S = 60.0
"""Seconds between two writes of the summary.json of a running run."""


class Summary(RunCallback):
    """Write summary.json: the facts of the run, how it ended and its final metrics; every minute while it runs.

    `wall_s` includes validation and saving, over all sessions of a run that was resumed in its own folder. If a session
    is killed, the seconds since its last write are lost.

    Args:
        when_training: called on the first process when training starts, before the first write.
    """

    priority = 50  # after everything that changes the metrics of a step

    def __init__(self, run: RunState, when_training: Callable[[], None] | None = None) -> None:
        super().__init__(run)
        self.path = run.folder / "summary.json"
        self.when_training = when_training
        self._earlier = earlier_seconds(self.path)  # now: a failure before training starts writes the file anew
        self._begin: float | None = None
        self._started = False
        self._written = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"init_from": self.run.facts.get("init_from")}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._earlier = 0.0  # nothing is continued: an earlier attempt without a checkpoint does not count
        self._started = True
        if trainer.is_global_zero and self.when_training is not None:
            self.when_training()
        self.write(trainer, "running")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if time.monotonic() - self._written > WRITE_EVERY_S:
            self.write(trainer, "running")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        whole = trainer.global_step >= trainer.max_steps and self.run.signal is None
        self.write(trainer, "finished" if whole else "stopped")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not self._started and unfinished(self.path.parent) is None:
            return  # a finished run that could not be continued stays finished
        stopped = isinstance(exception, Stopped)
        self.write(trainer, "stopped" if stopped else f"failed: {type(exception).__name__}")

    def write(self, trainer: L.Trainer, status: str) -> None:
        self._written = time.monotonic()
        if not trainer.is_global_zero:
            return
        metrics = {
            "status": status,
            "step": trainer.global_step,
            "num_steps": trainer.max_steps,
            **self.run.metrics,
            **self.run.validation,
            "median_tok_per_sec": self.run.median_speed,
            "best": self.run.checkpoints.best,
            "best_step": self.run.checkpoints.best_step,
            "wall_s": round(self._earlier + (0.0 if self._begin is None else time.monotonic() - self._begin), 1),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        if torch.cuda.is_available():
            metrics["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        finite = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in metrics.items()}
        write_atomically(self.path, json.dumps(self.run.facts | finite, indent=2) + "\n")
