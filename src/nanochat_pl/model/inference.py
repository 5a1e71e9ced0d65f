"""A copy of a model laid out for decoding, where every step reads all weights for a few tokens.

The copy is a `GPT` like any other and computes the same; only its memory differs: matrices in the compute dtype (a cast
at every use would read them twice), queries, keys and values as one matrix, and for fp32 on a CPU the unembedding in a
second layout and few rows multiplied from the other side. What would be the same is shared with the model, not copied.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat_pl.model.attention import CausalSelfAttention, Linear
from nanochat_pl.model.gpt import GPT
from nanochat_pl.runtime import has_fast_bf16

__all__ = ["InferenceCopy", "pick_inference_dtype"]

FEW_ROWS = 2
"""So many rows read the unembedding's second layout; from four on the ordinary one is faster (fp32)."""

MOST_ROWS = 64
"""Up to so many rows `_few_rows` has been seen to be faster."""


def pick_inference_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """Choose the dtype of decoding: `auto` is bfloat16 where the device computes in it, else float32.

    Raises:
        ValueError: when the name is not auto, float32 or bfloat16.
    """
    if name not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"engine.dtype={name!r} is unknown; set it to auto, float32 or bfloat16")
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


class _Unembedding(Linear):
    """An unembedding that also lies in memory column by column, as a CPU reads it twice as fast for one or two rows."""

    columns: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() <= FEW_ROWS * x.size(-1):
            return F.linear(x, self.columns)
        return _few_rows(x, self.weight)


def _few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """Do what `F.linear` does with the matrix on the left: up to twice as fast for some rows of fp32 on a CPU."""
    rows = x.numel() // x.size(-1)
    if not 1 < rows <= MOST_ROWS:
        return F.linear(x, weight)
    return (weight @ x.reshape(rows, -1).t()).t().view(*x.shape[:-1], -1)


class InferenceCopy:
    """Keep a copy of `source` for decoding.

    Args:
        source: its weights are read here and whenever they have changed.
        dtype: of matrices and activations; normally float32 or bfloat16.

    Attributes:
        model: the copy; never train it.
    """

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
        """Tell one state of the source's weights from another: where each lies, and how often it was written."""
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.source.parameters()]

    @torch.inference_mode(False)  # memory made in that mode could not be written outside of it
    @torch.no_grad()
    def _build(self) -> None:
        source, dtype = self.source, self.dtype
        with torch.device("meta"):
            model = GPT(source.config, dtype)
        device = source.device
        model.cos, model.sin = _whole_head(source.cos, source.sin, dtype)
        own: list[Tensor] = []
        originals: list[Tensor] = []
        theirs = dict(source.named_parameters())
        names = {id(parameter): name for name, parameter in model.named_parameters()}

        def copied(parameter: Tensor, memory: Tensor) -> nn.Parameter:
            own.append(memory)
            originals.append(theirs[names[id(parameter)]])
            return nn.Parameter(memory, requires_grad=False)

        for module in list(model.modules()):
            if isinstance(module, CausalSelfAttention):
                parts = (module.c_q, module.c_k, module.c_v)
                sizes = [part.weight.size(0) for part in parts]
                module.joined = torch.empty(sum(sizes), source.config.n_embd, device=device, dtype=dtype)
                for part, memory in zip(parts, module.joined.split(sizes), strict=True):
                    part.weight = copied(part.weight, memory)
        if dtype == torch.float32 and device.type == "cpu":
            for module in model.modules():
                if isinstance(module, Linear):
                    module.product = _few_rows
            with torch.device("meta"):
                head = _Unembedding(source.config.n_embd, source.config.padded_vocab_size)
            head.columns = torch.empty(head.weight.shape[::-1], dtype=dtype).t()
            own.append(head.columns)
            originals.append(source.lm_head.weight)
            model.lm_head = head
        for name, parameter in list(model.named_parameters()):
            if not parameter.is_meta:
                continue
            owner, _, own_name = name.rpartition(".")
            module = model.get_submodule(owner)
            # Only what a Linear multiplies by is read whole, step by step. Of an embedding few rows are read, and what
            # a trick adds (vectors, scalars) is small: the model casts those where it reads them, as in training.
            if theirs[name].dtype == dtype or not isinstance(module, Linear):
                setattr(module, own_name, theirs[name])
            else:
                setattr(module, own_name, copied(parameter, torch.empty(parameter.shape, device=device, dtype=dtype)))
        self._own, self._originals = own, originals
        self.model = model
        self.refresh()


def _whole_head(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make the tables of `_rotate_whole`, in the wider of their dtype and the compute dtype."""
    wide = torch.promote_types(cos.dtype, dtype)
    return torch.cat((cos, cos), dim=-1).to(wide), torch.cat((sin, -sin), dim=-1).to(wide)
