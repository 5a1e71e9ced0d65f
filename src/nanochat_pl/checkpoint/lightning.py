"""Lightning's `.ckpt` as this project writes it: weights, optimizer state, and all that makes the file self-contained.

In addition to Lightning's own entries a file has `nanochat_pl`: the stage, the model's config, the resolved run config
and the tokenizer, all as plain data. So one file is enough to evaluate, chat or fine-tune, and it loads with
`weights_only=True`, which runs no code.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat_pl.checkpoint.safe_load import check_tensors, read_torch
from nanochat_pl.checkpoint.state import ModelState, check_tokenizer, check_weights
from nanochat_pl.checkpoint.whole import other_checkpoints
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.paths import reason
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["checkpoint_metadata", "model_weights", "read", "read_checkpoint", "stored_model_config", "stored_tokenizer"]

FORMAT = 1


def checkpoint_metadata(
    stage: str, model_config: GPTConfig, config: dict[str, Any], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return the entry `nanochat_pl` of a run's checkpoints, which describes the run in plain data.

    `config` is the resolved config of the run; the tokenizer is stored whole, so that no other file is needed.
    """
    text = json.dumps(tokenizer.state()).encode()
    return {
        "format": FORMAT,
        "stage": stage,
        "model_config": asdict(model_config),
        "config": config,
        # bytes are not among the types that a weights-only load accepts
        "tokenizer": torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy()),
    }


def read(path: Path) -> ModelState:
    """Read one checkpoint file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, carries code, was not written by this project, or is not of one model.
    """
    checkpoint = read_checkpoint(path)
    check_tensors(checkpoint.get("state_dict"), path)
    try:
        metadata = checkpoint["nanochat_pl"]
        model = ModelState(
            config=stored_model_config(checkpoint),
            state=model_weights(checkpoint),
            tokenizer=stored_tokenizer(checkpoint),
            stage=str(metadata["stage"]),
            step=int(checkpoint["global_step"]),
            run_config=dict(metadata["config"]),
            file=path,
            format="lightning",
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: of its nanochat_pl entry, {reason(error)}") from error
    check_weights(model.state, model.config, path)
    check_tokenizer(model.tokenizer, model.config, path)
    return model


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read all of a checkpoint file onto the CPU without running any code in it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, carries code, or was not written by this project.
    """
    checkpoint = read_torch(path, remedy=lambda: other_checkpoints(path))
    metadata = checkpoint.get("nanochat_pl") if isinstance(checkpoint, dict) else None
    if not isinstance(metadata, dict) or "model_config" not in metadata:
        raise ValueError(
            f"{path} was not written by this project (it has no nanochat_pl entry); use a .ckpt of its own, or a "
            "nanochat file under its own name, model_NNNNNN.pt beside meta_NNNNNN.json"
        )
    if not isinstance(metadata.get("format"), int) or metadata["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {metadata.get('format')!r}, this version reads up to {FORMAT}; update nanochat-pl"
        )
    return checkpoint


def stored_tokenizer(checkpoint: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer inside a checkpoint."""
    return Tokenizer.from_state(json.loads(bytes(checkpoint["nanochat_pl"]["tokenizer"].numpy())))


def stored_model_config(checkpoint: dict[str, Any]) -> GPTConfig:
    """Return the model's config inside a checkpoint."""
    return GPTConfig(**checkpoint["nanochat_pl"]["model_config"])


def model_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the model's state dict inside a checkpoint, without Lightning's `model.` prefix."""
    state = checkpoint["state_dict"]
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}
