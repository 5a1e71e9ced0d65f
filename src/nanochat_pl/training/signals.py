"""What signals do: they end a run in a defined way, with exit code 128 + the signal's number, as shells count.

`SIGNALS` are those that people, terminals and schedulers send to end something. Inside `guarded` each of them raises
`Stopped` wherever the process is; training puts a handler of its own in their place that saves first
(`nanochat_pl.training.callbacks.checkpoints`). No torch here, so that a command is guarded before anything slow is
imported.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["SIGNALS", "Stopped", "end", "guarded", "install", "loading", "say"]

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class Stopped(BaseException):
    """A signal ends what is running. Not an `Exception`: nothing that handles errors may take it for one.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


Handler = Callable[[int, FrameType | None], Any] | int | None


def install(handler: Handler, before: dict[int, Handler] | None = None) -> dict[int, Handler]:
    """Handle all of `SIGNALS` by `handler`, or each as `before` says; return how they were handled until now.

    SIGHUP stays ignored where it is ignored (`nohup`). In threads other than the main one, which cannot handle signals,
    nothing happens. Processes that are forked later leave the end to this one: of the signals they obey SIGTERM only.
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
    """Raise `Stopped`; a further signal ends the process at once, whatever it is doing."""
    install(signal.SIG_DFL)
    raise Stopped(number)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Let a signal end the process in one line while modules are imported, which must not be left half-way."""

    def leave(number: int, frame: FrameType | None) -> None:
        say(str(Stopped(number)))
        os._exit(128 + number)

    before = install(leave)
    try:
        yield
    finally:
        install(None, before)


def guarded(command: Callable[[], int]) -> int:
    """Run a command; where a signal ends it, say so in one line and return 128 + the signal's number."""
    before = install(end)
    try:
        return command()
    except Stopped as stopped:
        logging.getLogger("torch").setLevel(
            logging.WARNING
        )  # torch sets it at the end of its import, and talks at exit
        say(str(stopped))
        return stopped.exit_code
    finally:
        install(None, before)


def say(text: str) -> None:
    """Write a line to standard error, also from a signal handler that interrupts another write.

    Where the terminal is gone, standard output and error lead nowhere from here on, so that no later line fails.
    """
    line = f"\n{text}\n" if sys.stderr is not None and sys.stderr.isatty() else f"{text}\n"  # after ^C, or a bar
    try:
        os.write(2, line.encode())
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)
