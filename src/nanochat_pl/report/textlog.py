"""Read plain-text training logs of programs that wrote no metrics file.

Two kinds of lines are understood, anywhere among others; the step is the first number of each:

    Step 00025 | Val loss: 1.822012
    Step 00025/00748 | Train loss: 1.597108 | LR: 0.9666 | Tok/s: 2355 | Time: 5.46s

The curves have the names of this project's own metrics, so that whatever draws a run also draws an old log.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from nanochat_pl.report.read import Curve

__all__ = ["TextLog", "parse_text_log", "read_text_log"]

_NUMBER = r"([+-]?(?:\d[\d,]*\.?\d*(?:[eE][+-]?\d+)?|nan|inf))"
_STEP = re.compile(r"\bstep\s+(\d+)(?:\s*/\s*(\d+))?\s*\|(.*)", re.IGNORECASE)
_FIELDS = {
    "val/loss": re.compile(rf"\bval loss:\s*{_NUMBER}", re.IGNORECASE),
    "train/loss": re.compile(rf"\btrain loss:\s*{_NUMBER}", re.IGNORECASE),
    "train/lrm": re.compile(rf"\bLR:\s*{_NUMBER}", re.IGNORECASE),
    "train/tok_per_sec": re.compile(rf"\btok/s:\s*{_NUMBER}", re.IGNORECASE),
    "train/dt": re.compile(rf"\btime:\s*{_NUMBER}\s*s\b", re.IGNORECASE),
}
"""The field of each metric; the rate is a multiplier of the peak rates, the time is in seconds per step."""


@dataclass(frozen=True, kw_only=True)
class TextLog:
    """The contents of a text log."""

    name: str
    curves: dict[str, Curve]
    num_steps: int | None
    """The total that `Step 00025/00748` announces; None where no line does."""
    num_lines: int
    """Number of lines that were understood."""


def parse_text_log(text: str, name: str = "log") -> TextLog:
    """Read the lines of a training log; of two lines of one step (a resumed run) the later one counts.

    Raises:
        ValueError: No line is in one of the two forms.
    """
    points: dict[str, dict[int, float]] = {}
    num_steps, num_lines = None, 0
    for line in text.splitlines():
        if not (match := _STEP.search(line)):
            continue
        step, total, rest = match.groups()
        values = {metric: found[1] for metric, field in _FIELDS.items() if (found := field.search(rest))}
        if not values:
            continue
        num_lines += 1
        num_steps = int(total) if total else num_steps
        for metric, value in values.items():
            points.setdefault(metric, {})[int(step)] = float(value.replace(",", ""))
    if not points:
        raise ValueError(
            f"{name} has no line of a training log; expected lines such as 'Step 00025 | Val loss: 1.822012' or "
            "'Step 00025/00748 | Train loss: 1.597108 | LR: 0.9666 | Tok/s: 2355 | Time: 5.46s'; "
            "for a run of this project give its folder instead"
        )
    curves = {metric: tuple(sorted(values.items())) for metric, values in points.items()}
    return TextLog(name=name, curves=curves, num_steps=num_steps, num_lines=num_lines)


def read_text_log(path: Path) -> TextLog:
    """Read a text log from a file.

    Raises:
        FileNotFoundError: There is none.
        ValueError: As `parse_text_log`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no log at {path}; give the text file that training printed into")
    return parse_text_log(path.read_text(encoding="utf-8", errors="replace"), str(path))
