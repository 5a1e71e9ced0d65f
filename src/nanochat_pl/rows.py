"""Rows of JSON, JSON Lines and CSV files as plain Python values, exactly as they are written.

The libraries' own readers guess: pandas reads the text "None" as a missing value, Arrow reads a date out of a text,
both merge keys that stand twice. Here nothing is guessed, and every fault has its line.
"""

import codecs
import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["JsonValue", "csv_rows", "parse_json", "read_csv", "read_json_values", "utf8_fault"]

_WIDE_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_CSV_FIELD_CHARS = 2**30


class JsonValue(NamedTuple):
    """One value of a file: a line of JSON Lines, or an element of a list."""

    number: int
    """The line, or the element's place in the list, counted from 1."""
    value: Any
    fault: str | None = None
    """What is wrong with it; `value` is None then."""
    unit: str = "line"
    """What `number` counts: line or element."""


def utf8_fault(content: bytes) -> str | None:
    """Name an encoding other than UTF-8 that a file's first bytes announce; None if they announce none."""
    for name, marks in _WIDE_MARKS.items():
        if content.startswith(marks):
            return f"line 1 begins with the byte order mark of {name}; save the file as UTF-8"
    if b"\0" in content[:4]:
        return "line 1 has zero bytes, as text in UTF-16 has; save the file as UTF-8"
    return None


def parse_json(text: bytes) -> Any:
    """Parse one JSON value.

    Raises:
        ValueError: if it is not UTF-8 or not JSON, has a key twice in one object, or holds half a surrogate pair. The
            message is the fault in words, without the place of `text` in its file.
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
        before, after = decoded[: error.pos].rstrip(), decoded[error.pos :].strip()
        # Up to Python 3.12 the position is the bracket's, from 3.13 on that of the comma.
        comma = before.endswith(",") or after.startswith(",")
        if comma and after.lstrip(", \t\r\n")[:1] in ("]", "}", ""):
            what = "a trailing comma" + (" after the value" if after.strip(", \t\r\n") == "" else " before a bracket")
        else:
            what = error.msg
        raise ValueError(f"not JSON: {what} ({where})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def read_json_values(
    path: Path, is_list_of_rows: Callable[[list[Any]], bool], content: bytes | None = None
) -> Iterator[JsonValue]:
    """Yield the values of a file: one a line, or the elements of one list that is the whole file.

    One value is held at a time where each has its line. Empty lines are passed over. A file of one object over several
    lines is one value.

    Args:
        path: the file, UTF-8, with or without a byte order mark.
        is_list_of_rows: tells whether a list is the whole file's rows, and not one row that is a list.
        content: what the file holds, unpacked; None = it is read as it is.

    Raises:
        ValueError: if the file is in UTF-16 or UTF-32, or begins as one list and is not JSON.
    """
    content = path.read_bytes() if content is None else content
    if fault := utf8_fault(content):
        raise ValueError(f"{path}: {fault}")
    content = content.removeprefix(codecs.BOM_UTF8)
    # Not splitlines(): that would also split at separators which may stand in a JSON string as they are.
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    if not lines:
        return
    first = _value(*lines[0])
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


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file, see `csv_rows`."""
    with path.open("rb") as content:
        yield from csv_rows(path, content)


def csv_rows(path: Path, content: io.BufferedReader) -> Iterator[dict[str, str]]:
    """Yield the rows of CSV with a header, every value as text.

    The separator is a comma, a semicolon or a tab, whichever the header has most of.

    Args:
        path: what the content is called in messages.
        content: the file's bytes, at their beginning.

    Raises:
        ValueError: if it is not UTF-8 or not CSV, a column's name stands twice, or a row has more or fewer fields than
            the header; the message names file and line.
    """
    head = content.peek(2**16).partition(b"\n")[0]
    if fault := utf8_fault(head):
        raise ValueError(f"{path}: {fault}")
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
        raise ValueError(f"{path}, after row {number}: not CSV ({error}); mend or drop the row") from error
    finally:
        with contextlib.suppress(ValueError):  # closed already
            text.detach()  # the file is the caller's to close
