"""What every command has in common: a mistake is one line that says what to do, and exit code 2."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from nanochat_pl.paths import worded

__all__ = ["Arguments", "in_words", "refuse", "share_cores"]

_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""The variables by which users say how OpenMP's threads wait."""


class Arguments(argparse.ArgumentParser):
    """A command line whose mistakes are errors like all others; of paths a leading ~ is the home folder.

    Shells leave it alone within a word, as in `--out=~/exports`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print before it leaves the process.

        Raises:
            ValueError: Always, with the way to the help.
        """
        raise ValueError(f"{message}; `{self.prog} --help` shows what there is")


def refuse(error: BaseException) -> int:
    """Report what a user can mend in one line, and return the exit code for it (NANOCHAT_DEBUG=1: with traceback)."""
    if os.environ.get("NANOCHAT_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(f"error: {in_words(error)}", file=sys.stderr)
    return 2


def in_words(error: BaseException) -> str:
    """Give an error's text on one line; what the system alone would say in its own terms is worded (`paths.worded`)."""
    said = worded(error) if isinstance(error, OSError) else None
    return " ".join((said or str(error)).split())


def share_cores() -> None:
    """Let idle OpenMP threads give their core away soon; must be called before torch is imported.

    By default a thread of GNU's OpenMP that has finished its share of an operation spins until the others have finished
    theirs. Beside another busy process it takes the very core that the others need, and a step can take ten times as
    long. A short spin costs next to nothing alone (docs/results.md has the figures). Where the user has set any of
    `GOMP_SPINCOUNT`, `OMP_WAIT_POLICY` or `KMP_BLOCKTIME`, nothing is changed.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = "1000"
