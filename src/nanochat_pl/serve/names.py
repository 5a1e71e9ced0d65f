"""What the models of a server are called where nobody said; no torch here, so that names are known early."""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["model_id", "run_name"]


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


def _shown(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
