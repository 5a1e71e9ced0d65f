"""Paths of artefacts, and atomic writing of files.

This module alone decides where a run lies and which checkpoint a path stands for, for every stage and command. A file
under its final name is always complete: `atomic_file` writes a temporary file next to it, flushes that to disk and
renames it. System errors while writing are worded here, too (`writing`). No torch is imported, since errors about a
wrong path must come within a second.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

JOB_FILE = "job.json"
"""The file that makes a run one of a sweep, in the folder around it: variant, swept values, seeds, command."""
MAX_NAME_BYTES = 200
"""The longest name of a run: file systems allow 255 bytes, and temporary files add some to their names."""

__all__ = [
    "JOB_FILE",
    "WriteError",
    "atomic_file",
    "check_place",
    "checkpoint_file",
    "first_distinct",
    "first_line",
    "link_or_copy",
    "listing",
    "move_into_place",
    "read_record",
    "reason",
    "run_dir",
    "run_folder",
    "run_label",
    "run_name",
    "runs_of_sweep",
    "worded",
    "write_atomically",
    "writing",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_ODD = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ENOENT, errno.EINVAL)
_FAILED_WRITE = re.compile(r"PytorchStreamWriter|write failed|os error \d+|I/O error|unexpected pos")
"""Errors of torch and safetensors about a file that cannot be written."""


class WriteError(OSError):
    """A file cannot be written; the message names it, the reason and the remedy. An existing file stays unchanged."""


def run_dir(stage: str, run_name: str, root: str | Path = "outputs") -> Path:
    """Return the folder of a run, ``<root>/<stage>/<run_name>``; nothing is created.

    Raises:
        ValueError: If a name is empty, too long for a file system, leads out of its folder, or cannot be printed.
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


def run_folder(file: str | Path) -> Path:
    """Return the run folder that a checkpoint file belongs to; for a file outside of a run, the folder it lies in."""
    folder = Path(file).parent
    return folder.parent if folder.name == "checkpoints" else folder


def run_label(checkpoint: Path) -> str:
    """Return ``<stage>/<run_name>`` for the checkpoint file of a run."""
    run = run_folder(checkpoint)
    return f"{run.parent.name}/{run.name}".strip("/") or checkpoint.stem


def runs_of_sweep(folder: str | Path) -> list[Path]:
    """Return the run folders of a sweep's folder by name, numbers by their size; empty for any other path."""

    def natural(run: Path) -> list[tuple[int, float, str]]:
        parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", run.name)
        return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]

    return sorted((note.parent for note in Path(folder).glob(f"*/{JOB_FILE}")), key=natural)


def first_distinct(*choices: Sequence[str]) -> list[str] | None:
    """Return the first of several lists of labels in which no label occurs twice, or None.

    Every list of checkpoints or runs that is shown gets its labels this way, from the shortest kind to the longest.
    """
    return next((list(labels) for labels in choices if len(set(labels)) == len(labels)), None)


def checkpoint_file(path: str | Path) -> Path:
    """Return the checkpoint a path stands for: a file itself, a run folder's ``best.ckpt``, else its ``last.ckpt``.

    Args:
        path: A file, a run folder, the ``checkpoints`` folder inside one, or ``<run folder>/<name>`` for a checkpoint
            of that name: ``outputs/sft/d4/last``.

    Raises:
        FileNotFoundError: If there is none of these; the message lists the folder's content.
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


def run_name(file: Path) -> str:
    """Return the name of a checkpoint's run, followed by the file's own name unless it is the run's best or last."""
    return run_folder(file).name + ("" if file.stem in ("best", "last") else f"/{file.stem}")


def read_record(file: Path) -> dict[str, Any] | None:
    """Read a JSON record of a run folder (summary.json, run.json); None if it is missing or cannot be read.

    A record that is no mapping is read as an empty one.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else {}


def listing(folder: Path) -> str:
    """Return the first names in a folder, for messages."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if not entry.name.startswith("."))
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more if names else "nothing"


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn errors of the system about a full disk or a forbidden place into a `WriteError` about ``path``."""
    try:
        yield
    except Exception as error:
        message = worded(error, path)
        if message is None:
            raise
        raise WriteError(message) from error


def first_line(error: BaseException | None) -> str:
    """Return the first line of an exception's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: BaseException) -> str:
    """Return in this project's words why the content of a file could not be used.

    Errors that this project raised are returned as they are. Those of Python and of libraries describe their own
    internals: only their kind is returned, and NANOCHAT_DEBUG=1 shows the traceback.
    """
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON, at character {error.pos}"
    if isinstance(error, UnicodeError):
        return "it holds bytes that are no text"
    if isinstance(error, KeyError):
        return f"it has no {str(error.args[0])[:80] if error.args else 'such entry'}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if found := re.search(r"unexpected keyword argument '(\w{1,80})'", str(error)):
        return f"it has the unknown {found[1]}"
    raised = error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    is_ours = raised is None or str(raised.tb_frame.f_globals.get("__name__", "")).startswith("nanochat_pl.")
    of_a_built_in = re.match(
        r"invalid literal|could not convert|cannot convert|dictionary update|.* to unpack", str(error)
    )
    if is_ours and type(error) is ValueError and not of_a_built_in:
        return str(error)
    return "it holds something of another kind than expected"


def worded(error: Exception, path: str | Path | None = None) -> str | None:
    """Return a message that names the file that could not be written or read and the remedy; None for other errors.

    `path` is the file that was written, if known; it is used if the error does not name one.
    """
    if isinstance(error, WriteError):
        return None
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        if isinstance(error, ValueError) or path is None or not _FAILED_WRITE.search(str(error)):
            return None
        number = errno.ENOSPC
    elif number not in (*_FULL, *_CLOSED, *_ODD):
        return None
    named = error.filename if isinstance(error, OSError) else None
    if isinstance(named, bytes):
        named = os.fsdecode(named)
    if path is not None and (named is None or Path(str(named)).name.startswith(".")):  # a temporary file next to it
        named = path
    what, reason = str(named) if named is not None else "a file", os.strerror(number).lower()
    if number in _FULL:
        free = f", {free_bytes(Path(what)) / 2**20:,.0f} MiB free" if named is not None else ""
        return (
            f"cannot write {what} ({reason}{free}); free some space, or choose a folder on a larger disk (outputs=, "
            "--out)"
        )
    if path is None:  # perhaps it was only read
        return f"cannot use {what} ({reason})"
    if number in _CLOSED:
        return f"cannot write {what} ({reason}); choose a folder that you may write to (outputs=, --out), or allow it"
    return f"cannot write {what} ({reason}); choose another place (outputs=, --out)"


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk of a path, which need not exist."""
    return shutil.disk_usage(_existing(path)).free


def check_place(folder: Path) -> None:
    """Raise `WriteError` unless a folder exists or can be made, and is writable; nothing is written."""
    place = _existing(folder)
    if not place.is_dir():
        raise WriteError(f"cannot make the folder {folder}: {place} is a file; choose another place (outputs=)")
    if not os.access(place, os.W_OK | os.X_OK):
        readonly = bool(os.statvfs(place).f_flag & os.ST_RDONLY) if os.name == "posix" else False
        why = "lies on a read-only disk" if readonly else "is not yours to write to"
        raise WriteError(f"cannot write to {folder}: {place} {why}; choose a folder that you may write to (outputs=)")


def _existing(path: Path) -> Path:
    """Return the path itself or the nearest of its parents that exists."""
    path = path.absolute()
    return next((place for place in (path, *path.parents) if place.exists()), Path(path.anchor))


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; the file written there becomes ``path`` if the block succeeds.

    After an error, including a full disk or Ctrl-C, ``path`` is unchanged and the temporary file is gone. Parent
    folders are made. Afterwards file and rename are on disk (fsync), so that not even a power cut leaves half a file.

    Raises:
        WriteError: If it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            move_into_place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8, line ends as they are) to ``path`` whole or not at all; see `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def link_or_copy(source: Path, path: Path) -> None:
    """Make ``path`` another name of ``source``, atomically: a hard link, or a copy if the disk has no links."""
    with atomic_file(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a complete file to its final name in the same folder, and flush both to the disk."""
    with temporary.open("r+b") as written:
        os.fsync(written.fileno())
    temporary.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened, and the rename is durable by itself
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
