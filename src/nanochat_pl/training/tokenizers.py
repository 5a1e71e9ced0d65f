"""stage=tokenizer, and how the other stages find the tokenizer they need."""

import itertools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from nanochat_pl.config.checks import check_vocabulary, no_tokenizer_error
from nanochat_pl.config.inputs import prepare_text
from nanochat_pl.config.provenance import run_inputs
from nanochat_pl.config.schema import TrainConfig
from nanochat_pl.data.parquet import Shards, read_documents
from nanochat_pl.paths import run_dir, write_atomically, writing
from nanochat_pl.tokenizer import Tokenizer, compression, training_texts

log = logging.getLogger(__name__)

MEASURED_DOCUMENTS = 64
"""The number of non-empty documents on which the compression of a new vocabulary is measured."""


def train_tokenizer(cfg: TrainConfig, folder: Path, begin: Callable[[], None]) -> dict[str, Any]:
    """Run stage=tokenizer: train, save, and measure compression on text that it has and has not seen.

    `begin` is called before anything is written to the run folder.
    """
    started = time.perf_counter()
    shards = prepare_text(cfg.data, cfg.offline, cfg.outputs)
    tokenizer = make_tokenizer(cfg, shards)
    seconds = time.perf_counter() - started
    begin()
    with writing(folder / "tokenizer.json"):
        tokenizer.save(folder)
    rates = {}
    for name, files in (("train", shards.train[:1]), ("val", [shards.val])):
        texts = list(itertools.islice(filter(None, read_documents(files)), MEASURED_DOCUMENTS))
        rates[f"{name}_bytes_per_token"] = round(compression(tokenizer, texts), 4) if texts else None
    summary = {
        "stage": "tokenizer",
        "run_name": cfg.run_name,
        "folder": str(folder),
        "status": "finished",
        "vocab_size": tokenizer.vocab_size,
        "train_seconds": round(seconds, 2),
        **rates,
        "inputs": run_inputs(cfg, shards),
    }
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    rate = rates["val_bytes_per_token"]
    log.info(
        "%s: vocabulary %s in %.1f s, %s on validation text",
        folder,
        f"{tokenizer.vocab_size:,}",
        seconds,
        "no measure (all documents are empty)" if rate is None else f"{rate:.2f} bytes per token",
    )
    return summary


def make_tokenizer(cfg: TrainConfig, shards: Shards | None = None) -> Tokenizer:
    """Train the tokenizer that the config describes on the training shards, never on the validation shard."""
    shards = shards or prepare_text(cfg.data, cfg.offline, cfg.outputs)
    texts = training_texts(read_documents(shards.train), cfg.tokenizer.max_chars, cfg.tokenizer.doc_cap_chars)
    return Tokenizer.train(texts, cfg.tokenizer.vocab_size, str(cfg.tokenizer.backend))


def find_tokenizer(cfg: TrainConfig) -> Tokenizer:
    """Load the tokenizer of a run; for the embedded world, whose text is always there, train it if there is none.

    Raises:
        FileNotFoundError: there is no tokenizer; the message holds the command that makes one.
        ValueError: its vocabulary size is not the one that the config says.
    """
    folder = Path(cfg.tokenizer.path) if cfg.tokenizer.path else run_dir("tokenizer", cfg.run_name, cfg.outputs)
    there = folder if cfg.tokenizer.path else folder / "tokenizer.json"
    if not there.exists() and not cfg.tokenizer.path and cfg.data.source == "microworld":
        with writing(folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not there.exists():
                log.info("no tokenizer at %s: training one (vocabulary %d)", folder, cfg.tokenizer.vocab_size)
                with writing(folder / "tokenizer.json"):
                    make_tokenizer(cfg).save(folder)
    if not there.exists():
        raise no_tokenizer_error(cfg, folder)
    tokenizer = Tokenizer.load(folder)
    check_vocabulary(cfg, tokenizer.vocab_size, folder)
    return tokenizer
