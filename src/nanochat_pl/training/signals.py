"""Signals end a run in a defined way, with exit code 128 + the number of the signal, as shells count.

`SIGNALS` are those that people, terminals and schedulers send to end a process. Inside `guarded` each of them raises
`Stopped` wherever the process is; training installs a handler of its own that saves first
(`nanochat_pl.training.callbacks.checkpoints`). No torch is imported, so that a command is guarded before anything slow.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["PARENT", "SIGNALS", "Stopped", "end", "follow_parent", "guarded", "install", "loading", "say"]

PARENT = "NANOCHAT_PARENT"
"""The variable by which a process tells those that it starts its number, so that they do not outlive it."""

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class Stopped(BaseException):
    """A signal ends what is running. Not an `Exception`: nothing that handles errors may take it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


Handler = Callable[[int, FrameType | None], Any] | int | None


def install(handler: Handler, before: dict[int, Handler] | None = None) -> dict[int, Handler]:
    """Install `handler` for all of `SIGNALS`, or the handlers in `before`; return the previous handlers.

    SIGHUP stays ignored if it is ignored (`nohup`). Threads other than the main one cannot handle signals; nothing
    happens there. Processes that are forked later leave the handling to this one: they obey only SIGTERM.
    """
    found: dict[int, Handler] = {}
    if threading.current_thread() is not threading.main_thread():
        return found
    owner = os.getpid()

    def mine(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            assert callable(handler)
            handler(number, frame)
        elif number == signal.SIGTERM:
            os._exit(128 + number)

    for number in SIGNALS if before is None else before:
        found[number] = signal.getsignal(number)
        if number == getattr(signal, "SIGHUP", None) and found[number] == signal.SIG_IGN:
            del found[number]
            continue
        chosen = (mine if callable(handler) else handler) if before is None else before[number]
        signal.signal(number, signal.SIG_DFL if chosen is None else chosen)
    return found


def end(number: int, frame: FrameType | None = None) -> None:
    """Raise `Stopped`; a further signal ends the process at once."""
    install(signal.SIG_DFL)
    raise Stopped(number)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Let a signal end the process with one line while modules are imported, which must not be interrupted half-way."""

    def leave(number: int, frame: FrameType | None) -> None:
        say(str(Stopped(number)))
        os._exit(128 + number)

    before = install(leave)
    try:
        yield
    finally:
        install(None, before)


def guarded(command: Callable[[], int]) -> int:
    """Run a command; if a signal ends it, print one line and return 128 + the number of the signal."""
    before = install(end)
    follow_parent()
    try:
        return command()
    except Stopped as stopped:
        # torch sets its log level only at the end of its import, and logs at exit
        logging.getLogger("torch").setLevel(logging.WARNING)
        say(str(stopped))
        return stopped.exit_code
    finally:
        install(None, before)


def follow_parent() -> None:
    """Stop as by SIGTERM once the process is gone that started this one and said so (`PARENT`), even if it was killed.

    Without it a chain or a sweep that is killed would leave its run behind.
    """
    parent = os.environ.pop(PARENT, "")  # processes that this one starts have another parent

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


def say(text: str) -> None:
    """Write a line to standard error, also from a signal handler that interrupts another write.

    If the terminal is gone, standard output and error are redirected to nowhere, so that no later line fails.
    """
    line = f"\n{text}\n" if sys.stderr is not None and sys.stderr.isatty() else f"{text}\n"  # after ^C, or a bar
    try:
        os.write(2, line.encode())
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)
