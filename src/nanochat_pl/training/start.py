"""What a run starts from: shape, tokenizer and weights, from a checkpoint or new.

The checkpoint wins: its tokenizer and architecture are used, with a warning about settings that name others.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from nanochat_pl.checkpoint import read_model
from nanochat_pl.checkpoint.lightning import read_checkpoint
from nanochat_pl.config.checks import check_optimizer, hub_folder, model_config, start_arguments
from nanochat_pl.config.inputs import start_weights
from nanochat_pl.config.provenance import run_inputs
from nanochat_pl.config.run_folder import weights_only_error
from nanochat_pl.config.schema import TrainConfig
from nanochat_pl.data.parquet import Shards
from nanochat_pl.model.config import Architecture, GPTConfig
from nanochat_pl.paths import read_record
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.tokenizers import find_tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Start:
    """Shape, tokenizer and weights that a run starts from."""

    config: GPTConfig
    tokenizer: Tokenizer
    weights: dict[str, torch.Tensor] | None
    """None if they are initialised from the seed, or restored by Lightning from the checkpoint to resume."""
    origin: str
    """Where they come from, as readable text."""


def find_start(cfg: TrainConfig, plain: dict[str, Any], resume: Path | None) -> Start:
    """Find shape, tokenizer and initial weights, from the checkpoint to resume or to start from, or new ones.

    Raises:
        ValueError: tokenizer and checkpoint have different vocabularies, or the checkpoint cannot be resumed.
        FileNotFoundError: there is no tokenizer, or no checkpoint where one is needed.
    """
    source = resume or start_weights(cfg.stage.name, cfg.run_name, cfg.init_from, cfg.outputs, start_arguments(cfg))
    if source is None:
        tokenizer = find_tokenizer(cfg)
        return Start(model_config(cfg, tokenizer.vocab_size), tokenizer, None, f"seed {cfg.seed}")
    stored = read_model(source, hub_folder(cfg), cfg.offline)
    file, tokenizer = stored.file, stored.tokenizer
    config = stored.config.with_sequence_len(cfg.stage.sequence_len)
    if cfg.tokenizer.path is not None:
        other = Tokenizer.load(cfg.tokenizer.path)
        if other.fingerprint() != tokenizer.fingerprint():
            raise ValueError(
                f"tokenizer.path={cfg.tokenizer.path} (vocabulary {other.vocab_size}) is not the tokenizer that {file} "
                f"was trained with (vocabulary {tokenizer.vocab_size}); leave tokenizer.path null to use that one"
            )
    if cfg.depth != config.n_layer:
        log.warning("depth=%d only names this run: the weights of %s have depth %d", cfg.depth, file, config.n_layer)
    if resume is not None:
        if stored.stage != cfg.stage.name:
            raise ValueError(
                f"{file} is a run of stage={stored.stage}, which stage={cfg.stage.name} cannot continue; to start from "
                f"its weights: resume=null init_from={file}"
            )
        if "optimizer_states" not in read_checkpoint(file):  # made by `nanochat-pl import`
            raise weights_only_error(file)
        check_optimizer(stored.run_config, plain, file)
        warn_of_changes(stored.run_config, plain)
    warn_of_other_model(cfg, config, file)
    weights = None if resume else stored.state
    origin = f"{file} ({stored.stage}, step {stored.step})"
    if resume is not None:
        origin = read_checkpoint(file).get("callbacks", {}).get("Summary", {}).get("init_from") or origin
    return Start(config, tokenizer, weights, origin)


def inputs_of(cfg: TrainConfig, folder: Path, resume: Path | None, shards: Shards | None) -> dict[str, Any]:
    """Describe what the run is made from; a run that resumes in its own folder keeps the description of its start."""
    if resume is not None and (summary := read_record(folder / "summary.json")) is not None:
        return summary.get("inputs") or {}
    return run_inputs(cfg, shards, resume)


def warn_of_other_model(cfg: TrainConfig, config: GPTConfig, file: Path) -> None:
    """Warn of architecture settings that have no effect, because the weights were trained with others."""
    for field in dataclasses.fields(Architecture):
        configured, stored = getattr(cfg.model, field.name), getattr(config, field.name)
        if configured != stored:
            log.warning("model.%s=%s has no effect: the weights of %s have %s", field.name, configured, file, stored)


def warn_of_changes(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> None:
    """Warn of settings of a resumed run that differ from the saved ones: the new ones apply from here on."""
    free = (
        "depth",  # like model and tokenizer it is the checkpoint's, see warn_of_other_model
        "model",
        "tokenizer",
        "resume",
        "force",
        "init_from",
        "outputs",
        "trainer",
        "logger",
        "callbacks",
        "eval",
        "data.num_workers",
        "data.root",
    )
    for key in sorted(then.keys() | now.keys()):
        path, before, after = f"{prefix}{key}", then.get(key), now.get(key)
        if path in free or before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            warn_of_changes(before, after, f"{path}.")
        else:
            log.warning("resume: %s was %s, from here on it is %s", path, before, after)
