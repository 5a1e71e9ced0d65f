"""What a folder of recordings holds, read from its own files, so that NANOCHAT_REFERENCE may name another."""

import json
from pathlib import Path
from typing import Any

import torch

from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT


def read(path: Path) -> Any:
    """Read a file of JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def meta_of(weights: Path) -> dict[str, Any]:
    """Read the metadata beside a file of weights."""
    return read(weights.with_name(weights.name.replace("model_", "meta_")).with_suffix(".json"))


def initial_weights(root: Path) -> Path:
    """The checkpoint that nanochat's own script saved before the first step of the recorded run."""
    return root / read(root / "base_train_run.json")["init_checkpoint"]


def checkpoints(root: Path) -> list[Path]:
    """Every recorded file of weights."""
    return sorted((root / "base").glob("*_checkpoints/*/model_*.pt"))


def main_weights(root: Path, step: int = 0) -> Path:
    """The model that the recordings call `main`: the pretrained one whose training steps were recorded."""
    folders = {path.parent for path in (root / "base" / "base_checkpoints").glob("*/optim_*.pt")}
    [folder] = folders
    return folder / f"model_{step:06d}.pt"


def gqa_weights(root: Path) -> Path:
    """The model that the recordings call `gqa`: the fine-tuned one, whose heads share keys and values."""
    [path] = (root / "base" / "chatsft_checkpoints").glob("*/model_*.pt")
    return path


def load(weights: Path) -> GPT:
    """Build the model of a recorded checkpoint."""
    model = GPT(GPTConfig(**meta_of(weights)["model_config"]))
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in state.items()})
    return model


def command_line(arguments: list[str]) -> dict[str, str]:
    """Read the recorded arguments of a script of nanochat: `--depth=1` is {"depth": "1"}."""
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments if argument.startswith("--"))
