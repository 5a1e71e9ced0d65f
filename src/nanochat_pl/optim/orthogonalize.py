"""The nearest orthogonal matrix, approximately: an odd polynomial applied to the singular values a few times.

A singular value decomposition is slow and wants float32; these iterations take matrix products only, run in bfloat16,
and batch. Newton-Schulz (Keller Jordan) uses one polynomial, which is steep at zero and does not converge; Polar
Express (Amsel et al. 2025) uses the best one for each iteration, given where the one before left the singular values.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat_pl import runtime
from nanochat_pl.optim.config import NS_DTYPES

__all__ = ["POLAR_EXPRESS", "SMALLEST_NORM", "choose_ns_dtype", "equilibrate_rows", "newton_schulz", "polar_express"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""p(s) = a s + b s^3 + c s^5, applied to every singular value (Keller Jordan).

It rises steeply at zero rather than converges: after five iterations singular values lie between about 0.7 and 1.2.
"""

NORM_EPS = 1e-7
"""Added to the norm, so that a zero gradient (a layer that starts at zero) gives a zero update and no NaN."""

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""a, b, c of each of five iterations, as nanochat (2026-03) has them."""

POLAR_MARGIN = 1.01
"""Polar Express wants all singular values below 1 whatever rounding adds: the norm is taken for this much larger."""

SMALLEST_NORM = 1e-6
"""A norm that is divided by counts as at least this, so that zeros stay zeros."""


@functools.cache  # asking a CPU means reading a file
def choose_ns_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `optim.ns_dtype` on `device`: auto is bfloat16 where the device is fast at it, else float32.

    The answer depends on the device alone, so that ranks with equal devices compute alike. On a CPU with AVX512-bf16 or
    AMX bfloat16 is about three times faster (`benchmarks/bench_muon.py`); on others it is emulated and slower.

    Raises:
        ValueError: If the name is not one of auto, float32, bfloat16.
    """
    if name not in NS_DTYPES:
        raise ValueError(f"ns_dtype={name!r} is unknown; set optim.ns_dtype to auto, float32 or bfloat16")
    return runtime.pick_compute_dtype(name, device)


def newton_schulz(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Orthogonalize each matrix of a batch approximately.

    Args:
        matrices: `(..., M, N)`, floating point; left as it is.
        steps: Iterations; 5 is the usual number.
        dtype: Arithmetic of the iterations. The norm before them is taken in the dtype of `matrices`.

    Returns:
        `(..., M, N)` in `dtype`, singular values near 1 (a zero matrix stays zero).
    """
    # The Frobenius norm bounds the largest singular value: after the division all lie in [0, 1], where p is tame.
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    return _iterate((matrices / (norm + NORM_EPS)).to(dtype), [COEFFICIENTS] * steps)


def polar_express(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Orthogonalize as `newton_schulz` does, with coefficients of its own for each step (Polar Express, 2025).

    After five steps singular values lie between about 0.86 and 1.14; those that were near zero stay lower.
    There are coefficients for five steps; `Muon` refuses more.
    """
    x = matrices.to(dtype)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return _iterate(x / (norm * POLAR_MARGIN + SMALLEST_NORM), POLAR_EXPRESS[:steps])


def equilibrate_rows(matrices: Tensor) -> Tensor:
    """Give all rows of each matrix `(..., M, N)` the same norm, their root mean square (MuonEq, 2026).

    The norms are taken in float32, the product in the dtype of `matrices`.
    """
    rows = torch.linalg.vector_norm(matrices.float(), dim=-1, keepdim=True)
    mean = torch.linalg.vector_norm(rows, dim=-2, keepdim=True) / matrices.size(-2) ** 0.5
    return matrices * (mean / rows.clamp(min=SMALLEST_NORM)).to(matrices.dtype)


def _iterate(x: Tensor, coefficients: Sequence[tuple[float, float, float]]) -> Tensor:
    """Apply s -> a s + b s^3 + c s^5 to the singular values of each matrix of x (..., M, N), once for each a, b, c."""
    shape, dtype = x.shape, x.dtype
    x = x.reshape(-1, *shape[-2:])
    tall = shape[-2] > shape[-1]
    if tall:  # X X^T of the wide form is the smaller square
        x = x.mT
    rounded = _rounding(dtype, x.device)
    x = x.float() if rounded else x
    for a, b, c in coefficients:
        gram = _round(x @ x.mT, rounded)
        poly = _round(torch.baddbmm(gram, gram, gram, beta=b, alpha=c), rounded)  # b A + c A^2
        x = _round(torch.baddbmm(x, poly, x, beta=a), rounded)  # a X + (b A + c A^2) X
    if tall:
        x = x.mT
    return x.to(dtype).reshape(shape)


@functools.cache
def _rounding(dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether bfloat16 arithmetic is imitated by rounding the results of float32 products.

    A CPU without bfloat16 in hardware would emulate it a hundred times slower; hardware, too, adds up in float32 and
    rounds once.
    """
    return dtype == torch.bfloat16 and device.type == "cpu" and not runtime.has_fast_bf16(device)


def _round(x: Tensor, rounded: bool) -> Tensor:
    return x.bfloat16().float() if rounded else x
