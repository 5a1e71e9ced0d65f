"""Rows of JSON, JSON Lines and CSV files as plain Python values, exactly as they are written.

The libraries' readers guess: pandas reads the text "None" as a missing value, Arrow reads a date out of a text, and
both merge duplicate keys. This module guesses nothing, and every error names its line. Compressed files are unpacked,
and if a file's content does not fit its name, the error names the actual kind.
"""

import codecs
import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "COMPRESSED",
    "JsonValue",
    "csv_rows",
    "form",
    "open_unpacked",
    "parse_json",
    "read_csv",
    "read_json_values",
    "read_yaml",
    "unreadable",
    "utf8_fault",
]

COMPRESSED = {".zst": "zstd", ".gz": "gzip", ".bz2": "bz2"}
"""Endings of compressed files, and the name of each compression."""

_WIDE_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_CSV_FIELD_CHARS = 2**30
_PACKED_MARKS = {"gzip": rb"\x1f\x8b", "zstd": rb"\x28\xb5\x2f\xfd", "bz2": rb"BZh[1-9]1AY&SY"}
_UNPACK = "unpack it"
_OFFICE = "save its text, or its table as CSV"
_KINDS = {
    rb"version https://git-lfs\.github\.com": "a pointer of Git LFS, not the file itself; `git lfs pull` fetches that",
    rb"PK(\x03\x04|\x05\x06)": f"a zip archive, as .xlsx and .docx files are; {_UNPACK}, or {_OFFICE}",
    rb"%PDF-": "a PDF; save its text",
    rb"PAR1": "a parquet file; give it the ending .parquet",
    rb"ARROW1": "an Arrow (Feather) file; write it as parquet",
    rb"\xd0\xcf\x11\xe0": f"a file of an office program (.xls, .doc); {_OFFICE}",
    rb"\{\\rtf": "rich text (RTF); save its text",
    rb"SQLite format 3\0": "a database (SQLite); write its table as CSV",
    rb"\x89HDF": "an HDF5 file; write its table as CSV or parquet",
    rb"7z\xbc\xaf": f"a 7z archive; {_UNPACK}",
    rb"Rar!": f"a RAR archive; {_UNPACK}",
    rb"\xfd7zXZ": f"compressed by xz; {_UNPACK}",
    rb"\x04\x22\x4d\x18": f"compressed by lz4; {_UNPACK}",
    rb"(?s).{257}ustar": f"a tar archive; {_UNPACK}",
    rb"\x80[\x02-\x05]": "a pickle; write its rows as JSON Lines",
    rb"\x89PNG|\xff\xd8\xff|GIF8": "a picture; take it away",
    **{mark: f"compressed by {name}; {_UNPACK}" for name, mark in _PACKED_MARKS.items()},
}
"""Beginnings of files of other kinds, with the kind and the remedy."""
_PAGE = re.compile(rb"\s*<(!doctype html|html)\b", re.IGNORECASE)
_HEAD_BYTES = 512
_NEEDED = {
    "Expecting value": "a value",
    "Expecting property name": "a key in double quotes",
    "Expecting ':'": "a colon",
    "Expecting ','": "a comma or a closing bracket",
}
"""Error of Python's parser -> what JSON has at this position."""


class JsonValue(NamedTuple):
    """One value of a file: a line of JSON Lines, or an element of a list."""

    number: int
    """The line, or the element's place in the list, counted from 1."""
    value: Any
    fault: str | None = None
    """The error, if the value is invalid; `value` is None then."""
    unit: str = "line"
    """The unit of `number`: line or element."""


class _TwiceError(ValueError):
    """An object has a key twice."""


def form(file: Path) -> str:
    """Return the ending that names a file's format, in lower case and without the ending of a compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_unpacked(file: Path) -> io.BufferedReader:
    """Open a file for reading, unpacked if its first bytes or else its ending show a compression.

    Reading raises OSError where the compressed content is damaged; see `unreadable`.
    """
    content = file.open("rb")
    head = content.peek(_HEAD_BYTES)
    packed = next((name for name, mark in _PACKED_MARKS.items() if re.match(mark, head)), None)
    packed = packed or (COMPRESSED.get(file.suffix.lower()) if head else None)
    if packed is None:
        return content
    content.close()
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(file), compression=packed), 2**20)


def unreadable(file: Path, error: BaseException) -> ValueError:
    """Return the error for a file that cannot be read: it is forbidden, of another kind, or damaged."""
    try:
        with file.open("rb") as content:
            kind = _kind(content.read(_HEAD_BYTES), page=True)
    except OSError as again:
        error, kind = again, None
    if isinstance(error, OSError) and error.errno:
        reason = os.strerror(error.errno).lower()
        return ValueError(f"{file} cannot be read ({reason}); allow reading it, or take it away")
    expected = "a parquet file" if form(file) == ".parquet" else "compressed"
    if kind is not None and not kind.startswith(expected):
        return ValueError(f"{file} is {kind}")
    claim = "not a parquet file" if form(file) == ".parquet" else "not what its name says"
    return ValueError(f"{file} is truncated or {claim}; delete it or fetch it again")


def utf8_fault(content: bytes, page: bool = True) -> str | None:
    """Return what a file is, by its first bytes, if it is not text in UTF-8; None for any text.

    Args:
        content: the file, or its first 512 bytes.
        page: count a web page as a fault, as readers of rows do.
    """
    for name, marks in _WIDE_MARKS.items():
        if content.startswith(marks):
            return f"line 1 begins with the byte order mark of {name}; save the file as UTF-8"
    if kind := _kind(content, page):
        return f"it is {kind}"
    if b"\0" in content[:4]:
        return "line 1 has zero bytes, as text in UTF-16 has; save the file as UTF-8"
    return None


def _kind(head: bytes, page: bool) -> str | None:
    """Return the kind of a file that is not text, and the remedy."""
    if page and _PAGE.match(head):
        return "a web page, as servers send in place of a file that they refuse; fetch the file again"
    return next((kind for mark, kind in _KINDS.items() if re.match(mark, head[:_HEAD_BYTES])), None)


def parse_json(text: bytes) -> Any:
    """Parse one JSON value.

    Raises:
        ValueError: if it is not UTF-8 or not JSON, has a key twice in one object, or holds half a surrogate pair. The
            message does not give the position of `text` in its file.
    """
    return _parse(text, several_lines=False)


def _parse(text: bytes, several_lines: bool) -> Any:
    try:
        decoded = text.decode("utf-8")
        value = _DECODER.decode(decoded)
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as error:
        place = f"{text[error.start]:#04x} at {error.start}"
        raise ValueError(f"not UTF-8 (byte {place})") from error
    except UnicodeEncodeError as error:
        raise ValueError("not text: it has one half of a surrogate pair (\\ud800 to \\udfff) alone") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if several_lines else f"column {error.colno}"
        raise ValueError(f"not JSON: {_json_fault(decoded, error)} ({where})") from error
    except _TwiceError:
        raise
    except ValueError as error:  # Python limits the digits of whole numbers
        longest = max(re.finditer(r"\d+", decoded), key=lambda digits: len(digits[0]))
        raise ValueError(
            f"a whole number of {len(longest[0]):,} digits is too long (it begins {longest[0][:8]}…); write it as text"
        ) from error


def _json_fault(text: str, error: json.JSONDecodeError) -> str:
    before, after = text[: error.pos].rstrip(), text[error.pos :].strip()
    # Up to Python 3.12 the position is the bracket's, from 3.13 on that of the comma.
    comma = before.endswith(",") or after.startswith(",")
    if comma and after.lstrip(", \t\r\n")[:1] in ("]", "}", ""):
        return "a trailing comma" + (" after the value" if after.strip(", \t\r\n") == "" else " before a bracket")
    found = "".join(char if char.isprintable() else " " for char in after[:16])
    found = f"`{found}{'…' if len(after) > 16 else ''}`" if after else "the end"
    if error.msg.startswith("Extra data"):
        return f"{found} follows the value; a line holds one value"
    if error.msg.startswith("Unterminated string"):
        return f"the text {found} has no closing double quote"
    if error.msg.startswith("Invalid control character"):
        return "a tab, line break or other control character in a text; write it as an escape, such as \\t or \\n"
    if error.msg.startswith("Invalid \\"):
        return f"the backslash at {found} begins no escape; one that is meant itself is written twice"
    needed = next((what for message, what in _NEEDED.items() if error.msg.startswith(message)), "something else")
    hint = ""
    if after[:1] in ("'", "\u201c", "\u201d"):
        hint = '; JSON puts texts and keys into double quotes (")'
    elif re.match(r"None|True|False|nan|undefined", after):
        hint = "; JSON writes null, true and false"
    return f"{found} where {needed} is needed{hint}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"the key {twice!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def read_json_values(path: Path, is_list_of_rows: Callable[[list[Any]], bool]) -> Iterator[JsonValue]:
    """Yield the values of a file: one a line, or the elements of one list that is the whole file.

    Empty lines are skipped. A file of one object over several lines is one value; a file of an empty list has none.

    Args:
        path: the file, UTF-8, with or without a byte order mark, perhaps compressed.
        is_list_of_rows: returns whether a list holds all rows of the file, and is not itself one row.

    Raises:
        ValueError: if the file cannot be read, is no text in UTF-8, or begins as one list and is not JSON.
    """
    try:
        with open_unpacked(path) as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise unreadable(path, error) from error
    if fault := utf8_fault(content):
        raise ValueError(f"{path}: {fault}")
    content = content.removeprefix(codecs.BOM_UTF8)
    # Not splitlines(): that would also split at separators which may stand in a JSON string as they are.
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    if not lines:
        return
    first = _value(*lines[0])
    if len(lines) == 1 and first.value == []:
        return
    if len(lines) == 1 and isinstance(first.value, list) and first.value and is_list_of_rows(first.value):
        yield from _elements(first.value)
        return
    if first.fault is not None and len(lines) > 1 and lines[0][1].lstrip()[:1] in (b"[", b"{"):
        whole: Any = None
        try:
            whole = _parse(content, several_lines=True)
        except ValueError as error:
            if lines[0][1].strip() == b"[" or lines[0][1].rstrip().endswith(b","):
                raise ValueError(f"{path} begins as one list: {error}; mend it") from error
        if whole == []:
            return
        if isinstance(whole, list) and whole and is_list_of_rows(whole):
            yield from _elements(whole)
            return
        if whole is not None:
            yield JsonValue(1, whole)
            return
    yield first
    for number, line in lines[1:]:
        yield _value(number, line)


def _elements(values: list[Any]) -> Iterator[JsonValue]:
    for number, value in enumerate(values, 1):
        yield JsonValue(number, value, unit="element")


def _value(number: int, line: bytes) -> JsonValue:
    try:
        return JsonValue(number, parse_json(line))
    except ValueError as error:
        return JsonValue(number, None, str(error))


def read_yaml(path: Path) -> Any:
    """Read a YAML file of this package as dicts, lists and strings: scalars are not converted."""
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # the one in C exists if PyYAML has libyaml
    return yaml.load(path.read_text(encoding="utf-8"), loader)


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file, see `csv_rows`."""
    try:
        with open_unpacked(path) as content:
            yield from csv_rows(path, content)
    except (OSError, EOFError) as error:
        raise unreadable(path, error) from error


def csv_rows(path: Path, content: io.BufferedReader) -> Iterator[dict[str, str]]:
    """Yield the rows of CSV with a header, every value as text.

    The separator is a comma, a semicolon or a tab, whichever the header has most of.

    Args:
        path: name of the content in messages.
        content: the file's bytes, positioned at their beginning.

    Raises:
        ValueError: if it is not UTF-8 or not CSV, a column's name stands twice, or a row has more or fewer fields than
            the header; the message names file and line.
    """
    head = content.peek(2**16)
    if fault := utf8_fault(head):
        raise ValueError(f"{path}: {fault}")
    head = head.partition(b"\n")[0]
    separator = max((",", ";", "\t"), key=lambda mark: head.count(mark.encode()))
    csv.field_size_limit(_CSV_FIELD_CHARS)
    number = 0
    text = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")  # csv knows all line ends, also a bare CR
    try:
        reader = csv.reader(text, delimiter=separator, strict=True)
        names = next(reader, [])
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{path}: the column {', '.join(twice)} stands twice in its header; rename one")
        for row in reader:
            if not row:
                continue
            number += 1
            if len(row) != len(names):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(names)}; put texts "
                    "that hold separators or line ends in double quotes"
                )
            yield dict(zip(names, row))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.object[error.start]:#04x}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{path}, after row {number}: not CSV ({_csv_fault(error)}); mend or drop the row") from error
    finally:
        with contextlib.suppress(ValueError):  # closed already
            text.detach()  # the file is the caller's to close


def _csv_fault(error: csv.Error) -> str:
    message = str(error)
    if "unexpected end" in message:
        return "a double quote that opens a text is never closed"
    if "expected after" in message:
        return "something follows a closing double quote; one that stands in a text is written twice"
    if "field limit" in message:
        return f"a field has more than {_CSV_FIELD_CHARS:,} characters; perhaps a double quote is never closed"
    return "its quotes or line ends are not those of CSV"
