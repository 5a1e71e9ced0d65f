"""Run whole stages in this process, small enough for seconds: one layer, 64 channels, the embedded world."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nanochat_pl.config.command_line import CommandLine
from nanochat_pl.config.compose import check, compose_checked, config_dir
from nanochat_pl.config.schema import TrainConfig
from nanochat_pl.paths import run_dir

TINY = [
    "depth=1",
    "model.n_embd=64",
    "tokenizer.vocab_size=512",
    "trainer.accelerator=cpu",
    "trainer.compile=false",
    "trainer.compute_dtype=float32",
    "trainer.log_every_steps=1",
    "stage.sequence_len=64",
    "stage.device_batch=4",
    "run_name=tiny",
]
BASE = [*TINY, "stage=base", "stage.total_batch_tokens=512", "stage.val_tokens=512", "stage.num_steps=20"]
SFT = [
    *TINY,
    "stage=sft_scienceqa",
    "stage.sequence_len=256",
    "stage.total_batch_rows=8",
    "stage.val_rows=8",
    "stage.num_steps=20",
]

Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded world and a tokenizer for it, made once."""
    from nanochat_pl.training.tokenizers import make_tokenizer

    folder = tmp_path_factory.mktemp("world")
    cfg = compose([*BASE, f"data.root={folder / 'data'}"])
    make_tokenizer(cfg).save(folder / "tokenizer")
    return folder


def compose(overrides: list[str]) -> TrainConfig:
    """Compose and check a training config."""
    return check(compose_checked("train", CommandLine(overrides, False, config_dir()))[0], TrainConfig)


def train_below(outputs: Path, world: Path, *overrides: str) -> dict[str, Any]:
    """Train a stage in this process; returns its summary."""
    from nanochat_pl.training.run import run

    arguments = [f"data.root={world / 'data'}", f"outputs={outputs}"]
    if "stage=base" in overrides:
        arguments.append(f"tokenizer.path={world / 'tokenizer'}")
    arguments += overrides
    composed = compose_checked("train", CommandLine(arguments, False, config_dir()))[0]
    cfg = check(composed, TrainConfig)
    plain = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    return run(cfg, plain, run_dir(cfg.stage.name, cfg.run_name, cfg.outputs), arguments)


@pytest.fixture
def train(world: Path, tmp_path: Path) -> Train:
    """Train a stage in this process below tmp_path; returns its summary."""
    return partial(train_below, tmp_path, world)


def metrics(folder: Path, name: str) -> dict[int, str]:
    """Read one column of metrics.csv as text, by step."""
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): row[name] for row in csv.DictReader(file) if row.get(name)}
