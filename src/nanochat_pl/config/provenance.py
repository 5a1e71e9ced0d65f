"""Fingerprints of what a run is made from: initial weights, tokenizer, data files.

They are kept in summary.json, so that a chain can distinguish a finished stage that would come out the same from one
whose inputs have changed since. Nothing here imports torch, and large files are not read whole: a checkpoint's table of
contents holds a checksum of every tensor, a parquet file's footer the size of every column.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nanochat_pl.checkpoint import locate_model
from nanochat_pl.config.checks import hub_folder
from nanochat_pl.config.inputs import prepare_root, prepare_text, start_weights
from nanochat_pl.config.schema import DataSource, TrainConfig
from nanochat_pl.config.stages import StageName
from nanochat_pl.data.parquet import Shards
from nanochat_pl.paths import run_dir

READ_WHOLE_BYTES = 16 * 2**20
"""Parquet files up to this size are read whole, as files of other formats are at any size."""
READ_ENDS_BYTES = 2**20
"""Bytes that are read of the beginning and of the end of larger parquet files."""


def run_inputs(cfg: TrainConfig, shards: Shards | None = None, resume: Path | None = None) -> dict[str, Any]:
    """Describe what a run of this config would be made from now; equal content gives equal descriptions.

    Args:
        shards: the text, if it has been listed already.
        resume: the checkpoint that the run goes on from, in a folder of its own.

    Returns:
        `start` (the fingerprint of a checkpoint; None for fresh weights), `tokenizer` (its fingerprint; None if it is
        the start checkpoint's), and one entry for the text (`text`) or for each task (`tasks.<name>`).

    Raises:
        FileNotFoundError, ValueError: something is missing.
    """
    described: dict[str, Any] = {"start": None, "tokenizer": None}
    if cfg.stage.reads_text:
        shards = shards or prepare_text(cfg.data, offline=True, outputs=cfg.outputs)
        described["text"] = combined_fingerprint({path.name: path for path in [*shards.train, shards.val]})
    else:
        if cfg.data.source == DataSource.microworld:
            prepare_root(cfg.data)
        for group, tasks in (("tasks", cfg.mixture.tasks), ("val_tasks", cfg.mixture.val_tasks)):
            for name, spec in tasks.items():
                if files := dict(task_files(spec)):
                    described[f"{group}.{name}"] = combined_fingerprint(files)
    if cfg.stage.name == StageName.tokenizer:
        return described
    start = resume or start_weights(cfg.stage.name, cfg.run_name, cfg.init_from, cfg.outputs)
    if start is not None:
        source = locate_model(start, hub_folder(cfg), offline=True)  # what was fetched, not what the hub has today
        parts = {path.name: path for path in (source.file, *source.others)}
        described["start"] = combined_fingerprint(parts) if source.others else fingerprint(source.file)
    else:
        from nanochat_pl.tokenizer import Tokenizer

        folder = Path(cfg.tokenizer.path or run_dir(StageName.tokenizer, cfg.run_name, cfg.outputs))
        described["tokenizer"] = Tokenizer.load(folder).fingerprint()[:16]
    return described


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return readable names of what differs between two descriptions."""
    words = {"start": "the initial weights", "tokenizer": "the tokenizer", "text": "the text shards"}
    keys = dict.fromkeys([*then, *now])
    return [words.get(key, f"the files of {key}") for key in keys if then.get(key) != now.get(key)]


def task_files(spec: Any) -> Iterator[tuple[str, Path]]:
    """Yield the files that the settings of a task name, with everything inside a folder, by relative path."""
    if isinstance(spec, Mapping):
        for key, value in spec.items():
            if key != "formatted_dir":  # written by the task itself
                yield from task_files(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from task_files(value)
    elif isinstance(spec, str) and ("/" in spec or "." in spec) and os.path.exists(spec):  # False for a long text
        path = Path(spec)
        if Path.cwd().is_relative_to(path.resolve()):  # the working folder is not a data set
            return
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in found:
            if not file.name.startswith("."):
                yield str(file.relative_to(path.parent)), file


def combined_fingerprint(files: Mapping[str, Path]) -> str:
    """Return one fingerprint of several files and their names."""
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name} {fingerprint(path)}\n".encode())
    return f"{len(files)} files {digest.hexdigest()[:16]}"


def fingerprint(path: Path) -> str:
    """Return 16 hex digits that depend on the content of a file, not on its name or date.

    Only the two ends of a large parquet file are read: its last bytes hold the offsets and sizes of all columns.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}".encode())
    if zipfile.is_zipfile(path):  # a checkpoint
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                digest.update(f"{info.filename} {info.file_size} {info.CRC}\n".encode())
        return digest.hexdigest()[:16]
    with path.open("rb") as file:
        if size > READ_WHOLE_BYTES and path.suffix == ".parquet":
            digest.update(file.read(READ_ENDS_BYTES))
            file.seek(-READ_ENDS_BYTES, 2)
        while block := file.read(READ_ENDS_BYTES):
            digest.update(block)
    return digest.hexdigest()[:16]
