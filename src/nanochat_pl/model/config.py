"""The schema of a model: shape and architecture, checked when it is made.

`GPTConfig` is the only place where a default of the model is written; YAML files say what differs. This module imports
no torch, so that a misspelt or impossible configuration is refused within milliseconds. Architecture tricks are fields
of `Architecture`, off by default: the default is the classic model of nanochat (2025-11).
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Any

__all__ = ["GATE_CHANNELS", "MODERN", "SMEAR_CHANNELS", "Architecture", "GPTConfig"]

MAX_SOFTCAP = 40.0
"""Softcapped logits lie in [-softcap, softcap]; up to here exp(-2 * softcap) is a normal fp32 number, so that the loss
may use the fixed offset `softcap` in place of a maximum over the vocabulary."""

LIMITS = {
    "sequence_len": 2**20,
    "vocab_size": 2**24,
    "n_layer": 2**12,
    "n_head": 2**12,
    "n_kv_head": 2**12,
    "n_embd": 2**18,
    "pad_vocab_to": 2**24,
}
"""The largest values that are accepted: configs come from files too, and no memory may be taken for a wrong one."""

MAX_ROPE_BASE = 1e9
"""The longest wavelength is then millions of times any context: beyond, channels only stop turning."""

MAX_QK_SCALE = 10.0
"""Scores of 100 x sqrt(D): attention is a maximum long before."""

MAX_SHORT_CONV = 64
"""The widest short convolution; beyond, attention does the same."""

GATE_CHANNELS = 12
"""The gates of value embeddings read this many channels of what attention reads (nanochat, 2026-03)."""

SMEAR_CHANNELS = 24
"""The gate of smear reads this many channels of the embedding (nanochat, 2026-03)."""

MAX_ROTARY_CHANNELS = 2**24
"""The largest sequence_len x channels a head: the rotary tables, which no weights confirm, then take 0.7 GB at most."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_number(name: str, value: object) -> None:
    """Refuse whatever else a file may hold in the place of a number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    _require(is_number, f"model.{name}={str(value)[:40]!r} must be a number")


def _require_below_limit(name: str, value: int) -> None:
    _require(
        not isinstance(value, int) or value <= LIMITS[name],
        f"model.{name}={_shown(value)} must be at most {LIMITS[name]:,}",
    )


def _shown(value: float) -> str:
    """Write a number of any size: Python does not print one of thousands of digits."""
    return (
        str(value) if not isinstance(value, int) or abs(value) < 10**20 else f"an integer of {value.bit_length()} bits"
    )


@dataclass(kw_only=True)
class Architecture:
    """What the model computes, apart from its shape; the defaults are the classic model."""

    rope_base: float = 10000.0
    """Base of the geometric series of rotary wavelengths (RoFormer, Su et al. 2021)."""

    rope_table_dtype: str = "bfloat16"
    """What cos and sin are rounded to: `bfloat16`, `float32`, or `compute` = the dtype of the activations. nanochat
    rounded to bfloat16 on every device until March 2026, to the dtype of the computation since."""

    softcap: float = 15.0
    """Logits become softcap * tanh(logits / softcap) (Gemma 2, 2024)."""

    pad_vocab_to: int | None = None
    """Round the rows of both embedding matrices up to a multiple of this; null = no padding. Padded rows are never
    predicted and get no gradient."""

    qk_scale: float = 1.0
    """Queries and keys are multiplied by this after their norm, which sharpens attention (nanochat, 2026-03: 1.2)."""

    window_pattern: str | None = None
    """One letter a layer, repeated: `S` sees the last quarter of `sequence_len`, rounded up to a multiple of 128, `L`
    the last `sequence_len` tokens; the last layer is always `L`. Later stages keep the windows of pretraining. null =
    every layer sees all that came before (nanochat, 2026-01: SSSL)."""

    value_embeddings: bool = False
    """Every second layer, the last among them, adds to its values a vector that each token has in a table of its own,
    by a gate for each key/value head (nanochat, 2026-01, after modded-nanogpt)."""

    residual_lambdas: bool = False
    """Multiply the residual stream by a learned scalar before each block (nanochat, 2026-01)."""

    input_lambdas: bool = False
    """Add to the residual stream, before each block, the embedding times a learned scalar (nanochat, 2026-01)."""

    smear: bool = False
    """Add to each embedding that of the token before it, by a learned gate (nanochat, 2026-03)."""

    smear_across_documents: bool = False
    """Let the first token of a document receive the last one of the document before it in a packed row, as nanochat
    does; it means something only with `smear`."""

    backout: bool = False
    """Subtract from the end of the residual stream a learned share of what it was in the middle (nanochat, 2026-03)."""

    short_conv: int = 0
    """Width of a causal convolution over time, one filter a channel, on what each attention reads; 0 = none. It lets
    an attention match tokens by those next to them (Canon layers, Allen-Zhu 2025)."""

    init: str = "classic"
    """How weights begin: `classic` (nanochat, 2025-11) or `modern` (nanochat, 2026-03)."""

    def __post_init__(self) -> None:
        for name in ("rope_base", "softcap", "qk_scale", "short_conv"):
            _require_number(name, getattr(self, name))
        if self.pad_vocab_to is not None:
            _require_number("pad_vocab_to", self.pad_vocab_to)
        _require(
            1 < self.rope_base <= MAX_ROPE_BASE,
            f"model.rope_base={self.rope_base} must lie in (1, {MAX_ROPE_BASE:g}]; the classic value is 10000",
        )
        _require(
            self.rope_table_dtype in ("bfloat16", "float32", "compute"),
            f"model.rope_table_dtype={self.rope_table_dtype!r} is unknown; set it to bfloat16, float32 or compute",
        )
        _require(
            0 < self.softcap <= MAX_SOFTCAP,
            f"model.softcap={self.softcap} must lie in (0, {MAX_SOFTCAP:g}]; the classic value is 15",
        )
        _require(
            self.pad_vocab_to is None or self.pad_vocab_to >= 1,
            f"model.pad_vocab_to={self.pad_vocab_to} must be a positive multiple such as 64, or null for no padding",
        )
        _require_below_limit("pad_vocab_to", self.pad_vocab_to or 1)
        for field in fields(Architecture):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                _require(isinstance(value, bool), f"model.{field.name}={str(value)[:40]!r} must be true or false")
        _require(
            0 < self.qk_scale <= MAX_QK_SCALE,
            f"model.qk_scale={self.qk_scale} must lie in (0, {MAX_QK_SCALE:g}]; the classic value is 1",
        )
        pattern = self.window_pattern
        _require(
            pattern is None or (isinstance(pattern, str) and re.fullmatch("[SL]{1,4096}", pattern) is not None),
            f"model.window_pattern={str(pattern)[:40]!r} must consist of the letters S and L, such as SSSL, or be null",
        )
        _require(
            isinstance(self.short_conv, int) and (self.short_conv == 0 or 2 <= self.short_conv <= MAX_SHORT_CONV),
            f"model.short_conv={self.short_conv} must be a width from 2 to {MAX_SHORT_CONV}, or 0 for none",
        )
        _require(
            not self.smear_across_documents or self.smear,
            "model.smear_across_documents=true means nothing without model.smear=true; set both, or neither",
        )
        _require(
            self.init in ("classic", "modern"), f"model.init={self.init!r} is unknown; set it to classic or modern"
        )


@dataclass(kw_only=True)
class GPTConfig(Architecture):
    """Shape and architecture of one model.

    Raises:
        ValueError: if a value is impossible or the widths do not divide; the message says what to set.
    """

    sequence_len: int = 1024
    """Tokens of context the model is trained and used with."""

    vocab_size: int = 50304
    """Number of token ids of the tokenizer."""

    n_layer: int = 12
    """Transformer blocks."""

    n_head: int = 6
    """Query heads."""

    n_kv_head: int = 6
    """Key/value heads; fewer than `n_head` = grouped-query attention."""

    n_embd: int = 768
    """Channels of the residual stream."""

    window_context: int | None = None
    """The `sequence_len` that the windows were trained with, where rows have another length now; null = the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            value = getattr(self, name)
            _require_number(name, value)
            _require(value >= 1, f"model.{name}={_shown(value)} must be a whole number of at least 1")
            _require_below_limit(name, value)
        context = self.window_context
        _require(
            context is None or (type(context) is int and 1 <= context <= LIMITS["sequence_len"]),
            f"model.window_context={str(context)[:40]!r} must be a number of tokens, or null",
        )
        _require(
            self.n_embd % self.n_head == 0,
            f"model.n_embd={self.n_embd} is not a multiple of model.n_head={self.n_head}; "
            f"set model.n_embd={-(-self.n_embd // self.n_head) * self.n_head} or another model.n_head",
        )
        _require(
            self.head_dim % 2 == 0,
            f"model.n_embd={self.n_embd} / model.n_head={self.n_head} = {self.head_dim} channels a head is odd, "
            f"but rotary embeddings turn pairs; set model.n_embd={self.n_head * (self.head_dim + 1)}",
        )
        longest = MAX_ROTARY_CHANNELS // self.head_dim
        _require(
            not isinstance(self.sequence_len, int) or self.sequence_len <= longest,
            f"model.sequence_len={self.sequence_len} must be at most {longest} with {self.head_dim} channels a head",
        )
        _require(
            self.n_head % self.n_kv_head == 0,
            f"model.n_head={self.n_head} is not a multiple of model.n_kv_head={self.n_kv_head}; "
            f"set model.n_kv_head to one of {[n for n in range(1, self.n_head + 1) if self.n_head % n == 0]}",
        )

        for name, channels in (("smear", SMEAR_CHANNELS), ("value_embeddings", GATE_CHANNELS)):
            _require(
                not getattr(self, name) or self.n_embd >= channels,
                f"model.n_embd={self.n_embd} is too small for the gate of model.{name}, which reads {channels} "
                f"channels; set model.{name}=false, or model.n_embd={channels} or more",
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head, D."""
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding and unembedding matrices: `vocab_size`, rounded up when `pad_vocab_to` is set."""
        multiple = self.pad_vocab_to or 1
        return -(-self.vocab_size // multiple) * multiple

    @property
    def rotary_rows(self) -> int:
        """Positions the rotary tables know: ten times the context, as in nanochat."""
        return 10 * self.sequence_len

    def window(self, layer: int) -> int | None:
        """Return how many tokens before itself a token sees in a layer; None = all of them."""
        if self.window_pattern is None:
            return None
        letter = "L" if layer == self.n_layer - 1 else self.window_pattern[layer % len(self.window_pattern)]
        context = self.window_context or self.sequence_len
        return context if letter == "L" else -(-context // 512) * 128

    def with_sequence_len(self, sequence_len: int) -> "GPTConfig":
        """Return the config of the same model for rows of another length: its windows stay as they were trained."""
        context = self.window_context or self.sequence_len
        kept = None if self.window_pattern is None or context == sequence_len else context
        return replace(self, sequence_len=sequence_len, window_context=kept)

    def has_value_embedding(self, layer: int) -> bool:
        """Tell whether a layer adds value embeddings: the last one does, and every second before it."""
        return self.value_embeddings and layer % 2 == (self.n_layer - 1) % 2


MODERN: dict[str, Any] = {
    "rope_base": 100000.0,
    "rope_table_dtype": "compute",
    "qk_scale": 1.2,
    "window_pattern": "SSSL",
    "value_embeddings": True,
    "residual_lambdas": True,
    "input_lambdas": True,
    "smear": True,
    "backout": True,
    "init": "modern",
    "pad_vocab_to": 64,
}
"""The fields of `Architecture` that nanochat's model of 2026-03 sets. Readers of its checkpoints need them without the
YAML files; a test holds that configs/model/modern.yaml says the same. Its smear crosses the border of documents as
well, which matters in training alone."""
