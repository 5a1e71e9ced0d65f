"""A trained model in memory, independent of its format on disk: all readers return it, and all writers take it.

Each format has a reader, which makes a `ModelState` of a file or folder, and most have a writer, which takes one.
Readers check the weights against the shape that the files claim, so that the error names the wrong file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_pl.checkpoint.formats import SHAPE
from nanochat_pl.model.config import GPTConfig

if TYPE_CHECKING:
    from torch import Tensor

    from nanochat_pl.tokenizer import Tokenizer

__all__ = [
    "UNKNOWN_STAGE",
    "ModelState",
    "check_shape",
    "check_tokenizer",
    "check_weights",
    "float16_notes",
    "weight_shapes",
]

MAX_CONFIG_DEPTH = 100
"""Levels of nesting in a run's config; a real one has about six. Writers recurse into it."""

UNKNOWN_STAGE = "unknown"
"""The stage of a checkpoint that does not name the stage that trained it."""


@dataclass(frozen=True)
class ModelState:
    """One trained model: weights, shape, tokenizer, and their origin."""

    config: GPTConfig
    state: "dict[str, Tensor]"
    """Weights by our names, without a prefix, float32 on the CPU."""
    tokenizer: "Tokenizer"
    stage: str
    """The stage that trained it; `unknown` if the files do not name it."""
    step: int
    """Optimizer updates within that stage."""
    run_config: dict[str, Any]
    """The resolved config of the run, as in `config.yaml`; empty if unknown."""
    file: Path
    """The file of the weights."""
    format: str
    """One of `formats.FORMATS`."""
    notes: tuple[str, ...] = ()
    """Conversions and assumptions of the reader, in sentences for the user."""

    def __post_init__(self) -> None:
        """Refuse an impossible stage or step, since names of files and folders are made of them."""
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", self.stage):
            raise ValueError(
                f"{self.file} says that stage {self.stage[:80]!r} trained it, expected a plain name such as sft; the "
                "file is damaged or was made to mislead"
            )
        if not 0 <= self.step < 2**63:
            raise ValueError(f"{self.file} says that it is of a step below 0 or above 2**63; it is damaged")
        level, depth = [self.run_config], 0
        while level and depth < MAX_CONFIG_DEPTH:
            level = [v for item in level for v in (item.values() if isinstance(item, dict) else item)]
            level, depth = [item for item in level if isinstance(item, dict | list | tuple)], depth + 1
        if level:
            raise ValueError(f"{self.file} has a config nested more than {depth} levels deep; it is damaged")


def check_shape(config: GPTConfig, where: str | Path) -> None:
    """Raise `ValueError` unless the shape from a file consists of whole numbers, since files may hold anything."""
    if wrong := [f"{name}={getattr(config, name)!r}" for name in SHAPE if type(getattr(config, name)) is not int]:
        raise ValueError(f"{where} has {', '.join(wrong)}, expected whole numbers; it is damaged")


def weight_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every weight of a model, in the order of its state dict, without allocating them."""
    import torch

    from nanochat_pl.model.gpt import GPT

    with torch.device("meta"):
        return {name: tuple(weight.shape) for name, weight in GPT(config).state_dict().items()}


def check_weights(state: "Mapping[str, Tensor]", config: GPTConfig, where: str | Path) -> None:
    """Check that `state` holds the weights of a model of this config, and nothing else.

    Raises:
        ValueError: if weights are missing, unknown, of another shape, share their numbers or are not finite; the
            message names them.
    """
    check_shape(config, where)
    layers = {int(found[1]) for name in state if (found := re.match(r"transformer\.h\.(\d+)\.", name))}
    if len(layers) != config.n_layer:  # before anything is allocated for an unchecked number
        raise ValueError(f"{where} holds the weights of {len(layers)} layers, its config says n_layer={config.n_layer}")
    shapes = weight_shapes(config)
    missing = [name for name in shapes if name not in state]
    extra = [name for name in state if name not in shapes]
    faults = [
        f"{len(names)} {word} ({_some(names)})" for word, names in (("missing", missing), ("unknown", extra)) if names
    ]
    faults += [
        f"{name} is {tuple(state[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in state and tuple(state[name].shape) != shape
    ][:4]
    faults += [f"{name} is {t.dtype}" for name, t in state.items() if not t.dtype.is_floating_point][:4]
    if faults:
        raise ValueError(
            f"the weights in {where} do not fit its config: {'; '.join(faults)}; the files are not of one model"
        )
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    size, stored = sum(t.numel() * t.element_size() for t in state.values()), sum(storages.values())
    if size > stored:
        raise ValueError(
            f"{where} describes {size:,} bytes of weights and holds {stored:,}: its tensors share their numbers, which "
            "no saved model's do; nothing was laid out"
        )
    broken = [
        f"{name}: {n:,} of {t.numel():,}" for name, t in state.items() if (n := int((~t.float().isfinite()).sum()))
    ]
    if broken:
        raise ValueError(
            f"weights in {where} are not finite ({_some(broken)}), so the model computes nothing; its training "
            "diverged or the file is damaged: open an earlier checkpoint of the run"
        )


def float16_notes(model: ModelState) -> tuple[str, ...]:
    """Return, in sentences for the user, why another program should not convert a model to float16, which ends at
    65,504; none where nothing speaks against it."""
    import torch

    limit = torch.finfo(torch.float16).max
    over = {name: top for name, w in model.state.items() if (top := float(w.abs().max())) > limit}
    notes = [f"{_some([*over])} hold numbers up to {max(over.values()):.3g}"] if over else []
    if model.config.input_lambdas or model.config.residual_lambdas:
        notes.append("its residual stream is scaled by learned numbers, which drift, and may grow beyond that")
    return tuple(f"not for float16, which ends at {limit:,.0f}: {note}; use bfloat16 or float32" for note in notes)


def check_tokenizer(tokenizer: "Tokenizer", config: GPTConfig, where: str | Path) -> None:
    """Raise `ValueError` unless a tokenizer has as many ids as the model."""
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"the tokenizer at {where} has {tokenizer.vocab_size} ids, the model {config.vocab_size}; they do not "
            "belong together: put the model's own tokenizer beside it"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
