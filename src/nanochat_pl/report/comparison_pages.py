"""A comparison as a document: Markdown, one HTML file, or JSON.

The HTML page needs nothing from outside: its stylesheet and charts are in it.
"""

import html
import json
from dataclasses import asdict

from nanochat_pl.eval.results import fenced
from nanochat_pl.report.overview import Overview, tables, verdicts
from nanochat_pl.report.stage_charts import svg_charts, text_chart

__all__ = ["comparison_html", "comparison_json", "comparison_markdown"]


def _title(overview: Overview) -> str:
    return "Comparison: " + ", ".join(entrant.label for entrant in overview.entrants)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def comparison_markdown(overview: Overview) -> str:
    """Return the comparison as Markdown; what models wrote stands in fences that it cannot close."""
    lines = [f"# {_title(overview)}"]
    for title, header, rows in tables(overview):
        lines += ["", f"## {title}", "", f"| {' | '.join(map(_cell, header))} |", "|---" * len(header) + "|"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    for title, sentences in (("Verdicts", list(verdicts(overview))), ("Notes", overview.notes)):
        if sentences:
            lines += ["", f"## {title}", "", *(f"- {sentence}" for sentence in sentences)]
    if chart := text_chart(overview):
        lines += ["", "## Over the stages", "", *fenced(chart)]
    for name, questions in overview.answers.items():
        lines += ["", f"## Answers: {name}", "", "Where some are right and some are wrong first."]
        for question in questions:
            lines += [
                "",
                f"### {question.id}",
                "",
                *fenced(question.prompt),
                "",
                "Expected:",
                *fenced(question.expected),
            ]
            for label, answer in question.answers.items():
                verdict = "right" if answer["correct"] else "wrong"
                lines += ["", f"**{label}: {verdict}**", "", *fenced(str(answer["output"]))]
    return "\n".join(lines) + "\n"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem }
body { color: #1a1a1a; background: #fff }
h1 { font-size: 1.4rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin-top: 2rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ccc; padding: .35rem .7rem; white-space: pre }
th, td { text-align: right; vertical-align: top }
th { white-space: normal; overflow-wrap: anywhere }
th:first-child, td:first-child { text-align: left; white-space: pre-line; overflow-wrap: anywhere; min-width: 8rem }
svg text { paint-order: stroke; stroke: #fff; stroke-width: 4px }
li { overflow-wrap: anywhere } svg { max-width: 100%; height: auto; display: block; margin: .5rem 0 1rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .6rem; margin: .3rem 0 }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: .8rem }
.right pre { border-left: 4px solid #0072b2 } .wrong pre { border-left: 4px dashed #d55e00 }
"""


def comparison_html(overview: Overview) -> str:
    """Return the comparison as one page that loads nothing; what models wrote is escaped."""
    escaped = html.escape
    body = [f"<h1>{escaped(_title(overview))}</h1>"]
    for title, header, rows in tables(overview):
        body.append(f'<h2>{escaped(title)}</h2><div class="wide"><table>')
        body.append("<tr>" + "".join(f"<th>{escaped(name)}</th>" for name in header) + "</tr>")
        body += ["<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows]
        body.append("</table></div>")
    for title, sentences in (("Verdicts", list(verdicts(overview))), ("Notes", overview.notes)):
        if sentences:
            body += [f"<h2>{title}</h2><ul>", *(f"<li>{escaped(sentence)}</li>" for sentence in sentences), "</ul>"]
    if charts := svg_charts(overview):
        body += ["<h2>Over the stages</h2>", "<p>Point and interval; dashed: what chance alone reaches.</p>", *charts]
    for name, questions in overview.answers.items():
        body += [f"<h2>Answers: {escaped(name)}</h2>", "<p>Where some are right and some are wrong first.</p>"]
        for question in questions:
            body.append(f"<h3>{escaped(question.id)}</h3><pre>{escaped(question.prompt)}</pre>")
            body.append(f'Expected: <pre>{escaped(question.expected)}</pre><div class="answers">')
            for label, answer in question.answers.items():
                verdict = "right" if answer["correct"] else "wrong"
                said = f"<b>{escaped(label)}: {verdict}</b><pre>{escaped(str(answer['output']))}</pre>"
                body.append(f'<div class="{verdict}">{said}</div>')
            body.append("</div>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(_title(overview))}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def comparison_json(overview: Overview) -> str:
    """Return the comparison as JSON: `entrants`, `lines`, `seed_groups`, `seeds`, `verdicts`, `notes`, `answers`."""
    document = {
        "entrants": [
            {"label": e.label, "stage": e.stage, "results": {n: str(r.file) for n, r in e.results.items()}}
            for e in overview.entrants
        ],
        "lines": [asdict(line) for line in overview.lines],
        "seed_groups": [[overview.entrants[index].label for index in group] for group in overview.groups],
        "seeds": [asdict(line) for line in overview.seeds],
        "verdicts": list(verdicts(overview)),
        "notes": list(overview.notes),
        "answers": {
            name: [
                {
                    "id": question.id,
                    "prompt": question.prompt,
                    "expected": question.expected,
                    "answers": {
                        label: {"output": answer["output"], "correct": answer["correct"]}
                        for label, answer in question.answers.items()
                    },
                }
                for question in questions
            ]
            for name, questions in overview.answers.items()
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
