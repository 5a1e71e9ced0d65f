"""Bits per byte: how many bits the model needs for each byte of unseen text.

Cross-entropy per token cannot be compared between tokenizers, since a larger vocabulary has fewer and harder tokens.
Dividing the sum of the losses by the bytes that the target tokens spell makes it comparable. Tokens that spell no text
(the special tokens) count neither in the sum nor in the bytes, nor do targets of -1.
"""

from collections.abc import Callable, Iterable
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from nanochat_pl.model.gpt import GPT

__all__ = ["BitsPerByte", "MeanLoss", "evaluate_bpb", "evaluate_loss"]


class BitsPerByte(Metric):
    """Sum losses and bytes over batches and, on `compute`, over ranks (nanochat, 2025-11).

    Nats are summed in float32, as MPS has no float64. `token_bytes` (V,) are the UTF-8 bytes that each token spells, 0
    for special tokens.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    nats: Tensor
    num_bytes: Tensor
    token_bytes: Tensor

    def __init__(self, token_bytes: Tensor | np.ndarray) -> None:
        super().__init__()
        self.register_buffer("token_bytes", torch.as_tensor(token_bytes).to(torch.int64), persistent=False)
        self.add_state("nats", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("num_bytes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, targets: Tensor) -> None:
        """Add the cross-entropy of each target in nats, in any shape; negative targets are not counted."""
        losses, targets = losses.reshape(-1).float(), targets.reshape(-1)
        spelled = torch.where(targets >= 0, self.token_bytes[targets.clamp(min=0)], 0)
        # where, not a product: a loss that is not finite at an uncounted position must not reach the sum
        self.nats += torch.where(spelled > 0, losses, 0.0).sum()
        self.num_bytes += spelled.sum()

    def compute(self) -> Tensor:
        """Return bits per byte as a scalar; infinite where no byte was counted."""
        if self.num_bytes == 0:
            return torch.full_like(self.nats, float("inf"))
        return self.nats / (log(2) * self.num_bytes)


class MeanLoss(Metric):
    """Mean cross-entropy in nats per supervised token, over batches and ranks; every token weighs the same.

    Unlike torchmetrics' MeanMetric it keeps NaN: a model that broke must not be scored on what is left.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    nats: Tensor
    num_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, losses: Tensor, targets: Tensor) -> None:
        """Add one batch, as `BitsPerByte.update`."""
        supervised = targets.reshape(-1) >= 0
        self.nats += torch.where(supervised, losses.reshape(-1).float(), 0.0).sum()
        self.num_tokens += supervised.sum()

    def compute(self) -> Tensor:
        """Return nats per token as a scalar; infinite, and so never the best, where no token was supervised."""
        if self.num_tokens == 0:
            return torch.full_like(self.nats, float("inf"))
        return self.nats / self.num_tokens


@torch.no_grad()
def evaluate_loss(
    forward: Callable[..., Tensor],
    batches: Iterable[Any],
    token_bytes: Tensor | np.ndarray | None,
    device: torch.device | str,
) -> tuple[float, float | None]:
    """Return mean cross-entropy (nats per supervised token) and bits per byte over `batches`; the same on every rank.

    Args:
        forward: A GPT or its bare `forward`, called as `forward(inputs, targets, positions, reduction="none")` on each
            micro-batch of (B, T).
        batches: This rank's share of `Batch` objects, finite (`itertools.islice` an endless loader). In a process group
            every rank must call, even one that has no batch.
        token_bytes: (V,) bytes of each token (`Tokenizer.token_bytes()`); None = no bits per byte.
    """
    mean = MeanLoss().to(device)
    bpb = None if token_bytes is None else BitsPerByte(token_bytes).to(device)
    for batch in batches:
        batch = batch.to(device)
        for micro, targets in enumerate(batch.targets):
            positions = None if batch.positions is None else batch.positions[micro]
            losses = forward(batch.inputs[micro], targets, positions, reduction="none")
            mean.update(losses, targets)
            if bpb is not None:
                bpb.update(losses, targets)
    return float(mean.compute()), None if bpb is None else float(bpb.compute())


def evaluate_bpb(model: GPT, batches: Iterable[Any], token_bytes: Tensor | np.ndarray) -> float:
    """Return bits per byte of `model` over `batches` (see `evaluate_loss`).

    Raises:
        ValueError: `token_bytes` does not belong to the model's vocabulary.
    """
    vocab_size = model.config.vocab_size
    if len(token_bytes) != vocab_size:
        raise ValueError(
            f"token_bytes has {len(token_bytes)} entries, the model's vocabulary {vocab_size}: "
            "they come from two tokenizers; use the tokenizer saved with this checkpoint"
        )
    _, bpb = evaluate_loss(model, batches, token_bytes, model.device)
    assert bpb is not None
    return bpb
