"""A run owns its folder while it lives: a second process that would write there is refused with the name of the owner.

Two files in the folder serve this. `.lock` is locked by the operating system, which releases it whatever ends the
process. `.lock.json` is a note of host, process and start time, and is touched every few seconds: on network file
systems that do not share locks between machines, another machine sees by this that the owner lives. Files left by a
killed process or a lost machine block nobody. No torch is imported, so that the refusal comes at once.
"""

import contextlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nanochat_pl.paths import read_record, write_atomically

__all__ = ["FolderInUseError", "check_free", "claimed"]

TOUCH_EVERY_S = 5.0
"""Seconds between two touches of the note."""
SILENT_S = 20.0
"""Seconds without a touch after which an owner on another machine is taken to be gone."""
LONG_SILENT_S = 600.0
"""If the last touch is older than this by the clocks of two machines, its owner is gone without waiting."""
NOTE_S = 2.0
"""Seconds for which the note of an owner that has just started may be missing."""
ORPHANS_S = 12.0
"""Seconds for which the workers of a killed process may hold its lock until they notice that it is gone."""


class FolderInUseError(ValueError):
    """Another process writes to this folder."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Own a folder, which is made if needed, while the block runs.

    Raises:
        FolderInUseError: another process owns it; the message says which, and what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _acquire(folder)
    note = folder / ".lock.json"
    over = threading.Event()
    try:
        if lock is None or _elsewhere(_read(note)):
            _wait_for_silence(folder)
        write_atomically(note, json.dumps(_this_process()) + "\n")
        threading.Thread(target=_keep_touching, args=(note, over), daemon=True).start()
        yield
    finally:
        over.set()
        if (_read(note) or {}).get("token") == _TOKEN:
            note.unlink(missing_ok=True)
        if lock is not None:
            lock.release()


def check_free(folder: Path) -> None:
    """Check that a folder could be claimed now, without writing anything.

    Raises:
        FolderInUseError: another process on this machine owns it. (`claimed` finds owners on other machines.)
    """
    if (folder / ".lock").is_file() and os.access(folder / ".lock", os.W_OK):
        lock = _acquire(folder)
        if lock is not None:
            lock.release()


def _acquire(folder: Path) -> FileLock | None:
    """Lock a folder; return None if its file system has no locks."""
    begin = time.monotonic()
    while True:
        lock = FileLock(folder / ".lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            owner = _read(folder / ".lock.json")
            waited = time.monotonic() - begin
            # Without a note the owner has just started, or only checks the folder; a killed one may have left workers.
            if (owner is None and waited < NOTE_S) or (owner is not None and _is_gone(owner) and waited < ORPHANS_S):
                time.sleep(0.2)
                continue
            raise _in_use(folder, owner) from None
        except PermissionError as error:
            raise PermissionError(
                f"cannot write to {folder}, which another user may own; give run_name=<another name>, or outputs=<a "
                "folder of your own>"
            ) from error
        except (NotImplementedError, OSError):  # raised on file systems without locks
            return None


def _wait_for_silence(folder: Path) -> None:
    """Return once the owner that the note names shows no sign of life any more.

    Raises:
        FolderInUseError: it does show one.
    """
    note = folder / ".lock.json"
    owner = _read(note)
    if owner is None or _is_gone(owner):
        return
    if not _elsewhere(owner):
        raise _in_use(folder, owner)
    seen, begin = _touched(note), time.monotonic()
    if seen is None or time.time() - seen > LONG_SILENT_S:
        return
    while time.monotonic() - begin < SILENT_S:
        time.sleep(0.5)
        if _touched(note) not in (seen, None):
            raise _in_use(folder, owner)


def _in_use(folder: Path, owner: dict[str, Any] | None) -> FolderInUseError:
    """Return the error that says who owns the folder, and what to do."""
    if owner is None:
        return FolderInUseError(
            f"{folder} is in use by another process; wait until it ends, or give run_name=<another name>"
        )
    who = f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    if _is_gone(owner):
        return FolderInUseError(
            f"{folder} is in use by what {who}, left behind when it was killed; end its child processes, or give "
            "run_name=<another name>"
        )
    return FolderInUseError(
        f"{folder} is in use by {who}; wait until it ends, stop it (kill {owner['pid']}), or give "
        "run_name=<another name>"
    )


def _keep_touching(note: Path, over: threading.Event) -> None:
    """Touch the note until the claim ends."""
    while not over.wait(TOUCH_EVERY_S):
        with contextlib.suppress(OSError):
            os.utime(note)


def _touched(note: Path) -> float | None:
    try:
        return note.stat().st_mtime
    except OSError:
        return None


def _read(note: Path) -> dict[str, Any] | None:
    """Read who owns a folder; None if there is no valid note."""
    owner = read_record(note) or {}
    if not all(isinstance(owner.get(key), str) for key in ("host", "started")):
        return None
    return owner if type(owner.get("pid")) is int and 0 < owner["pid"] < 2**31 else None


def _this_process() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S%z"),
        "boot": _boot(),
        "birth": _birth(os.getpid()),
        "token": _TOKEN,
    }


def _elsewhere(owner: dict[str, Any] | None) -> bool:
    """Return whether an owner is a process of another machine, or of this one before its last boot."""
    return owner is not None and (owner["host"], owner.get("boot")) != (platform.node(), _boot())


def _is_gone(owner: dict[str, Any]) -> bool:
    """Return whether an owner was a process of this machine and has ended, even if its number is in use again."""
    if _elsewhere(owner):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # the process of another user
        return False
    return owner.get("birth") != _birth(owner["pid"])


def _boot() -> str | None:
    """Return an id of this machine and its last boot; None if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _birth(pid: int) -> str | None:
    """Return when a process started, in clock ticks after the boot of the machine; None if it is unknown or dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]  # Z: dead, but its parent has not waited for it


_TOKEN = os.urandom(8).hex()
"""Marks the notes of this process."""
