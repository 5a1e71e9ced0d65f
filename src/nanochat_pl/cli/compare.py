"""`nanochat-pl compare A B …`: checkpoints beside each other, on the terminal, in Markdown, in one HTML file, as JSON.

What is compared, and when somebody has won, is decided in `report/comparison.py`; here it is shown. The HTML page needs
nothing from outside: its stylesheet and charts are in it, and what models wrote is escaped.
"""

import argparse
import html
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from nanochat_pl.eval.results import MetricRow, fenced
from nanochat_pl.paths import write_atomically
from nanochat_pl.report.comparison import (
    Entrant,
    Judgement,
    Line,
    SeedLine,
    Shared,
    compare_entrants,
    compare_seeds,
    find_results,
    group_by_seed,
    load_result,
    settings_that_differ,
    side_by_side,
    stage_order,
)

__all__ = ["Arguments", "main", "refuse"]


class Arguments(argparse.ArgumentParser):
    """A command line whose mistakes are errors like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` shows what there is")


def refuse(error: BaseException) -> int:
    """Report what a user can mend in one line, and return the exit code for it (NANOCHAT_DEBUG=1: with traceback)."""
    if os.environ.get("NANOCHAT_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


MANY = 8
"""Beyond so many verdicts the terminal counts those that name no winner."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """All that one comparison has to say."""

    entrants: Sequence[Entrant]
    lines: Sequence[Line]
    groups: Sequence[Sequence[int]]
    """Indices of the entrants of a group of seeds; empty where groups were not asked for."""
    seeds: Sequence[SeedLine]
    answers: Mapping[str, Sequence[Shared]]
    notes: Sequence[str]


def main(arguments: list[str]) -> int:
    """Compare results; return 0, or 2 for what cannot be compared."""
    parser = Arguments(
        prog="nanochat-pl compare",
        description="Compare checkpoints by their finished evaluations; the first is what the others are held against.",
    )
    parser.add_argument("paths", nargs="+", metavar="RUN", help="run folder, checkpoint file or results.json")
    parser.add_argument("--metric", action="append", help="figures to show, as accuracy_over_asked, or all")
    parser.add_argument("--seeds", action="store_true", help="mean ± std over runs that differ in their seed only")
    parser.add_argument("--limit", type=int, default=30, help="questions shown of each evaluation (default 30)")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    try:
        asked = parser.parse_args(arguments)
        if asked.limit < 0:
            raise ValueError(f"--limit={asked.limit} must be 0 or more")
        shown = _compare(asked.paths, asked.metric, asked.seeds, asked.limit)
        for file, written in ((asked.markdown, _markdown), (asked.html, _html), (asked.json, _json)):
            if file is not None:
                write_atomically(file, written(shown))
    except (ValueError, OSError) as error:
        return refuse(error)
    _print(shown)
    for file in (asked.markdown, asked.html, asked.json):
        if file is not None:
            print(f"wrote {file}")
    return 0


def _compare(paths: Sequence[str], metrics: Sequence[str] | None, seeds: bool, limit: int) -> Shown:
    entrants = _entrants(paths)
    lines = compare_entrants(entrants, metrics=metrics)
    groups = group_by_seed(entrants) if seeds else []
    notes = settings_that_differ(entrants)
    for name in dict.fromkeys(name for entrant in entrants for name in entrant.results):
        if without := [entrant for entrant in entrants if name not in entrant.results]:
            files = ",".join(_checkpoint_of(entrant.results) for entrant in without)
            command = f"python evaluate.py 'ckpt=[{files}]' eval={name}"
            notes.append(f"no results of {name}: {', '.join(entrant.label for entrant in without)}; {command}")
    if not seeds and len(entrants) > 1 and all(entrant.run is not None for entrant in entrants):
        for group in group_by_seed(entrants):
            if len(group) > 1 and len({(entrants[i].run or {}).get("seed") for i in group}) > 1:
                names = ", ".join(entrants[index].label for index in group)
                notes.append(f"{names} differ in their seed only: --seeds gives their mean ± std")
    return Shown(
        entrants=entrants,
        lines=lines,
        groups=groups,
        seeds=compare_seeds(entrants, lines, groups) if groups else [],
        answers=side_by_side(entrants, limit),
        notes=notes,
    )


def _entrants(paths: Sequence[str]) -> list[Entrant]:
    """Open what each path stands for, under a short name that tells it from the others: its run, or more if need be."""
    opened = []
    for path in paths:
        results = [load_result(file) for file in find_results(path)]
        opened.append({result.name: result for result in results})
    files = [Path(_checkpoint_of(results)) for results in opened]
    runs = [file.parent.parent if file.parent.name == "checkpoints" else file.parent for file in files]
    labels = [f"{run.parent.name}/{run.name}".strip("/") or file.stem for run, file in zip(runs, files)]
    if len(set(labels)) < len(labels):
        labels = [f"{label}:{file.stem}" for label, file in zip(labels, files)]
    if len(set(labels)) < len(labels):
        labels = [str(path) for path in paths]
    if len(set(labels)) < len(labels):
        again = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"{again} is given twice; name each checkpoint once")
    return [Entrant(label=label, results=own, run=_run_config(own)) for label, own in zip(labels, opened)]


def _run_config(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Read the config of the run that the results lie in: <run>/eval/<name>/<checkpoint>/results.json."""
    evaluated = next(iter(results.values())).file.resolve().parent.parent.parent
    config = evaluated.parent / "config.yaml"
    if evaluated.name != "eval" or not config.is_file():
        return None
    import yaml

    try:
        read = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{config} is no YAML ({error}); mend it or move it away") from error
    return read if isinstance(read, dict) else None


def _checkpoint_of(results: Mapping[str, Any]) -> str:
    result = next(iter(results.values()))
    return str(result.checkpoint.get("path") or result.file)


# -- figures as text ----------------------------------------------------------------------------------------------


def _name(line: Line | SeedLine) -> str:
    return line.metric if line.task == line.evaluation else f"{line.task} {line.metric}"


def _value(value: float, is_share: bool) -> str:
    return f"{value:.1%}" if is_share else f"{value:.4f}"


def _figure(row: MetricRow | None) -> str:
    if row is None or row.value is None:
        return "–"
    share = row.count is not None
    text = _value(row.value, share)
    if row.interval is not None:
        text += f" [{_value(row.interval.low, share)}, {_value(row.interval.high, share)}]"
    return text


def _difference(judgement: Judgement | None, row: MetricRow | None) -> str:
    if judgement is None or row is None:
        return ""
    if row.count is None:
        return f"{judgement.difference:+.4f}"
    text = f"{100 * judgement.difference:+.1f}"
    if judgement.interval is not None:
        text += f" [{100 * judgement.interval.low:+.1f}, {100 * judgement.interval.high:+.1f}]"
    return f"{text} points"


def _baseline(line: Line) -> str:
    baseline = next((row.baseline for row in line.rows if row is not None and row.baseline), {})
    return ", ".join(f"{key} {value:.1%}" for key, value in baseline.items() if isinstance(value, float))


def _verdicts(shown: Shown) -> Iterator[str]:
    """Say what each entrant is against the first, a sentence a figure."""
    for line in shown.lines:
        first = shown.entrants[line.reference].label
        for entrant, judgement in zip(shown.entrants, line.judgements):
            if judgement is not None:
                yield f"{entrant.label} against {first}, {line.evaluation} {_name(line)}: {judgement.verdict}"
    for seeds in shown.seeds:
        for group, verdict in zip(shown.groups, seeds.verdicts):
            if verdict:
                yield f"seeds of {_group(shown, group)}, {seeds.evaluation} {_name(seeds)}: {verdict}"


def _group(shown: Shown, group: Sequence[int]) -> str:
    entrants = [shown.entrants[index] for index in group]
    seeds = ", ".join(str((entrant.run or {}).get("seed")) for entrant in entrants)
    return f"{entrants[0].label} (seed {seeds})"


def _spread(line: SeedLine, index: int, is_share: bool) -> str:
    spread = line.spreads[index]
    if spread is None:
        return "–"
    text = _value(spread.mean, is_share)
    if spread.std is not None and spread.interval is not None:
        low, high = _value(spread.interval.low, is_share), _value(spread.interval.high, is_share)
        text += f" ± {_value(spread.std, is_share)} [{low}, {high}]"
    return f"{text} (n = {spread.n})"


def _tables(shown: Shown) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Give title, header and rows of each table."""
    shares = [any(row is not None and row.count is not None for row in line.rows) for line in shown.lines]
    for name in dict.fromkeys(line.evaluation for line in shown.lines):
        rows = []
        for line in shown.lines:
            if line.evaluation == name:
                cells = [
                    "\n".join(filter(None, (_figure(row), _difference(judgement, row))))
                    for row, judgement in zip(line.rows, line.judgements)
                ]
                rows.append(["\n".join(filter(None, (_name(line), _baseline(line)))), *cells])
        yield f"{name}: value [95% interval], difference", ["", *(e.label for e in shown.entrants)], rows
    if shown.seeds:
        rows = [
            [f"{line.evaluation} {_name(line)}", *(_spread(line, i, share) for i in range(len(shown.groups)))]
            for line, share in zip(shown.seeds, shares)
        ]
        header = ["", *(_group(shown, group) for group in shown.groups)]
        yield "over seeds: mean ± std [95% t interval of the mean]", header, rows


_BAR = 32


def _progress(shown: Shown) -> Iterator[tuple[Line, list[tuple[str, MetricRow]], float]]:
    """Give each figure over the stages of training: the line, labelled rows from the first stage on, and the scale."""
    order = stage_order(shown.entrants)
    if len({entrant.stage for entrant in shown.entrants}) > 1:
        for line in shown.lines:
            points = [
                (f"{shown.entrants[index].stage.split('_')[0].upper()} {shown.entrants[index].label}", row)
                for index in order
                if (row := line.rows[index]) is not None and row.value is not None
            ]
            highest = max((_high(row) for _, row in points), default=0.0)
            if len(points) > 1 and highest > 0 and min(row.value or 0.0 for _, row in points) >= 0:
                yield line, points, 1.0 if all(row.count is not None for _, row in points) else highest


def _high(row: MetricRow) -> float:
    assert row.value is not None
    return row.interval.high if row.interval is not None else row.value


def _text_chart(shown: Shown) -> str:
    """Draw the progress in characters: full up to the interval's low end, shaded up to its high end."""
    said = []
    for line, points, scale in _progress(shown):
        width = max(len(label) for label, _ in points)
        said.append("  ".join(filter(None, (f"{line.evaluation} {_name(line)}", _baseline(line)))))
        for label, row in points:
            assert row.value is not None
            low, high = (row.interval.low, row.interval.high) if row.interval else (row.value, row.value)
            full, all_of_it = round(_BAR * max(low, 0.0) / scale), round(_BAR * high / scale)
            bar = "█" * full + "▒" * (all_of_it - full)
            said.append(f"  {label:{width}}  {bar:·<{_BAR}}  {_value(row.value, row.count is not None)}")
    return "\n".join(said)


def _print(shown: Shown) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for title, header, rows in _tables(shown):
        table = Table(title=title, title_justify="left", show_lines=True)
        for place, name in enumerate(header):
            table.add_column(Text(name), justify="right" if place else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    if chart := _text_chart(shown):
        print(f"over the stages (full: below the 95% interval, shaded: within it)\n{chart}\n")
    verdicts = list(_verdicts(shown))
    told = [verdict for verdict in verdicts if len(verdicts) <= MANY or "not distinguishable" not in verdict]
    if len(told) < len(verdicts):
        told.append(f"{len(verdicts) - len(told)} further figures: not distinguishable (--markdown lists them)")
    for sentence in (*told, *shown.notes):
        print(sentence)
    for name, questions in shown.answers.items():
        differ = sum(question.differ for question in questions)
        print(f"{name}: {len(questions)} answers side by side with --markdown or --html, {differ} of them differ")


# -- pages --------------------------------------------------------------------------------------------------------


def _title(shown: Shown) -> str:
    return "Comparison: " + ", ".join(entrant.label for entrant in shown.entrants)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def _markdown(shown: Shown) -> str:
    lines = [f"# {_title(shown)}"]
    for title, header, rows in _tables(shown):
        lines += ["", f"## {title}", "", f"| {' | '.join(map(_cell, header))} |", "|---" * len(header) + "|"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    if verdicts := list(_verdicts(shown)):
        lines += ["", "## Verdicts", "", *(f"- {sentence}" for sentence in verdicts)]
    if shown.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in shown.notes)]
    if chart := _text_chart(shown):
        lines += ["", "## Over the stages", "", *fenced(chart)]
    for name, questions in shown.answers.items():
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


def _html(shown: Shown) -> str:
    escaped = html.escape
    body = [f"<h1>{escaped(_title(shown))}</h1>"]
    for title, header, rows in _tables(shown):
        body.append(f'<h2>{escaped(title)}</h2><div class="wide"><table>')
        body.append("<tr>" + "".join(f"<th>{escaped(name)}</th>" for name in header) + "</tr>")
        body += ["<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows]
        body.append("</table></div>")
    for title, sentences in (("Verdicts", list(_verdicts(shown))), ("Notes", shown.notes)):
        if sentences:
            body += [f"<h2>{title}</h2><ul>", *(f"<li>{escaped(sentence)}</li>" for sentence in sentences), "</ul>"]
    if charts := [_svg(line, points, scale) for line, points, scale in _progress(shown)]:
        body += ["<h2>Over the stages</h2>", "<p>Point and interval; dashed: what chance alone reaches.</p>", *charts]
    for name, questions in shown.answers.items():
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
        f"<title>{escaped(_title(shown))}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _svg(line: Line, points: Sequence[tuple[str, MetricRow]], scale: float) -> str:
    """Draw one figure over the stages: a row a checkpoint, so that long names and narrow screens do no harm."""
    left, width, step, top = 10, 340, 44, 34
    height = top + step * len(points) + 24
    share = all(row.count is not None for _, row in points)

    def x(value: float) -> float:
        return round(left + width * min(max(value, 0.0) / scale, 1.0), 1)

    title = html.escape(_shortened(f"{line.evaluation} {_name(line)}"))
    parts = [
        f'<svg viewBox="0 0 360 {height}" width="560" role="img" aria-label="{title}" font-family="sans-serif" '
        f'font-size="12"><text x="{left}" y="16" font-weight="bold">{title}</text>'
    ]
    for part in range(5):
        value = scale * part / 4
        anchor = "start" if not part else "end" if part == 4 else "middle"
        parts.append(
            f'<line x1="{x(value)}" x2="{x(value)}" y1="{top - 8}" y2="{height - 18}" stroke="#ddd"/>'
            f'<text x="{x(value)}" y="{height - 4}" text-anchor="{anchor}" fill="#555">'
            f"{f'{value:.0%}' if share else f'{value:.3g}'}</text>"
        )
    chance = next((row.baseline["chance"] for _, row in points if row.baseline and "chance" in row.baseline), None)
    if isinstance(chance, float):
        parts.append(
            f'<line x1="{x(chance)}" x2="{x(chance)}" y1="{top - 8}" y2="{height - 18}" stroke="#555" '
            'stroke-dasharray="4 3"/>'
        )
    for place, (label, row) in enumerate(points):
        assert row.value is not None
        y = top + step * place + 28
        parts.append(
            f'<text x="{left}" y="{y - 14}">{html.escape(_shortened(label))}: {_value(row.value, share)}</text>'
        )
        if row.interval is not None:
            low, high = x(row.interval.low), x(row.interval.high)
            parts.append(f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="#0072b2" stroke-width="3"/>')
        parts.append(f'<circle cx="{x(row.value)}" cy="{y}" r="5" fill="#0072b2"/>')
    return "".join(parts) + "</svg>"


def _shortened(text: str, limit: int = 44) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 + 1 :]}"


def _json(shown: Shown) -> str:
    document = {
        "entrants": [
            {"label": e.label, "stage": e.stage, "results": {n: str(r.file) for n, r in e.results.items()}}
            for e in shown.entrants
        ],
        "lines": [asdict(line) for line in shown.lines],
        "seed_groups": [[shown.entrants[index].label for index in group] for group in shown.groups],
        "seeds": [asdict(line) for line in shown.seeds],
        "verdicts": list(_verdicts(shown)),
        "notes": list(shown.notes),
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
            for name, questions in shown.answers.items()
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
