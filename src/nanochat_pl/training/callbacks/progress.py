"""The log of a run: rows of figures for the loggers, one line and a progress bar for people."""

import logging
import math
import time
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from nanochat_pl.training.callbacks import log_metrics, over_ranks
from nanochat_pl.training.callbacks.diagnostics import DATA_WAIT_S, Health, is_logged
from nanochat_pl.training.callbacks.validation import Validation
from nanochat_pl.training.loggers import MetricsFile

log = logging.getLogger(__name__)


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
