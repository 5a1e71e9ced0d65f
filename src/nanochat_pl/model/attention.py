"""Which keys a query sees: its own document, what came before it, and, in a layer with a window, not too long ago."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["causal_attention", "document_mask", "in_window"]


def _windowed_flash_attention() -> Callable[..., Any] | None:
    """Return torch's attention over documents in a row, if it knows windows: since torch 2.11."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


varlen_attn = _windowed_flash_attention()


def document_mask(positions: Tensor) -> Tensor:
    """Let each token see itself and what precedes it in its own document.

    Args:
        positions: (B, T) position of each token inside its document; 0 starts a new one.

    Returns:
        (B, 1, T, T) bool, True = query (row) sees key (column).
    """
    document = (positions == 0).cumsum(dim=1)  # the number of its document, the same for all its tokens
    t = torch.arange(positions.size(1), device=positions.device)
    return ((document[:, :, None] == document[:, None, :]) & (t[:, None] >= t))[:, None]


def in_window(mask: Tensor, window: int | None) -> Tensor:
    """Restrict a mask (..., T, T) of equally numbered queries and keys to the last `window` tokens and itself."""
    if window is None or window >= mask.size(-1) - 1:
        return mask
    return mask & torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(-window)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Let query t see the keys t - window to t, or all up to t.

    A window costs only what it shows. Flash attention, where there is one, skips what lies outside; elsewhere the row
    is cut into blocks as long as the window, and the queries of a block attend to the keys of their own and the
    previous block, all blocks as one batch.

    Args:
        q: (B, H, T, D).
        k, v: (B, Hkv, T, D).
        window: tokens before itself that a query sees; None = all.

    Returns:
        (B, H, T, D).
    """
    (B, H, T, D), grouped = q.shape, k.size(1) != q.size(1)
    if window is None or window >= T - 1:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    if _is_for_flash(q):
        return _flash_attention(q, k, v, window)
    # 1) Nothing precedes the first block, so that it is an ordinary row.
    q1, k1, v1 = (x[:, :, :window] for x in (q, k, v))
    first = F.scaled_dot_product_attention(q1, k1, v1, is_causal=True, enable_gqa=grouped)
    # 2) The other blocks: fill the last one up, by zeros that no real query sees, and pair each with its predecessor.
    missing = -T % window
    q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q[:, :, window:], k, v))
    blocks = q.size(2) // window
    q = q.view(B, H, blocks, window, D).transpose(1, 2).reshape(-1, H, window, D)
    k, v = (
        x.unfold(2, 2 * window, window).permute(0, 2, 1, 4, 3).reshape(B * blocks, -1, 2 * window, D) for x in (k, v)
    )
    # 3) Query i of a block stands at i + window among its keys, and sees those from i on.
    seen = torch.ones(window, 2 * window, dtype=torch.bool, device=q.device).triu().tril(window)
    rest = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped)
    rest = rest.view(B, blocks, H, window, D).transpose(1, 2).reshape(B, H, blocks * window, D)
    return torch.cat((first, rest[:, :, : T - window]), dim=2)


def _is_for_flash(q: Tensor) -> bool:
    """Tell whether torch's flash attention takes such queries: Nvidia's GPUs since Ampere, in half precision."""
    return (
        varlen_attn is not None
        and q.is_cuda
        and torch.version.hip is None
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.size(-1) % 8 == 0
        and q.size(-1) <= 256
        and torch.cuda.get_device_properties(q.device).major >= 8
    )


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Compute `causal_attention` by one kernel, to which the rows of the batch are documents of a single long one."""
    assert varlen_attn is not None
    B, H, T, D = q.shape
    if k.size(1) != H:  # torch 2.11 shares no keys here
        k, v = (x.repeat_interleave(H // k.size(1), dim=1) for x in (k, v))
    q, k, v = (x.transpose(1, 2).reshape(B * T, H, D) for x in (q, k, v))
    ends = torch.arange(0, B * T + 1, T, dtype=torch.int32, device=q.device)
    y: Tensor = varlen_attn(q, k, v, ends, ends, T, T, window_size=(window, 0))
    return y.view(B, T, H, D).transpose(1, 2)
