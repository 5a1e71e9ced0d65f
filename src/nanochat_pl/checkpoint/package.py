"""One archive with all there is to know about a trained model: weights, settings, tokenizer, results, model card.

For keeping and for handing on: it holds any model of this project, needs no program of ours to be looked into
(safetensors, JSON, Markdown), and the same model gives the same bytes on every machine: entries stand in a fixed order,
without dates, uncompressed. Unpacked it is a folder of the same files, which opens as well.
"""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file

from nanochat_pl.checkpoint.stored import Stored, check_tokenizer, check_weights
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.paths import atomic_file
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["FILES", "read", "write"]

FILES = ("README.md", "meta.json", "tokenizer.json", "evaluation.json", "model.safetensors")
"""Entries in their order: what people read first stands first."""

_FORMAT = "nanochat_pl.package/1"
_NO_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o644 << 16
_LARGEST_DOCUMENT = 256 * 2**20
"""Bytes of a JSON entry; a larger one is no document of ours but an attempt to fill the memory."""


def write(stored: Stored, file: Path, card: str, evaluation: Mapping[str, Any] | None = None) -> None:
    """Write the archive, whole or not at all.

    Args:
        stored: the model.
        file: the archive's path; a file there is replaced.
        card: README.md.
        evaluation: evaluation.json, plain data; None = nothing was measured.

    Raises:
        ValueError: weights, config and tokenizer do not fit together.
    """
    check_weights(stored.state, stored.config, stored.file)
    check_tokenizer(stored.tokenizer, stored.config, stored.file)
    meta = {
        "format": _FORMAT,
        "stage": stored.stage,
        "step": stored.step,
        "model_config": asdict(stored.config),
        "run_config": stored.run_config,
    }
    texts = {
        "README.md": card,
        "meta.json": _document(meta),
        "tokenizer.json": _document(stored.tokenizer.state()),
        "evaluation.json": _document(dict(evaluation or {"evaluations": []})),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".package-", dir=file.parent) as folder,
        atomic_file(file) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        weights = Path(folder) / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in stored.state.items()}, weights, {"format": "pt"})
        for name in FILES:
            info = zipfile.ZipInfo(name, _NO_DATE)
            info.external_attr, info.create_system = _MODE, 3  # else the machine that writes would show
            with archive.open(info, "w", force_zip64=name == weights.name) as entry:
                if name == weights.name:
                    with weights.open("rb") as source:
                        shutil.copyfileobj(source, entry, 2**22)
                else:
                    entry.write(texts[name].encode())


def read(path: str | Path) -> Stored:
    """Read an archive, or the folder it was unpacked to; nothing in it can run.

    Raises:
        FileNotFoundError: nothing there, or a file is missing.
        ValueError: damaged, of another program, or not fitting together.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; give a .zip that `nanochat-pl export` made, or its folder")
    meta = _parsed(path, "meta.json")
    if meta.get("format") != _FORMAT:
        raise ValueError(f"{path}: meta.json has the format {meta.get('format')!r}, expected {_FORMAT!r}")
    try:
        config = GPTConfig(**meta["model_config"])
        stage, step, run_config = str(meta["stage"]), int(meta["step"]), dict(meta["run_config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: meta.json is damaged or of a later version ({error}); update nanochat-pl") from None
    try:
        tokenizer = Tokenizer.from_state(_parsed(path, "tokenizer.json"))
    except ValueError as error:
        raise ValueError(f"{path}: tokenizer.json cannot be used: {error}") from None
    state = _weights(path)
    check_weights(state, config, path)
    check_tokenizer(tokenizer, config, path)
    return Stored(
        config=config,
        state=state,
        tokenizer=tokenizer,
        stage=stage,
        step=step,
        run_config=run_config,
        file=path / "model.safetensors" if path.is_dir() else path,
        format="package",
    )


def _weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.is_dir():
            state = load_file(_entry_file(path, "model.safetensors"))
        else:
            with zipfile.ZipFile(path) as archive:
                info = archive.getinfo("model.safetensors")
                if info.file_size > path.stat().st_size:  # packed again by another program, or a trap
                    raise ValueError(f"{path}: its weights are compressed; unpack it and give the folder")
                state = load(archive.read(info))
    except (SafetensorError, zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no archive of a model: {error}") from None
    return {name: tensor.to(torch.float32) for name, tensor in state.items()}


def _parsed(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON entry of the archive or folder."""
    try:
        if path.is_dir():
            data = _entry_file(path, name).read_bytes()
        else:
            with zipfile.ZipFile(path) as archive:
                if archive.getinfo(name).file_size > _LARGEST_DOCUMENT:
                    raise ValueError(f"{name} is larger than any that this program writes")
                data = archive.read(name)
        content = json.loads(data)
        if not isinstance(content, dict):
            raise ValueError(f"{name} holds no object")
    except (ValueError, zipfile.BadZipFile, KeyError, EOFError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no archive of a model: {error}") from None
    return content


def _entry_file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"there is no {name} in {folder}; unpack the whole archive into one folder")
    return folder / name


def _document(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
