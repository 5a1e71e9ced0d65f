"""The parquet files of a task: found in a folder, fetched from the hub where they are missing, read as rows.

One split is `<split>.parquet`, or the hub's `<split>-00000-of-00003.parquet` and so on, all of them or none: a download
that broke off must never pass for a small data set. Rows keep the file's order; `hub_order` is the original's.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nanochat_pl.downloads import fetch_hub_file

__all__ = ["SHUFFLE_SEED", "find_split", "hub_order", "read_rows", "read_split"]

log = logging.getLogger(__name__)

SHUFFLE_SEED = 42
Row = TypeVar("Row")

_NUMBERED = re.compile(r"-(\d+)-of-(\d+)\.parquet")


def hub_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows as `datasets.Dataset.shuffle(seed=42)` does: the order nanochat reads every set of the hub in."""
    return [rows[i] for i in np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))]


def read_split(
    path: str | Path,
    split: str,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    *,
    repo: str | None = None,
    folder: str = "data",
    fetch: bool = False,
    offline: bool = False,
) -> list[dict[str, Any]]:
    """Find or fetch a split (see `find_split`) and read the rows of its files (see `read_rows`)."""
    files = find_split(path, split, repo=repo, folder=folder, fetch=fetch, offline=offline)
    return [row for file in files for row in read_rows(file, columns, optional)]


def find_split(
    path: str | Path,
    split: str,
    *,
    repo: str | None = None,
    folder: str = "data",
    fetch: bool = False,
    offline: bool = False,
) -> list[Path]:
    """Return the files of one split, in order.

    Args:
        path: folder with `<split>.parquet` or `<split>-*.parquet`, itself or in its `folder`.
        split: train, validation, test, or what the data set calls it.
        repo: data set on the hub that has them.
        folder: the folder inside the repository; in a copy of it, below `path`, they are found as well.
        fetch: fetch them from `repo` into `path` if they are not there.
        offline: open no socket.

    Raises:
        FileNotFoundError: if they are not there, or not all of them, and cannot be fetched.
    """
    path = Path(path)
    there = _look(path, split) or _look(path / folder, split)
    if there and not (missing := _missing(there)):
        return there
    if repo is not None and fetch:
        if offline:
            raise FileNotFoundError(
                f"the {split} split of {repo} is not in {path} and offline=true forbids fetching it; run once with "
                "offline=false, or copy its parquet files there"
            )
        return [fetch_hub_file(repo, name, path / Path(name).name) for name in _hub_names(repo, folder, split, path)]
    if there:
        raise FileNotFoundError(
            f"{there[0].parent} has {len(there)} of the {len(there) + missing} files of its {split} split; copy the "
            "others there, or delete these and fetch all"
        )
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) if path.is_dir() else "no such folder"
    remedy = f", or fetch=true to get it from {repo} (data=hub does so)" if repo is not None else ""
    raise FileNotFoundError(
        f"there is no {split}.parquet (nor {split}-*.parquet) in {path} ({held or 'empty'}); set the task's path to "
        f"the folder that has it (below data.root){remedy}"
    )


def read_rows(file: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Read these columns of a file, the optional ones where they are there.

    A file of one single column of records (MMLU's `train`) is read as if the records' fields were its columns.

    Raises:
        ValueError: if it is truncated or no parquet file, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        wrapped = len(schema) == 1 and pa.types.is_struct(schema.types[0])
        names = [field.name for field in schema.types[0]] if wrapped else schema.names
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(f"{file} has no column {', '.join(missing)} (it has: {', '.join(names)})")
        wanted = [name for name in (*columns, *optional) if name in names]
        rows = pq.read_table(file, columns=schema.names if wrapped else wanted).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} is truncated or not a parquet file; replace it ({error})") from error
    return [{name: row[schema.names[0]][name] for name in wanted} for row in rows] if wrapped else rows


def _look(folder: Path, split: str) -> list[Path]:
    whole = folder / f"{split}.parquet"
    return [whole] if whole.is_file() else sorted(folder.glob(f"{split}-*.parquet"))


def _missing(files: Sequence[Path]) -> int:
    """Count the files that `-00000-of-00003` announces and that are not there."""
    numbers = [match.groups() for file in files if (match := _NUMBERED.search(file.name))]
    return sum(int(total) for total in {total for _, total in numbers}) - len(numbers)


def _hub_names(repo: str, folder: str, split: str, path: Path) -> list[str]:
    """List the names of the split's files in the repository."""
    import huggingface_hub

    try:
        names = huggingface_hub.list_repo_files(repo, repo_type="dataset")
    except Exception as error:  # the transport's exceptions are another class in each version of the library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"could not ask the hub which files {repo} has ({reason}); try again, or put {split}.parquet into {path}"
        ) from error
    wanted = sorted(n for n in names if Path(n).name.startswith(f"{split}-") and n.endswith(".parquet"))
    wanted = [name for name in wanted if str(Path(name).parent) in (folder, ".")]
    if not wanted:
        raise FileNotFoundError(f"{repo} has no {folder}/{split}-*.parquet; it has {', '.join(sorted(names)[:12])}")
    log.info("fetching %d files of %s into %s", len(wanted), repo, path)
    return wanted
