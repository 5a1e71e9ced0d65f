"""Make the tables, the CSV and the picture of docs/ablation.md from the folders of `sweep=ablation`.

    python benchmarks/bench_modern.py --sweep ablation --vocab-size 2048 --threads 1 --json > seconds.json
    python benchmarks/ablation.py multirun/ablation multirun/ablation_passes --seconds seconds.json --csv runs.csv
    python benchmarks/ablation.py runs.csv multirun/ablation --csv runs.csv          # with further seeds

Each variant is held against the recipe that it changes, `classic` or `modern`, in pairs of one seed, over all seeds of
which both have run to their end. Prints Markdown.
"""

import argparse
import csv
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from nanochat_pl.eval.power import Seeds, detectable_effect
from nanochat_pl.eval.stats import Interval, holm_correction, paired_t_test

ALPHA = 0.05
RECIPES = ("classic", "modern")
"""What variants change; the second as a whole is also one of the first."""
LENGTHS = ("shorter", "longer")
"""Variants of a recipe that differ in the number of steps alone."""
COLUMNS = (
    *("variant", "seed", "data.order_seed", "step", "tokens", "total_training_flops", "median_tok_per_sec"),
    *("val/bpb", "command"),
)


NEEDED = ("variant", "seed", "val/bpb", "total_training_flops")


@dataclass
class Row:
    """A variant beside its recipe; what is not known is NaN."""

    name: str
    differences: list[float]
    """To the recipe, by seed."""
    bpb: float
    interval: Interval | None
    """None where all differences are equal, so that it is not known how they vary."""
    p: float
    equal_flops: float
    equal_seconds: float
    holm: float = math.nan

    @property
    def difference(self) -> float:
        """The mean of the differences."""
        return statistics.mean(self.differences)

    @property
    def verdict(self) -> str:
        """What the test says after Holm's correction."""
        return "" if self.holm >= ALPHA else "**better**" if self.difference < 0 else "**worse**"


def main() -> None:
    """Read the folders, print a table for each recipe in each, write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of sweeps, or what --csv wrote")
    parser.add_argument("--csv", type=Path, help="write every run here")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--seconds", type=Path, help="what a step of each variant takes, from bench_modern.py")
    parser.add_argument("--names", nargs="+", default=[], help="what the picture calls the sweeps")
    args = parser.parse_args()
    sweeps = collect(args.runs)
    steps = {} if args.seconds is None else json.loads(args.seconds.read_text())
    seconds = {name: step["ratio"] for name, step in steps.items()}
    found = {name: {recipe: compare(recipe, runs, seconds) for recipe in RECIPES} for name, runs in sweeps.items()}
    for name, tables in found.items():
        for recipe, rows in tables.items():
            print_table(name, recipe, rows, sweeps[name])
    if args.csv is not None:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, ("sweep", *COLUMNS), extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows({"sweep": name, **run} for name, runs in sweeps.items() for run in runs)
    if args.picture is not None:
        draw(dict(zip([*args.names, *list(found)[len(args.names) :]], found.values())), args.picture)


def collect(paths: Sequence[Path]) -> dict[str, list[dict[str, str]]]:
    """Return the finished runs of each sweep, by the name of its folder; of two of one variant and seed the later."""
    sweeps: dict[str, dict[tuple[str, ...], dict[str, str]]] = {}
    folders: dict[str, Path] = {}
    for path in paths:
        file = path if path.is_file() else path / "results.csv"
        name = path.resolve().name
        if path.is_dir() and folders.setdefault(name, path.resolve()) != path.resolve():
            raise SystemExit(f"{path} and {folders[name]} have one name, by which sweeps are told apart; rename one")
        for number, run in enumerate(read(file), start=2):
            if run.get("status", "finished") != "finished":
                continue
            if not (is_positive(run["val/bpb"]) and is_positive(run["total_training_flops"])):
                raise SystemExit(
                    f"{file}, line {number}: {run['variant']} has val/bpb {run['val/bpb']!r}; run it again"
                )
            key = (run["variant"], run["seed"], run.get("data.order_seed") or "")
            sweeps.setdefault(run.get("sweep") or name, {})[key] = run
    return {name: [runs[key] for key in sorted(runs)] for name, runs in sweeps.items()}


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise SystemExit(f"{path} cannot be read ({error.strerror}); give the folder of a sweep, or its CSV") from error
    if lacking := [name for name in NEEDED if not rows or name not in rows[0]]:
        raise SystemExit(f"{path} has no {', '.join(lacking)}; give the folder of a sweep that has run, or its CSV")
    return rows


def is_positive(text: str) -> bool:
    """Return whether a cell holds a number above 0."""
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def compare(
    recipe: str, runs: Sequence[Mapping[str, str]], seconds: Mapping[str, float] = MappingProxyType({})
) -> list[Row]:
    """Return the variants of a recipe, the best first; `seconds` says what a step of each takes, in any unit."""
    losses: dict[str, dict[str, float]] = {}
    flops: dict[str, float] = {}
    for run in runs:
        name = run["variant"]
        seeds = f"{run['seed']} {run.get('data.order_seed') or ''}"
        losses.setdefault(name, {})[seeds] = float(run["val/bpb"])
        flops[name] = float(run["total_training_flops"])
    base = losses.get(recipe, {})
    slope = steps_are_worth(recipe, losses, flops)
    rows = []
    for name, own in losses.items():
        seeds = [seed for seed in own if seed in base]
        if not (name.startswith(f"{recipe}_with") or (recipe, name) == RECIPES) or len(seeds) < 2:
            continue
        values = [own[seed] for seed in seeds]
        differences = [own[seed] - base[seed] for seed in seeds]
        p, interval = paired_t_test([base[seed] for seed in seeds], values)
        difference = statistics.mean(differences)
        moved = slope * math.log(flops[recipe] / flops[name])  # what as many FLOPs as the recipe's would still change
        slower = slope * math.log(seconds.get(recipe, math.nan) / seconds.get(name, math.nan))
        rows.append(
            Row(
                name.removeprefix(f"{recipe}_"),
                differences,
                statistics.mean(values),
                interval,
                p,
                difference + moved,
                difference + slower,
            )
        )
    for row, corrected in zip(rows, holm_correction([row.p for row in rows])):
        row.holm = corrected
    return sorted(rows, key=lambda row: row.difference)


def steps_are_worth(recipe: str, losses: Mapping[str, Mapping[str, float]], flops: Mapping[str, float]) -> float:
    """Return by how much the loss changes for each e-fold of a recipe's FLOPs, from its runs of other lengths."""
    shorter, longer = (f"{recipe}_{length}" for length in LENGTHS)
    if shorter not in losses or longer not in losses:
        return math.nan
    seeds = losses[shorter].keys() & losses[longer].keys()
    if not seeds:
        return math.nan
    change = statistics.mean(losses[longer][seed] - losses[shorter][seed] for seed in seeds)
    return change / math.log(flops[longer] / flops[shorter])


def print_table(folder: str, recipe: str, rows: Sequence[Row], runs: Sequence[Mapping[str, str]]) -> None:
    """Print one table as Markdown."""
    own = [float(run["val/bpb"]) for run in runs if run["variant"] == recipe]
    if not rows:
        print(f"{folder}: too few runs of {recipe}", file=sys.stderr)
        return
    # A seed changes some variants more than others: the middle one stands for all.
    std = statistics.median(statistics.stdev(row.differences) for row in rows)
    runs_each = round(statistics.median(len(row.differences) for row in rows))
    least = std and detectable_effect(Seeds(std=std, paired=True), runs_each, ALPHA / len(rows))
    print(
        f"\n{folder}, {recipe}: {statistics.mean(own):.4f} ± {statistics.stdev(own):.4f} over {len(own)} seeds; ",
        end="",
    )
    found = f"smallest found by {runs_each} with a power of 0.8: {least:.4f}"
    print(f"differences vary by {std:.4f}; {found}\n" if least else "\n")
    print("| variant | seeds | bits per byte | difference | p, Holm's | at equal FLOPs | at equal seconds | |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    for row in rows:
        interval = f" [{row.interval.low:+.4f}, {row.interval.high:+.4f}]" if row.interval else ""
        moved = ["" if math.isnan(at) else f"{at:+.4f}" for at in (row.equal_flops, row.equal_seconds)]
        print(
            f"| {row.name.replace('_', ' ')} | {len(row.differences)} | {row.bpb:.4f} "
            f"| {row.difference:+.4f}{interval} | {row.holm:.3f} "
            f"| {moved[0]} | {moved[1]} | {row.verdict} |"
        )


def draw(found: Mapping[str, Mapping[str, Sequence[Row]]], path: Path) -> None:
    """Draw all differences with their intervals: a column for each recipe, a colour for each folder."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    for column, (recipe, axes) in enumerate(zip(RECIPES, figure.subplots(1, len(RECIPES)))):
        order = list(dict.fromkeys(row.name for tables in found.values() for row in tables[recipe]))[::-1]
        for number, (folder, tables) in enumerate(found.items()):
            for row in tables[recipe]:
                y = order.index(row.name) + 0.15 * (0.5 - number)
                label = folder if row is tables[recipe][0] else None
                if row.interval:
                    axes.plot([row.interval.low, row.interval.high], [y, y], color=f"C{number}", linewidth=1.5)
                face = f"C{number}" if row.verdict else "white"
                axes.plot(
                    [row.difference], [y], "o", color=f"C{number}", markerfacecolor=face, markersize=5, label=label
                )
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
        axes.set_xlabel("change of bits per byte (left is better)")
        axes.set_title(recipe)
        if column == 0 and order:
            figure.legend(
                *axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(found), frameon=False
            )
    figure.supxlabel("bars: 95% intervals; filled: significant after Holm's correction", fontsize="medium")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
