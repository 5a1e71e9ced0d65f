"""What the models of a server are called where nobody said, and the server itself; no torch here, to know it early."""

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

from nanochat_pl.paths import run_folder

__all__ = ["host_name", "model_id", "run_name"]

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/?#@\s]+)(?::\d{0,5})?")


def run_name(file: Path) -> str:
    """Name a file of weights by its run, with its own name where it is neither a run's best nor its last."""
    return run_folder(file).name + ("" if file.stem in ("best", "last") else f"/{file.stem}")


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
    """Return the name in a header `Host` as it is compared; empty for what is no name.

    The port is left out, letters are small, the dot that may end a name is gone, and an IPv6 address is short.
    """
    found = _HOST.fullmatch(host.lower())
    if found is None:
        return ""
    name = found[1]
    if name.startswith("["):
        try:
            return f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError:
            return ""
    return name.removesuffix(".")


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
