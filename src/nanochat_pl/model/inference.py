"""A copy of a model for decoding, where every step reads all weights for a few tokens.

The copy computes what the model does with other layers: matrices in the compute dtype (a cast at every use would read
them twice), queries, keys and values as one matrix, and for fp32 on a CPU matrices in a second layout, few rows
multiplied from the other side and a norm of fewer operations. Weights that would be the same are shared, not copied.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT, NORM_EPS, Block, CausalSelfAttention, Linear, Rotary, norm

__all__ = ["InferenceCopy", "quick_norm"]

MOST_ROWS = 64
"""Up to this many rows `FewRowsLinear` puts the matrix on the left."""


FEW_NUMBERS = 8192
"""Up to this many numbers the calls that `norm` makes cost more than their arithmetic."""


def quick_norm(x: Tensor) -> Tensor:
    """Compute the model's `norm` in three calls of torch, where it takes nine on a CPU: equal but for rounding (fp32).

    Of many vectors, as in a prompt, it is `norm` itself, which then is up to twice as fast.
    """
    if x.numel() > FEW_NUMBERS or x.dtype != torch.float32 or x.device.type != "cpu":
        return norm(x)
    width = x.size(-1)
    zero, least = _norm_constants(width)
    # sqrt(C) x / sqrt(|x|^2 + C eps), in which the mean's C has gone to the other side
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(least)
    return torch.addcdiv(zero, x, length, value=width**0.5)


@cache
def _norm_constants(width: int) -> tuple[Tensor, Tensor]:
    """Return 0 and sqrt(C eps) as tensors."""
    least = (width * NORM_EPS) ** 0.5
    return torch.zeros((), dtype=torch.float32, device="cpu"), torch.tensor(least, dtype=torch.float32, device="cpu")


class FewRowsLinear(Linear):
    """A matrix that stands on the left of the product if there are few rows (fp32, CPU).

    That is up to 2.7 times as fast, most of all with several threads; a wide matrix by 8 rows loses up to a fifth.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.size(-1)
        if not 1 < rows <= MOST_ROWS:
            return F.linear(x, self.weight)
        return (self.weight @ x.reshape(rows, -1).t()).t().view(*x.shape[:-1], -1)


class TallLinear(FewRowsLinear):
    """A matrix with more outputs than inputs that is also stored column by column.

    A CPU reads that layout about twice as fast for a single row, because it adds up columns that each lie in one piece;
    from two rows on, and for matrices that are wide, the ordinary one is as fast or faster (fp32; docs/results.md).
    """

    columns: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.columns) if x.numel() == x.size(-1) else super().forward(x)


class DecodingAttention(CausalSelfAttention):
    """Attention that computes queries, keys and values by one product, and rotates by tables as wide as a head."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__(config, layer)
        parts = [self.c_q, self.c_k, self.c_v]
        del self.c_q, self.c_k, self.c_v
        self.rows = [part.out_features for part in parts]  # of each in the one matrix, in this order
        self.joined = Linear(config.n_embd, sum(self.rows))

    def heads(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x.shape
        qkv = self.joined(x).view(B, T, -1, self.head_dim)
        qk, v = qkv.split_with_sizes((self.n_head + self.n_kv_head, self.n_kv_head), dim=2)
        qk = quick_norm(_rotate_whole(qk, rotary))
        if self.qk_scale != 1.0:
            qk = qk * self.qk_scale
        q, k = qk.split_with_sizes((self.n_head, self.n_kv_head), dim=2)
        return q, k, v


class DecodingBlock(Block):
    """The model's block with the quicker norm."""

    norm = staticmethod(quick_norm)


def _rotate_whole(x: Tensor, rotary: Rotary) -> Tensor:
    """Compute the model's rotation in few operations, by the tables of `_whole_head`."""
    cos, sin = rotary
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, -1), sin).to(x.dtype)


def _whole_head(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make rotary tables as wide as a head, (cos, cos) and (sin, -sin), in the wider of their and the compute dtype."""
    wide = torch.promote_types(cos.dtype, dtype)
    return torch.cat((cos, cos), dim=-1).to(wide), torch.cat((sin, -sin), dim=-1).to(wide)


def _use_decoding_layers(model: GPT, few_rows: bool) -> None:
    """Replace the model's layers by those above; other parameters than those of `joined` keep their names."""

    def put(layer: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is layer:
                    setattr(parent, name, make(child))

    def faster(linear: Linear) -> Linear:
        kind = TallLinear if linear.out_features > linear.in_features else FewRowsLinear
        return kind(linear.in_features, linear.out_features)

    put(Block, lambda block: DecodingBlock(model.config, block.attn.layer))
    put(CausalSelfAttention, lambda attention: DecodingAttention(model.config, attention.layer))
    if few_rows:
        put(Linear, faster)


class InferenceCopy:
    """A copy of `source` for decoding (`model`), with matrices and activations in `dtype`; never train it."""

    def __init__(self, source: GPT, dtype: torch.dtype):
        self.source = source
        self.dtype = dtype
        self._build()

    def follow(self) -> GPT:
        """Return the copy, brought up to date if the source's weights have changed, moved or been replaced."""
        if self._state() != self._seen:
            self.refresh()
        return self.model

    @torch.no_grad()
    def refresh(self) -> None:
        """Read the source's weights again, into the same memory where the device is the same."""
        replaced = [*map(id, self.source.parameters())] != [*map(id, self._parameters)]
        if replaced or self._device != self.source.device:
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
        self._device = device  # that of `model` may be the source's own, which moves with it
        few_rows = dtype == torch.float32 and device.type == "cpu"
        # 1) The model without memory, with the layers that decoding computes in another way.
        with torch.device("meta"):
            model = GPT(source.config, dtype)
            _use_decoding_layers(model, few_rows)
        model.cos, model.sin = _whole_head(source.cos, source.sin, dtype)
        theirs = dict(source.named_parameters())
        own: list[Tensor] = []  # is copied from `originals` whenever the source changes
        originals: list[Tensor] = []
        # 2) Queries, keys and values together.
        for name, module in model.named_modules():
            if isinstance(module, DecodingAttention):
                joined = torch.empty(module.joined.weight.shape, device=device, dtype=dtype)
                module.joined.weight = nn.Parameter(joined, requires_grad=False)
                own += joined.split(module.rows)
                originals += [theirs.pop(f"{name}.{part}.weight") for part in ("c_q", "c_k", "c_v")]
        # 3) Every other parameter by its name, whatever a trick has added. Only what a Linear multiplies by is read
        # whole, step by step, and copied where its dtype differs. Of an embedding few rows are read, and what a trick
        # adds (vectors, scalars) is small: that is shared, and the model casts it where it reads it, as in training.
        for name, original in theirs.items():
            owner, _, own_name = name.rpartition(".")
            module = model.get_submodule(owner)
            if isinstance(module, Linear) and original.dtype != dtype:
                memory = torch.empty(original.shape, device=device, dtype=dtype)
                own.append(memory)
                originals.append(original)
                setattr(module, own_name, nn.Parameter(memory, requires_grad=False))
            else:
                setattr(module, own_name, original)
        # 4) The second layout, which is read from the first: last, because `joined` has been by then.
        for module in model.modules():
            if isinstance(module, TallLinear):
                module.columns = torch.empty(module.weight.shape[::-1], dtype=dtype).t()
                own.append(module.columns)
                originals.append(module.weight)
        self._own, self._originals = own, originals
        self._parameters = [*source.parameters()]  # held, so that no other object can have the id of one of them
        self.model = model
        self.refresh()
