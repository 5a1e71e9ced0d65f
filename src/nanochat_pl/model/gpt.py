"""The model: one GPT class for every recipe.

The default is nanochat's classic decoder (2025-11): rotary positions, QK-norm, grouped key/value heads, parameter-free
RMSNorm, squared-ReLU MLP, untied embeddings, softcapped logits, no biases. Weights are fp32; the computation runs in
`compute_dtype`, the loss in fp32 and in chunks over tokens (`loss.py`). Parameters bear nanochat's names, so that its
checkpoints load. What only decoding needs lies elsewhere: the keys and values read so far in `kv_cache.py`, a copy of
the model that reads its weights faster in `inference.py`.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.kv_cache import KVCache
from nanochat_pl.model.loss import chunked_cross_entropy, softcapped, softcapped_in_place

__all__ = ["GPT", "MLP", "Block", "CausalSelfAttention", "Linear", "Rotary", "document_mask", "norm", "rotary_tables"]

NORM_EPS = torch.finfo(torch.float32).eps
"""The epsilon of fp32 for every input dtype, because the statistics are computed in fp32."""

Rotary = tuple[Tensor, Tensor]
"""cos and sin, each broadcastable to (B, T, H, D/2)."""


class Linear(nn.Linear):
    """A matrix without bias, kept in fp32 and cast to its input's dtype at use.

    Construction draws no random numbers: the weight is NaN until `GPT.init_weights` or `load_state_dict`.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension; no parameters (RMSNorm, Zhang & Sennrich 2019)."""
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)


def rotary_tables(config: GPTConfig, device: torch.device | None = None) -> Rotary:
    """Return cos and sin of every position's angles, each (1, 10 * sequence_len, 1, D/2) in `rope_table_dtype`."""
    # Pair i of a head's D/2 channel pairs turns by position / rope_base^(2i/D): the first fast, the last slowly.
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
    document = (positions == 0).cumsum(dim=1)  # the number of its document, the same for all its tokens
    t = torch.arange(positions.size(1), device=positions.device)
    return ((document[:, :, None] == document[:, None, :]) & (t[:, None] >= t))[:, None]


class CausalSelfAttention(nn.Module):
    """Attention of one block; `layer` is its row in the key/value cache."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.c_q = Linear(config.n_embd, self.n_head * self.head_dim)
        self.c_k = Linear(config.n_embd, self.n_kv_head * self.head_dim)
        self.c_v = Linear(config.n_embd, self.n_kv_head * self.head_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def heads(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, H, D), keys and values (B, T, Hkv, D); the first two rotated and normed."""
        B, T, _ = x.shape
        q = norm(_rotate(self.c_q(x).view(B, T, self.n_head, self.head_dim), rotary))
        k = norm(_rotate(self.c_k(x).view(B, T, self.n_kv_head, self.head_dim), rotary))
        return q, k, self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None = None, kv_cache: KVCache | None = None) -> Tensor:
        """Mix x (B, T, C) over time.

        Without `mask`, query t sees the keys 0..t. With `kv_cache`, the keys are those read so far and these.
        """
        B, T, C = x.shape
        # 1) Each head makes a query of D numbers for every token; each key/value head a key and a value.
        q, k, v = self.heads(x, rotary)
        # 2) A query's softmaxed products with the keys it may see weigh the values: the head's answer for that token.
        # Without a mask this takes the fast causal path. Where there are fewer key/value heads, several query heads
        # share one.
        if kv_cache is None:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            grouped = self.n_kv_head != self.n_head
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
            y = y.transpose(1, 2).reshape(B, T, C)
        else:
            y = kv_cache.attend(self.layer, q, k, v, mask)
        # 3) The heads' answers, side by side again, are mixed and added to the residual stream by the block.
        return self.c_proj(y.to(x.dtype))


class MLP(nn.Module):
    """Two matrices with a squared ReLU between (Primer, So et al. 2021)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    """Attention and MLP, each on a normed copy of the residual stream."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.attn = CausalSelfAttention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None = None, kv_cache: KVCache | None = None) -> Tensor:
        x = x + self.attn(norm(x), rotary, mask, kv_cache)
        return x + self.mlp(norm(x))


class Trunk(nn.Module):
    """Embedding and blocks; a module of its own only because nanochat's keys begin with `transformer.`."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        nan = torch.full((config.padded_vocab_size, config.n_embd), torch.nan)
        self.wte = nn.Embedding.from_pretrained(nan, freeze=False)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))


class GPT(nn.Module):
    """A decoder-only transformer.

    Construction draws no random numbers and leaves the weights NaN: call `init_weights` or `load_state_dict` next.

    Args:
        config: shape and architecture.
        compute_dtype: dtype of activations and matrix products; weights stay fp32.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.transformer = Trunk(config)
        self.lm_head = Linear(config.n_embd, config.padded_vocab_size)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.lm_head.weight.device

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw the classic initial weights; logits are zero, so that the first loss is ln(vocab_size).

        Embedding N(0, 1); matrices N(0, 1/fan_in * min(1, fan_out/fan_in)); whatever writes to the residual stream or
        to the logits is zero. Rows of vocabulary padding are zero. The rotary tables are computed anew, so that a model
        made on the meta device works after `to_empty`.
        """
        vocab_size = self.config.vocab_size
        wte = self.transformer.wte.weight
        wte[:vocab_size].normal_(generator=generator)
        wte[vocab_size:].zero_()
        for module in self.transformer.h.modules():
            if isinstance(module, Linear):
                fan_out, fan_in = module.weight.shape
                std = min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
                module.weight.normal_(std=std, generator=generator)
        # What is set to zero was drawn all the same: thus the stream of random numbers, and with it every tensor,
        # equals nanochat's (2025-11) from the same seed.
        self.lm_head.weight[:vocab_size].normal_(generator=generator)
        self.lm_head.weight.zero_()
        for module in self.transformer.h.modules():
            if isinstance(module, CausalSelfAttention | MLP):
                module.c_proj.weight.zero_()
        self.cos, self.sin = rotary_tables(self.config, self.device)

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        """Partition `parameters()` by what they are to the optimizer (`optim.groups.ROLES`)."""
        return {
            "matrix": [module.weight for module in self.transformer.h.modules() if isinstance(module, Linear)],
            "embedding": [self.transformer.wte.weight],
            "unembedding": [self.lm_head.weight],
        }

    def hidden(self, idx: Tensor, positions: Tensor | None = None, kv_cache: KVCache | None = None) -> Tensor:
        """Read tokens and return what the last norm gives, (B, T, C) in `compute_dtype`.

        Args:
            idx: (B, T) int64 token ids.
            positions: (B, T) int64 position of each token inside its own document, 0 where one starts; attention then
                stays within the document. None: causal over the whole row.
            kv_cache: rows read so far; `idx` continues them. The caller advances the cache.

        Raises:
            ValueError: if the row is longer than the rotary tables, the cache is full, or both `positions` and
                `kv_cache` are given.
        """
        # 1) Who sees whom, and where each token stands. Mask and angles are made once and shared by all layers.
        start: int | None = 0 if positions is None else None
        if kv_cache is not None:
            if positions is not None:
                raise ValueError("positions and kv_cache exclude each other: cached rows know their own positions")
            self._check_length(kv_cache.longest + idx.size(1))
            ahead = kv_cache.next_position(idx.size(1))
            start, positions, mask = ahead.start, ahead.positions, ahead.mask
        else:
            self._check_length(idx.size(1))
            mask = None if positions is None else document_mask(positions)
        if start is not None:  # all rows stand at the same place: a slice of the tables
            rotary = self.cos[:, start : start + idx.size(1)], self.sin[:, start : start + idx.size(1)]
        else:
            rotary = self.cos[0, positions], self.sin[0, positions]
        # 2) One vector a token goes up the residual stream: each block adds to it, none replaces it.
        x = norm(self.transformer.wte(idx).to(self.compute_dtype))
        for block in self.transformer.h:
            x = block(x, rotary, mask, kv_cache)
        return norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn hidden states (..., C) into softcapped fp32 logits (..., vocab_size)."""
        logits = self.lm_head(hidden).float()
        cap = softcapped if torch.is_grad_enabled() else softcapped_in_place
        return cap(logits, self.config.softcap)[..., : self.config.vocab_size]

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        positions: Tensor | None = None,
        kv_cache: KVCache | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Tensor:
        """Return logits (B, T, vocab_size), or with `targets` the cross-entropy in nats.

        Args:
            idx, positions, kv_cache: see `hidden`.
            targets: (B, T) int64 next tokens; -1 = not supervised.
            reduction: over supervised tokens; `none` gives (B, T), 0 where not supervised. A batch without a supervised
                token has loss 0 and no gradient, also for `mean`.
        """
        hidden = self.hidden(idx, positions, kv_cache)
        if targets is None:
            return self.logits(hidden)
        # The loss takes the unembedding itself, so that the logits of all tokens never exist at once.
        return chunked_cross_entropy(
            hidden,
            self.lm_head.weight,
            targets,
            vocab_size=self.config.vocab_size,
            softcap=self.config.softcap,
            reduction=reduction,
        )

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > self.config.rotary_rows:
            raise ValueError(
                f"a row of {num_tokens} tokens is longer than the {self.config.rotary_rows} positions the model knows "
                f"(10 x model.sequence_len={self.config.sequence_len}); shorten it or raise model.sequence_len"
            )
