"""Newton-Schulz: the nearest (semi-)orthogonal matrix, roughly, by matrix products alone.

Muon replaces each update G = U S V^T by about U V^T, all directions equally long. A singular value decomposition is
slow and wants float32; an odd quintic polynomial applied to the singular values a few times is matrix products only,
runs in bfloat16, and batches. The coefficients (Keller Jordan, https://kellerjordan.github.io/posts/muon/) rise
steeply at zero rather than converge: after five iterations the singular values lie between about 0.7 and 1.2.
"""

import functools

import torch
from torch import Tensor

from nanochat_pl import runtime

__all__ = ["choose_ns_dtype", "newton_schulz"]

# p(s) = a s + b s^3 + c s^5, applied to every singular value.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Added to the norm, so that a zero gradient (a layer that starts at zero) gives a zero update and no NaN.
NORM_EPS = 1e-7


@functools.cache  # asking a CPU means reading a file
def choose_ns_dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve `optim.ns_dtype` on `device`: auto is bfloat16 where the device is fast at it, else float32.

    The answer depends on the device alone, so that ranks with equal devices compute alike. On a CPU with AVX512-bf16 or
    AMX bfloat16 is about three times faster (`benchmarks/bench_muon.py`); on others it is emulated and slower.

    Raises:
        ValueError: The name is not one of auto, float32, bfloat16.
    """
    if name == "auto":
        return torch.bfloat16 if runtime.has_fast_bf16(device) else torch.float32
    if name == "float32":
        return torch.float32
    if name == "bfloat16":
        return torch.bfloat16
    raise ValueError(f"ns_dtype={name!r} is unknown; set optim.ns_dtype to auto, float32 or bfloat16")


def newton_schulz(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Orthogonalize each matrix of a batch approximately.

    Args:
        matrices: `(..., M, N)`, floating point; left as it is.
        steps: Iterations; 5 is the usual number.
        dtype: Arithmetic of the iterations. The norm before them is taken in the dtype of `matrices`.

    Returns:
        `(..., M, N)` in `dtype`, singular values near 1 (a zero matrix stays zero).
    """
    a, b, c = COEFFICIENTS
    rows, cols = matrices.shape[-2:]
    # The Frobenius norm bounds the largest singular value: after the division all lie in [0, 1], where p is tame.
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    x = (matrices / (norm + NORM_EPS)).to(dtype).reshape(-1, rows, cols)
    if rows > cols:  # X X^T of the wide form is the smaller square
        x = x.mT
    rounded = _rounding(dtype, x.device)
    x = x.float() if rounded else x
    for _ in range(steps):
        gram = _round(x @ x.mT, rounded)
        poly = _round(torch.baddbmm(gram, gram, gram, beta=b, alpha=c), rounded)  # b A + c A^2
        x = _round(torch.baddbmm(x, poly, x, beta=a), rounded)  # a X + (b A + c A^2) X
    if rows > cols:
        x = x.mT
    return x.to(dtype).reshape(matrices.shape)


@functools.cache
def _rounding(dtype: torch.dtype, device: torch.device) -> bool:
    """Say whether bfloat16 arithmetic is imitated by rounding the results of float32 products.

    A CPU without bfloat16 in hardware would emulate it a hundred times slower; hardware, too, adds up in float32 and
    rounds once.
    """
    return dtype == torch.bfloat16 and device.type == "cpu" and not runtime.has_fast_bf16(device)


def _round(x: Tensor, rounded: bool) -> Tensor:
    return x.bfloat16().float() if rounded else x
