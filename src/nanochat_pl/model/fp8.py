"""Matrix products in 8-bit floating point, for training on GPUs that multiply twice as fast in it (Ada, Hopper).

Weights stay fp32 and are rounded anew at every use. Each tensor is scaled so that its largest number is the largest of
its format (nanochat, 2026-02): e4m3 for activations and weights, e5m2, which reaches further, for gradients. The
products accumulate in fp32 and leave in the dtype of the activations.
Differs: the unembedding, whose product the chunked loss computes itself, stays in the compute dtype.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

from nanochat_pl.model.gpt import GPT, Linear

__all__ = ["Float8Linear", "quantize", "use_fp8"]

MULTIPLE = 16
"""All three sizes of a product must be multiples of this: the hardware's tiles."""
MIN_WIDTH = 128
"""Smaller matrices cost more to round than they save (nanochat, 2026-02)."""
FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round a tensor to `dtype` after scaling it to its range; return it and what to multiply it by, 0-dim fp32.

    Zero stays zero; a tensor with a number that is not finite becomes NaN, so that divergence is not hidden.
    """
    top = torch.finfo(dtype).max
    largest = x.abs().amax().double()
    scale = (top / largest.clamp(min=1e-12)).float()
    return (x.float() * scale).clamp(-top, top).to(dtype), scale.reciprocal()


def _product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, out: torch.dtype, is_fast: bool) -> Tensor:
    """Return a (M, K) times the transpose of b (N, K), both laid out row by row, as the hardware wants them."""
    kind = ScalingType.TensorWise
    return scaled_mm(a, b.t(), a_scale, kind, b_scale, kind, output_dtype=out, use_fast_accum=is_fast)


class _Float8Product(torch.autograd.Function):
    """x (M, K) times the transpose of an fp32 weight (N, K); only the 8-bit copies are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        (x8, x_scale), (w8, w_scale) = quantize(x, FORWARD), quantize(weight, FORWARD)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        ctx.weight_dtype = weight.dtype
        return _product(x8, x_scale, w8, w_scale, x.dtype, is_fast=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = quantize(grad, BACKWARD)
        # Gradients accumulate exactly: sums over all tokens of a micro-batch lose too much in the fast way.
        x_grad = _product(g8, g_scale, w8.t().contiguous(), w_scale, grad.dtype, is_fast=False)
        weight_grad = _product(g8.t().contiguous(), g_scale, x8.t().contiguous(), x_scale, grad.dtype, is_fast=False)
        return x_grad, weight_grad.to(ctx.weight_dtype)


class Float8Linear(Linear):
    """A matrix that multiplies in FP8 while it trains; evaluation, and what the tiles do not fit, is as without it."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.numel() // self.in_features
        if not (self.training and torch.is_grad_enabled()) or tokens % MULTIPLE:
            return super().forward(x)
        return _Float8Product.apply(x.reshape(tokens, -1), self.weight).view(*x.shape[:-1], -1)


def use_fp8(model: GPT) -> None:
    """Let the large matrices of the blocks multiply in FP8, in place; parameters, names and checkpoints stay the same.

    Raises:
        ValueError: no matrix is large enough.
    """
    large = [
        module
        for module in model.transformer.h.modules()
        if type(module) is Linear
        and min(module.weight.shape) >= MIN_WIDTH
        and not any(size % MULTIPLE for size in module.weight.shape)
    ]
    if not large:
        raise ValueError(
            f"trainer.fp8=true multiplies matrices of at least {MIN_WIDTH} x {MIN_WIDTH} whose sizes are multiples of "
            f"{MULTIPLE}, and a model of model.n_embd={model.config.n_embd} has none; set trainer.fp8=false"
        )
    for module in large:
        module.__class__ = Float8Linear
