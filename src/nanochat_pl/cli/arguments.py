"""What every command has in common: a mistake is one line that says what to do, and exit code 2."""

import argparse
import os
import sys
from typing import NoReturn

__all__ = ["Arguments", "refuse"]


class Arguments(argparse.ArgumentParser):
    """A command line whose mistakes are errors like all others."""

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
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
