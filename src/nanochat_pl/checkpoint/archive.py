"""One archive with all there is to know about a trained model: weights, settings, tokenizer, results, model card.

It is meant for keeping and for handing on. It holds any model of this project, its parts open without a program of ours
(safetensors, JSON, Markdown), and the same model gives the same bytes on every machine: entries stand in a fixed order,
without dates, uncompressed. Unpacked it is a folder of the same files, which opens as well.
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file

from nanochat_pl.checkpoint.formats import ARCHIVE_FILES, MAX_JSON_BYTES, parse_json, read_json
from nanochat_pl.checkpoint.safe_load import check_packing
from nanochat_pl.checkpoint.state import ModelState, check_tokenizer, check_weights, weight_shapes
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.paths import atomic_file, reason
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["FILES", "read", "write"]

FILES = ("README.md", "meta.json", "tokenizer.json", "evaluation.json", "SHA256SUMS", "model.safetensors")
"""The entries in their order; what people read first stands first."""

_SUMS = "SHA256SUMS"
"""The entry with checksums, as `sha256sum --check` reads them."""

_FORMAT = "nanochat_pl.package/1"
_NO_DATE = (1980, 1, 1, 0, 0, 0)
_MODE = 0o644 << 16


def write(model: ModelState, file: Path, card: str, evaluation: Mapping[str, Any] | None = None) -> None:
    """Write the archive, whole or not at all, in place of a file of that name.

    `card` is the text of README.md, `evaluation` the content of evaluation.json (None = nothing was measured).

    Raises:
        ValueError: if weights, config and tokenizer do not fit together.
    """
    check_weights(model.state, model.config, model.file)
    check_tokenizer(model.tokenizer, model.config, model.file)
    meta = {
        "format": _FORMAT,
        "stage": model.stage,
        "step": model.step,
        "model_config": asdict(model.config),
        "run_config": model.run_config,
    }
    texts = {
        "README.md": card,
        "meta.json": _document(meta),
        "tokenizer.json": _document(model.tokenizer.state()),
        "evaluation.json": _document(dict(evaluation or {"evaluations": []})),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".package-", dir=file.parent) as folder,
        atomic_file(file) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        weights = Path(folder) / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in model.state.items()}, weights, {"format": "pt"})
        sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        sums[weights.name] = _sha256(weights)
        texts[_SUMS] = "".join(f"{sums[name]}  {name}\n" for name in FILES if name in sums)
        for name in FILES:
            info = zipfile.ZipInfo(name, _NO_DATE)
            info.external_attr, info.create_system = _MODE, 3  # else the machine that writes would show
            with archive.open(info, "w", force_zip64=name == weights.name) as entry:
                if name == weights.name:
                    with weights.open("rb") as source:
                        shutil.copyfileobj(source, entry, 2**22)
                else:
                    entry.write(texts[name].encode())


def read(path: str | Path) -> ModelState:
    """Read an archive, or the folder it was unpacked to; nothing in it can run.

    Raises:
        FileNotFoundError: if nothing is there, or a file is missing.
        ValueError: if a part is damaged, of another program, or does not fit the others.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; give a .zip that `nanochat-pl export` made, or its folder")
    if path.is_file():
        check_packing(path)
    _check_sums(path)
    meta = _parsed(path, "meta.json")
    if meta.get("format") != _FORMAT:
        raise ValueError(f"{path}: meta.json has the format {meta.get('format')!r}, expected {_FORMAT!r}")
    try:
        config = GPTConfig(**meta["model_config"])
        stage, step, run_config = str(meta["stage"]), int(meta["step"]), dict(meta["run_config"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}: meta.json is damaged or of a later version ({reason(error)}); update nanochat-pl"
        ) from None
    try:
        tokenizer = Tokenizer.from_state(_parsed(path, "tokenizer.json"))
    except ValueError as error:
        raise ValueError(f"{path}: tokenizer.json cannot be used: {error}") from None
    state = _weights(path)
    check_weights(state, config, path)
    check_tokenizer(tokenizer, config, path)
    return ModelState(
        config=config,
        state={name: state[name] for name in weight_shapes(config)},  # safetensors gives them in any order
        tokenizer=tokenizer,
        stage=stage,
        step=step,
        run_config=run_config,
        file=path / "model.safetensors" if path.is_dir() else path,
        format="package",
    )


def _check_sums(path: Path) -> None:
    """Compare the files that are read with the archive's checksums; archives of earlier versions have none."""
    with contextlib.nullcontext() if path.is_dir() else zipfile.ZipFile(path) as archive:
        if not ((path / _SUMS).is_file() if archive is None else _SUMS in archive.namelist()):
            return

        def opened(name: str) -> IO[bytes]:
            return _entry_file(path, name).open("rb") if archive is None else archive.open(name)

        with _reading(path), opened(_SUMS) as file:
            lines = file.read(MAX_JSON_BYTES).decode(errors="replace").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        for name in ARCHIVE_FILES:
            with _reading(path), opened(name) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            if sums.get(name) != digest:
                where = f"{path}: {name}" if archive is not None else path / name
                raise ValueError(
                    f"{where} is damaged or was changed: its checksum is not the one in {_SUMS}; fetch or unpack "
                    f"the archive again, or take {_SUMS} out if the change is meant"
                )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged or locked archive fails in a dozen ways
        raise _damaged(path, error) from None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.is_dir():
            state = load_file(_entry_file(path, "model.safetensors"))
        else:
            state = load(_packed(path, "model.safetensors", path.stat().st_size))
    except SafetensorError as error:
        raise _damaged(path, error) from None
    return {name: tensor.to(torch.float32) for name, tensor in state.items()}


def _parsed(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON entry of the archive or folder."""
    if path.is_dir():
        return read_json(_entry_file(path, name))
    try:
        content = parse_json(_packed(path, name, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no archive of a model: {name} holds no object")
    return content


def _packed(file: Path, name: str, largest: int) -> bytes:
    """Read an entry of an archive."""
    with _reading(file), zipfile.ZipFile(file) as archive:
        size = archive.getinfo(name).file_size
        if size <= largest:
            return archive.read(name)
    raise ValueError(
        f"{file}: {name} is packed to {size:,} bytes, as this program packs none; unpack it and give the folder"
    )


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged or no archive of a model: {reason(error)}")


def _entry_file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"there is no {name} in {folder}; unpack the whole archive into one folder")
    return folder / name


def _document(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
