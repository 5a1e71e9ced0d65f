"""Runs that begin with torch and Lightning loaded: copies of one process that has imported them and done nothing else.

Loading them takes several seconds, which the short runs of a sweep would each pay. The process that is copied is
Python's own `multiprocessing` fork server: it has no threads and opens no device, so that a copy is as good as new.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat_pl.training import signals

__all__ = ["Fork"]

LOADED = ["nanochat_pl.training.run"]
"""What the copied process has imported."""


class Fork:
    """A command of `train.py` in such a copy, with the part of `subprocess.Popen` that a sweep uses.

    Args:
        command: Python, -m, the module of `train.py`, its arguments.
        env: the whole environment of the run. What torch reads when it is imported, as `OMP_NUM_THREADS`, is taken from
            that of the first run.
        log: the file to which standard output and error are appended.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        _start_server(env)
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=_become, args=(list(command), dict(env), str(log)))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return `returncode`."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self._process.pid is not None and self.returncode is None:
            os.kill(self._process.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, unless it has ended."""
        self._process.terminate()

    def wait(self) -> int | None:
        """Wait for its end; return `returncode`."""
        self._process.join()
        return self.returncode


def _start_server(env: Mapping[str, str]) -> None:
    """Start the fork server, which has the environment of the first run, unless it runs."""
    from multiprocessing import forkserver  # not on every system

    forkserver.set_forkserver_preload(LOADED)
    before = dict(os.environ)
    os.environ.update(env)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _become(command: Sequence[str], env: Mapping[str, str], log: str) -> None:
    """Turn this copy into the run, as if it had been started by its command."""
    os.setpgid(0, 0)  # Ctrl-C in a terminal reaches the sweep alone, which passes it on
    signals.install(signal.SIG_DFL)
    for target, opened in (
        (0, os.open(os.devnull, os.O_RDONLY)),
        (1, os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)),
    ):
        os.dup2(opened, target)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(env)
    threading.Thread(target=_follow, daemon=True).start()
    from nanochat_pl.cli import train

    sys.argv[1:] = command[3:]
    code = train.main()
    atexit._run_exitfuncs()  # a copy would leave without
    sys.exit(code)


def _follow() -> None:
    """Stop as by SIGTERM once the sweep is gone, even if it was killed; the server lives as long as its copies."""
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    sweep.join()
    os.kill(os.getpid(), signal.SIGTERM)
