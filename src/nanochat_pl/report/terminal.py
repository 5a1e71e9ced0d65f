"""Print tables so that no word, number or interval is cut at the width of the terminal.

A table that is too wide is narrowed in steps: without its frame, then with intervals and parts of long names on
separate lines, and at last as a list.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = ["print_table", "table_text"]


def print_table(
    title: str | None, header: Sequence[str], rows: Iterable[Sequence[str]], console: Console | None = None
) -> None:
    """Print a table whose first column names the rows, at the width of the terminal.

    Args:
        title: A line above the table; None = none.
        rows: Rows with a cell for each column; line breaks in them are kept.
        console: Where to print; None = standard output, 80 columns wide where it is no terminal.
    """
    console = console or Console()
    lines = [list(row) for row in rows]
    narrow = [[_name(row[0]), *map(_cell, row[1:])] for row in lines]
    head = [_name(name) for name in header]
    plans = (
        (list(header), lines, box.HEAVY_HEAD),
        (list(header), lines, box.SIMPLE_HEAD),
        (head, [[row[0], *rest[1:]] for row, rest in zip(lines, narrow)], box.HEAVY_HEAD),
        (head, narrow, box.HEAVY_HEAD),
        (head, narrow, box.SIMPLE_HEAD),
    )
    if title:
        console.print(Text(title, style="italic"), soft_wrap=False)
    for names, cells, frame in plans:
        table = _table(names, cells, frame)
        if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
            console.print(table)
            return
    for row in lines:
        console.print(Text(f"{header[0]} {row[0]}".strip(), style="bold"))
        for name, text in zip(header[1:], row[1:]):
            if text:
                console.print(Text(f"  {name}: {' '.join(text.split())}"))


def table_text(
    title: str | None, header: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None
) -> str:
    """Return what `print_table` prints, without colours; `width=None` takes that of the terminal."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        print_table(title, header, rows, console)
    return capture.get().rstrip("\n")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], frame: box.Box) -> Table:
    """Return a table that wraps no cell."""
    table = Table(box=frame, show_edge=frame is box.HEAVY_HEAD)
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="right" if index else "left", no_wrap=True)
    first = 0 if frame is box.HEAVY_HEAD else 1  # without a frame a long name needs no rule around it
    several = [any("\n" in cell for cell in row[first:]) for row in rows]
    for row, this, following in zip(rows, several, [*several[1:], False]):
        table.add_row(*map(Text, row), end_section=this or following)  # a rule around rows of more than one line
    return table


def _cell(text: str) -> str:
    """Break `36.8% [29.9%, 46.4%] (48/127)` into three lines, the interval without its percent signs."""
    text = re.sub(r"\[[^]\n]*%\]", lambda found: found[0].replace("%", ""), text)
    return re.sub(r" (?=[\[(])", "\n", text)


def _name(text: str) -> str:
    """Break a name of several words or parts, such as `sft/quickstart`, into short lines."""
    lines = []
    for line in text.split("\n"):
        parts = re.sub(r"([/:])(?=\w)", r"\1 ", line).split() if len(line) > 14 else [line]
        width = max([14, *map(len, parts)])
        lines += textwrap.wrap(" ".join(parts), width, break_long_words=False, break_on_hyphens=False) or [""]
    return re.sub(r"([/:]) (?=\w)", r"\1", "\n".join(lines))
