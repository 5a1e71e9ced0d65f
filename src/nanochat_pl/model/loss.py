"""Softcapped cross-entropy that never holds the logits of the whole batch.

At a vocabulary of 65,536 the fp32 logits of a micro-batch, their softmax and their gradients outweigh the model. Here
tokens are taken in chunks: each chunk's logits are made, give their loss and at once their gradients with respect to
the hidden states and the unembedding, and are dropped (Liger Kernel, Hsu et al. 2024). Losses and the unembedding's
gradient are accumulated in fp32 whatever dtype the matrix products run in.

Because logits are capped to [-softcap, softcap], the softmax subtracts the constant `softcap` in place of a maximum.
"""

from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Reduction", "chunk_tokens_for", "chunked_cross_entropy", "softcapped", "softcapped_in_place"]

Reduction = Literal["mean", "sum", "none"]

CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**28}
"""Logits of one chunk: few enough for the caches of a CPU, enough to fill a GPU (benchmarks/bench_loss.py)."""

MIN_CHUNK_TOKENS = 256
"""Fewer would not pay for a chunk's pass over the unembedding's gradient: at vocabularies of 8,192 and 65,536 this
number is the fastest on a CPU, in fp32 and bf16."""


def chunk_tokens_for(vocab_size: int, device_type: str) -> int:
    """Return how many tokens go into one chunk: a power of two, `MIN_CHUNK_TOKENS` or more."""
    elements = CHUNK_ELEMENTS["cuda" if device_type == "cuda" else "cpu"]
    return max(MIN_CHUNK_TOKENS, 1 << (elements // vocab_size | 1).bit_length() - 1)


def softcapped(logits: Tensor, softcap: float) -> Tensor:
    """Squash logits smoothly into (-softcap, softcap)."""
    return softcap * torch.tanh(logits / softcap)


def softcapped_in_place(logits: Tensor, softcap: float) -> Tensor:
    """Compute `softcapped` in the memory of `logits`, without gradients: several times faster on a CPU."""
    return logits.mul_(2 / softcap).sigmoid_().mul_(2 * softcap).sub_(softcap)  # tanh(x) = 2 sigmoid(2x) - 1


def _walk(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor | None,
    vocab_size: int,
    softcap: float,
    chunk_tokens: int,
    need_hidden_grad: bool = False,
    need_weight_grad: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return each token's loss (N,) fp32 and the gradients of sum(token_weights * losses).

    Args:
        hidden: (N, C). weight: (V, C) fp32, rows from `vocab_size` on are padding. targets: (N,), -1 = not supervised.
        token_weights: (N,) fp32, 0 where not supervised; needed for gradients only.
    """
    N, V, dtype = hidden.size(0), weight.size(0), hidden.dtype
    matrix = weight.to(dtype)
    rows = min(chunk_tokens, N)
    # Every chunk uses the same memory: fresh pages for such large buffers would cost more than the arithmetic on them.
    product = hidden.new_empty(rows, V)
    capped = product if dtype == torch.float32 else hidden.new_empty(rows, V, dtype=torch.float32)
    softmax = torch.empty_like(capped)
    losses, hidden_grads = [], []
    weight_grad = torch.zeros_like(weight) if need_weight_grad else None
    summand = torch.empty_like(matrix) if need_weight_grad and dtype != torch.float32 else None
    summand32 = None if summand is None else torch.empty_like(weight)
    offset = torch.tensor(-softcap, device=hidden.device)
    for start in range(0, N, rows):
        h = hidden[start : start + rows]
        n = h.size(0)
        target = targets[start : start + rows, None]
        supervised = target >= 0
        target = target.clamp(min=0)  # an index that exists, for tokens whose loss is dropped below
        # 1) Logits of this chunk, (n, V). The product runs in the compute dtype, all that follows in fp32.
        t = torch.mm(h, matrix.T, out=product[:n])
        if dtype != torch.float32:
            t = capped[:n].copy_(t)
        t.div_(softcap).tanh_()  # the capped logits are softcap * t
        # 2) Softmax without its division: exp(softcap * t - softcap) lies in (0, 1]. Padding rows take no part.
        p = torch.add(offset, t, alpha=softcap, out=softmax[:n]).exp_()
        p[:, vocab_size:].zero_()
        total = p.sum(dim=1, keepdim=True)
        # 3) -log softmax of the target; the offset that was taken off comes back.
        loss = total.log() + softcap * (1 - t.gather(1, target))
        losses.append(torch.where(supervised, loss, 0.0).squeeze(1))
        if token_weights is None:
            continue
        # 4) The gradient with respect to the raw logits, in the softmax's memory:
        # d loss / d capped = softmax - onehot; d capped / d raw = 1 - t^2.
        w = token_weights[start : start + rows, None]
        p.mul_(w / total).scatter_add_(1, target, -w)
        p.addcmul_(p, t.square_(), value=-1)
        g = p if dtype == torch.float32 else product[:n].copy_(p)
        # 5) From there to both factors of the product. The unembedding's gradient sums over all chunks, in fp32.
        if need_hidden_grad:
            hidden_grads.append(torch.mm(g, matrix))
        if summand32 is not None and weight_grad is not None:
            weight_grad.add_(summand32.copy_(torch.mm(g.T, h, out=summand)))
        elif weight_grad is not None:
            weight_grad.addmm_(g.T, h)
    return torch.cat(losses), torch.cat(hidden_grads) if need_hidden_grad else None, weight_grad


def _refuse_second_derivative() -> None:
    """Raise if autograd records this backward pass (create_graph=True), which leaves no graph."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("the chunked loss can be differentiated only once; use create_graph=False")


class _WeightedSum(torch.autograd.Function):
    """sum(token_weights * losses), its gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        token_weights: Tensor,
        vocab_size: int,
        softcap: float,
        chunk_tokens: int,
    ) -> Tensor:
        losses, hidden_grad, weight_grad = _walk(
            hidden, weight, targets, token_weights, vocab_size, softcap, chunk_tokens, *ctx.needs_input_grad[:2]
        )
        ctx.save_for_backward(hidden_grad, weight_grad)
        return (losses * token_weights).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        _refuse_second_derivative()
        hidden_grad, weight_grad = ctx.saved_tensors
        hidden_grad = None if hidden_grad is None else hidden_grad * grad.to(hidden_grad.dtype)
        weight_grad = None if weight_grad is None else weight_grad * grad
        return hidden_grad, weight_grad, None, None, None, None, None


class _PerToken(torch.autograd.Function):
    """Each token's loss; the gradient needs the token weights of the backward pass, so logits are made twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, softcap: float, chunk_tokens: int
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.settings = vocab_size, softcap, chunk_tokens
        return _walk(hidden, weight, targets, None, vocab_size, softcap, chunk_tokens)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        _refuse_second_derivative()
        hidden, weight, targets = ctx.saved_tensors
        token_weights = torch.where(targets >= 0, grad, 0.0)
        _, hidden_grad, weight_grad = _walk(
            hidden, weight, targets, token_weights, *ctx.settings, *ctx.needs_input_grad[:2]
        )
        return hidden_grad, weight_grad, None, None, None, None


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    softcap: float,
    reduction: Reduction = "mean",
    chunk_tokens: int | None = None,
) -> Tensor:
    """Cross-entropy in nats of softcap * tanh(hidden @ weight.T / softcap) against targets.

    Args:
        hidden: (..., C) in the compute dtype.
        weight: (V, C) fp32; rows from `vocab_size` on are padding and take no part.
        targets: (...) int64; -1 = not supervised.
        reduction: `mean` over supervised tokens, `sum`, or `none` for losses shaped like `targets` with 0 where not
            supervised. With no supervised token `mean` is 0 and gives no gradient, so that an empty micro-batch does no
            harm.
        chunk_tokens: tokens whose logits exist at once; default `chunk_tokens_for`.

    Returns:
        fp32. Differentiable once.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r} is unknown; use mean, sum or none")
    flat, target = hidden.flatten(0, -2), targets.flatten()
    chunk = chunk_tokens or chunk_tokens_for(weight.size(0), hidden.device.type)
    differentiable = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if reduction == "none":
        if differentiable:
            return _PerToken.apply(flat, weight, target, vocab_size, softcap, chunk).view_as(targets)
        return _walk(flat, weight, target, None, vocab_size, softcap, chunk)[0].view_as(targets)
    token_weights = (target >= 0).float()
    if reduction == "mean":
        token_weights = token_weights / token_weights.sum().clamp(min=1)
    if differentiable:
        return _WeightedSum.apply(flat, weight, target, token_weights, vocab_size, softcap, chunk)
    return (_walk(flat, weight, target, None, vocab_size, softcap, chunk)[0] * token_weights).sum()
