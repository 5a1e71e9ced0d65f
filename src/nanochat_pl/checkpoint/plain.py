"""Files of torch, read without running anything: the one place where a `.pt` or `.ckpt` is opened.

`torch.save` writes a pickle, and a pickle can run any code. torch's weights-only reader builds tensors and plain values
and refuses the rest; this module calls it, and says in one way what is wrong with a file that it refuses.
"""

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["check_tensors", "read_tensors", "read_torch"]


def read_torch(path: Path, remedy: str = "use another copy of it") -> Any:
    """Read what `torch.save` wrote, onto the CPU, without running any code in it.

    Args:
        path: the file; its tensors are mapped, not copied, where its format allows.
        remedy: what to do about a damaged one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: truncated, carrying code, or no such file at all.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with warnings.catch_warnings():  # torch warns of pickle protocols that it then refuses
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        asked = re.search(r"unsupported (?:global|class):? +([\w.]+)", str(error), re.IGNORECASE)
        why = (
            f"it holds objects beyond tensors and plain values, which may run code (it asks for {asked[1]})"
            if asked
            else "it is damaged, or no file of torch.save"
        )
        raise ValueError(f"{path} is not a plain checkpoint: {why}; nothing was executed") from error
    except Exception as error:  # a damaged or crafted file fails in a dozen ways
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read: truncated or not a checkpoint; {remedy} "
            f"({_first_sentence(error)})"
        ) from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a file that maps names to tensors, as nanochat saves a model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_torch`; also where it holds anything else; says what.
    """
    state = read_torch(path)
    check_tensors(state, path)
    return state


def check_tensors(state: Any, where: Path) -> None:
    """Check that `state` maps names to tensors that hold their numbers.

    Raises:
        ValueError: it does not; says what was found.
    """
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{where} holds {_kind(state)}, expected a dict of tensors by name, as nanochat saves a model")
    wrong = [f"{key!r} ({_kind(value)})" for key, value in state.items() if not _is_weight(key, value)]
    if wrong:
        raise ValueError(
            f"{where} is no file of weights: it should map names to tensors, but holds {', '.join(wrong[:5])}"
            + (", …" if len(wrong) > 5 else "")
        )


def _is_weight(key: Any, value: Any) -> bool:
    if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
        return False
    return value.layout == torch.strided and not value.is_meta


def _kind(value: Any) -> str:
    return "an empty dict" if value == {} and isinstance(value, dict) else f"a {type(value).__name__}"


def _first_sentence(error: BaseException) -> str:
    """Say what went wrong, without what torch adds on how such files come about and how to trust them."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.partition(". ")[0].partition(" In PyTorch 2.6")[0]
