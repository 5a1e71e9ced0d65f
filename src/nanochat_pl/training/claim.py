"""A run owns its folder while it lives: a second process that would write there is refused and told who has it.

Two things are kept in the folder. `.lock` is locked by the operating system, which lets go of it whatever ends the
process. `.lock.json` names host, process and start time for people, and is touched every few seconds: on network file
systems that do not pass locks on, another machine sees by that whether the owner lives. A file that a killed process or
a machine that is gone has left stands in nobody's way. No torch here, so that the refusal comes at once.
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

from nanochat_pl.paths import write_atomically

__all__ = ["FolderInUseError", "check_free", "claimed"]

TOUCH_EVERY_S = 5.0
"""Between two signs of life of an owner."""
SILENT_S = 20.0
"""An owner on another machine that gives no sign for so long is gone."""
LONG_SILENT_S = 600.0
"""Nor need one wait where the last sign is older than this, by the clocks of two machines."""
NOTE_S = 2.0
"""So long the note of an owner may be missing, who has only just come."""
ORPHANS_S = 12.0
"""So long the workers of a killed process may hold its lock, until they notice that it is gone."""


class FolderInUseError(ValueError):
    """Another process writes to this folder."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Own a folder, which is made if need be, for as long as the block takes.

    Raises:
        FolderInUseError: another process owns it; says which, and what to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _acquire(folder)
    note = folder / ".lock.json"
    over = threading.Event()
    try:
        if lock is None or _elsewhere(_read(note)):
            _wait_for_silence(folder)
        write_atomically(note, json.dumps(_this_process()) + "\n")
        threading.Thread(target=_give_signs, args=(note, over), daemon=True).start()
        yield
    finally:
        over.set()
        if (_read(note) or {}).get("token") == _TOKEN:
            note.unlink(missing_ok=True)
        if lock is not None:
            lock.release()


def check_free(folder: Path) -> None:
    """Look whether a folder could be claimed now; nothing is written.

    Raises:
        FolderInUseError: another process on this machine owns it. (Of other machines `claimed` finds out.)
    """
    if (folder / ".lock").is_file() and os.access(folder / ".lock", os.W_OK):
        lock = _acquire(folder)
        if lock is not None:
            lock.release()


def _acquire(folder: Path) -> FileLock | None:
    """Lock a folder; None where its file system knows no locks."""
    begin = time.monotonic()
    while True:
        lock = FileLock(folder / ".lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            owner = _read(folder / ".lock.json")
            waited = time.monotonic() - begin
            # Without a note the owner has only just come, or is only looking; of a killed one, workers may be left.
            if (owner is None and waited < NOTE_S) or (owner is not None and _is_gone(owner) and waited < ORPHANS_S):
                time.sleep(0.2)
                continue
            raise _in_use(folder, owner) from None
        except PermissionError as error:
            raise PermissionError(
                f"cannot write to {folder}, which another user may own; give run_name=<another name>, or outputs=<a "
                "folder of your own>"
            ) from error
        except (NotImplementedError, OSError):  # what file systems without locks answer
            return None


def _wait_for_silence(folder: Path) -> None:
    """Return when the owner that the note names gives no sign of life any more.

    Raises:
        FolderInUseError: it does.
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
    """Make the refusal: who has the folder, and what to do."""
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


def _give_signs(note: Path, over: threading.Event) -> None:
    """Touch the note until the claim is over."""
    while not over.wait(TOUCH_EVERY_S):
        with contextlib.suppress(OSError):
            os.utime(note)


def _touched(note: Path) -> float | None:
    try:
        return note.stat().st_mtime
    except OSError:
        return None


def _read(note: Path) -> dict[str, Any] | None:
    """Read who owns a folder; None where no one says so."""
    try:
        owner = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(owner, dict) or not all(isinstance(owner.get(key), str) for key in ("host", "started")):
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
    """Say whether an owner is a process of another machine, or of this one before it was started anew."""
    return owner is not None and (owner["host"], owner.get("boot")) != (platform.node(), _boot())


def _is_gone(owner: dict[str, Any]) -> bool:
    """Say whether an owner was a process of this machine and is no more, even where its number is taken again."""
    if _elsewhere(owner):
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return owner.get("birth") != _birth(owner["pid"])


def _boot() -> str | None:
    """Tell one machine, and one start of it, from others of the same name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _birth(pid: int) -> str | None:
    """Give the time a process was started, in clock ticks since the machine was; None where that is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]  # a dead one that nobody has waited for has no life to name


_TOKEN = os.urandom(8).hex()
"""Tells this process's notes from those of others."""
