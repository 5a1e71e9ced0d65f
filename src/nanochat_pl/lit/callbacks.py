"""What happens beside the training step: validation, the log, the summary. Pure functions do the maths.

A step number counts the updates made so far, as the original's loop does: validation at step s sees the weights after
s updates, and `train/loss` at step s is the loss of the update that follows. A resumed run therefore repeats the
validation of the step it resumes from and its log continues without a seam.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from nanochat_pl.eval.bpb import evaluate_loss
from nanochat_pl.lit.checkpoints import Checkpoints
from nanochat_pl.lit.datamodules import StepBatches
from nanochat_pl.lit.health import DATA_WAIT_S, Health, is_logged
from nanochat_pl.lit.loggers import MetricsFile
from nanochat_pl.lit.preflight import unfinished
from nanochat_pl.lit.record import earlier_seconds
from nanochat_pl.lit.signals import Stopped
from nanochat_pl.paths import WriteError, write_atomically
from nanochat_pl.report.history import run_picture

log = logging.getLogger(__name__)

WRITE_EVERY_S = 60.0
"""Between two writes of a running run's summary.json."""


def log_metrics(trainer: L.Trainer, metrics: dict[str, float], step: int) -> None:
    """Send one row to every logger; to a dashboard with all that a curve may be drawn over, in every row.

    metrics.csv has tokens, FLOPs and time in its own rows of the log; whoever reads it joins rows by step.
    """
    axes = next((c.axes() for c in trainer.callbacks if isinstance(c, Progress)), {})  # type: ignore[attr-defined]
    for logger in trainer.loggers:
        row = metrics if isinstance(logger, MetricsFile) else axes | metrics
        logger.log_metrics({"step": step, **row}, step)  # W&B draws over a column, not over its own argument


def is_due(trainer: L.Trainer, every_steps: int | None) -> bool:
    """Say whether what happens every so many steps, and at the end, happens now; None = at the end only."""
    step = trainer.global_step
    return step >= trainer.max_steps or (every_steps is not None and step % every_steps == 0)


def over_ranks(
    trainer: L.Trainer, device: torch.device, means: dict[str, Any], maxima: dict[str, Any]
) -> dict[str, float]:
    """Read figures off the device, over all ranks, and wait for it once.

    Args:
        trainer: reduces.
        device: where the ranks' figures meet.
        means: figures (numbers or 0-dim tensors) whose mean over ranks is wanted.
        maxima: those whose maximum is; the same names on every rank, as in `means`.
    """
    figures = means | maxima
    waiting = {name: value.float() for name, value in figures.items() if isinstance(value, torch.Tensor)}
    if trainer.world_size == 1:  # what is a number already has no way to go
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


class Progress(Callback):
    """Log loss, rate and speed at a fixed rhythm, as rows for the loggers and as one line for people.

    Args:
        every_steps: the rhythm.
        flops_per_token: for MFU and total FLOPs.
        peak_flops: the device's peak per rank, FLOP/s; None = unknown, no MFU.
        validation: its time does not count as training time.
    """

    def __init__(
        self,
        every_steps: int,
        flops_per_token: int,
        peak_flops: float | None,
        validation: Validation,
    ) -> None:
        self.every_steps = every_steps
        self.flops_per_token = flops_per_token
        self.peak_flops = peak_flops
        self.validation = validation
        self.latest: dict[str, float] = {}
        self.tokens = 0
        self.seconds = 0.0
        self.speeds: list[float] = []
        self.pace: float | None = None
        """Seconds a step of the last row, without the first step of a session, which compiles; None = not known yet."""
        self._earlier_speed: float | None = None

    def state_dict(self) -> dict[str, Any]:
        # The figures as well: a run that was killed at its end has them in its summary all the same.
        speed = {"median_speed": self.median_speed, "latest": self.latest}
        return {"tokens": self.tokens, "seconds": self.seconds, **speed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.seconds = state_dict["tokens"], state_dict["seconds"]
        self.latest = dict(state_dict.get("latest", {}))
        self._earlier_speed = state_dict.get("median_speed")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.forget_from(trainer.global_step)
        self._first_step = trainer.global_step
        self.pace = None
        self._restart()

    def _restart(self) -> None:
        self._mark = time.perf_counter()
        self._paused = self.validation.seconds
        self._since_tokens = 0
        self._since_steps = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step - 1
        count = (
            outputs["tokens"] * trainer.world_size
        )  # of conversations an estimate: ranks get as many, of other lengths
        self.tokens += count
        self._since_tokens += count
        self._since_steps += 1
        if trainer.global_step - self._first_step == 1:
            self._warm, self._warm_paused = time.perf_counter(), self.validation.seconds
        if not is_logged(step, self.every_steps, trainer.max_steps):
            return
        # Ranks hold means over their own part, scaled so that their mean is the step's loss.
        own = {"train/loss": outputs["loss"], "train/grad_norm": outputs["grad_norm"], **outputs["figures"]}
        epoch = getattr(batch, "epoch", None)
        own |= {} if epoch is None else {"epoch": epoch}
        maxima: dict[str, Any] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Health):
                signs, maxima = callback.figures()
                own |= signs
        found = over_ranks(trainer, outputs["loss"].device, own, maxima)
        now = time.perf_counter()
        seconds = now - self._mark - (self.validation.seconds - self._paused)
        self.seconds += seconds
        if trainer.global_step - self._first_step > self._since_steps:
            self.pace = seconds / self._since_steps
        elif self._since_steps > 1:
            spent = now - self._warm - (self.validation.seconds - self._warm_paused)
            self.pace = spent / (self._since_steps - 1)
        speed = self._since_tokens / max(seconds, 1e-9)
        if trainer.global_step - self._first_step > self.every_steps:  # the first rows hold compilation
            self.speeds.append(speed)
        if DATA_WAIT_S in found:
            found["health/data_wait_frac"] = found.pop(DATA_WAIT_S) / max(seconds, 1e-9)
        self.latest = {
            "train/loss": found.pop("train/loss"),
            "train/lrm": outputs["lrm"],
            "train/grad_norm": found.pop("train/grad_norm"),
            "train/dt": seconds / self._since_steps,
            "train/tok_per_sec": speed,
            **self.axes(),
            **found,
        }
        if self.peak_flops:
            self.latest["train/mfu"] = 100 * speed * self.flops_per_token / (self.peak_flops * trainer.world_size)
        log_metrics(trainer, self.latest, step)
        log.info(self.line(step, int(trainer.max_steps)), extra={"in_bar": True})
        self._restart()

    def axes(self) -> dict[str, float]:
        """Give what else a curve may be drawn over: tokens, FLOPs and, up to the last row, seconds of training."""
        return {
            "tokens": self.tokens,
            "total_training_flops": float(self.tokens) * self.flops_per_token,
            "total_training_time": self.seconds,
        }

    def line(self, step: int, num_steps: int) -> str:
        """Format the latest figures as one line of plain text, without those that are not known."""
        now = self.latest
        loss = "- (no supervised token)" if math.isnan(now["train/loss"]) else f"{now['train/loss']:.4f}"
        parts = [f"step {step:05d}/{num_steps:05d} ({100 * step / num_steps:.1f}%)", f"loss {loss}"]
        parts += [f"reward {now['reward']:.4f}"] if "reward" in now else []
        parts += [f"lrm {now['train/lrm']:.2f}", f"dt {1000 * now['train/dt']:.0f} ms"]
        parts.append(f"tok/s {now['train/tok_per_sec']:,.0f}")
        parts += [f"mfu {now['train/mfu']:.1f}%"] if "train/mfu" in now else []
        parts += [f"eta {eta}"] if (eta := self.eta(num_steps - step - 1)) else []
        return " | ".join(parts)

    def eta(self, num_steps: int) -> str:
        """Say how long so many steps will take, as `2m05s`; nothing while it is not known."""
        seconds = int(num_steps * (self.pace or 0.0))
        return "" if self.pace is None else f"{seconds // 60}m{seconds % 60:02d}s"

    @property
    def median_speed(self) -> float | None:
        """Tokens a second, median over the rows after the first; before there is any, that of the session before."""
        return float(np.median(self.speeds)) if self.speeds else self._earlier_speed


class Bar(RichProgressBar):
    """A progress bar for terminals, with the figures of the last logged row: one line, whatever the width."""

    def __init__(self, figures: Progress) -> None:
        super().__init__(refresh_rate=1, leave=True)
        self.figures = figures

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        return [_Line(self.figures)]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return {}  # they stand in the line


class _Line(ProgressColumn):
    """Steps, bar, time left and figures; those that there is no room for are left out, the last ones first."""

    def __init__(self, figures: Progress) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.figures = figures

    def render(self, task: Task) -> Text:
        return Text(self.text(int(task.completed), int(task.total or 0), Console(stderr=True).width - 2))

    def text(self, step: int, num_steps: int, width: int) -> str:
        """Write the line for a terminal of so many columns."""
        now = self.figures.latest
        eta = self.figures.eta(num_steps - step)
        parts = [f"{eta} left"] if eta and step < num_steps else []
        parts += [f"loss {now['train/loss']:.3f}", f"tok/s {now['train/tok_per_sec']:,.0f}"] if now else []
        parts += [f"reward {now['reward']:.3f}"] if "reward" in now else []
        parts += [f"{key} {value:.4f}" for key, value in self.figures.validation.latest.items()]
        head, room = f"step {step}/{num_steps} ", 10
        shown: list[str] = []
        for part in parts:
            if len(head) + room + len(" | ".join(["", *shown, part])) > width:
                break
            shown.append(part)
        tail = "".join(f" | {part}" for part in shown)
        room = max(0, min(40, width - len(head) - len(tail)))
        done = room * step // max(num_steps, 1)
        return f"{head}{'━' * done}{'─' * (room - done)}{tail}"[:width]


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
