"""Ready-made chats: rows with a `messages` column, as in SmolTalk, the microworld's lessons, or a file of one's own.

Rows of another layout (ShareGPT, Alpaca, prompt and completion) are read as `forms.py` knows them.
"""

from pathlib import Path
from typing import Unpack

from nanochat_pl.tasks import columns
from nanochat_pl.tasks.base import Conversation, RowChoice, Task
from nanochat_pl.tasks.tables import SHUFFLE_SEED, read_split

__all__ = ["HUB_REPO", "Chats"]

HUB_REPO = "HuggingFaceTB/smol-smoltalk"


class Chats(Task):
    """The rows of one split as they are: messages of role and content, alternating from the user's.

    Args:
        path: folder with `<split>.parquet`, or the hub's files.
        split: train, validation or test.
        shuffle: take the rows in the order of `Dataset.shuffle(seed=42)`, as the original does; false = the file's.
        hub: repository to fetch missing files from.
        fetch: fetch what is missing from there.
        offline: open no socket.
        chosen: which rows, see `Task`.

    Raises:
        FileNotFoundError: if the split is not there, or cannot be fetched.
        ValueError: if it is no parquet file, has no column `messages`, or a row's turns do not alternate.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        shuffle: bool = False,
        hub: str = HUB_REPO,
        fetch: bool = False,
        offline: bool = False,
        **chosen: Unpack[RowChoice],
    ):
        self._path, self._split = Path(path), split
        table = read_split(path, split, columns.chats(), repo=hub if fetch else None, fetch=fetch, offline=offline)
        for row, messages in enumerate(table.dataset["messages"]):
            _check(messages, table.where(row))
        self._chats = table.dataset.shuffle(seed=SHUFFLE_SEED) if shuffle else table.dataset
        super().__init__(**chosen)

    @property
    def name(self) -> str:
        return f"Chats {self._split} ({self._path})"

    @property
    def num_rows(self) -> int:
        return len(self._chats)

    def conversation(self, row: int, epoch: int) -> Conversation:
        return {"messages": self._chats[row]["messages"]}


def _check(messages: list[dict], where: str) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) < 2 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(turns)):
        raise ValueError(
            f"{where}: the roles are {', '.join(roles) or 'none'}, but user and assistant must take turns, the user "
            "first (after an optional system message), at least once each: mend or drop the row"
        )
