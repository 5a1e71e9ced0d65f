"""A copy of a model for decoding, where every step reads all weights for a few tokens.

The copy is a `GPT` like any other and computes the same; only its memory differs: matrices in the compute dtype (a cast
at every use would read them twice), queries, keys and values as one matrix, and for fp32 on a CPU the unembedding in a
second layout and few rows multiplied from the other side. Weights that would be the same are shared, not copied.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT, CausalSelfAttention, Linear, Rotary, norm

__all__ = ["DecodingAttention", "InferenceCopy"]

FEW_ROWS = 2
"""Up to this many rows read the unembedding's second layout; from four on the ordinary one is faster (fp32)."""

MOST_ROWS = 64
"""Up to this many rows `_few_rows` has been seen to be faster."""


def _few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """Compute `F.linear` with the matrix on the left: up to twice as fast for a few rows of fp32 on a CPU."""
    rows = x.numel() // x.size(-1)
    if not 1 < rows <= MOST_ROWS:
        return F.linear(x, weight)
    return (weight @ x.reshape(rows, -1).t()).t().view(*x.shape[:-1], -1)


class FewRowsLinear(Linear):
    """A matrix that is multiplied from the other side if there are few rows (see `_few_rows`)."""

    def forward(self, x: Tensor) -> Tensor:
        return _few_rows(x, self.weight)


class DecodingUnembedding(Linear):
    """An unembedding that is also stored column by column, which a CPU reads twice as fast for one or two rows."""

    columns: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() <= FEW_ROWS * x.size(-1):
            return F.linear(x, self.columns)
        return _few_rows(x, self.weight)


class DecodingAttention(CausalSelfAttention):
    """Attention that computes queries, keys and values by one product, and rotates by tables as wide as a head."""

    joined: Tensor
    """The rows of c_q, c_k and c_v, (H * D + 2 * Hkv * D, C); their weights are views of it."""

    def __init__(self, config: GPTConfig, layer: int, product: Callable[[Tensor, Tensor], Tensor]):
        super().__init__(config, layer)
        self.product = product

    def heads(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x.shape
        qkv = self.product(x, self.joined).view(B, T, -1, self.head_dim)
        qk, v = qkv.split((self.n_head + self.n_kv_head, self.n_kv_head), dim=2)
        qk = norm(_rotate_whole(qk, rotary))
        if self.qk_scale != 1.0:
            qk = qk * self.qk_scale
        q, k = qk.split((self.n_head, self.n_kv_head), dim=2)
        return q, k, v


def _rotate_whole(x: Tensor, rotary: Rotary) -> Tensor:
    """Compute the model's rotation in few operations, by the tables of `_whole_head`."""
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, -1), sin).to(x.dtype)


def _whole_head(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make rotary tables as wide as a head, (cos, cos) and (sin, -sin), in the wider of their and the compute dtype."""
    wide = torch.promote_types(cos.dtype, dtype)
    return torch.cat((cos, cos), dim=-1).to(wide), torch.cat((sin, -sin), dim=-1).to(wide)


def _use_decoding_layers(model: GPT, few_rows: bool) -> None:
    """Replace the model's layers by those above; parameters keep their names."""

    def put(layer: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is layer:
                    setattr(parent, name, make(child))

    product = _few_rows if few_rows else F.linear
    put(CausalSelfAttention, lambda attention: DecodingAttention(model.config, attention.layer, product))
    if few_rows:
        model.lm_head = DecodingUnembedding(model.lm_head.in_features, model.lm_head.out_features)
        put(Linear, lambda linear: FewRowsLinear(linear.in_features, linear.out_features))


class InferenceCopy:
    """A copy of `source` for decoding (`model`), with matrices and activations in `dtype`; never train it."""

    def __init__(self, source: GPT, dtype: torch.dtype):
        self.source = source
        self.dtype = dtype
        self._build()

    def follow(self) -> GPT:
        """Return the copy, brought up to date if the source's weights have changed in place or moved."""
        if self._state() != self._seen:
            self.refresh()
        return self.model

    @torch.no_grad()
    def refresh(self) -> None:
        """Read the source's weights again, into the same memory where the device is the same."""
        if self.model.device != self.source.device:
            self._build()
            return
        if self._own:
            torch._foreach_copy_(self._own, [original.detach() for original in self._originals])
        self._seen = self._state()

    def _state(self) -> list[tuple[int, int]]:
        """Return what identifies a state of the source's weights: the address of each, and how often it was written."""
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.source.parameters()]

    @torch.inference_mode(False)  # memory made in that mode could not be written outside of it
    @torch.no_grad()
    def _build(self) -> None:
        source, dtype, device = self.source, self.dtype, self.source.device
        few_rows = dtype == torch.float32 and device.type == "cpu"
        # 1) The model without memory, with the layers that decoding computes in another way.
        with torch.device("meta"):
            model = GPT(source.config, dtype)
            _use_decoding_layers(model, few_rows)
        model.cos, model.sin = _whole_head(source.cos, source.sin, dtype)
        # 2) Memory of layouts that the source does not have: queries, keys and values together, the columns of the
        # unembedding. `own` is copied from `originals` whenever the source changes.
        own: list[Tensor] = []
        originals: list[Tensor] = []
        views: dict[int, Tensor] = {}
        for module in model.modules():
            if isinstance(module, DecodingAttention):
                parts = (module.c_q, module.c_k, module.c_v)
                sizes = [part.weight.size(0) for part in parts]
                module.joined = torch.empty(sum(sizes), source.config.n_embd, device=device, dtype=dtype)
                views |= {id(part.weight): rows for part, rows in zip(parts, module.joined.split(sizes), strict=True)}
            elif isinstance(module, DecodingUnembedding):
                module.columns = torch.empty(module.weight.shape[::-1], dtype=dtype).t()
                own.append(module.columns)
                originals.append(source.lm_head.weight)
        # 3) Every parameter by its name, whatever a trick has added. Only what a Linear multiplies by is read whole,
        # step by step, and copied where its dtype differs. Of an embedding few rows are read, and what a trick adds
        # (vectors, scalars) is small: that is shared, and the model casts it where it reads it, as in training.
        theirs = dict(source.named_parameters())
        for name, parameter in list(model.named_parameters()):
            owner, _, own_name = name.rpartition(".")
            module, original = model.get_submodule(owner), theirs[name]
            memory = views.get(id(parameter))
            if memory is None and isinstance(module, Linear) and original.dtype != dtype:
                memory = torch.empty(parameter.shape, device=device, dtype=dtype)
            if memory is None:
                setattr(module, own_name, original)
            else:
                own.append(memory)
                originals.append(original)
                setattr(module, own_name, nn.Parameter(memory, requires_grad=False))
        self._own, self._originals = own, originals
        self.model = model
        self.refresh()
