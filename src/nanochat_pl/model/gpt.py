"""The model: one GPT class for every recipe.

The default is nanochat's classic decoder (2025-11): rotary positions, QK-norm, grouped key/value heads, parameter-free
RMSNorm, squared-ReLU MLP, untied embeddings, softcapped logits, no biases. Weights are fp32; the computation runs in
`compute_dtype`, the loss in fp32 and in chunks over tokens (`loss.py`). Parameters bear nanochat's names, so that its
checkpoints load. What only decoding needs lies elsewhere: the keys and values read so far in `kv_cache.py`, a copy of
the model that reads its weights faster in `inference.py`.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_pl.model.attention import causal_attention, document_mask, in_window
from nanochat_pl.model.config import GATE_CHANNELS, SMEAR_CHANNELS, GPTConfig
from nanochat_pl.model.kv_cache import KVCache
from nanochat_pl.model.loss import chunked_cross_entropy, softcapped, softcapped_in_place

__all__ = ["GPT", "MLP", "NORM_EPS", "Block", "CausalSelfAttention", "Linear", "Rotary", "norm", "rotary_tables"]

NORM_EPS = torch.finfo(torch.float32).eps
"""The epsilon of fp32 for every input dtype, because the statistics are computed in fp32."""

SMEAR = -1
"""The place, among layers, of what smear looks back on."""

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


class Embedding(nn.Embedding):
    """A table of vectors, kept in fp32; NaN until `GPT.init_weights` or `load_state_dict`, like `Linear`."""

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, torch.nan)


def norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last dimension; no parameters (RMSNorm, Zhang & Sennrich 2019)."""
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)


def rotary_tables(config: GPTConfig, compute_dtype: torch.dtype, device: torch.device | None = None) -> Rotary:
    """Return cos and sin of every position's angles, each (1, 10 * sequence_len, 1, D/2) in `rope_table_dtype`."""
    # Pair i of a head's D/2 channel pairs turns by position / rope_base^(2i/D): the first fast, the last slowly.
    channel = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    position = torch.arange(config.rotary_rows, dtype=torch.float32, device=device)
    angle = torch.outer(position, 1.0 / config.rope_base ** (channel / config.head_dim))[None, :, None, :]
    dtype = compute_dtype if config.rope_table_dtype == "compute" else getattr(torch, config.rope_table_dtype)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Turn the channel pairs (i, i + D/2) of x (B, T, H, D) by minus their angle.

    The textbook turns by plus the angle; scores are the same either way, and weights trained by nanochat expect this.
    """
    cos, sin = rotary
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1).to(x.dtype)


class Context(NamedTuple):
    """What all blocks share while tokens are read."""

    rotary: Rotary
    masks: Mapping[int | None, Tensor | None]
    """Who sees whom, by the window of a layer; None = causal."""
    documents: Tensor | None = None
    """(B, T) position of each token inside its own document; None = a row is one document."""
    kv_cache: KVCache | None = None

    def earlier(self, x: Tensor, count: int, place: int) -> list[Tensor]:
        """Return x (B, T, C) as it was one, two, … `count` tokens before; zeros where a document has none.

        `place` tells what is looked back on from whatever else the cache remembers.
        """
        T = x.size(1)
        past = F.pad(x, (0, 0, count, 0)) if self.kv_cache is None else self.kv_cache.extend(place, x, count)
        moved = [past[:, count - n : count - n + T] for n in range(1, count + 1)]
        if self.documents is None:
            return moved
        return [m.masked_fill((self.documents < n)[..., None], 0.0) for n, m in enumerate(moved, start=1)]


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
        self.window, self.qk_scale = config.window(layer), config.qk_scale
        self.ve_gate = Linear(GATE_CHANNELS, self.n_kv_head) if config.has_value_embedding(layer) else None
        self.short_conv = ShortConv(config, layer) if config.short_conv else None

    def heads(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, T, H, D), keys and values (B, T, Hkv, D); the first two rotated and normed."""
        B, T, _ = x.shape
        q = norm(_rotate(self.c_q(x).view(B, T, self.n_head, self.head_dim), rotary))
        k = norm(_rotate(self.c_k(x).view(B, T, self.n_kv_head, self.head_dim), rotary))
        if self.qk_scale != 1.0:
            q, k = q * self.qk_scale, k * self.qk_scale
        return q, k, self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)

    def forward(self, x: Tensor, context: Context, value_embedding: Tensor | None = None) -> Tensor:
        """Mix x (B, T, C) over time.

        Without a mask, query t sees the keys 0..t, or those in the layer's window. With a cache, the keys are those
        read so far and these. `value_embedding` (B, T, Hkv * D) is added to the values by a gate.
        """
        B, T, C = x.shape
        mask, kv_cache = context.masks[self.window], context.kv_cache
        if self.short_conv is not None:
            x = self.short_conv(x, context)
        # 1) Each head makes a query of D numbers for every token; each key/value head a key and a value.
        q, k, v = self.heads(x, context.rotary)
        if self.ve_gate is not None and value_embedding is not None:
            gate = 3 * torch.sigmoid(self.ve_gate(x[..., :GATE_CHANNELS]))  # from 0 to 3, 1.5 where it knows nothing
            v = v + gate[..., None] * value_embedding.view(B, T, self.n_kv_head, self.head_dim)
        # 2) A query's softmaxed products with the keys it may see weigh the values: the head's answer for that token.
        # Without a mask this takes the fast causal path. Where there are fewer key/value heads, several query heads
        # share one.
        if kv_cache is None:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            if mask is None:
                y = causal_attention(q, k, v, self.window)
            else:
                grouped = self.n_kv_head != self.n_head
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
            y = y.transpose(1, 2).reshape(B, T, C)
        else:
            y = kv_cache.attend(self.layer, q, k, v, mask, self.window)
        # 3) The heads' answers, side by side again, are mixed and added to the residual stream by the block.
        return self.c_proj(y.to(x.dtype))


class ShortConv(nn.Module):
    """Add to each token a mixture of the last ones, itself among them, by one learned filter a channel."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.weight = nn.Parameter(torch.full((config.short_conv, config.n_embd), torch.nan))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Return x (B, T, C) plus the mixture; row n of the weight is for the token n before."""
        now, *before = self.weight.to(x.dtype)
        mixed = x + x * now
        for filter_row, past in zip(before, context.earlier(x, len(before), self.layer), strict=True):
            mixed = torch.addcmul(mixed, past, filter_row)
        return mixed


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

    norm = staticmethod(norm)

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.attn = CausalSelfAttention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Context, value_embedding: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm(x), context, value_embedding)
        return x + self.mlp(self.norm(x))


class Trunk(nn.Module):
    """Embedding and blocks; a module of its own only because nanochat's keys begin with `transformer.`."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.wte = Embedding(config.padded_vocab_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))


def _scalars(count: int, is_on: bool) -> nn.Parameter | None:
    """Return learned scalars, NaN like all new weights; None where the trick that has them is off."""
    return nn.Parameter(torch.full((count,), torch.nan)) if is_on else None


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
        # Names and order of what a trick adds are nanochat's (2026-03), so that its newer checkpoints load as well.
        self.resid_lambdas = _scalars(config.n_layer, config.residual_lambdas)
        self.x0_lambdas = _scalars(config.n_layer, config.input_lambdas)
        self.smear_lambda = _scalars(1, config.smear)
        self.backout_lambda = _scalars(1, config.backout)
        self.transformer = Trunk(config)
        self.lm_head = Linear(config.n_embd, config.padded_vocab_size)
        self.smear_gate = Linear(SMEAR_CHANNELS, 1) if config.smear else None
        kv_width = config.n_kv_head * config.head_dim
        self.value_embeds = nn.ModuleDict(
            {
                str(layer): Embedding(config.padded_vocab_size, kv_width)
                for layer in range(config.n_layer)
                if config.has_value_embedding(layer)
            }
        )
        self.windows = {config.window(layer) for layer in range(config.n_layer)}
        cos, sin = rotary_tables(config, compute_dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @property
    def blocks(self) -> list[Block]:
        """The blocks in their order."""
        return [block for block in self.transformer.h if isinstance(block, Block)]

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.lm_head.weight.device

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights as `config.init` says; rows of vocabulary padding are zero.

        The rotary tables are computed anew, so that a model made on the meta device works after `to_empty`. From the
        same seed every tensor equals nanochat's, whose order of draws is kept (2025-11, 2026-03).
        """
        draw = self._draw_classic if self.config.init == "classic" else self._draw_modern
        draw(generator)
        tables = [self.transformer.wte, *self._value_tables()]
        for weight in (self.lm_head.weight, *(table.weight for table in tables)):
            weight[self.config.vocab_size :].zero_()
        # The stream begins as what it was and a little of the embedding, less of it the deeper the layer.
        depth = torch.arange(self.config.n_layer, dtype=torch.float64) / max(self.config.n_layer - 1, 1)
        starts = {
            self.resid_lambdas: 1.15 - 0.10 * depth,
            self.x0_lambdas: 0.20 - 0.15 * depth,
            self.smear_lambda: torch.zeros(1),
            self.backout_lambda: torch.full((1,), 0.2),
        }
        for parameter, start in starts.items():
            if parameter is not None:
                parameter.copy_(start)
        self.cos, self.sin = rotary_tables(self.config, self.compute_dtype, self.device)

    def _draw_classic(self, generator: torch.Generator | None) -> None:
        """Embedding N(0, 1); matrices N(0, 1/fan_in * min(1, fan_out/fan_in)); what writes to the stream or makes the
        logits is zero, so that the first loss is ln(vocab_size)."""
        vocab_size = self.config.vocab_size
        self.transformer.wte.weight[:vocab_size].normal_(generator=generator)
        for module in self.transformer.h.modules():
            if isinstance(module, Linear):
                fan_out, fan_in = module.weight.shape
                std = min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in)
                module.weight.normal_(std=std, generator=generator)
        # What is set to zero was drawn all the same, as nanochat does it, for the stream of random numbers.
        self.lm_head.weight[:vocab_size].normal_(generator=generator)
        self.lm_head.weight.zero_()
        for module in self.transformer.h.modules():
            if isinstance(module, CausalSelfAttention | MLP):
                module.c_proj.weight.zero_()
        self._draw_added(generator)

    def _draw_modern(self, generator: torch.Generator | None) -> None:
        """Embedding N(0, 0.8), unembedding N(0, 0.001); queries, keys and values U(-b, b) with b = sqrt(3 / C), the
        inner matrix of the MLP 0.4 of that; what writes to the residual stream is zero."""
        self.transformer.wte.weight.normal_(std=0.8, generator=generator)
        self.lm_head.weight.normal_(std=0.001, generator=generator)
        bound = math.sqrt(3 / self.config.n_embd)
        for block in self.blocks:
            for matrix in (block.attn.c_q, block.attn.c_k, block.attn.c_v):
                matrix.weight.uniform_(-bound, bound, generator=generator)
            block.attn.c_proj.weight.zero_()
            block.mlp.c_fc.weight.uniform_(-0.4 * bound, 0.4 * bound, generator=generator)
            block.mlp.c_proj.weight.zero_()
        self._draw_added(generator)

    def _draw_added(self, generator: torch.Generator | None) -> None:
        """Draw what tricks add, the same for both: gates hardly open, tables as values, filters that do something."""
        if self.smear_gate is not None:
            self.smear_gate.weight.uniform_(0.0, 0.02, generator=generator)
        bound = math.sqrt(3 / self.config.n_embd)
        for table in self._value_tables():
            table.weight.uniform_(-bound, bound, generator=generator)
        for block in self.blocks:
            if block.attn.ve_gate is not None:
                block.attn.ve_gate.weight.uniform_(0.0, 0.02, generator=generator)
        for block in self.blocks:
            if block.attn.short_conv is not None:  # from zero they learn late
                block.attn.short_conv.weight.normal_(std=0.3, generator=generator)

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        """Partition `parameters()` by what they are to the optimizer (`optim.config.ROLES`); no role is empty."""
        roles: dict[str, list[Any]] = {
            "matrix": [module.weight for module in self.transformer.h.modules() if isinstance(module, Linear)],
            "embedding": [self.transformer.wte.weight],
            "unembedding": [self.lm_head.weight],
            "value_embedding": [table.weight for table in self._value_tables()],
            "residual_lambda": [p for name, p in self.named_parameters() if name == "resid_lambdas"],
            "input_lambda": [p for name, p in self.named_parameters() if name == "x0_lambdas"],
            "smear": [p for name, p in self.named_parameters() if name.startswith(("smear_", "backout_"))],
            "short_conv": [module.weight for module in self.transformer.h.modules() if isinstance(module, ShortConv)],
        }
        return {role: parameters for role, parameters in roles.items() if parameters}

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
        # 1) Who sees whom, and where each token stands. Masks and angles are made once and shared by all layers.
        documents, start = positions, 0 if positions is None else None
        masks: Mapping[int | None, Tensor | None]
        if kv_cache is not None:
            if positions is not None:
                raise ValueError("positions and kv_cache exclude each other: cached rows know their own positions")
            self._check_length(kv_cache.longest + idx.size(1))
            ahead = kv_cache.next_position(idx.size(1), self.windows)
            start, positions, masks = ahead.start, ahead.positions, ahead.masks
        else:
            self._check_length(idx.size(1))
            if positions is None:
                masks = dict.fromkeys(self.windows)
            else:
                own = document_mask(positions)
                masks = {window: in_window(own, window) for window in self.windows}
        if start is not None:  # all rows stand at the same place: a slice of the tables
            rotary = self.cos[:, start : start + idx.size(1)], self.sin[:, start : start + idx.size(1)]
        else:
            rotary = self.cos[0, positions], self.sin[0, positions]
        context = Context(rotary, masks, documents, kv_cache)
        # 2) One vector a token goes up the residual stream: each block adds to it, none replaces it.
        x = self._embed(idx, context)
        x0 = middle = x
        for layer, block in enumerate(self.transformer.h):
            if self.resid_lambdas is not None:
                x = self.resid_lambdas[layer] * x
            if self.x0_lambdas is not None:
                x = x + self.x0_lambdas[layer] * x0
            value_embedding = None
            if self.config.has_value_embedding(layer):
                value_embedding = self.value_embeds[str(layer)](idx).to(self.compute_dtype)
            x = block(x, context, value_embedding)
            if layer == self.config.n_layer // 2:
                middle = x
        if self.backout_lambda is not None:
            share = self.backout_lambda.to(x.dtype)
            if self.config.n_layer <= 2:
                # The middle is the end: to subtract it only scales what the norm scales back. All gradient that leaves
                # is rounding, which AdamW makes as large as any, and past 1 the stream turns around: so the gradient
                # is 0, and not absent, because ranks that train together wait for one.
                share = share.detach() + 0 * share
            x = x - share * middle
        return norm(x)

    def _value_tables(self) -> list[nn.Embedding]:
        """Return the tables of value embeddings in the order of their layers."""
        return [table for table in self.value_embeds.values() if isinstance(table, nn.Embedding)]

    def _embed(self, idx: Tensor, context: Context) -> Tensor:
        """Return the normed embeddings (B, T, C), each with a share of its predecessor's where `smear` is on."""
        x = norm(self.transformer.wte(idx).to(self.compute_dtype))
        if self.smear_gate is None or self.smear_lambda is None:
            return x
        if self.config.smear_across_documents:
            context = context._replace(documents=None)
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))
        (before,) = context.earlier(x, 1, SMEAR)
        return x + gate * before

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
