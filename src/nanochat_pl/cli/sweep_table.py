"""The table of a sweep: a row for each run that was begun, with all that a study needs to be repeated and counted."""

import csv
from pathlib import Path
from typing import Any

from nanochat_pl.eval.metrics import METRICS
from nanochat_pl.paths import JOB_FILE, atomic_file, read_record, runs_of_sweep
from nanochat_pl.report.terminal import print_table

__all__ = ["LOG_FILE", "figure_of", "read_jobs", "show", "write_table"]

LOG_FILE = "output.txt"
"""What a run of a sweep printed."""
SEEDS = ("seed", "data.order_seed")
FIGURES = (
    *("status", "step", "tokens", "total_training_flops", "total_training_time", "wall_s", "median_tok_per_sec"),
    *("num_parameters", "train/loss", "val/loss", "val/bpb", "best", "best_step"),
)
"""Keys of summary.json that become columns."""
AFTER = ("error", "git_commit", "git_changes", "torch", "command")


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """Read what is known of every run below a sweep's folder, ordered by name, numbers by their size."""
    rows = []
    for job in runs_of_sweep(folder):
        note, summary = read_record(job / JOB_FILE) or {}, read_record(job / "summary.json") or {}
        record, error = read_record(job / "run.json") or {}, None
        if (job / "error.txt").is_file():  # a summary would be that of an earlier session
            error, summary = (job / "error.txt").read_text(encoding="utf-8").strip(), {"status": "failed"}
        values = {key: value for key, value in note.get("values", {}).items() if key not in SEEDS}
        rows.append(
            {"job": job.name, "variant": note.get("variant")}
            | {name: note.get(name) for name in SEEDS}
            | values
            | {name: summary.get(name) for name in FIGURES}
            | {
                "error": error,
                "git_commit": record.get("git_commit"),
                "git_changes": (job / "git_diff.patch").is_file(),
            }
            | {"torch": record.get("versions", {}).get("torch"), "command": note.get("command")}
        )
    return rows


def write_table(folder: Path) -> None:
    """Write results.csv in the folder of a sweep."""
    rows = read_jobs(folder)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys.sort(key=lambda key: key in FIGURES + AFTER)  # swept keys that only some runs have stand before
    if rows:
        with (
            atomic_file(folder / "results.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, keys, restval="")
            writer.writeheader()
            writer.writerows(rows)


def figure_of(folder: Path) -> str:
    """Return the figure of a run that chooses its best checkpoint, to end a line with; empty where it has none."""
    summary = read_record(folder / "summary.json") or {}
    measured = (name for name, known in METRICS.items() if known.chooses_best and summary.get(name) is not None)
    name = next(measured, None)
    return "" if name is None else f", {name} {summary[name]:.4f}"


def show(path: Path) -> None:
    """Show the runs on the terminal: their names, which say what is special about each, and their last figure."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{key: short(value) for key, value in row.items()} for row in csv.DictReader(file)]
    name = next((name for name in ("val/bpb", "val/loss") if any(row[name] for row in rows)), "train/loss")
    columns = [name, "best"] if any(row["best"] != row[name] for row in rows) else [name]
    for row in rows:
        if row["status"] != "finished":
            row[name] = row["status"]
    print_table(str(path), ["run", *columns], [[row[key] for key in ("job", *columns)] for row in rows])


def short(value: str) -> str:
    """Round long decimals to five digits."""
    try:
        return value if "." not in value or len(value) < 8 else f"{float(value):.5g}"
    except ValueError:
        return value
