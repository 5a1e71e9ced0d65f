"""What tasks over tables of questions on the hub share: reading a split, the original's order, messages about rows."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Unpack

from nanochat_pl.tasks.answers import check_strict
from nanochat_pl.tasks.base import RowChoice, Task
from nanochat_pl.tasks.columns import Columns
from nanochat_pl.tasks.tables import hub_order, name_apart, read_split

__all__ = ["HubOptions", "HubTask"]


class HubOptions(RowChoice, total=False):
    """The options of a `HubTask`, which explains them."""

    shuffle: bool
    strict: str
    fetch: bool
    offline: bool


class HubTask(Task):
    """A task whose rows are one split of a data set on the hub, or of a folder with a table of the same columns.

    A subclass names the data set and its columns, turns each row into a record (`record`) and words it
    (`conversation`).

    Args:
        path: folder with `<split>.parquet` (or .csv, .json, .jsonl), or the hub's files.
        split: name of the split.
        shuffle: take the rows in the order of `Dataset.shuffle(seed=42)`, as the original does; false = the file's.
        strict: how answers are read: stated (what an answer states) or original (nanochat's rule), see
            docs/evaluation.md.
        fetch: fetch missing files from the hub.
        offline: open no socket.
        chosen: which rows, see `Task`.

    Raises:
        FileNotFoundError: if the split is not there, or cannot be fetched.
        ValueError: if a column is missing, a value cannot be read as its column's type (see `columns`), or `record`
            refuses a row.
    """

    graded = True
    on_hub = True
    hub_repo: ClassVar[str]
    """The data set on the hub."""
    hub_folder: str
    """The folder of its files there."""
    columns: ClassVar[Callable[[], Columns]]

    def __init__(
        self,
        path: str | Path,
        split: str,
        *,
        shuffle: bool = True,
        strict: str = "stated",
        fetch: bool = False,
        offline: bool = False,
        **chosen: Unpack[RowChoice],
    ):
        columns = type(self).columns()
        table = read_split(
            path, split, columns, repo=self.hub_repo, folder=self.hub_folder, fetch=fetch, offline=offline
        )
        self.split, self.strict = split, check_strict(strict)
        records = []
        for number, row in enumerate(table.rows()):
            try:
                records.append(self.record(row, number))
            except ValueError as fault:
                where = f"{table.where(number)} of {self.described}"
                raise ValueError(f"{where} has {fault}: mend or drop the row") from None
        name_apart(records, "id")
        self._records = hub_order(records) if shuffle else records
        super().__init__(**chosen)

    @property
    def name(self) -> str:
        return f"{type(self).__name__} {self.split}"

    @property
    def described(self) -> str:
        """The name of the split in messages about rows."""
        return f"{type(self).__name__}'s {self.split} split"

    @property
    def num_rows(self) -> int:
        return len(self._records)

    @abstractmethod
    def record(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """Return the record of a row, with its `id`; the message of a ValueError says what an unusable row has."""
