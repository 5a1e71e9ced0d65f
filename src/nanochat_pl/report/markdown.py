"""What a report is made of, and its plain Markdown form.

A report is a list of blocks that know nothing of the medium: `sections` and `scores` compose them, `render_markdown`
writes them as text and `html` as a page.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from nanochat_pl.eval.results import fenced
from nanochat_pl.report.plots import Figure

__all__ = ["Block", "Code", "Figure", "Folded", "Heading", "Table", "Text", "every_figure", "render_markdown"]


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the report's own."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text; a note is one that must not be missed."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of plain text, each as long as the head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Code:
    """Text as it stands, such as what a model wrote."""

    text: str


@dataclass(frozen=True)
class Folded:
    """What only some readers open."""

    title: str
    blocks: tuple["Block", ...]


Block = Heading | Text | Table | Figure | Code | Folded


def every_figure(blocks: Sequence[Block]) -> Iterator[Figure]:
    """Give all figures, those inside folded parts too."""
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, Folded):
            yield from every_figure(block.blocks)


def render_markdown(blocks: Sequence[Block], picture: Callable[[Figure], str]) -> str:
    """Return the report as Markdown; `picture` gives the address of a figure."""
    return "\n\n".join(_plain(block, picture) for block in blocks) + "\n"


def _plain(block: Block, picture: Callable[[Figure], str]) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_escaped(text)}"
        case Text(text, note):
            return f"{'> ' if note else ''}{_escaped(text)}"
        case Table(head, rows):
            lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
            cells = [[_escaped(cell) if line is not lines[1] else cell for cell in line] for line in lines]
            return "\n".join(f"| {' | '.join(line)} |" for line in cells)
        case Figure(_, _, caption, _):
            return f"![{_escaped(caption)}]({picture(block)})"
        case Code(text):
            return "\n".join(fenced(text))
        case Folded(title, blocks):
            inside = render_markdown(blocks, picture)
            return f"<details><summary>{_escaped(title)}</summary>\n\n{inside}\n</details>"


def _escaped(text: str) -> str:
    """Write plain text so that Markdown shows it as it is, on one line."""
    text = re.sub(r"([\\`*|\[\]<>#~$])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
