"""When and how a run is saved: on a timetable, before evaluations, when told to stop, and never half.

Files in `checkpoints/`: `step_000300.ckpt` every n steps (the newest k are kept), `last.ckpt` (always the newest
state) and `best.ckpt` (best validation figure). Each is written beside its place, flushed to disk and renamed, so
a kill at any moment leaves the previous file whole. A signal only raises a flag: the save happens between two steps,
where the state is consistent. If there is nothing to save, or at a second signal, the run ends at once.
"""

import logging
import math
import random
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from nanochat_pl.paths import WriteError, atomic_file, first_line, link_or_copy
from nanochat_pl.runtime import world_size
from nanochat_pl.training import signals
from nanochat_pl.training.signals import Stopped

log = logging.getLogger(__name__)


class CheckpointWriteError(WriteError):
    """A checkpoint could not be written; the one before it is untouched."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place, flush it to disk, then rename it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            said = str(error) if isinstance(error, WriteError) else f"cannot write {path} ({first_line(error)})"
            raise CheckpointWriteError(f"{said}; earlier checkpoints are untouched: resume=auto goes on") from error


def random_state() -> dict[str, Any]:
    """Give the states of torch's, numpy's and Python's generators as tensors and plain values."""
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
    """Set the generators to what `random_state` gave."""
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class Checkpoints(Callback):
    """Save on a timetable, before validation, on a signal, at the end; keep the best.

    Args:
        folder: where the files go.
        every_steps: write step_NNNNNN.ckpt every so many steps; None = never.
        keep: how many of them to keep.
        stop_after_steps: leave after so many steps of this process, state saved, horizon unchanged.
    """

    def __init__(self, folder: Path, every_steps: int | None, keep: int, stop_after_steps: int | None = None) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.keep = keep
        self.stop_after_steps = stop_after_steps
        self.best: float | None = None
        self.best_step: int | None = None
        self.saved_step: int | None = None
        self.signal: int | None = None
        self.ended_unsaved = False
        self._first_step = 0
        self._resumed: list[dict[str, Any]] | None = None
        self._handlers: dict[int, Any] = {}
        self._trainer: L.Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        states: list[Any] = [random_state()]
        if world_size() > 1:
            states = [None] * world_size()
            dist.all_gather_object(states, random_state())
        return {"best": self.best, "best_step": self.best_step, "random": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self._resumed = state_dict["random"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first_step = trainer.global_step
        if trainer.is_global_zero:
            for half in self.folder.glob(".*.ckpt.*.tmp"):  # of a process killed while it wrote
                half.unlink(missing_ok=True)
        if self._resumed is not None and len(self._resumed) == trainer.world_size:
            restore_random_state(self._resumed[trainer.global_rank])
        self._trainer = trainer
        self._handlers = signals.install(self._note_signal)  # in place of Lightning's

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        assert self._trainer is not None
        step, name = self._trainer.global_step, signal.Signals(number).name
        nothing_new = step in (self.saved_step, self._first_step)
        if self.signal is not None:
            kept = self._first_step if self.saved_step is None else self.saved_step
            self.ended_unsaved = True
            said = f"{name}: a second signal, so the run ends at once; " + (
                f"the last checkpoint is that of step {kept}" if kept else "nothing was saved yet"
            )
        elif nothing_new and self._trainer.world_size == 1:  # further ranks would wait for this one
            said = f"{name}: the run ends; " + (
                f"step {step} is saved" if step == self.saved_step else "no step has been finished since it started"
            )
        else:
            self.signal = number
            if self._trainer.is_global_zero:
                doing = "this step" if self._trainer.world_size == 1 else "this step, or the validation under way,"
                signals.say(f"{name}: the run ends when {doing} is finished and saved; a second signal ends it at once")
            return
        self.signal = number
        if self._trainer.is_global_zero:
            signals.say(said)
        signals.end(number)

    def told_to_stop(self, trainer: L.Trainer) -> bool:
        """Say whether any rank was sent a signal; then every rank knows which. All ranks must ask together."""
        number = self.signal or 0
        if trainer.world_size > 1:
            told = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(told, reduce_op="max"))
        self.signal = self.signal or number or None
        return number > 0

    def _restore_handlers(self) -> None:
        signals.install(None, self._handlers)
        self._handlers = {}

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if self.every_steps and step % self.every_steps == 0:
            self.save(trainer)
        told = self.told_to_stop(trainer)
        enough = self.stop_after_steps is not None and step - self._first_step >= self.stop_after_steps
        enough = enough and step < trainer.max_steps  # else the run is over and ends as runs do
        if told or enough:
            self.save(trainer)
            if self.signal is not None:
                log.info("%s: saved at step %d", signal.Signals(self.signal).name, step)
            trainer.should_stop = True

    def save(self, trainer: L.Trainer) -> None:
        """Write the state of this step to last.ckpt, and to step_NNNNNN.ckpt when the timetable says so."""
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

    def consider(self, trainer: L.Trainer, figure: float, higher_is_better: bool = False) -> bool:
        """Make the state just saved the best one if `figure` says so."""
        if math.isnan(figure):
            return False
        if self.best is not None and not (figure > self.best if higher_is_better else figure < self.best):
            return False
        self.best, self.best_step = figure, trainer.global_step
        if trainer.is_global_zero and self.saved_step == trainer.global_step:
            link_or_copy(self.folder / "last.ckpt", self.folder / "best.ckpt")
        return True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        launcher = trainer.strategy.launcher
        if isinstance(exception, Stopped) and hasattr(launcher, "kill"):
            launcher.kill(signal.SIGKILL)  # the other ranks would wait for this one for ever
        self._restore_handlers()
