"""The curves of a run as loss.png, drawn when its training ends."""

import logging

import lightning as L

from nanochat_pl.paths import WriteError, write_atomically
from nanochat_pl.report.history import run_picture
from nanochat_pl.training.callbacks import RunCallback
from nanochat_pl.training.state import RunState

log = logging.getLogger(__name__)


class Picture(RunCallback):
    """Draw loss.png next to metrics.csv when training ends, even early: the curves over all sessions of the run.

    A picture that cannot be drawn or written costs one line of warning, never the run.
    """

    priority = 20  # after the summary

    def __init__(self, run: RunState) -> None:
        super().__init__(run)
        self._started = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.draw(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._started and not self.run.ended_unsaved:
            self.draw(trainer)

    def draw(self, trainer: L.Trainer) -> None:
        """Draw metrics.csv as it is on the disk, on the first process."""
        if not trainer.is_global_zero:
            return
        folder = self.run.folder
        path = folder / "loss.png"
        try:
            if (picture := run_picture(folder, self.run.facts["stage"], self.run.facts["run_name"])) is not None:
                write_atomically(path, picture)
        except WriteError as error:
            log.warning("%s; the run itself is not affected", error)
        except Exception as error:  # whatever a drawing library makes of broken fonts or settings
            log.warning(
                "%s could not be drawn (%s); metrics.csv has its figures, and nanochat-pl report %s draws them",
                path,
                type(error).__name__,
                folder,
            )
