"""Health metrics: signs that something goes wrong in a run before its loss shows it.

They are measured on logged steps and have no effect on training: the weights are the same with them and without. What
the device computes for them stays there until `Progress` reads it with the loss, so that a GPU is not waited for once
more. The gradient norm, another sign of health, is always logged as `train/grad_norm`.

| figure | meaning |
|---|---|
| `health/update_ratio_<role>` | RMS of what the step changed, over the RMS of the changed weights, by parameter role |
| `health/logit_max_frac` | largest absolute logit of a sample of tokens, over the softcap; 1 = nothing left to say |
| `health/padding_frac` | share of the positions read since the last row that hold padding |
| `health/cut_frac` | share of the conversations (data.packing=bestfit: tokens) read since the last row that were cut |
| `health/data_wait_frac` | share of the time since the last row in which the loop waited for data |
| `health/peak_memory_gib` | most memory held so far: of the GPU's, else of the process |

What a model of 2026 has learned in single numbers, `learned_scalars`, is logged with each validation instead.
"""

import resource
import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from nanochat_pl.data.batch import Batch
from nanochat_pl.model.gpt import GPT
from nanochat_pl.optim.config import ROLES
from nanochat_pl.training.callbacks import DATA_WAIT_S, is_logged

__all__ = ["Health", "learned_scalars", "logit_max_frac", "peak_memory_gib", "update_ratio"]

LOGIT_TOKENS = 256
"""Tokens whose logits are looked at: at a vocabulary of 65,536 they take 64 MiB."""


def update_ratio(before: list[Tensor], after: list[Tensor]) -> Tensor:
    """Return the RMS of `after - before` over the RMS of `after`, over all tensors together, 0-dim, on their device.

    Over `after`, so that weights which begin at zero have a ratio of 1 at first, not of infinity; 0 where all is zero.
    The memory of `before` is used up.
    """
    torch._foreach_sub_(before, after)
    change, weight = (torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (before, after))
    return change / weight.clamp_min(torch.finfo(weight.dtype).tiny)


def logit_max_frac(model: GPT, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
    """Return the largest absolute softcapped logit over the softcap, 0-dim, from 0 to 1, on the model's device.

    Runs the model as written, never its compiled form, which a batch of another shape would compile anew.

    Args:
        model: the network.
        tokens: (B, T) int64.
        positions: (B, T) int64, see `GPT.hidden`.
    """
    with torch.no_grad():
        logits = model.logits(model.hidden(tokens, positions))
        return torch.stack(torch.aminmax(logits)).abs().amax() / model.config.softcap


def learned_scalars(model: GPT) -> dict[str, float]:
    """Return the single numbers that a model learns, as `scalar/<name of the parameter>`, with the layer where it has
    one for each; empty where no trick of the architecture has any."""
    roles = [parameters for role, parameters in model.param_roles().items() if ROLES[role].has_scalars]
    vectors = {id(p) for parameters in roles for p in parameters if p.dim() == 1}
    found = {name: p.detach().float() for name, p in model.named_parameters() if id(p) in vectors}
    if not found:
        return {}
    values = torch.cat(list(found.values())).tolist()  # waits for the device once
    names = [f"scalar/{name}" + f"_{i}" * (len(p) > 1) for name, p in found.items() for i in range(len(p))]
    return dict(zip(names, values, strict=True))


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory held so far, GiB: by tensors on a GPU, elsewhere by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Health(Callback):
    """Measure the health of training at each logged step; `Progress` reads it with `step_metrics`.

    Weights are copied one optimizer at a time, just before it updates them: by then the activations are gone, so the
    copy does not raise the step's peak of memory.
    """

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []
        self._module: Any = None  # on a logged step only
        self._batch: Any = None
        self._before: list[list[Tensor]] = []
        self._ratios: dict[str, Tensor] = {}
        self._peak: dict[str, Tensor] = {}
        self._all_cut = 0
        self._restart()

    def _restart(self) -> None:
        self._tokens = self._places = self._rows = self._cut = 0
        self._read = self._cropped = 0
        self._waited = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        resumed = getattr(trainer.datamodule, "cursor", None) or {}  # type: ignore[attr-defined]
        self._all_cut = resumed.get("counts", {}).get("cut", 0)
        self._restart()
        self._idle_since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._waited += time.perf_counter() - self._idle_since
        if isinstance(batch, Batch):
            self._count(batch)
        module: Any = pl_module
        if is_logged(trainer.global_step, module.log_every_steps, trainer.max_steps):
            self._module, self._batch = module, batch

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._idle_since = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._remove_hooks()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _count(self, batch: Batch) -> None:
        self._tokens += batch.tokens
        self._places += batch.inputs.numel()
        self._rows += batch.rows
        all_cut = batch.cursor.get("counts", {}).get("cut", 0)
        self._cut += all_cut - self._all_cut
        self._all_cut = all_cut
        if batch.cropped is not None:
            # each row has read one token more than it has inputs: its last target
            self._read += batch.inputs.numel() + batch.inputs[..., 0].numel() + batch.cropped
            self._cropped += batch.cropped

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._module is None:
            return
        if not self._peak:  # before the first of the optimizers, with the weights that gave the loss
            self._look_at_logits()
        self._before = [[p.detach().clone() for p in group["params"]] for group in optimizer.param_groups]

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._module is None:
            return
        for group, before in zip(optimizer.param_groups, self._before, strict=True):
            after = [p.detach() for p in group["params"]]
            self._ratios[f"health/update_ratio_{group['name']}"] = update_ratio(before, after)
        self._before = []

    def _look_at_logits(self) -> None:
        example = self._module.example_tokens(self._batch)
        if example is not None:
            tokens, positions = (each if each is None else each[:, :LOGIT_TOKENS] for each in example)
            self._peak["health/logit_max_frac"] = logit_max_frac(self._module.model, tokens, positions)

    def step_metrics(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the metrics of this rank for the logged step just taken, and restart the counts.

        Returns:
            The metrics to average over ranks, `DATA_WAIT_S` among them, and those to take the maximum of. They are
            numbers, or 0-dim tensors that a device may still have to compute. Names are the same on every rank.
        """
        means: dict[str, Any] = dict(self._ratios)
        if self._places:
            means["health/padding_frac"] = 1 - self._tokens / self._places
        if isinstance(self._batch, Batch) and "counts" in self._batch.cursor:
            means["health/cut_frac"] = self._cut / max(self._rows, 1)
        elif isinstance(self._batch, Batch) and self._batch.cropped is not None:
            means["health/cut_frac"] = self._cropped / max(self._read, 1)
        means[DATA_WAIT_S] = self._waited
        maxima = {**self._peak, "health/peak_memory_gib": peak_memory_gib(self._module.device)}
        self._module = self._batch = None
        self._ratios, self._peak = {}, {}
        self._restart()
        return means, maxima
