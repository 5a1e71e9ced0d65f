"""The table at the end of a chain: steps, losses and the evaluations of every trained stage side by side."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from nanochat_pl.report.read import json_lines, newest_row
from nanochat_pl.report.scores import figure_text
from nanochat_pl.report.terminal import table_text

__all__ = ["stages_summary"]

_RECORDED = (
    ("steps", "step", "{:,}"),
    ("train loss", "train/loss", "{:.3f}"),
    ("validation loss", "val/loss", "{:.3f}"),
    ("validation bpb", "val/bpb", "{:.3f}"),
    ("tokens/s (median)", "median_tok_per_sec", "{:,.0f}"),
    ("training time, s", "total_training_time", "{:.0f}"),
    ("reward", "reward", "{:.3f}"),
    ("pass@1", "pass@1", "{:.1%}"),
)
"""Rows from summary.json: label, key and form."""
_EVALUATED = (
    ("free recall", "recall", "exact_match"),
    ("answers parsed", "scienceqa", "strict/parse_rate"),
    ("accuracy by likelihood", "scienceqa", "loglikelihood/accuracy"),
    ("accuracy as written", "scienceqa", "strict/accuracy_over_asked"),
    ("answer, bits per byte", "scienceqa", "answer_bpb"),
    ("checks passed", "checks", "pass_rate"),
)
"""Rows from evaluations: label, evaluation and metric."""
_SAMPLES = ("hello", "who are you", "product")
"""The checks whose answers a chain shows at its end."""


def stages_summary(title: str, folders: Mapping[str, Path]) -> str:
    """Return the table, what is reached without a model, and some answers of the last model.

    Args:
        folders: The run folders of the trained stages, by the name of the stage, in the order of training.
    """
    summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in folders.values()]
    rows: list[list[str]] = []
    for label, key, form in _RECORDED:
        values = [summary.get(key) for summary in summaries]
        if any(value is not None for value in values):
            rows.append([label, *("" if value is None else form.format(value) for value in values)])
    for label, name, metric in _EVALUATED:
        found = [newest_row(folder, name, metric) for folder in folders.values()]
        if any(row is not None and row.value is not None for row in found):
            rows.append([label, *(figure_text(row, missing="-") for row in found)])
    last = [*folders.values()][-1]
    return "\n".join([table_text(title, ["", *folders], rows), *_baseline(last), *_sample_answers(last)])


def _baseline(folder: Path) -> list[str]:
    """Return the line on what guessing the multiple-choice questions scores; nothing where none were asked."""
    row = newest_row(folder, "scienceqa", "loglikelihood/accuracy")
    if row is None or not row.baseline:
        return []
    text = f"without a model: chance {row.baseline['chance']:.1%}"
    if "majority" in row.baseline:
        text += f", always the commonest letter {row.baseline['majority']:.1%}"
    return [f"{text} (n = {row.n})"]


def _sample_answers(folder: Path) -> list[str]:
    """Return what a model answered to some of the checks, one line each; nothing where it was asked none."""
    files = sorted((folder / "eval" / "checks").glob("*/examples.jsonl"), key=lambda path: path.stat().st_mtime)
    records = {record["id"]: record for file in files[-1:] for _, record in json_lines(file) if record is not None}
    shown = [records[name] for name in _SAMPLES if name in records]
    # As the chat shows it: the call of the calculator and its result, in brackets.
    answers = [re.sub(r"<\|python_start\|>(.*?)<\|python_end\|>", r"[\1]", one["output"]) for one in shown]
    answers = [re.sub(r"\]<\|output_start\|>(.*?)<\|output_end\|>", r" = \1]", answer) for answer in answers]
    return [f"  {one['prompt']}  ->  {' '.join(answer.split())}" for one, answer in zip(shown, answers)]
