"""The model: one GPT class for every recipe.

The default is nanochat's classic decoder (2025-11): rotary positions, QK-norm, parameter-free RMSNorm, squared-ReLU
MLP, untied embeddings, softcapped logits, no biases. Weights are fp32; the computation runs in `compute_dtype`, the
loss in fp32 and in chunks over tokens (`loss.py`). Parameters bear nanochat's names, so that its checkpoints load.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_pl.model.attention import (
    CausalSelfAttention,
    Linear,
    Rotary,
    document_mask,
    norm,
    rotary_tables,
)
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.kv_cache import KVCache
from nanochat_pl.model.loss import chunked_cross_entropy, softcapped

__all__ = ["GPT", "MLP", "Block"]


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

        Embedding N(0, 1); matrices N(0, 1/fan_in * min(1, fan_out/fan_in)); everything that writes to the residual
        stream or to the logits is zero, but drawn all the same: thus the stream of random numbers, and with it every
        tensor, equals nanochat's (2025-11) from the same seed. Rows of vocabulary padding are zero.

        Also refills the rotary tables, so that a model made on the meta device works after `to_empty`.
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
            ValueError: when the row is longer than the rotary tables, when the cache is full, or when both `positions`
                and `kv_cache` are given.
        """
        start: int | None = 0 if positions is None else None
        if kv_cache is not None:
            if positions is not None:
                raise ValueError("positions and kv_cache exclude each other: cached rows know their own positions")
            self._check_length(kv_cache.longest + idx.size(1))
            place = kv_cache.place(idx.size(1))
            start, positions, mask = place.start, place.positions, place.mask
        else:
            self._check_length(idx.size(1))
            mask = None if positions is None else document_mask(positions)
        if start is not None:
            rotary = self.cos[:, start : start + idx.size(1)], self.sin[:, start : start + idx.size(1)]
        else:
            rotary = self.cos[0, positions], self.sin[0, positions]
        x = norm(self.transformer.wte(idx).to(self.compute_dtype))
        for block in self.transformer.h:
            x = block(x, rotary, mask, kv_cache)
        return norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Turn hidden states (..., C) into softcapped fp32 logits (..., vocab_size)."""
        logits = self.lm_head(hidden).float()
        if torch.is_grad_enabled():
            return softcapped(logits, self.config.softcap)[..., : self.config.vocab_size]
        # The same, as tanh(x) = 2 sigmoid(2x) - 1 and in its own memory: several times faster on a CPU.
        cap = self.config.softcap
        return logits.mul_(2 / cap).sigmoid_().mul_(2 * cap).sub_(cap)[..., : self.config.vocab_size]

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
