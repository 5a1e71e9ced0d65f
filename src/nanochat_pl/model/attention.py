"""Causal self-attention with rotary positions, QK-norm and grouped key/value heads.

Who sees whom: `document_mask` says it for packed rows, the key/value cache for decoding; without a mask attention is
causal over the whole row, on the fast path of `scaled_dot_product_attention`. A mask is built once per forward and
shared by all layers. Also here: the two building blocks every part of the model uses, `Linear` and `norm`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.kv_cache import KVCache

__all__ = ["CausalSelfAttention", "Linear", "Rotary", "document_mask", "norm", "rotary_tables"]

NORM_EPS = torch.finfo(torch.float32).eps
"""Of fp32 whatever the input's dtype, because the statistics are computed in fp32."""

Rotary = tuple[Tensor, Tensor]
"""cos and sin, each broadcastable to (B, T, H, D/2)."""


class Linear(nn.Linear):
    """A matrix without bias, kept in fp32 and cast to its input's dtype at use.

    Construction draws no random numbers: the weight is NaN until `GPT.init_weights` or `load_state_dict`. `product` is
    how a copy laid out for decoding (`inference.py`) multiplies in another way.
    """

    product: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight.to(x.dtype))


def norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension; no parameters (RMSNorm, Zhang & Sennrich 2019)."""
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)


def rotary_tables(config: GPTConfig, device: torch.device | None = None) -> Rotary:
    """Return cos and sin of every position's angles, each (1, 10 * sequence_len, 1, D/2) in `rope_table_dtype`."""
    channel = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    position = torch.arange(config.rotary_rows, dtype=torch.float32, device=device)
    angle = torch.outer(position, 1.0 / config.rope_base ** (channel / config.head_dim))[None, :, None, :]
    dtype = getattr(torch, config.rope_table_dtype)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn the channel pairs (i, i + D/2) of x (B, T, H, D) by minus their angle.

    The textbook turns by plus the angle; scores are the same either way, and weights trained by nanochat expect this.
    """
    cos, sin = rotary
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1).to(x.dtype)


def document_mask(positions: Tensor) -> Tensor:
    """Let each token see itself and what precedes it in its own document.

    Args:
        positions: (B, T) position of each token inside its document; 0 starts a new one.

    Returns:
        (B, 1, T, T) bool, True = query (row) sees key (column).
    """
    document = (positions == 0).cumsum(dim=1)
    t = torch.arange(positions.size(1), device=positions.device)
    return ((document[:, :, None] == document[:, None, :]) & (t[:, None] >= t))[:, None]


def _rotate_whole(x: Tensor, rotary: Rotary) -> Tensor:
    """Do what `_rotate` does in few operations, by tables as wide as a head: (cos, cos) and (sin, -sin)."""
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, -1), sin).to(x.dtype)


def _attend_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Let one query a row, q (B, 1, H, D), attend to k, v (B, Hkv, T, D): (B, 1, H * D).

    On a CPU plain matrix products are up to three times as fast as `scaled_dot_product_attention` here, because a
    batch of rows is one call; heads that share keys are taken together.
    """
    B, _, H, D = q.shape
    together = (q.to(k.dtype) * D**-0.5).view(B, k.size(1), H // k.size(1), D)
    scores = together @ k.transpose(2, 3)
    if mask is not None:
        scores += mask
    return (scores.softmax(dim=-1) @ v).view(B, 1, H * D)


class CausalSelfAttention(nn.Module):
    """Attention of one block; `layer` is its row in the key/value cache.

    `joined` is None in training. In a copy laid out for decoding (`inference.py`) it holds the rows of c_q, c_k and c_v
    in one matrix, and rotary tables are as wide as a head.
    """

    joined: Tensor | None

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.c_q = Linear(config.n_embd, self.n_head * self.head_dim)
        self.c_k = Linear(config.n_embd, self.n_kv_head * self.head_dim)
        self.c_v = Linear(config.n_embd, self.n_kv_head * self.head_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.joined = None

    def _heads(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, H, D), keys and values (B, T, Hkv, D); the first two rotated and normed."""
        B, T, _ = x.shape
        if self.joined is None:
            q = norm(_rotate(self.c_q(x).view(B, T, self.n_head, self.head_dim), rotary))
            k = norm(_rotate(self.c_k(x).view(B, T, self.n_kv_head, self.head_dim), rotary))
            return q, k, self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)
        heads = self.c_q.product(x, self.joined).view(B, T, -1, self.head_dim)
        turned, v = heads.split((self.n_head + self.n_kv_head, self.n_kv_head), dim=2)
        q, k = norm(_rotate_whole(turned, rotary)).split((self.n_head, self.n_kv_head), dim=2)
        return q, k, v

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None = None, kv_cache: KVCache | None = None) -> Tensor:
        """Mix x (B, T, C) over time. Without `mask`, query t sees the keys 0..t; a single query sees all keys."""
        B, T, C = x.shape
        q, k, v = self._heads(x, rotary)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if kv_cache is not None:
            k, v = kv_cache.insert(self.layer, k, v)
        if kv_cache is not None and T == 1 and x.device.type == "cpu":
            return self.c_proj(_attend_one(q, k, v, mask).to(x.dtype))
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2).to(k.dtype),
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and T > 1,
            enable_gqa=self.n_kv_head != self.n_head,
        )
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C).to(x.dtype))
