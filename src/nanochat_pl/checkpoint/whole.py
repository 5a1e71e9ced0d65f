"""Integrity of checkpoint files by their checksums, without unpickling, and the choice of the newest whole one.

`torch.save` writes a zip archive with a CRC-32 of each entry: the pickled structure and the bytes of every tensor.
torch's reader ignores them. Here they are compared before a file is used, about as fast as the disk can read it. This
module loads no torch, so that a run knows within its first seconds where it can resume.
"""

import functools
import pickletools
import time
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

__all__ = ["fault", "is_zip", "newest_checkpoint", "other_checkpoints", "packing_fault", "stored_step"]


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip archive, whole or damaged."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # it ends like one, with impossible numbers
        return True


def fault(path: Path) -> str | None:
    """Return what is wrong with a file of `torch.save`, as the end of a sentence; None if nothing is.

    Each file is read once in a process, unless it changes. A file whose writer stored no checksums (see
    `torch.serialization.set_crc32_options`) counts as whole.
    """
    try:
        status = path.stat()
    except OSError as error:  # a link that leads nowhere
        return f"cannot be read ({(error.strerror or str(error)).lower()})"
    # A file changed a moment ago may change again within the same tick of its clock, unseen by the cache.
    read = _fault if time.time_ns() - status.st_ctime_ns > 2 * 10**9 else _fault.__wrapped__
    return read(path.resolve(), status.st_ino, status.st_size, status.st_ctime_ns)


@functools.lru_cache(maxsize=256)
def _fault(path: Path, inode: int, size: int, changed: int) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            if (found := packing_fault(archive, size)) is not None:
                return found
            if not any(entry.CRC for entry in archive.infolist()):
                return None
            broken = archive.testzip()
    except Exception:  # a damaged archive fails in a dozen ways
        return f"({size:,} bytes) is truncated or not a checkpoint"
    return None if broken is None else f"is damaged: the checksum of its entry {broken} does not match"


def packing_fault(archive: zipfile.ZipFile, size: int) -> str | None:
    """Return why an archive of `size` bytes cannot be a saved model, as the end of a sentence; None if it can.

    In a saved model nothing is compressed and no name stands twice. Where two entries have one name, some programs read
    the first and some the last, so that an archive could show each program another model.
    """
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if not packed and unpacked <= size:
        names = Counter(entry.filename for entry in entries)
        twice = next((name for name, count in names.items() if count > 1), None)
        return None if twice is None else f"holds {names[twice]} entries named {twice[:80]!r}, as no model is saved"
    what = f"{packed[0][:80]} is compressed" if packed else "its entries share their bytes"
    return f"({size:,} bytes) would unpack to {unpacked:,} bytes ({what}), as no model is saved"


def stored_step(path: Path) -> int:
    """Read a checkpoint's number of updates without unpickling; -1 if it does not hold one."""
    try:
        with zipfile.ZipFile(path) as archive:
            structure = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            operations = pickletools.genops(archive.read(structure))
            for _, value, _ in operations:
                if value == "global_step":
                    return next(
                        int(value or 0) for code, value, _ in operations if code.name.startswith(("BININT", "LONG"))
                    )
    except Exception:  # whatever pickletools and zipfile raise on a damaged file
        return -1
    return -1


def newest_checkpoint(folder: Path) -> Path | None:
    """Return where a run resumes: at its `last.ckpt`, or the newest whole checkpoint if that is missing or damaged.

    `folder` is the run's `checkpoints/`; the result is None if there is no checkpoint.

    Raises:
        ValueError: if there are checkpoints, but none is whole; the message says what is wrong with each.
    """
    files = sorted(folder.glob("*.ckpt"))
    last = folder / "last.ckpt"
    if last in files and fault(last) is None:
        return last
    whole = _newest_first(files)
    if files and not whole:
        faults = "; ".join(f"{file.name} {fault(file)}" for file in files[:4])
        raise ValueError(
            f"no checkpoint in {folder} is whole: {faults}{'; …' if len(files) > 4 else ''}; bring one back from a "
            "copy, or begin anew with run_name=<another name> or force=true"
        )
    return whole[0] if whole else None


def other_checkpoints(path: Path) -> str:
    """Return advice on a damaged checkpoint: the newest whole one in the same folder."""
    whole = _newest_first(file for file in path.parent.glob("*.ckpt") if not _is_same(file, path))
    if not whole:
        return "no whole checkpoint lies beside it; use another copy of it"
    return f"use {whole[0]} (step {stored_step(whole[0])}), the newest whole one beside it"


def _is_same(file: Path, other: Path) -> bool:
    try:
        return file.samefile(other)  # also under another name, since files of the same state are hard links
    except OSError:  # a link that leads nowhere
        return file.resolve() == other.resolve()


def _newest_first(files: Iterable[Path]) -> list[Path]:
    """Sort the whole checkpoints by step, and those of the same step by age, the newest first."""
    whole = [file for file in files if fault(file) is None]
    return sorted(whole, key=lambda file: (stored_step(file), file.stat().st_mtime_ns, file.name), reverse=True)
