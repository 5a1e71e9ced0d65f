"""Render a report as one page that needs nothing else: styles and pictures inside, no script, no address to fetch.

What models wrote is text and stays text; besides, the page's own policy forbids it to load or run anything. It reads on
a phone: tables and code scroll within themselves, figures stand beneath each other.
"""

import html
import re
from collections.abc import Sequence
from itertools import groupby

from nanochat_pl.report.markdown import Block, Code, Figure, Folded, Heading, Table, Text
from nanochat_pl.report.plots import data_url

__all__ = ["render_html"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_PHONE = "40rem"
"""Up to this width a page is laid out for a phone."""
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 70rem; color: #1c1e21; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; padding-bottom: .2rem; border-bottom: 2px solid #0072B2; }
h3 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
p { margin: .6rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .95rem; }
a { color: #00558a; }
.note { border-left: 4px solid #D55E00; background: #fdf3ec; padding: .4rem .8rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #dfe2e5; text-align: right; vertical-align: top; }
th { background: #f3f6f8; border-bottom: 2px solid #c3cad0; white-space: nowrap; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .4rem; position: sticky; left: 0; }
td:first-child { background: #fff; white-space: normal; min-width: 8.5rem; overflow-wrap: break-word; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 2rem;
  align-items: start; }
.pairs { width: 100%; }
.pairs td { text-align: left; white-space: normal; }
.pairs th { text-align: left; }
.pairs td:first-child { width: 38%; color: #4a5157; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: .6rem 1.2rem;
  align-items: start; margin: .8rem 0; }
figure { margin: .6rem 0; }
.figures figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .82rem; color: #4a5157; }
pre { overflow-x: auto; margin: .5rem 0; padding: .6rem .8rem; background: #f6f8fa; border-radius: 4px;
  font-size: .82rem; line-height: 1.4; white-space: pre-wrap; }
details { margin: .5rem 0; border: 1px solid #dfe2e5; border-radius: 4px; padding: .3rem .8rem; }
summary { cursor: pointer; padding: .2rem 0; }
@media (max-width: PHONE) {
  body { padding: .7rem .7rem 3rem; }
  table { font-size: .82rem; }
  th, td { padding: .25rem .45rem; }
}
@media print { .scroll { overflow: visible; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
""".replace("PHONE", _PHONE)


def render_html(blocks: Sequence[Block]) -> str:
    """Return the report as a page of its own, contents first."""
    title = next((block.text for block in blocks if isinstance(block, Heading) and block.level == 1), "Report")
    links = [
        f'<a href="#{_anchor(index)}">{html.escape(block.text)}</a>'
        for index, block in enumerate(blocks)
        if isinstance(block, Heading) and block.level == 2
    ]
    head, *rest = _rendered(blocks, anchors=True)
    body = "\n".join([head, f"<nav>{' '.join(links)}</nav>", *rest])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n'
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _rendered(blocks: Sequence[Block], anchors: bool = False) -> list[str]:
    parts: list[str] = []
    for grid, group in groupby(enumerate(blocks), key=lambda item: _grid(item[1])):
        inside = [_element(block, _anchor(index) if anchors else "") for index, block in group]
        parts += [f'<div class="{grid}">', *inside, "</div>"] if grid else inside
    return parts


def _grid(block: Block) -> str:
    """Name the grid in which a block stands beside its like, where there is room; empty for those that take a row."""
    if isinstance(block, Figure):
        return "figures" if block.narrow is None else ""
    return "facts" if isinstance(block, Table) and len(block.head) == 2 else ""


def _element(block: Block, anchor: str) -> str:
    match block:
        case Heading(level, text):
            name = f' id="{anchor}"' if anchor else ""
            return f"<h{level}{name}>{html.escape(text)}</h{level}>"
        case Text(text, note):
            kind = ' class="note"' if note else ""
            return f"<p{kind}>{html.escape(text)}</p>"
        case Table(head, rows):
            return _table(head, rows)
        case Figure(_, drawing, caption, narrow):
            alt = html.escape(caption)
            image = f'<img src="{data_url(drawing.svg)}" alt="{alt}">'
            if narrow is not None:
                source = f'<source media="(max-width: {_PHONE})" srcset="{data_url(narrow.svg)}">'
                image = f"<picture>{source}{image}</picture>"
            return f"<figure>{image}<figcaption>{alt}</figcaption></figure>"
        case Code(text):
            return f"<pre>{html.escape(_printable(text))}</pre>"
        case Folded(title, inside):
            body = "\n".join(_rendered(inside))
            return f"<details><summary>{html.escape(title)}</summary>\n{body}\n</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a table; one of two columns is a list of facts and wraps, others scroll."""
    kind = ' class="pairs"' if len(head) == 2 else ""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "\n".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    # tabindex: what scrolls can be scrolled with the keyboard too
    table = f"<table{kind}><thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _cell(text: str) -> str:
    """Escape a cell; names with slashes and underscores may break after them."""
    return re.sub(r"(?<=\w)([/_])(?=\w)", r"\1<wbr>", html.escape(text))


def _anchor(index: int) -> str:
    return f"s{index}"


def _printable(text: str) -> str:
    """Show control characters, which HTML has no way to hold, as their picture."""
    pictures = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text)
    return pictures.replace("\x7f", "␡")
