"""What the models of a server are called where nobody said, and the server itself; no torch here, to know it early."""

import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["host_name", "model_id", "run_name"]

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/?#@\s]+)(?::\d{1,5})?")


def run_name(file: Path) -> str:
    """Name a file of weights by its run, with its own name where it is neither a run's best nor its last."""
    folder = file.parent
    run = folder.parent.name if folder.name == "checkpoints" else folder.name
    return run + ("" if file.stem in ("best", "last") else f"/{file.stem}")


def model_id(stage: str, file: Path, taken: Sequence[str] = ()) -> str:
    """Name a model `<stage>/<run>`; see `run_name`.

    Raises:
        ValueError: the name is taken.
    """
    name = f"{stage}/{run_name(file)}"
    if name in taken:
        raise ValueError(f"two models would be called {name}; name one of them: NAME={_shown(file)}")
    return name


def host_name(host: str) -> str:
    """Return the name in a header `Host`, in small letters and without the port; empty for what is no name."""
    found = _HOST.fullmatch(host.lower())
    return found[1] if found else ""


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
