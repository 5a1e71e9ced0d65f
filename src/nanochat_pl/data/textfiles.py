"""Text in other forms, converted once into the parquet files that training reads.

Plain text, JSON Lines, JSON and CSV, each also compressed, parquet with the text in another column, and files in
sub-folders become shards and one validation file, in a folder named by the content of the sources. Validation takes
whole documents, chosen by a hash of their text, so that copies of a document are never on both sides.
"""

import hashlib
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_pl.data.parquet import check_text_column
from nanochat_pl.rows import form, open_unpacked, parse_json, read_csv, read_json_values, unreadable, utf8_fault

__all__ = [
    "TEXT_ENDINGS",
    "VALIDATION_FILE",
    "TextSource",
    "convert_text",
    "convert_whole",
    "find_text_files",
    "is_text_file",
]

logger = logging.getLogger(__name__)

TEXT_ENDINGS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".parquet")
VALIDATION_FILE = "validation.parquet"
WHOLE_FILE = "text.parquet"

VALIDATION_SHARE = 0.01
"""Share of the characters that is held out for validation,"""
VALIDATION_CHARS = (1_000_000, 20_000_000)
"""with this lower and upper bound,"""
LARGEST_VALIDATION_SHARE = 0.1
"""but never more than this share."""
SHARD_CHARS = 250_000_000
FEW_TEXT_FILES = 10
"""Where there are fewer .txt files than this, each is cut into documents; otherwise each file is one."""
PIECE_CHARS = 2_000
"""A file is cut at empty lines, into documents of at least this many characters."""
END_OF_TEXT = "<|endoftext|>"
"""In a .txt file that contains it, it alone separates documents."""
_GIVE_COLUMN = "give data.column=<name of the column that holds the text>"
_ENDS_BYTES = 2**20
_FORM = 1
"""Raised whenever a conversion writes something else from the same sources."""


@dataclass(frozen=True)
class TextSource:
    """Files to convert, in order."""

    folder: Path
    files: tuple[Path, ...]
    column: str
    """The column, or key, that holds the text; .txt files have none."""
    val_file: Path | None = None
    """The file for validation; None = hold out some documents."""

    def key(self) -> str:
        """Return 12 hex digits that change with the files' names, sizes, dates and content, and with the settings.

        Only the beginning and the end of a large file are read.
        """
        digest = hashlib.sha256(f"{_FORM} {self.column} {self.val_file}\n".encode())
        for file in self.files:
            stat = file.stat()
            digest.update(f"{file.relative_to(self.folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
            with file.open("rb") as content:
                digest.update(content.read(_ENDS_BYTES))
                if stat.st_size > 2 * _ENDS_BYTES:
                    content.seek(-_ENDS_BYTES, io.SEEK_END)
                digest.update(content.read())
        return digest.hexdigest()[:12]

    def check(self) -> None:
        """Read the first row of every file.

        Raises:
            ValueError: if one is damaged or has no such column.
        """
        for file in self.files:
            if form(file) == ".txt":
                _check_beginning(file)
            else:
                next(_documents(file, self.column, split_text=False), None)

    def documents(self, val: bool) -> Iterator[str]:
        """Yield the documents of the validation file, or of all others, in order."""
        files = [file for file in self.files if (file == self.val_file) == val]
        split_text = sum(form(file) == ".txt" for file in files) < FEW_TEXT_FILES
        for file in files:
            yield from _documents(file, self.column, split_text)


def is_text_file(path: Path) -> bool:
    """Return whether a path is a file whose name says that it holds text."""
    return path.is_file() and form(path) in TEXT_ENDINGS


def find_text_files(folder: Path) -> list[Path]:
    """List the text files below a folder, by name; names that begin with `.` or `_` are ignored."""
    return sorted(
        path
        for path in folder.rglob("*")
        if is_text_file(path) and not any(part[0] in "._" for part in path.relative_to(folder).parts)
    )


def convert_text(source: TextSource, root: Path) -> Path:
    """Convert text to parquet, or find the earlier conversion of the same content.

    Args:
        root: folder in which the folder of the result is made, complete or not at all.

    Returns:
        The folder, with `shard_*.parquet` to train on and `VALIDATION_FILE`.

    Raises:
        ValueError: if a file is damaged, a row has no text, or there are not two different documents.
    """
    target = _made_once(source, root, f"text-{source.key()}", _convert)
    counts = json.loads((target / "conversion.json").read_text())
    logger.info(
        "text: %s, converted from %s: %s documents for training, %s for validation (%.1f%% of the characters); left "
        "out: %s empty, %s that are validation's",
        target,
        source.folder,
        *(f"{counts[name]:,}" for name in ("train", "validation")),
        100 * counts["validation_share"],
        *(f"{counts[name]:,}" for name in ("empty", "twice")),
    )
    return target


def convert_whole(source: TextSource, root: Path) -> Path:
    """Convert all of a text to one parquet file for evaluation, or find the earlier conversion.

    Raises:
        ValueError: if a file is damaged, or there is no text in it.
    """
    return _made_once(source, root, f"whole-{source.key()}", _convert_all) / WHOLE_FILE


def _convert_all(source: TextSource, folder: Path) -> None:
    texts = (text for text in source.documents(val=False) if text.strip())
    if not _write_shards(texts, folder, WHOLE_FILE, group_rows=64)[0]:
        raise _no_text(source)


def _made_once(source: TextSource, root: Path, name: str, write: Callable[[TextSource, Path], None]) -> Path:
    """Let `write` fill a folder of `root`, completely or not at all, unless it is there."""
    from filelock import FileLock

    target = root / name
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if not target.is_dir():
            temporary = root / f".{name}.part"
            shutil.rmtree(temporary, ignore_errors=True)
            logger.info(
                "%s (%s) below %s: converted once into %s",
                "1 text file" if len(source.files) == 1 else f"{len(source.files)} text files",
                ", ".join(sorted({form(file) for file in source.files})),
                source.folder,
                target,
            )
            temporary.mkdir()
            try:
                write(source, temporary)
                temporary.rename(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return target


def _no_text(source: TextSource) -> ValueError:
    return ValueError(f"the {len(source.files)} text files below {source.folder} hold no rows with text; add some")


def _convert(source: TextSource, folder: Path) -> None:
    hashes, chars, empty = _measure(source.documents(val=False))
    if source.val_file is None:
        held_out = _held_out(source, hashes, chars)
    else:
        held_out, more, _ = _measure(source.documents(val=True))
        if not more.sum():
            raise ValueError(f"{source.val_file} holds no text; name another file as data.val_shard")
    held_out = np.unique(held_out)
    is_val = np.isin(hashes, held_out)
    if is_val.all():
        raise ValueError(f"all documents below {source.folder} are validation's too; nothing is left to train on")
    rows = max(1, min(1024, int((~is_val).sum()) // 64))

    validation_texts: list[str] = []  # a small share, kept so that the files need not be read again

    def training() -> Iterator[str]:
        texts = (text for text in source.documents(val=False) if text.strip())
        for text, is_held_out in zip(texts, is_val, strict=True):
            if not is_held_out:
                yield text
            elif source.val_file is None:
                validation_texts.append(text)

    train = _write_shards(training(), folder, "shard_{:05d}.parquet", rows)
    texts = source.documents(val=True) if source.val_file is not None else validation_texts
    validation = _write_shards((text for text in texts if text.strip()), folder, VALIDATION_FILE, rows)
    counts = {
        "source": str(source.folder),
        "column": source.column,
        "train": train[0],
        "validation": validation[0],
        "validation_share": validation[1] / (train[1] + validation[1]),
        "empty": empty,
        "twice": 0 if source.val_file is None else int(is_val.sum()),
    }
    (folder / "conversion.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


def _measure(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Hash and count all documents that are not empty: (n,) uint64, (n,) int64, and the number of empty ones."""
    hashes, chars, empty = [], [], 0
    for text in texts:
        if not text.strip():
            empty += 1
            continue
        hashes.append(int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "big"))
        chars.append(len(text))
    return np.array(hashes, np.uint64), np.array(chars, np.int64), empty


def _held_out(source: TextSource, hashes: np.ndarray, chars: np.ndarray) -> np.ndarray:
    """Choose documents for validation, in the order of their hashes, until they have their share of characters."""
    distinct, inverse = np.unique(hashes, return_inverse=True)
    if not len(distinct):
        raise _no_text(source)
    if len(distinct) < 2:
        raise ValueError(
            f"{source.folder} holds {len(distinct)} different documents; two are needed at least, one to train on and "
            "one for validation"
        )
    total = int(chars.sum())
    least, most = VALIDATION_CHARS
    wanted = min(max(VALIDATION_SHARE * total, least), most, LARGEST_VALIDATION_SHARE * total)
    sizes = np.bincount(inverse, weights=chars)
    size = 0.0
    taken: list[int] = []
    for i in range(len(distinct)):
        if size + sizes[i] <= wanted and len(taken) + 1 < len(distinct):
            taken.append(i)
            size += sizes[i]
        if size > 0.95 * wanted:
            break
    # at least one is taken, the shortest if none fits, and at least one is left
    return distinct[taken or [int(sizes.argmin())]]


def _write_shards(texts: Iterator[str], folder: Path, name: str, group_rows: int) -> tuple[int, int]:
    """Write documents to files of about SHARD_CHARS, or to one; return the numbers of documents and characters."""
    schema = pa.schema([("text", pa.string())])
    documents = chars = shard = 0
    writer, in_shard = None, 0
    group: list[str] = []

    def flush() -> None:
        nonlocal writer, group
        if group:
            writer = writer or pq.ParquetWriter(folder / name.format(shard), schema, compression="zstd")
            writer.write_table(pa.table({"text": group}, schema))
            group = []

    try:
        for text in texts:
            group.append(text)
            documents, chars, in_shard = documents + 1, chars + len(text), in_shard + len(text)
            if len(group) == group_rows:
                flush()
            if in_shard >= SHARD_CHARS and "{" in name:
                flush()
                assert writer is not None
                writer.close()
                writer, in_shard, shard = None, 0, shard + 1
        flush()
    finally:
        if writer is not None:
            writer.close()
    return documents, chars


def _documents(file: Path, column: str, split_text: bool) -> Iterator[str]:
    """Yield the documents of one file; ValueError if it is damaged, or lacks the column or a text in it."""
    kind = form(file)
    try:
        if kind == ".parquet":
            yield from _parquet(file, column)
        elif kind == ".txt":
            yield from _plain(file, split_text)
        else:
            rows: Iterable[tuple[str, Any]]
            if kind == ".csv":
                rows = ((f"{file}, row {number} (counted from 0)", row) for number, row in enumerate(read_csv(file)))
            else:
                rows = _json_values(file) if kind == ".json" else _lines(file)
            yield from _texts(rows, column)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise unreadable(file, error) from error


def _json_values(file: Path) -> Iterator[tuple[str, Any]]:
    for number, value, fault, unit in read_json_values(file, lambda values: True):
        if fault is not None:
            raise ValueError(f"{file}:{number}: {fault}; mend or drop the {unit}")
        yield f"{file}:{number}", value


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    with open_unpacked(file) as content:
        for number, line in enumerate(content, 1):
            if number == 1:
                if fault := utf8_fault(line):
                    raise ValueError(f"{file}: {fault}")
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                try:
                    yield f"{file}:{number}", parse_json(line)
                except ValueError as error:
                    raise ValueError(f"{file}:{number}: {error}; mend or drop the line") from error


def _texts(rows: Iterable[tuple[str, Any]], column: str) -> Iterator[str]:
    for where, row in rows:
        if isinstance(row, str):  # a list of texts
            yield row
            continue
        if not isinstance(row, dict):
            raise ValueError(f"{where} is no object with a key {column!r} (data.column); mend or drop it")
        if column not in row:
            names = ", ".join(map(str, row)) or "none"
            raise ValueError(f"{where} has no column {column!r} (it has: {names}); {_GIVE_COLUMN}")
        yield _text(row[column], where, column)


def _text(value: Any, where: str, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}, column {column}: {str(value)[:40]!r} is no text; mend or drop the row")
    return value


def _parquet(file: Path, column: str) -> Iterator[str]:
    with pq.ParquetFile(file) as parquet:
        check_text_column(file, parquet.schema_arrow, column, (_GIVE_COLUMN, "give another data.column"))
        row = 0
        for batch in parquet.iter_batches(256, columns=[column], use_threads=False):
            for value in batch.column(0):
                try:
                    yield value.as_py() or ""
                except UnicodeDecodeError as error:
                    raise ValueError(f"{file}, row {row} (counted from 0): text that is not UTF-8") from error
                row += 1


def _plain(file: Path, split: bool) -> Iterator[str]:
    """Yield a text file as one document, or in pieces that end where its separators or empty lines are."""
    with open_unpacked(file) as content:
        raw = content.read()
    if fault := utf8_fault(raw, page=False):
        raise ValueError(f"{file}: {fault}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{file}, line {line}: byte {raw[error.start]:#04x} is not UTF-8; save it as UTF-8") from error
    if END_OF_TEXT in text:
        yield from (part.strip("\n") for part in text.split(END_OF_TEXT))
    elif not split:
        yield text
    else:
        yield from _pieces(text.splitlines(keepends=True))


def _check_beginning(file: Path) -> None:
    with open_unpacked(file) as content:
        try:
            head = content.read(2**16)
        except OSError as error:
            raise unreadable(file, error) from error
    if fault := utf8_fault(head, page=False):
        raise ValueError(f"{file}: {fault}")


def _pieces(lines: Sequence[str]) -> Iterator[str]:
    piece: list[str] = []
    chars = 0
    for line in lines:
        piece.append(line)
        chars += len(line)
        if chars >= PIECE_CHARS and (not line.strip() or chars >= 4 * PIECE_CHARS):
            yield "".join(piece)
            piece, chars = [], 0
    if chars:
        yield "".join(piece)
