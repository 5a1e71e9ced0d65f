"""What a document is made of, and its Markdown form.

Reports, comparisons, lists of failures and model cards are lists of blocks that know nothing of the medium.
`render_markdown` writes them as text, `html.render_html` as a page.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from nanochat_pl.eval.results import fenced
from nanochat_pl.report.charts import Figure

__all__ = [
    "Answers",
    "Block",
    "Bullets",
    "Code",
    "Figure",
    "Folded",
    "Heading",
    "Text",
    "TextTable",
    "every_figure",
    "render_markdown",
]


@dataclass(frozen=True)
class Heading:
    """A title; level 1 is the title of the document."""

    kind: ClassVar[str] = "heading"
    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text; a note is one that must not be missed."""

    kind: ClassVar[str] = "text"
    text: str
    note: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True)
class TextTable:
    """Rows of plain text, each as long as the head."""

    kind: ClassVar[str] = "table"
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Code:
    """Verbatim text, such as what a model wrote, below a title if it has one."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""


@dataclass(frozen=True)
class Answers:
    """What several models wrote, side by side where there is room."""

    kind: ClassVar[str] = "answers"
    answers: tuple[tuple[str, str, bool | None], ...]
    """Title, text, and whether it is right; None = it was not judged."""


@dataclass(frozen=True)
class Folded:
    """Blocks that only some readers open."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: tuple["Block", ...]


Block = Heading | Text | Bullets | TextTable | Figure | Code | Answers | Folded


def every_figure(blocks: Sequence[Block]) -> Iterator[Figure]:
    """Yield all figures, also those inside folded parts."""
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, Folded):
            yield from every_figure(block.blocks)


def render_markdown(
    blocks: Sequence[Block], picture: Callable[[Figure], str] = lambda figure: figure.name, *, escaped: bool = True
) -> str:
    """Return a document as Markdown.

    Args:
        picture: Returns the address of a figure.
        escaped: Show every character as it is; else sentences may hold Markdown, and cells line breaks.
    """
    return "\n\n".join(_markdown(block, picture, escaped) for block in blocks) + "\n"


def _markdown(block: Block, picture: Callable[[Figure], str], escaped: bool) -> str:
    plain = _escaped if escaped else str
    match block:
        case Heading(level, text):
            return f"{'#' * level} {plain(text)}"
        case Text(text, note):
            return f"{'> ' if note else ''}{plain(text)}"
        case Bullets(items):
            return "\n".join(f"- {plain(item)}" for item in items)
        case TextTable(head, rows):
            cell = _escaped if escaped else _cell
            lines = [f"| {' | '.join(map(cell, row))} |" for row in (head, *rows)]
            columns = ("---", *["---:"] * (len(head) - 1))
            lines.insert(1, f"| {' | '.join(columns)} |" if escaped else "|---" * len(head) + "|")
            return "\n".join(lines)
        case Figure():
            return f"![{_escaped(block.caption)}]({picture(block)})"
        case Code(text, title):
            return "\n".join([plain(title), *fenced(text)] if title else fenced(text))
        case Answers(answers):
            titled = [(plain(title) if escaped else f"**{title}**", text) for title, text, _ in answers]
            return "\n\n".join(f"{title}\n\n{chr(10).join(fenced(text))}" for title, text in titled)
        case Folded(title, inner):
            inside = render_markdown(inner, picture, escaped=escaped)
            return f"<details><summary>{plain(title)}</summary>\n\n{inside}\n</details>"


def _escaped(text: str) -> str:
    """Escape plain text so that Markdown shows it as it is, on one line."""
    text = re.sub(r"([\\`*|\[\]<>#~$])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
