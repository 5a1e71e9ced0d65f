"""Where artefacts lie, and how files get there whole.

Run folders and the checkpoint a path stands for are decided here once, for every stage and command. A file under its
final name is always complete: it is written beside its place, flushed to the disk and renamed. No torch here: messages
about a wrong path must come within a second.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

MAX_NAME_BYTES = 200
"""Of a run's name: file systems allow 255, and temporary files have some more in theirs."""

__all__ = ["atomic_file", "checkpoint_file", "listing", "move_into_place", "run_dir", "write_atomically"]


def run_dir(stage: str, run_name: str, root: str | Path = "outputs") -> Path:
    """Return the folder of a run, ``<root>/<stage>/<run_name>``; nothing is created.

    Raises:
        ValueError: If a name is empty, too long for a file system, would lead out of its folder, or shows badly.
    """
    for key, name in (("stage", stage), ("run_name", run_name)):
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ValueError(f"{key}={name!r} must be a plain folder name, without / or \\; set another {key}")
        if not name.isprintable() or name != name.strip() or name.startswith("~"):
            raise ValueError(
                f"{key}={name!r} must be printable, without spaces at its ends or ~ at its beginning; set another {key}"
            )
        if (length := len(name.encode())) > MAX_NAME_BYTES:
            raise ValueError(
                f"{key}={name[:40]}… has {length} bytes, and {MAX_NAME_BYTES} is the most; set a shorter {key}"
            )
    return Path(root) / stage / run_name


def checkpoint_file(path: str | Path) -> Path:
    """Return the checkpoint a path stands for: a file itself, a run folder's ``best.ckpt``, else its ``last.ckpt``.

    Args:
        path: A file, a run folder, the ``checkpoints`` folder inside one, or ``<run folder>/<name>`` for a checkpoint
            of that name: ``outputs/sft/d4/last``.

    Raises:
        FileNotFoundError: If there is none of these; lists what there is.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        for named in (path.parent / "checkpoints" / f"{path.name}.ckpt", path.with_name(f"{path.name}.ckpt")):
            if path.name and named.is_file():
                return named
        parent = next(folder for folder in (*path.parents, Path("/")) if folder.is_dir())
        raise FileNotFoundError(f"no checkpoint at {path}: no such path; {parent} holds {listing(parent)}")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    for name in ("best.ckpt", "last.ckpt"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"neither best.ckpt nor last.ckpt in {folder}, which holds {listing(folder)}; name one file, or train first"
    )


def listing(folder: Path) -> str:
    """Say in a few words what a folder holds."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if not entry.name.startswith("."))
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more if names else "nothing"


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; what was written there becomes ``path`` if the block ends well.

    After an error, also a full disk or Ctrl-C, ``path`` is as it was and the temporary file is gone. Parent folders are
    made. Afterwards file and rename are on the disk (fsync), so that not even a power cut leaves half a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        move_into_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8, line ends as they are) to ``path`` whole or not at all; see `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def move_into_place(temporary: Path, path: Path) -> None:
    """Give a file that was written whole its final name, in the same folder, and flush both to the disk."""
    with temporary.open("r+b") as written:
        os.fsync(written.fileno())
    temporary.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened, and the rename is durable by itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
