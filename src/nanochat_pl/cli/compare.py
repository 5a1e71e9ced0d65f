"""`nanochat-pl compare A B …`: compare checkpoints on the terminal, in Markdown, in one HTML file, as JSON.

`report/compare.py` decides what is compared and which checkpoint is better; this module parses the options and prints.
"""

from pathlib import Path

from nanochat_pl.cli.arguments import Arguments, refuse
from nanochat_pl.paths import write_atomically
from nanochat_pl.report.comparison_report import (
    ComparisonReport,
    build_comparison,
    comparison_html,
    comparison_json,
    comparison_markdown,
    short_verdicts,
    tables,
    text_chart,
)
from nanochat_pl.report.efficiency import efficiency_sentences
from nanochat_pl.report.evaluated import load_evaluated_runs
from nanochat_pl.report.terminal import print_table

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Compare results; return 0, or 2 for what cannot be compared."""
    parser = Arguments(
        prog="nanochat-pl compare",
        description="Compare checkpoints by their finished evaluations; the first is what the others are held against.",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="RUN", help="run folder, sweep folder, checkpoint file or results.json"
    )
    parser.add_argument("--metric", action="append", help="metrics to show, as accuracy_over_asked, or all")
    parser.add_argument(
        "--seeds", action="store_true", help="mean ± std over runs that differ in seed and data.order_seed only"
    )
    parser.add_argument("--limit", type=int, default=30, help="questions shown of each evaluation (default 30)")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--html", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    try:
        options = parser.parse_args(arguments)
        if options.limit < 0:
            raise ValueError(f"--limit={options.limit} must be 0 or more")
        report = build_comparison(
            load_evaluated_runs(options.paths), metrics=options.metric, seeds=options.seeds, limit=options.limit
        )
        pages = (
            (options.markdown, comparison_markdown),
            (options.html, comparison_html),
            (options.json, comparison_json),
        )
        for file, written in pages:
            if file is not None:
                write_atomically(file, written(report))
    except (ValueError, OSError) as error:
        return refuse(error)
    _print(report)
    for file, _ in pages:
        if file is not None:
            print(f"wrote {file}")
    return 0


def _print(report: ComparisonReport) -> None:
    for title, header, rows in tables(report):
        print_table(title, header, rows)
    if chart := text_chart(report):
        print(f"over the stages (full: below the 95% interval, shaded: within it)\n{chart}\n")
    efficiency = efficiency_sentences(report.efficiency, report.group_labels) if report.efficiency else ()
    for sentence in (*efficiency, *short_verdicts(report), *report.notes):
        print(sentence)
    for name, questions in report.answers.items():
        differ = sum(question.differ for question in questions)
        shown = f"{len(questions)} answer{'s' * (len(questions) != 1)} side by side with --markdown or --html"
        print(f"{name}: {shown}, {differ} of them differ{'s' * (differ == 1)}")
