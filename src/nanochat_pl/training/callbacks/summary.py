"""The summary of a run, and the pictures of its curves."""

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from nanochat_pl.config.checks import unfinished
from nanochat_pl.paths import WriteError, write_atomically
from nanochat_pl.report.history import run_picture
from nanochat_pl.training.callbacks.checkpoints import Checkpoints
from nanochat_pl.training.callbacks.progress import Progress
from nanochat_pl.training.callbacks.validation import Validation
from nanochat_pl.training.record import earlier_seconds
from nanochat_pl.training.signals import Stopped

log = logging.getLogger(__name__)

WRITE_EVERY_S = 60.0
"""Between two writes of a running run's summary.json."""


class Summary(Callback):
    """Write summary.json: what the run was, how it ended, its final figures; anew every minute while it goes on.

    `wall_s` counts validation and saving too, over all sessions of a run that was resumed in its own folder. Of one
    that was killed the seconds since its last write are lost.

    Args:
        path: the file.
        facts: what is known before training (stage, sizes, start weights, versions ...).
        progress, validation, checkpoints: where the figures come from.
        begin: called on the first process when training starts, before the first write.
    """

    def __init__(
        self,
        path: Path,
        facts: dict[str, Any],
        progress: Progress,
        validation: Validation,
        checkpoints: Checkpoints,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.begin = begin
        self.path = path
        self.facts = facts
        self.progress = progress
        self.validation = validation
        self.checkpoints = checkpoints
        self._earlier = earlier_seconds(path)  # now: a failure before training starts writes the file anew
        self._begin: float | None = None
        self._started = False
        self._written = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"init_from": self.facts.get("init_from")}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._earlier = 0.0  # nothing is continued: what an attempt without a checkpoint took is not of this run
        self._started = True
        if trainer.is_global_zero:
            self.begin()
        self.write(trainer, "running")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._written > WRITE_EVERY_S:
            self.write(trainer, "running")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        whole = trainer.global_step >= trainer.max_steps and self.checkpoints.signal is None
        self.write(trainer, "finished" if whole else "stopped")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not self._started and unfinished(self.path.parent) is None:
            return  # a run that could not be continued is as finished as it was
        stopped = isinstance(exception, Stopped)
        self.write(trainer, "stopped" if stopped else f"failed: {type(exception).__name__}")

    def write(self, trainer: L.Trainer, status: str) -> None:
        self._written = time.monotonic()
        if not trainer.is_global_zero:
            return
        figures = {
            "status": status,
            "step": trainer.global_step,
            "num_steps": trainer.max_steps,
            **self.progress.latest,
            **self.validation.latest,
            "median_tok_per_sec": self.progress.median_speed,
            "best": self.checkpoints.best,
            "best_step": self.checkpoints.best_step,
            "wall_s": round(self._earlier + (0.0 if self._begin is None else time.monotonic() - self._begin), 1),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        if torch.cuda.is_available():
            figures["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        finite = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in figures.items()}
        write_atomically(self.path, json.dumps(self.facts | finite, indent=2) + "\n")


class Picture(Callback):
    """Leave loss.png beside metrics.csv when training ends, also before its time: the curves over all its sessions.

    No picture is worth a run: what cannot be drawn or written is one line of warning.

    Args:
        folder: of the run.
        stage, run_name: what is written above the curves.
        checkpoints: knows whether the run was told to end at once.
    """

    def __init__(self, folder: Path, stage: str, run_name: str, checkpoints: Checkpoints) -> None:
        self.folder = folder
        self.stage = stage
        self.run_name = run_name
        self.checkpoints = checkpoints
        self._started = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.draw(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._started and not self.checkpoints.ended_unsaved:
            self.draw(trainer)

    def draw(self, trainer: L.Trainer) -> None:
        """Draw metrics.csv as it is on the disk, on the first process."""
        if not trainer.is_global_zero:
            return
        path = self.folder / "loss.png"
        try:
            if (picture := run_picture(self.folder, self.stage, self.run_name)) is not None:
                write_atomically(path, picture)
        except WriteError as error:
            log.warning("%s; the run itself is not affected", error)
        except Exception as error:  # whatever a drawing library makes of broken fonts or settings
            log.warning(
                "%s could not be drawn (%s); metrics.csv has its figures, and nanochat-pl report %s draws them",
                path,
                type(error).__name__,
                self.folder,
            )
