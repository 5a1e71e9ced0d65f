"""The log of a run: rows of metrics for the loggers, one line for the log, and a progress bar on a terminal."""

import logging
import math
import time
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from nanochat_pl.training.callbacks import DATA_WAIT_S, RunCallback, StepMetrics, is_logged, log_metrics, over_ranks
from nanochat_pl.training.loggers import MetricsFile
from nanochat_pl.training.state import RunState

log = logging.getLogger(__name__)


class Progress(RunCallback):
    """Log loss, rate and speed at a fixed interval: a row for the loggers and one human-readable line.

    Args:
        every_steps: the interval in optimizer steps.
        peak_flops: the peak of the device per rank, FLOP/s; None = unknown, so that there is no MFU.
    """

    priority = 90  # before a checkpoint of the step is written, which holds what was logged of it

    def __init__(self, run: RunState, every_steps: int, peak_flops: float | None) -> None:
        super().__init__(run)
        self.every_steps = every_steps
        self.peak_flops = peak_flops
        self.speeds: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        # The metrics as well: then a run that was killed at its end still has them in its summary.
        run = self.run
        return {"tokens": run.tokens, "seconds": run.seconds, "median_speed": run.median_speed, "latest": run.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run.tokens, self.run.seconds = state_dict["tokens"], state_dict["seconds"]
        self.run.metrics = dict(state_dict.get("latest", {}))
        self.run.median_speed = state_dict.get("median_speed")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.forget_from(trainer.global_step)
        self._first_step = trainer.global_step
        self.run.seconds_per_step = None
        self._restart()

    def _restart(self) -> None:
        self._mark = time.perf_counter()
        self._paused = self.run.paused_seconds
        self._since_tokens = 0
        self._since_steps = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step - 1
        # For conversations this is an estimate: ranks get equally many, of other lengths.
        count = outputs["tokens"] * trainer.world_size
        self.run.tokens += count
        self._since_tokens += count
        self._since_steps += 1
        if trainer.global_step - self._first_step == 1:
            self._warm, self._warm_paused = time.perf_counter(), self.run.paused_seconds
        if is_logged(step, self.every_steps, trainer.max_steps):
            self._log(trainer, step, outputs, batch)

    def _log(self, trainer: L.Trainer, step: int, outputs: Any, batch: Any) -> None:
        """Log the step just taken."""
        run = self.run
        # 1) Ranks hold means over their own part, scaled so that their mean is the step's loss.
        own = {"train/loss": outputs["loss"], "train/grad_norm": outputs["grad_norm"], **outputs["metrics"]}
        epoch = getattr(batch, "epoch", None)
        own |= {} if epoch is None else {"epoch": epoch}
        maxima: dict[str, Any] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepMetrics):
                means, maxima = callback.step_metrics()
                own |= means
        # 2) Reading them waits for the device, once; only now is the time that the steps took known.
        found = over_ranks(trainer, outputs["loss"].device, own, maxima)
        now = time.perf_counter()
        seconds = now - self._mark - (run.paused_seconds - self._paused)
        run.seconds += seconds
        if trainer.global_step - self._first_step > self._since_steps:
            run.seconds_per_step = seconds / self._since_steps
        elif self._since_steps > 1:  # the first row of a session: without its first step, which compiles
            spent = now - self._warm - (run.paused_seconds - self._warm_paused)
            run.seconds_per_step = spent / (self._since_steps - 1)
        speed = self._since_tokens / max(seconds, 1e-9)
        if trainer.global_step - self._first_step > self.every_steps:  # the first rows hold compilation
            self.speeds.append(speed)
            run.median_speed = float(np.median(self.speeds))
        if DATA_WAIT_S in found:
            found["health/data_wait_frac"] = found.pop(DATA_WAIT_S) / max(seconds, 1e-9)
        # 3) One row, the same on every rank; the loggers of the first one write it.
        run.metrics = {
            "train/loss": found.pop("train/loss"),
            "train/lrm": outputs["lrm"],
            "train/grad_norm": found.pop("train/grad_norm"),
            "train/dt": seconds / self._since_steps,
            "train/tok_per_sec": speed,
            **run.axes(),
            **found,
        }
        if self.peak_flops:
            run.metrics["train/mfu"] = 100 * speed * run.flops_per_token / (self.peak_flops * trainer.world_size)
        log_metrics(trainer, run, run.metrics, step)
        log.info(log_line(run, step, int(trainer.max_steps)), extra={"in_bar": True})
        self._restart()


def log_line(run: RunState, step: int, num_steps: int) -> str:
    """Format the last logged row as one line of plain text, without the metrics that are not known."""
    now = run.metrics
    loss = "- (no supervised token)" if math.isnan(now["train/loss"]) else f"{now['train/loss']:.4f}"
    parts = [f"step {step:05d}/{num_steps:05d} ({100 * step / num_steps:.1f}%)", f"loss {loss}"]
    parts += [f"reward {now['reward']:.4f}"] if "reward" in now else []
    parts += [f"lrm {now['train/lrm']:.2f}", f"dt {1000 * now['train/dt']:.0f} ms"]
    parts.append(f"tok/s {now['train/tok_per_sec']:,.0f}")
    parts += [f"mfu {now['train/mfu']:.1f}%"] if "train/mfu" in now else []
    parts += [f"eta {eta}"] if (eta := time_left(run, num_steps - step - 1)) else []
    return " | ".join(parts)


def time_left(run: RunState, num_steps: int) -> str:
    """Format how long `num_steps` steps will take, as `2m05s`; empty while the pace is not known."""
    if run.seconds_per_step is None:
        return ""
    seconds = int(num_steps * run.seconds_per_step)
    return f"{seconds // 60}m{seconds % 60:02d}s"


class ProgressBar(RichProgressBar):
    """A progress bar for terminals with the metrics of the last logged row: one line, whatever the width."""

    priority = -10  # after all others, whose results it shows

    def __init__(self, run: RunState) -> None:
        super().__init__(refresh_rate=1, leave=True)
        self.run = run

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        return [_LineColumn(self.run)]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return {}  # they stand in the line


class _LineColumn(ProgressColumn):
    """Steps, bar, time left and metrics; the last ones are left out if there is no room for them."""

    def __init__(self, run: RunState) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.run = run

    def render(self, task: Task) -> Text:
        return Text(self.text(int(task.completed), int(task.total or 0), Console(stderr=True).width - 2))

    def text(self, step: int, num_steps: int, width: int) -> str:
        """Return the line for a terminal of `width` columns."""
        now = self.run.metrics
        eta = time_left(self.run, num_steps - step)
        parts = [f"{eta} left"] if eta and step < num_steps else []
        parts += [f"loss {now['train/loss']:.3f}", f"tok/s {now['train/tok_per_sec']:,.0f}"] if now else []
        parts += [f"reward {now['reward']:.3f}"] if "reward" in now else []
        parts += [f"{key} {value:.4f}" for key, value in self.run.validation.items()]
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
