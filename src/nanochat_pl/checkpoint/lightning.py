"""Lightning's `.ckpt` as this project writes it: weights, optimizer state, and what makes the file self-contained.

Beside Lightning's own entries a file carries `nanochat_pl`: the stage, the model's config, the resolved run config and
the tokenizer, all as plain data, so that one file is enough to evaluate, chat or fine-tune, and so that it loads with
`weights_only=True`: nothing in it can run.
"""

import json
import pickle
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat_pl.model.config import GPTConfig
from nanochat_pl.tokenizer import Tokenizer

FORMAT = 1


def identity(stage: str, model_config: GPTConfig, config: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Describe a run in plain data, for the inside of its checkpoints.

    Args:
        stage: name of the stage that trains.
        model_config: shape and architecture.
        config: the resolved run config, plain containers.
        tokenizer: stored whole.
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU without running any code in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: truncated, carrying code, or not written by this project.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with warnings.catch_warnings():  # torch warns of pickle protocols that it then refuses
            warnings.simplefilter("ignore")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not a plain checkpoint: it holds objects beyond tensors and plain values, which may run code, "
            f"or is damaged; nothing was executed ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read: truncated or not a checkpoint; use another one, "
            f"such as last.ckpt or step_*.ckpt of the same run ({str(error).splitlines()[0]})"
        ) from error
    ours = checkpoint.get("nanochat_pl") if isinstance(checkpoint, dict) else None
    if not isinstance(ours, dict) or "model_config" not in ours:
        raise ValueError(
            f"{path} was not written by this project (it has no nanochat_pl entry); use a .ckpt of its own"
        )
    if ours["format"] > FORMAT:
        raise ValueError(f"{path} has format {ours['format']}, this version reads up to {FORMAT}; update nanochat-pl")
    return checkpoint


def stored_tokenizer(checkpoint: dict[str, Any]) -> Tokenizer:
    """Give the tokenizer inside a checkpoint."""
    return Tokenizer.from_state(json.loads(bytes(checkpoint["nanochat_pl"]["tokenizer"].numpy())))


def stored_model_config(checkpoint: dict[str, Any]) -> GPTConfig:
    """Give the model's config inside a checkpoint."""
    return GPTConfig(**checkpoint["nanochat_pl"]["model_config"])


def model_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Give the model's state dict inside a checkpoint, without Lightning's `model.` prefix."""
    state = checkpoint["state_dict"]
    return {name.removeprefix("model."): tensor for name, tensor in state.items()}
