"""The tables of a task: found in a folder, fetched from the hub where they are missing, read as a `datasets.Dataset`.

One split is `<split>.parquet`, or the hub's `<split>-00000-of-00003.parquet` and so on, all of them or none: a download
that broke off must never pass for a small data set. CSV, JSON and JSON Lines, plain or compressed, are read as well.
`columns.py` declares the columns of each task; values of another type are repaired where that loses nothing, and
refused elsewhere. Rows keep the file's order; `hub_order` returns them in the original's.

The data set is built in memory from files in a folder, so that nothing is written into the library's cache.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nanochat_pl.downloads import fetch_hub_file, list_hub_files
from nanochat_pl.paths import first_line
from nanochat_pl.rows import COMPRESSED, form, read_csv, read_json_values, unreadable
from nanochat_pl.tasks.columns import Columns
from nanochat_pl.tasks.forms import are_conversations
from nanochat_pl.tasks.repairs import Unfit, answer_labels, answer_numbers, as_number, check_counting, fit

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

__all__ = [
    "ENDINGS",
    "SHUFFLE_SEED",
    "SplitTable",
    "find_split",
    "hub_order",
    "name_apart",
    "read_rows",
    "read_split",
    "read_table",
]

log = logging.getLogger(__name__)

SHUFFLE_SEED = 42
_TEXT_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
ENDINGS = (".parquet", *_TEXT_ENDINGS, *(text + packed for text in _TEXT_ENDINGS for packed in COMPRESSED))
"""Endings of a split's files; where there are several, the first of these is read."""
Row = TypeVar("Row")

_NUMBERED = re.compile(r"-(\d+)-of-(\d+)(\.\w+)+$")


class SplitTable:
    """The rows of one split, each column of the type that its task declares.

    Args:
        files: their files in order, with the number of rows of each.
    """

    def __init__(self, dataset: "datasets.Dataset", files: Sequence[tuple[Path, int]]):
        self.dataset, self.files = dataset, list(files)

    def __len__(self) -> int:
        return len(self.dataset)

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows as dicts."""
        return self.dataset.to_list()

    def where(self, row: int) -> str:
        """Return the file and the row in it, for messages."""
        for file, count in self.files:
            if row < count:
                return _where(file, row)
            row -= count
        raise IndexError(row)


def _where(file: Path, row: int) -> str:
    return f"{file}, row {row} (counted from 0)"


def name_apart(records: Iterable[dict[str, Any]], key: str) -> None:
    """Make the names of rows unique, in place: the second row of a name gets the ending `-2`.

    Evaluations resume and compare by these names, and tables put together by hand repeat some of them.
    """
    seen: Counter[str] = Counter()
    for record in records:
        name = record[key]
        while record[key] in seen:
            seen[name] += 1
            record[key] = f"{name}-{seen[name]}"
        seen[record[key]] += 1


def hub_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in the order of `datasets.Dataset.shuffle(seed=42)`, in which nanochat reads the hub's sets."""
    return [rows[i] for i in np.random.default_rng(SHUFFLE_SEED).permutation(len(rows))]


def read_split(
    path: str | Path,
    split: str,
    columns: Columns,
    *,
    repo: str | None = None,
    folder: str = "data",
    fetch: bool = False,
    offline: bool = False,
) -> SplitTable:
    """Find or fetch a split (see `find_split`) and read its files (see `read_table`)."""
    return read_table(find_split(path, split, repo=repo, folder=folder, fetch=fetch, offline=offline), columns)


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
        path: folder with `<split>.parquet` or `<split>-*.parquet` (or another of `ENDINGS`), itself or in its `folder`.
        split: train, validation, test, or what the data set calls it.
        repo: data set on the hub that has them.
        folder: the folder inside the repository; a copy of it below `path` is searched as well.
        fetch: fetch them from `repo` into `path` if they are not there.

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
                "offline=false, or copy its files there"
            )
        return [fetch_hub_file(repo, name, path / Path(name).name) for name in _hub_names(repo, folder, split, path)]
    if there:
        raise FileNotFoundError(
            f"{there[0].parent} has {len(there)} of the {len(there) + missing} files of its {split} split; copy the "
            "others there, or delete these and fetch all"
        )
    listed = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) if path.is_dir() else "no such folder"
    remedy = f", or fetch=true to get it from {repo} (data=hub does so)" if repo is not None else ""
    raise FileNotFoundError(
        f"there is no {split}.parquet (nor {split}-*.parquet, .csv, .json or .jsonl) in {path} ({listed or 'empty'}); "
        f"set the task's path to the folder that has it (below data.root){remedy}"
    )


def read_table(files: Sequence[Path], columns: Columns) -> SplitTable:
    """Read files as rows of the declared columns; repairs are logged in one line.

    Optional columns that no file has are left out; where some files have them, they are empty in the others.

    Raises:
        ValueError: if a file is damaged, lacks a column, has a value that cannot be read without loss, or answers that
            count from 1; the message names file, row and column.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets.table import InMemoryTable, concat_tables

    repairs: dict[str, Counter[str]] = {}
    forms: Counter[str] = Counter()

    def rewrite(row: dict[str, Any]) -> dict[str, Any]:
        assert columns.rewrite is not None
        return columns.rewrite(row, repairs.setdefault(columns.names[0][0], Counter()), forms)

    tables, counts = [], []
    for file in files:
        # a file that already has the declared types is read as a whole, any other value by value
        table = _typed(file, columns)
        if table is not None and columns.answer is not None:
            sizes = pc.list_value_length(table[str(columns.choices)]).to_pylist()
            check_counting(str(file), columns.answer, table[columns.answer].to_pylist(), sizes)
        if table is None:
            rows = read_rows(file, *columns.names, rewrite=rewrite if columns.rewrite else None)
            table = _repaired(rows, file, columns, repairs)
        elif columns.rewrite is not None:
            forms[columns.names[0][0]] += len(table)
        tables.append(table)
        counts.append((file, len(table)))
    if not any(count for _, count in counts):
        raise ValueError(f"{_shown_files(files)} holds no rows; give the task a path with a file that does")
    names = [name for name in columns.features if any(name in table.column_names for table in tables)]
    features = datasets.Features({name: columns.features[name] for name in names})
    # join the files; an optional column that one of them lacks is empty there
    whole = []
    for table in tables:
        for name in names:
            if name not in table.column_names:
                table = table.append_column(name, pa.array([""] * len(table), pa.string()))
        whole.append(InMemoryTable(table.select(names).cast(features.arrow_schema)))
    repaired = [f"{column}: {count:,} {kind}" for column, kinds in repairs.items() for kind, count in kinds.items()]
    if repaired:
        log.info("repaired in %s: %s", _shown_files(files), "; ".join(repaired))
    if len(forms) > 1 or forms.keys() - set(names):
        count = ", ".join(f"{count:,} {form}" for form, count in forms.most_common())
        log.info("%s: %s conversations (form: %s)", _shown_files(files), f"{forms.total():,}", count)
    # The library's own fingerprint would hash every row.
    name = hashlib.sha256(repr(counts).encode()).hexdigest()[:16]
    dataset = datasets.Dataset(concat_tables(whole), info=datasets.DatasetInfo(features=features), fingerprint=name)
    table = SplitTable(dataset, counts)
    for name in columns.filled:
        if (blank := _first_blank(dataset.data.column(name))) is not None:
            kind = "a choice" if name == columns.choices else name
            raise ValueError(f"{table.where(blank)}, column {name}: {kind} is blank; mend or drop the row")
    return table


def _first_blank(column: "pa.ChunkedArray") -> int | None:
    """Return the first row with a text, or a text in a list, that is empty or white space; None if there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    start = 0
    for chunk in column.chunks:
        parents, texts = None, chunk
        if pa.types.is_struct(texts.type):
            texts = texts.field("text")
        if pa.types.is_list(texts.type):
            parents, texts = pc.list_parent_indices(texts), texts.flatten()
        index = pc.index(pc.equal(pc.utf8_trim_whitespace(texts), ""), True).as_py()
        if index >= 0:
            return start + (index if parents is None else parents[index].as_py())
        start += len(chunk)
    return None


def read_rows(
    file: Path, columns: Sequence[str], optional: Sequence[str] = (), *, rewrite: Any = None
) -> list[dict[str, Any]]:
    """Read these columns of a file unchanged, and the optional ones that are there.

    A parquet file of one single column of records (MMLU's `train`) is read as if the records' fields were its columns.
    In JSON, where a row may leave a key out, a column is there if any row has it.

    Args:
        columns: names that must be there.
        rewrite: makes a row with `columns` from a row with any columns, or raises ValueError.

    Raises:
        ValueError: if it is truncated or not what its name says, or lacks a column.
    """
    names, rows = (
        _read_parquet(file, columns, optional, rewrite)
        if file.suffix == ".parquet"
        else _read_text(file, rewrite is not None)
    )
    if not rows and not names:
        return []
    missing = [name for name in columns if name not in names]
    if rewrite is not None and rows:
        rewritten = []
        for number, row in enumerate(rows):
            try:
                rewritten.append(rewrite(row))
            except ValueError as error:
                raise ValueError(f"{_where(file, number)}, {error}; mend or drop the row") from error
        return rewritten
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)} (it has: {', '.join(names)})")
    wanted = [name for name in (*columns, *optional) if name in names]
    return [{name: row.get(name) for name in wanted} for row in rows]


def _read_parquet(
    file: Path, columns: Sequence[str], optional: Sequence[str], rewrite: Any
) -> tuple[list[str], list[dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
        wrapped = _is_wrapped(schema)
        names = [field.name for field in schema.types[0]] if wrapped else schema.names
        _check_unique(file, names)
        if rewrite is not None:
            wanted = names
        elif any(name not in names for name in columns):
            return names, []
        else:
            wanted = [name for name in (*columns, *optional) if name in names]
        table = pq.read_table(file, columns=schema.names if wrapped else wanted)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error
    try:
        rows = table.to_pylist()
    except UnicodeDecodeError:
        raise _not_utf8(file, table) from None
    return names, [row[schema.names[0]] or {} for row in rows] if wrapped else rows


def _is_wrapped(schema: "pa.Schema") -> bool:
    import pyarrow as pa

    return len(schema) == 1 and pa.types.is_struct(schema.types[0])


def _check_unique(file: Path, names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{file} has two columns of the name {', '.join(twice)}; rename or drop one of them")


def _not_utf8(file: Path, table: "pa.Table") -> ValueError:
    """Return the error that names the first value that is not UTF-8."""
    for name in table.column_names:
        for row, value in enumerate(table.column(name)):
            try:
                value.as_py()
            except UnicodeDecodeError:
                return ValueError(f"{_where(file, row)}, column {name}: text that is not UTF-8; mend or drop the row")
    return ValueError(f"{file} holds text that is not UTF-8; mend it")


def _read_text(file: Path, lists: bool) -> tuple[list[str], list[dict[str, Any]]]:
    """Read CSV, JSON or JSON Lines; with `lists`, a row may be a list of messages."""
    if form(file) in (".csv", ".tsv"):
        rows: list[dict[str, Any]] = list(read_csv(file))
    else:
        rows = list(_json_rows(file, lists))
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row)
    return list(names), rows


def _json_rows(file: Path, lists: bool) -> Iterator[dict[str, Any]]:
    is_rows = are_conversations if lists else lambda values: True
    for row, (number, value, fault, _) in enumerate(read_json_values(file, is_rows)):
        if fault is not None:
            raise ValueError(f"{file}:{number}: {fault}; mend or drop the line")
        if lists and isinstance(value, list):
            value = {"messages": value}
        if not isinstance(value, dict):
            raise ValueError(f"{_where(file, row)} is no object with a field for each column; mend or drop the row")
        yield value


def _typed(file: Path, columns: Columns) -> "pa.Table | None":
    """Read a parquet file of the declared types without nulls, without Python objects; None for other files."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.table import table_cast

    if file.suffix != ".parquet" or columns.labelled:
        return None
    try:
        schema = pq.read_schema(file)
        names = [name for name in columns.features if schema.names.count(name) == 1]
        if _is_wrapped(schema) or any(name not in names for name in columns.names[0]):
            return None
        if any(name in columns.marks for name in schema.names):
            return None
        if not all(_matches(schema.field(name).type, columns.features[name]) for name in names):
            return None
        table = pq.read_table(file, columns=names)
        table.validate(full=True)
        if any(_has_null(chunk) for column in table.columns for chunk in column.chunks):
            return None
        return table_cast(table, columns.part(names).arrow_schema)
    except (pa.ArrowException, OSError, ValueError, TypeError):  # reading it row by row says what is wrong
        return None


def _matches(kind: Any, feature: Any) -> bool:
    """Return whether an Arrow type is the declared one, or differs from it only in its width."""
    import pyarrow as pa

    if isinstance(feature, dict):
        fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
        return set(fields) == set(feature) and all(_matches(fields[name], feature[name]) for name in feature)
    if hasattr(feature, "feature"):
        return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _matches(kind.value_type, feature.feature)
    if str(feature.dtype).startswith("int"):
        return pa.types.is_integer(kind) and not pa.types.is_uint64(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _has_null(array: "pa.Array") -> bool:
    import pyarrow as pa

    if array.null_count:
        return True
    if pa.types.is_struct(array.type):
        return any(_has_null(array.field(i)) for i in range(array.type.num_fields))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _has_null(array.flatten())
    return False


def _repaired(rows: list[dict[str, Any]], file: Path, columns: Columns, repairs: dict[str, Counter[str]]) -> "pa.Table":
    """Convert every value to its declared type, column by column."""
    import pyarrow as pa

    names = [name for name in columns.features if (rows and name in rows[0]) or name in columns.names[0]]
    fitted: dict[str, list[Any]] = {}
    labels: dict[int, list[str]] = {}
    for name in names:
        done, feature = repairs.setdefault(name, Counter()), columns.features[name]
        values: list[Any] = []
        for number, row in enumerate(rows):
            try:
                value = row[name]
                if name == columns.choices:
                    value = columns.shape(value, labels, number, done)
                if name != columns.answer:
                    value = fit(value, feature, done, optional=name in columns.names[1])
            except Unfit as error:
                raise _unfit(file, number, name, error) from error
            values.append(value)
        fitted[name] = values
    if columns.answer is not None:
        name = columns.answer
        choices = fitted[str(columns.choices)]
        if columns.labelled:
            answers: list[Any] = [
                answer_labels(answer, row["text"], row["label"], repairs[name])
                for answer, row in zip(fitted[name], choices)
            ]
        else:
            answers = answer_numbers(fitted[name], choices, labels, repairs[name])
            numbers = [as_number(value, answer) for value, answer in zip(fitted[name], answers)]
            check_counting(str(file), name, numbers, [len(row) for row in choices])
        for number, answer in enumerate(answers):
            if isinstance(answer, Unfit):
                raise _unfit(file, number, name, answer) from answer
        fitted[name] = answers
    try:
        return pa.Table.from_pydict(fitted, schema=columns.part(names).arrow_schema)
    except pa.ArrowException as error:  # a number beyond 64 bits
        raise ValueError(f"{file} has a value that is out of range in one of the columns {', '.join(names)}") from error


def _unfit(file: Path, row: int, name: str, error: Unfit) -> ValueError:
    return ValueError(f"{_where(file, row)}, column {name}: {error}; mend or drop the row")


def _shown_files(files: Sequence[Path]) -> str:
    return str(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _look(folder: Path, split: str) -> list[Path]:
    found = {}
    for ending in ENDINGS:
        whole = folder / f"{split}{ending}"
        if files := [whole] if whole.is_file() else sorted(folder.glob(f"{split}-*{ending}")):
            found[ending] = files
    if len(found) > 1:
        read, *others = found.values()
        passed = ", ".join(str(files[0]) for files in others)
        log.warning("%s is read and %s is not, which is the same split in another form", read[0], passed)
    return next(iter(found.values()), [])


def _missing(files: Sequence[Path]) -> int:
    """Count the files that names such as `-00000-of-00003` announce and that are not there."""
    numbers = [match.group(1, 2) for file in files if (match := _NUMBERED.search(file.name))]
    return sum(int(total) for total in {total for _, total in numbers}) - len(numbers)


def _hub_names(repo: str, folder: str, split: str, path: Path) -> list[str]:
    """List the names of the split's files in the repository."""
    try:
        names = list_hub_files(repo)
    except OSError as error:
        reason = first_line(error)
        raise FileNotFoundError(
            f"could not ask the hub which files {repo} has ({reason}); try again, or put {split}.parquet into {path}"
        ) from error
    wanted = sorted(n for n in names if Path(n).name.startswith(f"{split}-") and n.endswith(".parquet"))
    wanted = [name for name in wanted if str(Path(name).parent) in (folder, ".")]
    if not wanted:
        raise FileNotFoundError(f"{repo} has no {folder}/{split}-*.parquet; it has {', '.join(sorted(names)[:12])}")
    log.info("fetching %d files of %s into %s", len(wanted), repo, path)
    return wanted
