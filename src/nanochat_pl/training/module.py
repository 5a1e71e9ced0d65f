"""The LightningModule: one optimizer step per Lightning batch, two optimizers, counted once.

A batch holds the micro-batches of a whole optimizer step, so `batch_idx`, `global_step`, every cadence and every
x axis count the same thing. `training_step` is written once; a stage says only what its losses are. Everything
else (validation, checkpoints, logs) is a callback.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from nanochat_pl.data.batch import Batch
from nanochat_pl.model.gpt import GPT
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.groups import build_optimizers, check_roles, clip_gradients, set_schedule


class DivergedError(ValueError):
    """The loss or the gradient stopped being a number; the last good checkpoint stands."""


class LanguageModel(L.LightningModule):
    """Train a GPT with Muon and AdamW under manual optimization.

    Args:
        model: the network; its parameters stay float32, it casts to its own compute dtype.
        optim: rates, schedule and clipping.
        num_steps: optimizer steps of the whole run, the schedule's horizon.
        log_every_steps: how often a number may leave the device.
        metadata: plain data saved inside every checkpoint (config, tokenizer, stage): what makes it self-contained.
    """

    def __init__(
        self, model: GPT, optim: OptimConfig, num_steps: int, log_every_steps: int = 10, metadata: dict | None = None
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.optim = optim
        self.num_steps = num_steps
        self.log_every_steps = log_every_steps
        self.metadata = metadata or {}
        self.compiled = False  # what `compile_model` made of the model, for the record of the run
        self._diverged_step: Tensor | None = None
        self._supervised: Tensor | int = 1

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        check_roles(self.model.param_roles(), self.model.named_parameters())
        optimizers = build_optimizers(self.model.param_roles(), self.model.config.n_embd, self.optim)
        self._settings = [[{k: v for k, v in g.items() if k != "params"} for g in o.param_groups] for o in optimizers]
        return optimizers

    def on_train_start(self) -> None:
        # A checkpoint brings its own rates back; a resumed run obeys the config it was started with.
        for optimizer, settings in zip(self.trainer.optimizers, self._settings):
            for group, wanted in zip(optimizer.param_groups, settings):
                group.update(wanted)

    def prepare(self, batch: Any) -> Any:
        """Turn what the data module gave into what `losses` reads; reinforcement learning samples here."""
        return batch

    def losses(self, batch: Batch) -> Iterator[Tensor]:
        """Yield one loss per micro-batch; over micro-batches and ranks they add up to the step's mean.

        Every supervised token of the step weighs the same, wherever it lies: the denominator is the number of
        supervised tokens of all micro-batches and ranks, and the factor world_size undoes the averaging of
        gradients over ranks.
        """
        world = self.trainer.world_size
        supervised = batch.supervised_tokens
        if world > 1:
            count = torch.tensor(float(supervised), device=self.device)
            supervised = self.trainer.strategy.reduce(count, reduce_op="sum")
        self._supervised = supervised
        scale = world / max(supervised, 1)
        for a in range(len(batch.inputs)):
            positions = None if batch.positions is None else batch.positions[a]
            yield self.model(batch.inputs[a], batch.targets[a], positions, reduction="sum") * scale

    def metrics(self) -> dict[str, Any]:
        """Return what a stage logs in addition to loss and gradient norm: numbers to average over ranks."""
        return {}

    def example_tokens(self, batch: Any) -> tuple[Tensor, Tensor | None] | None:
        """Return tokens and positions, (1, T) int64 or None, of one row that the step trains on, if there is any."""
        return batch.inputs[0, :1], None if batch.positions is None else batch.positions[0, :1]

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Take one optimizer step; return its mean loss over micro-batches and the gradient norm before clipping.

        The loss of a step without a single supervised token is NaN; its gradient is zero.
        """
        # 1) The rates of this step. Reinforcement learning also samples its answers here.
        step = self.trainer.global_step
        batch = self.prepare(batch)
        *uncounted, counted = self._optimizers()
        lrm = set_schedule([each.optimizer for each in (*uncounted, counted)], step, self.num_steps, self.optim)

        # 2) Gradients add up over the micro-batches; ranks average theirs in the last backward only.
        last = len(batch.inputs) - 1
        total = torch.zeros((), device=self.device)
        for a, loss in enumerate(self.losses(batch)):
            with self._synchronised(a == last):
                self.manual_backward(loss)
            total += loss.detach()
        if isinstance(self._supervised, Tensor):  # on the device, so that nothing waits for it
            total = torch.where(self._supervised > 0, total, math.nan)
        elif not self._supervised:
            total.fill_(math.nan)  # a mean over no token is no number, and 0 would look like a perfect one

        # 3) Reading the norm costs a synchronisation on a GPU: there it is looked at when it is logged, or saved.
        norm = clip_gradients(self.model.parameters(), self.optim.grad_clip)
        self._note_divergence(norm, step)
        if self.device.type == "cpu" or step % self.log_every_steps == 0:
            self._check_finite()

        # 4) Lightning counts every LightningOptimizer.step(): only the last one's is one, so that all count once.
        with torch.autocast(self.device.type, enabled=False):
            for each in uncounted:
                each.optimizer.step()
            counted.step()
        self.model.zero_grad(set_to_none=True)
        return {"loss": total, "grad_norm": norm, "lrm": lrm, "tokens": batch.tokens, "metrics": self.metrics()}

    def _optimizers(self) -> list[LightningOptimizer]:
        """Lightning's wrappers, also where there is only one."""
        found = self.optimizers()
        return found if isinstance(found, list) else [found]  # type: ignore[list-item]

    def _synchronised(self, sync: bool) -> contextlib.AbstractContextManager:
        """Average gradients over ranks in the last backward of a step only."""
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return contextlib.nullcontext() if sync or block is None else block()

    def _note_divergence(self, norm: Tensor, step: int) -> None:
        """Keep the number of the first step whose gradient was not finite, on the device; -1 = none yet."""
        if self._diverged_step is None:
            self._diverged_step = torch.full((), -1, device=norm.device)
        first = (self._diverged_step < 0) & ~torch.isfinite(norm)
        self._diverged_step = torch.where(first, step, self._diverged_step)

    def _check_finite(self) -> None:
        """Stop where a gradient was not finite. Gradients are averaged, so all ranks find the same.

        Raises:
            DivergedError: names the first such step.
        """
        step = -1 if self._diverged_step is None else int(self._diverged_step)
        if step >= 0:
            raise DivergedError(
                f"the gradient at step {step} is not finite (nor, most likely, the loss); nothing was saved since and "
                "the last checkpoint is good; lower optim.matrix_lr / optim.embedding_lr, or set optim.grad_clip=1.0, "
                "then resume=auto"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_finite()
        checkpoint["nanochat_pl"] = self.metadata
