"""One table for a sweep, with the overrides and final figures of each job, rewritten whenever a job ends."""

import csv
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from nanochat_pl.paths import atomic_file, read_record
from nanochat_pl.report.terminal import print_table

FIGURES = ("status", "step", "train/loss", "val/loss", "val/bpb", "best", "best_step", "median_tok_per_sec", "wall_s")


class ResultsTable(Callback):
    """Write results.csv in the sweep's folder after each job: `on_multirun_end` is not called when one fails."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        folder = Path(config.hydra.sweep.dir)
        rows = read_jobs(folder)
        if not rows:
            return
        keys = list(dict.fromkeys(key for row in rows for key in row))
        with (
            atomic_file(folder / "results.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, keys, restval="")
            writer.writeheader()
            writer.writerows(rows)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        table = Path(config.hydra.sweep.dir) / "results.csv"
        if table.is_file():
            show(table)


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """Read overrides and figures of every job below a sweep's folder, in the order of the jobs."""
    rows = []
    jobs = [path.parent.parent for path in folder.glob("*/.hydra/overrides.yaml")]
    for job in sorted(jobs, key=lambda path: (len(path.name), path.name)):
        row: dict[str, Any] = {"job": job.name}
        for override in OmegaConf.load(job / ".hydra" / "overrides.yaml"):
            key, _, value = str(override).partition("=")
            read = OverridesParser.create().parse_override(str(override)).value()
            row[key] = str(read) if isinstance(read, str) else value  # texts as they were typed, without quotes
        summary = read_record(job / "summary.json") or {}
        if (job / "error.txt").is_file():  # a summary would be that of an earlier session
            row |= {"status": "failed", "error": (job / "error.txt").read_text().strip()}
        else:
            row |= {name: summary.get(name) for name in FIGURES if name in summary}
        rows.append(row)
    return rows


def show(path: Path) -> None:
    """Show the jobs on the terminal: what differs between them, and their figures."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    shared = {k for k in rows[0] if k not in FIGURES and len(rows) > 1 and len({row[k] for row in rows}) == 1}
    empty = {k for k in rows[0] if not any(row[k] for row in rows)}  # such as a median where a job has one row
    columns = [k for k in rows[0] if k not in shared | empty | {"wall_s", "best", "best_step"}]
    print_table(str(path), columns, [[short(row[name]) for name in columns] for row in rows])


def short(value: str) -> str:
    """Round long decimals to five digits."""
    try:
        return value if "." not in value or len(value) < 8 else f"{float(value):.5g}"
    except ValueError:
        return value
