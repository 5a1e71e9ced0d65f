"""When and how a run is saved: at an interval, before evaluations and when it has to stop, and never half a file.

Files in `checkpoints/`: `step_000300.ckpt` every n steps (the newest k are kept), `last.ckpt` (always the newest
state) and `best.ckpt` (best validation figure). Each is written under another name, flushed to disk and renamed:
a kill at any moment leaves the previous file whole. A signal only raises a flag: the save happens between two steps,
where the state is consistent. If there is nothing to save, or at a second signal, the run ends at once.
"""

import logging
import random
import signal
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from nanochat_pl.paths import WriteError, atomic_file, first_line
from nanochat_pl.runtime import gather
from nanochat_pl.training import signals
from nanochat_pl.training.callbacks import RunCallback
from nanochat_pl.training.environment import give_time_to_end
from nanochat_pl.training.signals import Stopped
from nanochat_pl.training.state import RunState

log = logging.getLogger(__name__)


class CheckpointWriteError(WriteError):
    """A checkpoint could not be written; the one before it is untouched."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint under another name, flush it to disk, then rename it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            text = str(error) if isinstance(error, WriteError) else f"cannot write {path} ({first_line(error)})"
            raise CheckpointWriteError(f"{text}; earlier checkpoints are untouched: resume=auto goes on") from error


def random_state() -> dict[str, Any]:
    """Return the states of the generators of torch, numpy and Python as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  (the global one is what is saved)
    version, internal, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the generators to the states that `random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class Checkpoints(RunCallback):
    """Save at an interval, on a signal and at the end, and keep the random state across sessions.

    Args:
        stop_after_steps: save and stop after this many steps of this process; the horizon stays as it is.
    """

    priority = 80  # after the log of the step, before its validation

    def __init__(self, run: RunState, stop_after_steps: int | None = None) -> None:
        super().__init__(run)
        self.stop_after_steps = stop_after_steps
        self._first_step = 0
        self._resumed: list[dict[str, Any]] | None = None
        self._handlers: dict[int, Any] = {}
        self._trainer: L.Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        files = self.run.checkpoints
        return {"best": files.best, "best_step": files.best_step, "random": gather(random_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        files = self.run.checkpoints
        files.best, files.best_step = state_dict["best"], state_dict["best_step"]
        self._resumed = state_dict["random"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first_step = trainer.global_step
        if trainer.is_global_zero:
            for half in self.run.checkpoints.folder.glob(".*.ckpt.*.tmp"):  # left by a process killed while it wrote
                half.unlink(missing_ok=True)
        if self._resumed is not None and len(self._resumed) == trainer.world_size:
            restore_random_state(self._resumed[trainer.global_rank])
        self._trainer = trainer
        self._handlers = signals.install(self._note_signal)  # in place of Lightning's
        give_time_to_end()

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        assert self._trainer is not None
        step, name = self._trainer.global_step, signal.Signals(number).name
        saved_step = self.run.checkpoints.saved_step
        nothing_new = step in (saved_step, self._first_step)
        if self.run.signal is not None:
            kept = self._first_step if saved_step is None else saved_step
            self.run.ended_unsaved = True
            text = f"{name}: a second signal, so the run ends at once; " + (
                f"the last checkpoint is that of step {kept}" if kept else "nothing was saved yet"
            )
        elif nothing_new and self._trainer.world_size == 1:  # further ranks would wait for this one
            text = f"{name}: the run ends; " + (
                f"step {step} is saved" if step == saved_step else "no step has been finished since it started"
            )
        else:
            self.run.signal = number
            if self._trainer.is_global_zero:
                doing = "this step" if self._trainer.world_size == 1 else "this step, or the validation under way,"
                signals.say(f"{name}: the run ends when {doing} is finished and saved; a second signal ends it at once")
            return
        self.run.signal = number
        if self._trainer.is_global_zero:
            signals.say(text)
        signals.end(number)

    def _restore_handlers(self) -> None:
        signals.install(None, self._handlers)
        self._handlers = {}

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        run, step = self.run, trainer.global_step
        if run.checkpoints.every_steps and step % run.checkpoints.every_steps == 0:
            run.checkpoints.save(trainer)
        stopped = run.told_to_stop(trainer)
        enough = self.stop_after_steps is not None and step - self._first_step >= self.stop_after_steps
        enough = enough and step < trainer.max_steps  # else the run is over and ends as runs do
        if stopped or enough:
            run.checkpoints.save(trainer)
            if run.signal is not None:
                log.info("%s: saved at step %d", signal.Signals(run.signal).name, step)
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        launcher = trainer.strategy.launcher
        if isinstance(exception, Stopped) and hasattr(launcher, "kill"):
            launcher.kill(signal.SIGKILL)  # the other ranks would wait for this one for ever
        self._restore_handlers()
