"""The schema of a model: shape and architecture, checked when it is made.

`GPTConfig` is the only place where a default of the model is written; YAML files say what differs. This module imports
no torch, so that a misspelt or impossible configuration is refused within milliseconds. Architecture tricks are fields
of `Architecture`, off by default: the default is the classic model of nanochat (2025-11).
"""

from dataclasses import dataclass

__all__ = ["Architecture", "GPTConfig"]

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
    """What cos and sin are rounded to, `bfloat16` or `float32`; nanochat rounds to bfloat16 on every device."""

    softcap: float = 15.0
    """Logits become softcap * tanh(logits / softcap) (Gemma 2, 2024)."""

    pad_vocab_to: int | None = None
    """Round the rows of both embedding matrices up to a multiple of this; null = no padding. Padded rows are never
    predicted and get no gradient."""

    def __post_init__(self) -> None:
        for name in ("rope_base", "softcap"):
            _require_number(name, getattr(self, name))
        if self.pad_vocab_to is not None:
            _require_number("pad_vocab_to", self.pad_vocab_to)
        _require(self.rope_base > 1, f"model.rope_base={self.rope_base} must be above 1; the classic value is 10000")
        _require(
            self.rope_table_dtype in ("bfloat16", "float32"),
            f"model.rope_table_dtype={self.rope_table_dtype!r} is unknown; set it to bfloat16 or float32",
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            value = getattr(self, name)
            _require_number(name, value)
            _require(value >= 1, f"model.{name}={_shown(value)} must be at least 1")
            _require_below_limit(name, value)
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
