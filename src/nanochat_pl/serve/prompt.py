"""The line that people type questions into: a history, several lines where wanted, commands completed."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyPressEvent

__all__ = ["history_file", "prompt_session", "unechoed_controls"]


def history_file() -> Path:
    """Return where questions are kept between chats, in the folder that the system means for such things."""
    state = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME")
    return Path(state or Path.home() / ".local" / "state") / "nanochat_pl" / "chat_history"


@contextlib.contextmanager
def unechoed_controls() -> Iterator[None]:
    """Keep the terminal from writing `^C` into what is being shown; where there is none, change nothing."""
    try:
        import termios

        before = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError, termios.error):  # another system, or no terminal
        yield
        return
    changed = [*before]
    changed[3] &= ~termios.ECHOCTL
    termios.tcsetattr(sys.stdin, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def prompt_session(history: Path | None, commands: Sequence[str]) -> "PromptSession[str]":
    """Make the line that people type into.

    Args:
        history: file that keeps what was typed, readable by its owner only; None = forget it at the end.
        commands: what Tab completes, with the slash.

    Raises:
        OSError: when the file cannot be written.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.shortcuts import CompleteStyle

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: "KeyPressEvent") -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    if history is not None:
        history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(history, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    return PromptSession(
        [("bold", "> ")],
        multiline=True,  # Enter still sends; this is for lines that are pasted or asked for
        prompt_continuation=[("", "  ")],
        key_bindings=keys,
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        history=InMemoryHistory() if history is None else FileHistory(str(history)),
    )
