"""Which model a path stands for: the format that lies there, the files it consists of, and what its metadata say.

The same rule reads a folder and the listing of a repository. Nothing is guessed: where several models lie, they are
listed and one has to be named. This module imports no torch, so that a wrong path is answered within a second.
"""

import json
import os
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nanochat_pl.model.config import GPTConfig
from nanochat_pl.paths import checkpoint_file, listing, reason

__all__ = [
    "ARCHIVE_FILES",
    "FORMATS",
    "MAX_JSON_BYTES",
    "SHAPE",
    "Candidate",
    "Format",
    "ModelFiles",
    "check_model_type",
    "choose",
    "find_model_files",
    "is_model_archive",
    "metadata_path",
    "model_config",
    "parse_json",
    "read_json",
    "tokenizer_file",
    "tokenizer_paths",
]


@dataclass(frozen=True)
class Format:
    """One form in which a trained model lies on disk."""

    files: str
    """What its files are called, in words."""
    module: str
    """The module of `nanochat_pl.checkpoint` whose `read` opens it."""
    weights: str | None = None
    """Regular expression of the whole name of its file of weights, which begins with `model_`; its metadata lie next to
    it (`metadata_path`), its tokenizer too (`tokenizer_paths`). None = more than one name tells the format."""
    holds_run_config: bool = False
    """Whether its metadata may hold the config of the run, and with it the data that the model was trained on."""


FORMATS = {
    "lightning": Format("a .ckpt, or a run folder of this project", "lightning", holds_run_config=True),
    "nanochat": Format("model_NNNNNN.pt with meta_NNNNNN.json and tokenizer.pkl", "nanochat", r"model_\d{1,12}\.pt"),
    "sciassist": Format(
        "model_finetuned.pt with meta_finetuned.json and tokenizer/", "sciassist", r"model_finetuned\.pt"
    ),
    "huggingface": Format(
        "config.json of model_type nanochat with *.safetensors", "huggingface", holds_run_config=True
    ),
    "package": Format(
        "a .zip of `nanochat-pl export`, or the folder it was unpacked to", "archive", holds_run_config=True
    ),
}
"""Every format that opens."""

ARCHIVE_FILES = ("meta.json", "tokenizer.json", "model.safetensors")
"""The files that every archive has; see `nanochat_pl.checkpoint.archive`."""

SHAPE = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
"""The fields of nanochat's model config."""

MAX_JSON_BYTES = 64 * 2**20
"""Metadata take a page and a vocabulary some megabytes; a larger file is neither."""
MAX_JSON_VALUES = 8_000_000
"""A vocabulary of Hugging Face's form has about four for each token."""

_HF_WEIGHTS = ("model.safetensors.index.json", "model.safetensors")
_NO_WEIGHTS = {
    ".zip": "damaged, or no archive of `nanochat-pl export`; if it holds a model, unpack it and give the folder",
    ".json": "no file of weights; give the model beside it, or the folder",
    ".pkl": "a pickle, perhaps a tokenizer, and no file of weights; give the model beside it, or the folder",
    ".safetensors": "one of several files of weights; give the folder they lie in",
    ".bin": "a pickle of Hugging Face's older format; convert the model to safetensors",
    ".gguf": "of another program; only the formats of docs/checkpoints.md open",
}
_PATTERNS = ("model_*", "*/model_*", "*_checkpoints/*/model_*", "config.json", "*.safetensors*")


@dataclass(frozen=True)
class Candidate:
    """One model among names of files, relative to the folder they were listed in."""

    format: str
    weights: str


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model on this machine."""

    format: str
    """One of FORMATS."""
    file: Path
    """The file with the weights, or with the list of the files that hold them."""
    others: tuple[Path, ...] = ()
    """Further files that opening it needs."""


def find_model_files(path: str | Path) -> ModelFiles:
    """Find the model that a file or folder on this machine stands for.

    Args:
        path: a weights file of any format, a run folder (its best checkpoint, else its last), `<run folder>/last`, or a
            folder that holds one model of another format; also a folder whose only model lies in a folder below, as
            nanochat lays out `base_checkpoints/d20/`.

    Raises:
        FileNotFoundError: if nothing is there, or a file beside the weights is missing; the message says what there is.
        ValueError: if there are several models, or none that opens; the message lists them.
    """
    path = Path(path)
    if is_model_archive(path):
        return ModelFiles("package", path / "model.safetensors" if path.is_dir() else path)
    if path.is_file():
        choice, folder = _of_file(path), path.parent
    elif path.is_dir():
        choice, folder = _of_folder(path), path
    else:
        choice, folder = None, path
    if choice is None:
        return ModelFiles("lightning", checkpoint_file(path))
    weights = folder / choice.weights
    return ModelFiles(choice.format, weights, _needed(choice.format, weights))


def is_model_archive(path: Path) -> bool:
    """Tell by names alone whether a file or folder is an archive of `nanochat-pl export`, packed or unpacked."""
    if path.is_dir():
        return all((path / name).is_file() for name in ARCHIVE_FILES)
    if not (path.suffix == ".zip" and path.is_file()):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return set(ARCHIVE_FILES) <= set(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError):  # the latter of archives made in ways Python cannot read
        return False


def _of_folder(folder: Path) -> Candidate | None:
    """Return the model of another format in a folder; None for a run folder of this project."""
    run = any((folder / name).exists() for name in ("checkpoints", "best.ckpt", "last.ckpt"))
    patterns = [pattern for pattern in _PATTERNS if not (run and "/" in pattern)]  # what a run folder holds is its own
    names = sorted({file.relative_to(folder).as_posix() for pattern in patterns for file in folder.glob(pattern)})
    choice = choose(names, str(folder), ["best.ckpt or last.ckpt"] if run and _candidates(names) else [])
    if choice is None and not run:
        expected = "; ".join(known.files for known in FORMATS.values())
        raise FileNotFoundError(f"no model in {folder}, which holds {listing(folder)}; expected one of: {expected}")
    return choice


def choose(names: Collection[str], where: str, more: Iterable[str] = ()) -> Candidate | None:
    """Choose the one model among the names of a folder's files (`/` between folders); None if there is none.

    Args:
        names: paths relative to the folder.
        where: the folder as messages name it.
        more: further models there, as messages name them.

    Raises:
        ValueError: if there are several; the message lists them.
    """
    found = _candidates(names)
    several = [choice.weights for choice in found] + list(more)
    if len(several) > 1:
        shown = ", ".join(several[:8]) + (f" and {len(several) - 8} more" if len(several) > 8 else "")
        raise ValueError(f"{where} holds {len(several)} models: {shown}; name one of these files")
    return found[0] if found else None


def tokenizer_paths(weights: str) -> list[str]:
    """List where the tokenizer of a nanochat or SciAssist file may lie; the first that exists counts.

    Args:
        weights: path of the weights, `/` between folders.

    Returns:
        Paths of the same form: beside the weights, in `tokenizer/` beside it, and, for a file of a nanochat base folder
        (`<base>/base_checkpoints/d20/model_….pt`), in `<base>/tokenizer/`.
    """
    folder = PurePosixPath(weights).parent
    places = [folder / "tokenizer.pkl", folder / "tokenizer" / "tokenizer.pkl", folder / "tokenizer" / "tokenizer.json"]
    if folder.parent.name.endswith("_checkpoints"):
        places.append(folder.parent.parent / "tokenizer" / "tokenizer.pkl")
    return [place.as_posix() for place in places]


def tokenizer_file(weights: Path) -> Path:
    """Find the tokenizer that belongs to a nanochat or SciAssist file; see `tokenizer_paths`.

    Raises:
        FileNotFoundError: if there is none; the message says where it was looked for.
    """
    places = [Path(place) for place in tokenizer_paths(os.path.realpath(weights).replace(os.sep, "/"))]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        looked = ", ".join(str(place) for place in places)
        raise FileNotFoundError(
            f"there is no tokenizer for {weights} (looked for {looked}); copy its tokenizer.pkl beside it"
        )
    return file


def _candidates(names: Iterable[str]) -> list[Candidate]:
    """List the models among names; those of folders below count only where the folder itself holds none."""
    names = sorted(names)
    found = [(name.count("/"), choice) for name in names if (choice := _by_name(name)) is not None]
    if "config.json" in names:
        weights = next((name for name in _HF_WEIGHTS if name in names), None)
        found += [(0, Candidate("huggingface", weights))] if weights else []
    depth = min((depth for depth, _ in found), default=0)
    return [choice for at, choice in found if at == depth]


def _by_name(name: str) -> Candidate | None:
    last = PurePosixPath(name).name
    for kind, known in FORMATS.items():
        if known.weights is not None and re.fullmatch(known.weights, last):
            return Candidate(kind, name)
    return None


def _of_file(path: Path) -> Candidate | None:
    """Return what a file is by its name; None for this project's own, whatever it is called."""
    if path.name == "config.json" or path.name in _HF_WEIGHTS:
        names = [file.name for file in path.parent.iterdir()]
        choice = next((c for c in _candidates(names) if c.format == "huggingface"), None)
        if choice is None:
            raise ValueError(f"{path} is half a Hugging Face folder: config.json and model.safetensors belong together")
        return choice
    if path.suffix in _NO_WEIGHTS:
        raise ValueError(f"{path} is {_NO_WEIGHTS[path.suffix]}")
    return _by_name(path.name)


def _needed(kind: str, weights: Path) -> tuple[Path, ...]:
    """List the files that the weights need beside them; an error if one is missing or of another kind of model."""
    if kind == "huggingface":
        return _hugging_face_files(weights)
    meta = Path(metadata_path(weights.as_posix()))
    if not meta.is_file():
        raise FileNotFoundError(f"{weights} needs its metadata beside it: there is no {meta.name} in {meta.parent}")
    model_config(read_json(meta), meta)
    return meta, tokenizer_file(weights)


def check_model_type(config: Path) -> None:
    """Check that a Hugging Face folder's `config.json` is of a nanochat.

    Raises:
        ValueError: if it is of another model, or no such file at all.
    """
    kind = read_json(config).get("model_type")
    if kind != "nanochat":
        raise ValueError(f"{config} is of a Hugging Face model with model_type={kind!r}; only nanochat opens here")


def _hugging_face_files(weights: Path) -> tuple[Path, ...]:
    config = weights.with_name("config.json")
    check_model_type(config)
    shards = sorted(weights.parent.glob("*.safetensors")) if weights.suffix == ".json" else []
    others = [weights.with_name(name) for name in ("nanochat_pl.json", "tokenizer.json", "tokenizer.pkl")]
    if not any(file.is_file() for file in others[1:]):
        raise FileNotFoundError(
            f"{weights} needs its tokenizer beside it: there is no {others[1].name} in {weights.parent}"
        )
    return (config, *shards, *(file for file in others if file.is_file()))


def metadata_path(weights: str) -> str:
    """Return where the metadata of a file of weights lie: `a/meta_000012.json` for `a/model_000012.pt`."""
    path = PurePosixPath(weights)
    return path.with_name(path.name.replace("model_", "meta_", 1)).with_suffix(".json").as_posix()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no JSON object; the message says what was found.
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
    """Parse JSON after counting its values, each of which takes some twenty times its place in the text.

    Raises:
        ValueError: if it is no JSON, or has more than MAX_JSON_VALUES values.
        RecursionError: if it is nested too deeply.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise ValueError(f"it has more than {MAX_JSON_VALUES:,} values")
    return json.loads(data)


def model_config(meta: Mapping[str, Any], where: Path) -> GPTConfig:
    """Return the shape that metadata describe, and its windows; what else the model is, its weights tell.

    Raises:
        ValueError: if fields are missing, unknown or impossible; the message names them.
    """
    stored = meta.get("model_config")
    if not isinstance(stored, Mapping):
        raise ValueError(
            f"{where} has no model_config, so that the shape of the model is unknown; it is no nanochat file"
        )
    shape = dict(stored)
    windows = shape.pop("window_pattern", "L")
    windows = windows.upper() if isinstance(windows, str) else windows
    wrong = [f"no {name}" for name in SHAPE if name not in shape]
    wrong += [f"the unknown {name}={shape[name]!r}" for name in shape if name not in SHAPE]
    wrong += [f"{name}={shape[name]!r}, no whole number" for name in SHAPE if type(shape.get(name, 0)) is not int]
    if wrong:
        raise ValueError(f"model_config in {where} is not that of a nanochat: it has {', '.join(wrong)}")
    try:
        return GPTConfig(**shape, window_pattern=None if windows == "L" else windows)
    except ValueError as error:
        raise ValueError(f"model_config in {where} is impossible: {error}") from None
