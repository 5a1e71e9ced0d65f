"""Safe reading of torch's files: the only place that opens a `.pt` or `.ckpt`.

`torch.save` writes a pickle, and a pickle can run any code. torch's weights-only reader builds tensors and plain values
and refuses the rest. This module calls it, explains why a file is refused, and itself refuses files whose content would
exceed the memory.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nanochat_pl.checkpoint.whole import fault, is_zip, packing_fault
from nanochat_pl.paths import reason

__all__ = ["check_packing", "check_size", "check_tensors", "read_tensors", "read_torch"]

MAX_VALUES = 10_000_000
"""The most values of one file, not counting its tensors' numbers; a checkpoint of 64 processes has some 100,000."""
MAX_DEPTH = 100
"""The most levels of containers within containers; a checkpoint has about ten."""


def read_torch(path: Path, remedy: str | Callable[[], str] = "use another copy of it") -> Any:
    """Read what `torch.save` wrote, onto the CPU, without running any code in it.

    Its tensors are mapped, not copied, where its format allows. `remedy` is advice on a damaged file for the
    user, or a function that returns it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, changed since it was written, carries code, or is no such file at all.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")

    def advice() -> str:
        return remedy if isinstance(remedy, str) else remedy()

    zipped = is_zip(path)
    if zipped and (found := fault(path)) is not None:
        raise ValueError(f"{path} {found}; {advice()}")
    try:
        with warnings.catch_warnings():  # torch warns of pickle protocols that it then refuses
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"unsupported (?:global|class):? +([\w.]+)", str(error), re.IGNORECASE)
        why = (
            f"it holds objects beyond tensors and plain values, which may run code (it asks for {wanted[1]})"
            if wanted
            else "it is damaged, or no file of torch.save"
        )
        raise ValueError(f"{path} is not a plain checkpoint: {why}; nothing was executed") from error
    except Exception as error:  # a damaged or crafted file fails in a dozen ways
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read: truncated or not a checkpoint; {advice()}"
        ) from error
    check_size(content, path)
    return content


def check_packing(path: Path) -> None:
    """Check that a zip archive unpacks to no more than its own size: torch and this project compress nothing.

    Raises:
        ValueError: if an entry is compressed, or entries share their bytes or their name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = packing_fault(archive, path.stat().st_size)
    except Exception as error:  # a damaged archive fails in a dozen ways
        raise ValueError(f"{path} is damaged or no archive of a model: {reason(error)}") from None
    if found is not None:
        raise ValueError(
            f"{path} {found}; unpack an archive of `nanochat-pl export` and give the folder, or use another copy of it"
        )


def check_size(content: Any, where: Path) -> None:
    """Check that a file's content fits into memory when it is traversed, since a small file may describe endless data.

    A pickle may refer to one container many times at no cost, and all numbers of a tensor may be the same one (stride
    0).

    Raises:
        ValueError: if it is nested more than MAX_DEPTH levels deep, holds itself, has more than MAX_VALUES values, or a
            tensor has more numbers than its storage.
    """
    sizes: dict[int, int] = {}  # of containers, which may be referred to many times

    def count(value: Any, depth: int) -> int:
        if isinstance(value, torch.Tensor) and _is_expanded(value):
            raise ValueError(
                f"{where} holds a tensor of shape {tuple(value.shape)} with fewer numbers than that takes; no saved "
                "model does, and nothing was laid out"
            )
        if not isinstance(value, dict | list | tuple | set | frozenset):
            return 1
        if id(value) not in sizes:
            if depth >= MAX_DEPTH:  # also where a container holds itself
                raise ValueError(f"{where} holds values nested more than {MAX_DEPTH} levels deep; it is no checkpoint")
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(count(item, depth + 1) for item in inner)
        if sizes[id(value)] > MAX_VALUES:
            raise ValueError(f"{where} holds more than {MAX_VALUES:,} values beside its tensors; it is no checkpoint")
        return sizes[id(value)]

    count(content, 0)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a file that maps names to tensors, as nanochat saves a model; errors are those of both calls."""
    state = read_torch(path)
    check_tensors(state, path)
    return state


def check_tensors(state: Any, where: Path) -> None:
    """Raise `ValueError` unless `state` maps names to tensors that hold their numbers."""
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{where} holds {_kind(state)}, expected a dict of tensors by name, as nanochat saves a model")
    wrong = [f"{_short(key)} ({_kind(value)})" for key, value in state.items() if not _is_weight(key, value)]
    if wrong:
        raise ValueError(
            f"{where} is no file of weights: it should map names to tensors, but holds {', '.join(wrong[:5])}"
            + (", …" if len(wrong) > 5 else "")
        )


def _is_weight(key: Any, value: Any) -> bool:
    if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
        return False
    return value.layout == torch.strided and not value.is_meta and not value.is_nested


def _is_expanded(tensor: torch.Tensor) -> bool:
    """Return whether a strided tensor has more numbers than its storage; False for other layouts."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        return False
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _short(key: Any) -> str:
    return repr(key[:80] if isinstance(key, str) else key)[:90]


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return "an empty dict" if isinstance(value, dict) and not value else f"a {type(value).__name__}"
