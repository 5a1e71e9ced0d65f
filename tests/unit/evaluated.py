"""Checkpoints that were evaluated: what `evaluate.py` leaves behind, in memory and as files, for tests that read it."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from nanochat_pl.eval.chat import summarize_chat
from nanochat_pl.eval.results import Evaluation, MetricRow, config_hash, proportion_row, results_document
from nanochat_pl.report.evaluated import EvaluatedRun
from nanochat_pl.report.read import EvaluationResult


def answers(right: Sequence[bool], task: str = "", prompt: str = "What is {}?") -> list[dict]:
    records = [
        {"id": f"test/{n}", "prompt": prompt.format(n), "expected": "yes", "output": "yes" if r else "no", "correct": r}
        for n, r in enumerate(right)
    ]
    return [{**record, "task": task} for record in records] if task else records


def entrant(label: str, *evaluations: EvaluationResult, run: dict | None = None) -> EvaluatedRun:
    return EvaluatedRun(label=label, results={result.name: result for result in evaluations}, config=run)


def result(
    rows: list[MetricRow], records: list[dict], name: str = "recall", stage: str = "sft", **settings
) -> EvaluationResult:
    checkpoint = {"path": f"outputs/{stage}/d4/checkpoints/best.ckpt", "stage": stage, "step": 10}
    return EvaluationResult(
        file=Path("results.json"), name=name, checkpoint=checkpoint, settings=settings, rows=rows, records=records
    )


def recalled(right: Sequence[bool], stage: str = "sft", **more) -> EvaluationResult:
    return result([proportion_row("recall", "exact_match", right)], answers(right), stage=stage, **more)


def pattern(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Answers of two models by how many questions both, only one or neither got right."""
    ours = [True] * (both + first) + [False] * (second + neither)
    theirs = [True] * both + [False] * first + [True] * second + [False] * neither
    return ours, theirs


def sampled(right: Sequence[int], samples: int, stage: str = "sft") -> EvaluationResult:
    """A chat task of which each question was answered several times, so many of them right."""
    lengths = {"prompt_cut": False, "prompt_tokens": 9, "output_tokens": 3, "truncated": False}
    records = [
        {**record, **lengths, "tool_calls": 0, "tool_errors": 0, "num_samples": samples, "num_right": n, "samples": []}
        for record, n in zip(answers([n > 0 for n in right], "gsm8k"), right)
    ]
    return result(summarize_chat(records, task="gsm8k"), records, "chat", stage)


def write(
    root: Path,
    run: str,
    right: Sequence[bool],
    *,
    name: str = "recall",
    checkpoint: str = "best",
    config: dict | None = None,
    output: str = "no",
) -> Path:
    """Write what `evaluate.py` leaves behind; return the run folder."""
    folder = root / run
    settings = {"eval": name, "max_new_tokens": 16}
    records = [{**r, "config": config_hash(settings)} for r in answers(right)]
    for record in records:
        record["output"] = "yes" if record["correct"] else output
    row = proportion_row("recall", "exact_match", right, baseline={"chance": 0.25})
    identity = {
        "path": f"{folder}/checkpoints/{checkpoint}.ckpt",
        "hash": "0",
        "stage": run.partition("/")[0],
        "step": 1,
    }
    evaluation = Evaluation(records=records, rows=[row], seconds=1.0, num_answered=len(right))
    target = folder / "eval" / name / checkpoint
    target.mkdir(parents=True)
    (target / "results.json").write_text(
        json.dumps(results_document(evaluation, name=name, checkpoint=identity, config=settings))
    )
    (target / "examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder
