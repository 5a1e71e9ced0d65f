"""Measure the report of long runs: the seconds that `nanochat-pl report` takes, the start of Python included.

Writes a chain of made-up runs into a temporary folder: every step logged, with the columns that a run has, validation
on the way, samples, an evaluation of two thousand questions. Prints the median over turns of the whole command, and of
its parts within one process.

    python benchmarks/bench_report.py                                    # one base run of 10,000 steps
    python benchmarks/bench_report.py --stages base mid sft --steps 10000 --turns 5
"""

import argparse
import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nanochat_pl.cli.report import main as report
from nanochat_pl.eval.results import Evaluation, proportion_row, results_document
from nanochat_pl.report.html import render_html
from nanochat_pl.report.read import read_run
from nanochat_pl.report.run_report import report_blocks

FIGURES = (
    "train/lrm", "train/grad_norm", "train/dt", "train/tok_per_sec", "tokens", "total_training_flops",
    "total_training_time", "train/mfu", "epoch", "health/update_ratio_matrix", "health/update_ratio_embedding",
    "health/update_ratio_unembedding", "health/logit_max_frac", "health/padding_frac", "health/data_wait_frac",
    "health/peak_memory_gib",
)  # fmt: skip
QUESTIONS = 1000


def write_run(folder: Path, stage: str, steps: int, before: Path | None) -> None:
    """Write the files of a finished run of `steps` steps that a report reads."""
    folder.mkdir(parents=True)
    config = {"run_name": folder.name, "seed": 42, "depth": 4, "stage": {"name": stage, "sequence_len": 512}}
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (folder / "run.json").write_text(json.dumps({"argv": ["train.py", f"stage={stage}"]}))
    lines = [",".join(("step", "val/loss", "val/bpb", "train/loss", *FIGURES))]
    for step in range(steps):
        loss = 9 - math.log1p(step) / 1.5 + math.sin(step) / 20
        if step % 250 == 0:
            lines.append(f"{step},{loss:.6f},{loss / 3:.6f}," + "," * len(FIGURES))
        values = (f"{(step * 37 + place * 101) % 9973 / 991:.9f}" for place in range(len(FIGURES)))
        lines.append(f"{step},,,{loss:.9f},{','.join(values)}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    summary = {"stage": stage, "run_name": folder.name, "status": "finished", "step": steps, "num_steps": steps}
    summary |= {"wall_s": 3600.0, "init_from": None if before is None else str(before)}
    (folder / "summary.json").write_text(json.dumps(summary))
    with (folder / "samples.jsonl").open("w") as file:
        for step in range(0, steps, 250):
            sample = {"step": step, "prompt": "Iron is", "output": "a metal " * 8, "tokens": 32, "stopped": False}
            file.write(json.dumps(sample) + "\n")
    target = folder / "eval" / "chat" / "best"
    target.mkdir(parents=True)
    rows = [
        proportion_row(task, "accuracy", [i % 4 == 0 for i in range(QUESTIONS)], baseline={"chance": 0.25})
        for task in ("MMLU", "ARC-Easy")
    ]
    evaluation = Evaluation(records=[], rows=rows, seconds=60.0, num_answered=2 * QUESTIONS)
    document = results_document(evaluation, name="chat", checkpoint={"path": "best.ckpt", "step": steps}, config={})
    (target / "results.json").write_text(json.dumps(document))
    with (target / "examples.jsonl").open("w") as file:
        for number in range(QUESTIONS):
            record = {"id": str(number), "task": "MMLU", "prompt": "Which? " * 40, "expected": "B", "output": "C"}
            file.write(json.dumps(record | {"correct": False}) + "\n")


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": lambda: sum(os.times()[:4])}


def timed(work: Callable[[], Any], clock: Callable[[], float]) -> tuple[Any, float]:
    """Return what `work` returned and the seconds it took."""
    begin = clock()
    result = work()
    return result, clock() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="of each run")
    parser.add_argument("--stages", nargs="+", default=["base"], choices=("base", "mid", "sft"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: seconds of this process and its children, on a busy machine",
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    clock = CLOCKS[args.clock]
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / stage / "long" for stage in args.stages]
        for folder, before in zip(folders, [None, *folders], strict=False):
            write_run(folder, folder.parent.name, args.steps, before)
        paths = [str(folder) for folder in folders]
        command = [sys.executable, "-m", "nanochat_pl.cli.main", "report", *paths]
        for _ in range(args.turns):
            done, whole = timed(lambda: subprocess.run(command, capture_output=True, text=True, check=False), clock)
            if done.returncode:
                raise SystemExit(done.stderr)
            runs, reading = timed(lambda: [read_run(folder) for folder in folders], clock)
            blocks, composing = timed(partial(report_blocks, runs), clock)
            _, rendering = timed(partial(render_html, blocks), clock)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                _, again = timed(lambda: report(paths), clock)
            parts = {"the whole command": whole, "in a process that has begun": again, "reading": reading}
            parts |= {"composing, curves drawn": composing, "the page": rendering}
            for name, value in parts.items():
                seconds.setdefault(name, []).append(value)
        size = (Path(temporary) / "report" / "long" / "report.html").stat().st_size
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    if args.json:
        print(json.dumps({"steps": args.steps, "stages": args.stages, "page_bytes": size, "seconds": medians}))
        return
    print(f"\n{', '.join(args.stages)} of {args.steps:,} logged steps, page of {size / 1000:,.0f} kB, "
          f"{args.turns} turns, {args.clock} clock\n\n| part | s |\n|---|---:|")  # fmt: skip
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} |")


if __name__ == "__main__":
    main()
