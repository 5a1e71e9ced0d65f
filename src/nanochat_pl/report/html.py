"""Render a document as one page that needs nothing else: styles and pictures inside, no script, no address to fetch.

The look of every page is in `page.html.j2`. What models wrote is text and stays text: the template escapes everything,
and the page's own policy forbids it to load or run anything.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from nanochat_pl.report.blocks import Block, Heading
from nanochat_pl.report.charts import data_url

__all__ = ["render_html"]


def render_html(blocks: Sequence[Block]) -> str:
    """Return a document as a complete page, with a list of its sections below the title."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # 0.1 s that only pages need

    pages = Environment(
        loader=PackageLoader("nanochat_pl.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(breakable=_breakable, printable=_printable, data_url=data_url, grids=_grids)
    title = next((block.text for block in blocks if isinstance(block, Heading) and block.level == 1), "Report")
    sections = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    return pages.get_template("page.html.j2").render(title=title, blocks=blocks, sections=sections).strip() + "\n"


def _grids(blocks: Sequence[Block]) -> list[tuple[str, list[Block]]]:
    """Group neighbours of one kind into a grid that shows several in a row where there is room."""

    def grid(block: Any) -> str:
        if block.kind == "figure":
            return "figures" if block.narrow is None else ""
        return "facts" if block.kind == "table" and len(block.head) == 2 else ""

    return [(name, list(group)) for name, group in groupby(blocks, key=grid)]


def _breakable(text: str) -> Any:
    """Escape a cell; names may break after slashes and underscores, and line breaks are kept."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=\w)([/_])(?=\w)", r"\1<wbr>", str(escape(text))).replace("\n", "<br>"))


def _printable(text: str) -> str:
    """Replace control characters, which HTML cannot hold, by their pictures."""
    pictures = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text)
    return pictures.replace("\x7f", "␡")
