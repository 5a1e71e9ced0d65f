"""What stands beside weights of nanochat's form: a page of JSON. No torch here: a wrong one is seen at once."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from nanochat_pl.model.config import GPTConfig
from nanochat_pl.paths import reason

__all__ = ["MAX_JSON_BYTES", "SHAPE", "meta_place", "model_config", "parse_json", "read_json"]

SHAPE = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
"""The fields of nanochat's model config."""

MAX_JSON_BYTES = 64 * 2**20
"""Metadata are a page and a vocabulary some megabytes; a larger file is neither."""
MAX_JSON_VALUES = 8_000_000
"""A vocabulary of Hugging Face's form has about four for each token."""


def meta_place(weights: str) -> str:
    """Give where the metadata of a file of weights lie: beside it, `meta_` for `model_`, `.json` for `.pt`.

    Args:
        weights: path, `/` between folders.
    """
    path = PurePosixPath(weights)
    return path.with_name(path.name.replace("model_", "meta_", 1)).with_suffix(".json").as_posix()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none; says what was found.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, too many for metadata")
    try:
        content = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({reason(error)}); it is damaged or of another kind") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def parse_json(data: bytes) -> Any:
    """Parse JSON, after a look at how many values it holds: each takes some twenty times its place in the text.

    Raises:
        ValueError: it is none, or has more than MAX_JSON_VALUES values.
        RecursionError: it is nested too deeply.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES:,} values")
    return json.loads(data)


def model_config(meta: Mapping[str, Any], where: Path) -> GPTConfig:
    """Give the config that metadata describe, in the classic architecture.

    Raises:
        ValueError: fields are missing, unknown or impossible; names them.
    """
    stored = meta.get("model_config")
    if not isinstance(stored, Mapping):
        raise ValueError(
            f"{where} has no model_config, so that the shape of the model is unknown; it is no nanochat file"
        )
    shape = dict(stored)
    windows = shape.pop("window_pattern", "L")  # later nanochats write it; L is attention to everything
    if not isinstance(windows, str) or set(windows.upper()) != {"L"}:
        raise ValueError(
            f"{where} has window_pattern={windows!r}: sliding windows, which the classic model does not have"
        )
    wrong = [f"no {name}" for name in SHAPE if name not in shape]
    wrong += [f"the unknown {name}={shape[name]!r}" for name in shape if name not in SHAPE]
    wrong += [f"{name}={shape[name]!r}, no whole number" for name in SHAPE if type(shape.get(name, 0)) is not int]
    if wrong:
        raise ValueError(f"model_config in {where} is not that of a classic nanochat: it has {', '.join(wrong)}")
    try:
        return GPTConfig(**shape)
    except ValueError as error:
        raise ValueError(f"model_config in {where} is impossible: {error}") from None
