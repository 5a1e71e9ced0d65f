"""Ready-made chats: rows with a `messages` column, as in SmolTalk, the microworld's lessons, or a file of one's own."""

from pathlib import Path

from nanochat_pl.tasks.base import Conversation, Task

__all__ = ["Chats"]


class Chats(Task):
    """The rows of `<path>/<split>.parquet` as they are: messages of role and content, alternating from the user's.

    Args:
        path: folder with `<split>.parquet`.
        split: train, validation or test.
        start, stop, step, epochs, phase: see `Task`.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it is no parquet file, has no column `messages`, or a row's turns do not alternate.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        start: int = 0,
        stop: int | None = None,
        step: int = 1,
        epochs: int = 1,
        phase: int = 0,
    ):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._file = Path(path) / f"{split}.parquet"
        if not self._file.is_file():
            raise FileNotFoundError(f"there is no {self._file}; set the task's path to a folder that has one")
        try:
            table = pq.read_table(self._file)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self._file} is truncated or not a parquet file; replace it ({error})") from error
        if "messages" not in table.column_names:
            raise ValueError(f"{self._file} has no column 'messages' (it has: {', '.join(table.column_names)})")
        self._messages = table.column("messages").to_pylist()
        for row, messages in enumerate(self._messages):
            _check(messages, f"{self._file}, row {row} (counted from 0)")
        super().__init__(start=start, stop=stop, step=step, epochs=epochs, phase=phase)

    @property
    def name(self) -> str:
        return str(self._file)

    @property
    def num_rows(self) -> int:
        return len(self._messages)

    def conversation(self, row: int, epoch: int) -> Conversation:
        return {"messages": self._messages[row]}


def _check(messages: list[dict], where: str) -> None:
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) < 2 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(turns)):
        raise ValueError(
            f"{where}: the roles are {', '.join(roles) or 'none'}, but user and assistant must take turns, the user "
            "first (after an optional system message), at least once each: mend or drop the row"
        )
