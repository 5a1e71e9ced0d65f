"""`nanochat-pl report RUN…`: report what a chain of runs achieved, as report.md and a page that needs no network.

Every picture is also written as SVG and as PNG; the one over all stages is `loss.png`. Only files are read, so a run
may still be going, or another machine may have trained it.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from nanochat_pl.cli.arguments import Arguments, refuse

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Write a report and print where it is; return the exit code: 0, 1 = cannot be made, 2 = bad command line."""
    parser = Arguments(
        prog="nanochat-pl report",
        description="Report on runs: settings, curves, evaluations with intervals, samples, time and cost.",
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="run folder; the other stages of its chain are found"
    )
    parser.add_argument("--log", action="append", default=[], type=Path, metavar="FILE", help="an old text log to plot")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: beside the runs)")
    parser.add_argument("--usd-per-hour", type=_price, metavar="X", help="price of the whole machine, for the cost")
    parser.add_argument("--alone", action="store_true", help="only the runs named, not the rest of their chain")
    try:
        options = parser.parse_args(arguments)
        if not options.runs and not options.log:
            raise ValueError("nothing to report on: give a run folder, such as outputs/base/<run_name>, or --log FILE")
    except ValueError as error:
        return refuse(error)
    try:
        return write_report(
            options.runs, options.log, out=options.out, usd_per_hour=options.usd_per_hour, alone=options.alone
        )
    except (ValueError, OSError) as error:
        return refuse(error, code=1)


def write_report(
    folders: list[Path], logs: list[Path], *, out: Path | None, usd_per_hour: float | None, alone: bool
) -> int:
    """Read runs and logs, write report.md, report.html and their pictures into one folder."""
    from nanochat_pl.paths import runs_of_sweep, write_atomically
    from nanochat_pl.report.blocks import Figure, every_figure, render_markdown
    from nanochat_pl.report.html import render_html
    from nanochat_pl.report.read import find_chain, read_run
    from nanochat_pl.report.run_report import report_blocks
    from nanochat_pl.report.textlog import read_text_log

    folders = [path if path.name.strip(".") else path.resolve() for path in folders]  # `.` has no name to go by
    sweeps = [path for path in folders if runs_of_sweep(path)]
    if len(sweeps) == 1 == len(folders) and out is None:
        out = folders[0] / "report"
    folders = [run for path in folders for run in runs_of_sweep(path) or [path]]
    found = find_chain(folders, whole=not alone and not sweeps)
    runs = [read_run(folder) for folder in found]
    blocks = report_blocks(runs, [read_text_log(path) for path in logs], usd_per_hour=usd_per_hour)
    if out is None:
        out = default_folder(runs, folders, logs)
    pictures: dict[str, Figure] = {}  # by path without its ending; runs in different folders may have the same name
    addresses = {}
    for figure in every_figure(blocks):
        place = figure.name if figure.narrow is not None else f"plots/{figure.name}"
        alike = sum(re.sub(r"\.\d+$", "", path) == place for path in pictures)
        path = f"{place}.{alike + 1}" if alike else place
        pictures[path], addresses[id(figure)] = figure, path
    for path, figure in pictures.items():
        write_atomically(out / f"{path}.svg", figure.drawing.svg)
        write_atomically(out / f"{path}.png", figure.drawing.png)
    write_atomically(out / "report.md", render_markdown(blocks, lambda figure: f"{addresses[id(figure)]}.svg"))
    write_atomically(out / "report.html", render_html(blocks))
    for run in runs:
        print(f"{run.folder}: {run.status}")
    for run in runs:
        for problem in run.problems:
            print(f"note: {run.folder}: {problem}", file=sys.stderr)
    written = ["report.html", "report.md", *(f"{path}.png" for path in pictures if "/" not in path)]
    print("report: " + "\n        ".join(str(out / name) for name in written))
    return 0


def default_folder(runs: list[Any], folders: list[Path], logs: list[Path]) -> Path:
    """Return where a report goes: `<outputs>/report/<run_name>` for a chain, else the folder of the run or log."""
    if not folders:
        return logs[0].with_name(f"{logs[0].stem}_report")
    first = next(run for run in runs if run.folder.resolve() == folders[0].resolve())
    folder = first.folder
    return folder.parent.parent / "report" / folder.name if folder.parent.name == first.stage else folder / "report"


def _price(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"--usd-per-hour {text!r} is no price; give US dollars an hour, such as 24")
    return value
