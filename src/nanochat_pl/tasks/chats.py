"""Ready-made chats: rows with a `messages` column, as in SmolTalk, the microworld's lessons, or a user's file.

Rows of another layout (ShareGPT, Alpaca, prompt and completion) are read as `forms.py` knows them.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import Unpack

from nanochat_pl.tasks import columns
from nanochat_pl.tasks.base import Conversation, RowChoice, Task
from nanochat_pl.tasks.forms import read_messages
from nanochat_pl.tasks.tables import SHUFFLE_SEED, read_split

__all__ = ["HUB_REPO", "Chats"]

log = logging.getLogger(__name__)

HUB_REPO = "HuggingFaceTB/smol-smoltalk"


class Chats(Task):
    """The rows of one split as they are: messages of role and content, alternating from the user's.

    Args:
        path: folder with `<split>.parquet`, or the hub's files.
        split: train, validation or test.
        shuffle: take the rows in the order of `Dataset.shuffle(seed=42)`, as the original does; false = the file's.
        hub: repository to fetch missing files from.
        fetch: the files are the hub's: fetch what is missing, and accept any empty content as the original does,
            counted in a warning; in a user's files, only the user may say nothing.
        offline: open no socket.
        chosen: which rows, see `Task`.

    Raises:
        FileNotFoundError: if the split is not there, or cannot be fetched.
        ValueError: if a file is damaged, or a row is no conversation of a known form (see `forms`).
    """

    on_hub = True

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
        blank: Counter[str] = Counter()
        accepted = ("user", "assistant", "system") if fetch else ("user",)
        for row, messages in enumerate(table.dataset["messages"]):
            try:
                turns = read_messages(messages, Counter(), closed=False, blank=accepted)
                blank.update({message["role"] for message in turns if not message["content"].strip()})
            except ValueError as error:
                raise ValueError(f"{table.where(row)}, column messages: {error}; mend or drop the row") from error
        for role, count in blank.items():
            level = logging.INFO if role == "user" else logging.WARNING
            log.log(level, "%s of the %s chats of %s have an empty content (%s)", count, len(table), path, role)
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
