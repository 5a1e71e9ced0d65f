"""What every command has in common: a mistake is one line that says what to do, and exit code 2."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from nanochat_pl.paths import worded

__all__ = ["Arguments", "in_words", "refuse", "share_cores"]

_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""The variables by which users set how OpenMP's threads wait."""


class Arguments(argparse.ArgumentParser):
    """A command line whose mistakes are errors like all others, and whose paths may begin with ~ for the home folder.

    Shells do not expand it within a word, as in `--out=~/exports`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, lambda text: Path(os.path.expanduser(text)))

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but report an unknown option before anything that seems to be missing.

        Raises:
            ValueError: The command line is wrong.
        """
        for argument in sys.argv[1:] if args is None else args:
            if argument == "--":
                break
            head = argument.partition("=")[0]
            is_option = re.match(r"--\w|-[A-Za-z]", head) is not None
            options = self._option_string_actions
            if is_option and head[:2] not in options and not any(option.startswith(head) for option in options):
                found = get_close_matches(head, options, 1)
                self.error(f"{head}: there is no such option" + (f"; did you mean {found[0]}?" if found else ""))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise, in the words of this project, what argparse would print before it ends the process.

        Raises:
            ValueError: Always, with the way to the help.
        """
        for theirs, ours in _IN_OUR_WORDS:
            if found := re.fullmatch(theirs, message, re.DOTALL):
                message = ours.format(*(group.replace("'", "") for group in found.groups()))
                break
        raise ValueError(f"{message}; `{self.prog} --help` shows what there is")


_IN_OUR_WORDS = (
    (r"the following arguments are required: (.*)", "{0} must be given"),
    (r"unrecognized arguments: (.*)", "there is nothing that {0} could mean here"),
    (r"argument ([^:]*): invalid int value: (.*)", "{0} {1} must be a whole number"),
    (r"argument ([^:]*): invalid float value: (.*)", "{0} {1} must be a number"),
    (r"argument ([^:]*): invalid choice: (.*) \(choose from (.*)\)", "{0} {1} must be one of {2}"),
    (r"argument ([^:]*): expected .*", "{0} lacks its value"),
    (r"argument ([^:]*): ignored explicit argument (.*)", "{0} takes no value, but {1} was given"),
    (r"ambiguous option: (\S+) could match (.*)", "{0} could be {1}; write it out"),
    (r"argument ([^:]*): ('.*)", "{0} {1}"),
    (r"argument [^:]*: (.*)", "{0}"),
)
"""argparse's sentences and their replacements; the last one fits the messages of this project's own types."""


def refuse(error: BaseException, code: int = 2) -> int:
    """Report an error that a user can correct in one line, and return `code` (NANOCHAT_DEBUG=1 adds a traceback)."""
    if os.environ.get("NANOCHAT_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(f"error: {in_words(error)}", file=sys.stderr)
    return code


def in_words(error: BaseException) -> str:
    """Return the text of an error on one line; errors of the system are reworded by `paths.worded`."""
    text = worded(error) if isinstance(error, OSError) else None
    return " ".join((text or str(error)).split())


def share_cores() -> None:
    """Let idle OpenMP threads release their core soon; must be called before torch is imported.

    By default a thread of GNU's OpenMP that has finished its share of an operation spins until the others have finished
    theirs. Next to another busy process it occupies the very core that the others need, and a step can take ten times
    as long. On an idle machine a short spin costs next to nothing (docs/results.md has the figures). Nothing is changed
    if the user has set any of `GOMP_SPINCOUNT`, `OMP_WAIT_POLICY` or `KMP_BLOCKTIME`.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = "1000"
