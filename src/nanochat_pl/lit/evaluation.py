"""Evaluate checkpoints: open them, choose what to measure, ask the same questions, write one schema of results."""

import dataclasses
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat_pl.checkpoint import LoadedModel, load_model
from nanochat_pl.data.packing import TokenBatches
from nanochat_pl.engine import Engine
from nanochat_pl.eval.bpb import evaluate_bpb
from nanochat_pl.eval.compare import Comparison, compare
from nanochat_pl.eval.recall import evaluate_recall
from nanochat_pl.eval.results import (
    Evaluation,
    ExampleLog,
    MetricRow,
    config_hash,
    evaluation_summary,
    examples_page,
    results_document,
)
from nanochat_pl.eval.scienceqa import evaluate_scienceqa
from nanochat_pl.inputs import prepare_root, prepare_text
from nanochat_pl.lit.data import make
from nanochat_pl.lit.record import write_log
from nanochat_pl.lit.schema import DataConfig, DataSource, EvalConfig, EvalName, EvaluateConfig, StageName
from nanochat_pl.model.inference import pick_inference_dtype
from nanochat_pl.paths import write_atomically
from nanochat_pl.runtime import pick_compute_dtype, pick_device

log = logging.getLogger(__name__)

DEFAULT_EVALS = {StageName.base: EvalName.bpb, StageName.mid: EvalName.bpb} | dict.fromkeys(
    (StageName.sft, StageName.sft_scienceqa, StageName.rl), EvalName.scienceqa
)


def evaluate(
    cfg: EvaluateConfig, paths: Sequence[str], data_overrides: Mapping[str, Any], mixture: Mapping[str, Any] | None
) -> int:
    """Evaluate the checkpoints at `paths` and print a table; return the exit code.

    Args:
        cfg: the checked config.
        paths: checkpoint files or run folders.
        data_overrides: data keys that replace those in the checkpoints' configs.
        mixture: the tasks to ask; None = those of the last checkpoint's config.
    """
    write_log(None, first=True)
    device = pick_device(cfg.trainer.accelerator)
    dtype = pick_compute_dtype(cfg.trainer.compute_dtype, device)
    models = [load_model(path, device, dtype) for path in paths]
    for path, loaded in zip(paths, models):
        print(
            f"checkpoint: {loaded.path} ({loaded.stage}, step {loaded.step})"
            + ("" if str(loaded.path) == path else f", from {path}")
        )
    name = cfg.eval.name
    if name == EvalName.auto:
        last_stage = max((StageName(m.stage) for m in models), key=list(StageName).index)
        name = DEFAULT_EVALS[last_stage]
        print(f"eval: {name} (eval=auto, for stage {last_stage})")
    source = models[-1].config
    data = DataConfig(**(source["data"] | dict(data_overrides)))
    tasks = (mixture or source["mixture"])["tasks"]
    names = checkpoint_names(models)
    evaluations: dict[str, Evaluation] = {}
    folders: dict[str, Path] = {}
    for shown, loaded in zip(names, models):
        folder = output_folder(cfg, loaded, str(name))
        if cfg.eval.fresh:
            for old in folder.glob("examples*.jsonl"):
                old.unlink()
        settings = {
            "eval": str(name),
            "split": cfg.eval.split,
            "max_new_tokens": cfg.eval.max_new_tokens,
            "max_questions": cfg.eval.max_questions,
            "compute_dtype": str(dtype),
            "engine_dtype": str(pick_inference_dtype(str(cfg.engine.dtype), device)),
            "data": {k: str(v) for k, v in dataclasses.asdict(data).items()},
            "checkpoint": file_hash(loaded.path),
            "tokenizer": loaded.tokenizer.fingerprint(),
        }
        if name == EvalName.bpb:
            settings |= {"val_tokens": cfg.eval.val_tokens}
            evaluation = measure_bpb(loaded, data, cfg)
        else:
            questions = ask(name, tasks, data, cfg.eval, cfg.offline)
            settings |= {"tasks": json.loads(json.dumps(tasks, default=str))}
            examples = ExampleLog(folder / "examples.jsonl", config_hash(settings))
            evaluation = answer(name, loaded, questions, cfg, examples, shown)
        document = results_document(
            evaluation,
            name=str(name),
            checkpoint={
                "path": str(loaded.path),
                "hash": settings["checkpoint"],
                "stage": loaded.stage,
                "step": loaded.step,
            },
            config=settings,
        )
        write_atomically(folder / "results.json", json.dumps(document, indent=2) + "\n")
        evaluations[shown], folders[shown] = evaluation, folder
    comparisons = compare_all(evaluations, name)
    if name == EvalName.scienceqa:
        text = json.dumps(evaluation_summary(evaluations, [dataclasses.asdict(c) for c in comparisons]), indent=2)
        page = examples_page({shown: e.records for shown, e in evaluations.items()})
        target = folders[names[-1]]
        write_atomically(target / "evaluation_summary.json", text + "\n")
        write_atomically(target / "examples.md", page)
    print_table(str(name), evaluations, comparisons)
    for shown, folder in folders.items():
        print(f"{shown}: {folder / 'results.json'}")
    return 0


def checkpoint_names(models: Sequence[LoadedModel]) -> list[str]:
    """Give each checkpoint a short name that tells it from the others: its run folder and file."""
    names = []
    for loaded in models:
        run = run_folder(loaded.path)
        names.append(f"{run.parent.name}/{run.name}" if run != loaded.path.parent else loaded.path.stem)
    if len(set(names)) < len(names):
        names = [f"{name}:{loaded.path.stem}" for name, loaded in zip(names, models)]
    if len(set(names)) < len(names):
        names = [str(loaded.path) for loaded in models]
    return names


def run_folder(file: Path) -> Path:
    """Give the run folder of a checkpoint file, or the folder it lies in."""
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent


def output_folder(cfg: EvaluateConfig, loaded: LoadedModel, name: str) -> Path:
    """Say where the results of one checkpoint go."""
    root = Path(cfg.output) / config_hash({"path": str(loaded.path)}) if cfg.output else run_folder(loaded.path)
    folder = root / "eval" / name / loaded.path.stem
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def file_hash(path: Path) -> str:
    """Give the SHA-256 of a file's bytes, 16 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def ask(name: EvalName, tasks: Mapping[str, Any], data: DataConfig, cfg: EvalConfig, offline: bool) -> list[Any]:
    """Make the questions of an evaluation, in the very form the training task gives them.

    Raises:
        FileNotFoundError: the data have no such questions.
    """
    prepare_root(data)
    kind = {EvalName.scienceqa: "scienceqa.ScienceQA", EvalName.recall: "recall.Recall"}[name]
    spec = next((dict(s) for s in tasks.values() if s and str(s.get("_target_", "")).endswith(f".{kind}")), None)
    if spec is None:  # the model was not trained on it: ask as the data's own mixture would
        spec = {"_target_": f"nanochat_pl.tasks.{kind}"}
        if name == EvalName.scienceqa and data.source == DataSource.microworld:
            spec |= {"persona": None}
    folder = data.scienceqa if name == EvalName.scienceqa else "recall"
    root = Path(data.root or "")
    spec |= {"path": str(root / folder), "split": cfg.split}
    if name == EvalName.scienceqa:
        rows = {"train": data.train_rows, "validation": data.val_rows, "test": data.test_rows}[cfg.split]
        spec |= {"rows": rows, "shuffle_choices": False, "curriculum": False}
        spec |= {"hub": data.hub_scienceqa, "offline": offline, "formatted_dir": data.formatted_dir}
    for training_only in ("epochs", "phase", "start", "stop", "step", "at_most"):
        spec.pop(training_only, None)
    return list(itertools.islice(make(spec), cfg.max_questions))


def answer(
    name: EvalName, loaded: LoadedModel, questions: list[Any], cfg: EvaluateConfig, examples: ExampleLog, shown: str
) -> Evaluation:
    """Let one model answer the questions, continuing where an interrupted evaluation stopped."""
    tokenizer = loaded.tokenizer
    stops = {tokenizer.special_id("<|assistant_end|>"), tokenizer.bos_id}
    engine = Engine(loaded.model, stops, tokenizer=tokenizer, dtype=str(cfg.engine.dtype))
    room = loaded.model.config.sequence_len - cfg.eval.max_new_tokens
    if room < 1:
        raise ValueError(
            f"eval.max_new_tokens={cfg.eval.max_new_tokens} leaves no room for a question in the model's "
            f"{loaded.model.config.sequence_len} tokens; lower it"
        )
    begin = time.perf_counter()

    def progress(done: int, of: int) -> None:
        print(f"{shown}: {done:,}/{of:,} questions, {time.perf_counter() - begin:.0f} s", flush=True)

    common: dict[str, Any] = {
        "max_new_tokens": cfg.eval.max_new_tokens,
        "max_prompt_tokens": room,
        "batch_size": cfg.eval.batch_size,
        "seed": cfg.seed,
        "log": examples,
        "progress": progress,
    }
    if name == EvalName.recall:
        return evaluate_recall(tokenizer, engine, questions, **common)
    return evaluate_scienceqa(loaded.model, tokenizer, engine, questions, **common)


def measure_bpb(loaded: LoadedModel, data: DataConfig, cfg: EvaluateConfig) -> Evaluation:
    """Measure bits per byte on the validation shard."""
    begin = time.perf_counter()
    shards = prepare_text(data, cfg.offline)
    length = loaded.model.config.sequence_len
    rows = max(1, min(32, 16_384 // length))
    batches = TokenBatches(
        [shards.val],
        loaded.tokenizer,
        batch_rows=rows,
        sequence_len=length,
        micro_batches=1,
        logical_shards=1,
        rank=0,
        world_size=1,
        num_workers=0,
    )
    count = max(1, cfg.eval.val_tokens // (rows * length))
    bpb = evaluate_bpb(loaded.model, itertools.islice(batches, count), loaded.tokenizer.token_bytes())
    tokens = count * rows * length
    row = MetricRow(task=shards.val.name, metric="bpb", value=bpb, n=tokens)
    return Evaluation(records=[], rows=[row], seconds=time.perf_counter() - begin, num_answered=tokens)


def compare_all(evaluations: Mapping[str, Evaluation], name: EvalName) -> list[Comparison]:
    """Compare each checkpoint with the first one, question by question."""
    if name == EvalName.bpb or len(evaluations) < 2:
        return []
    measures = ["correct"] if name == EvalName.recall else ["correct", "likely_correct"]
    (first, before), *others = evaluations.items()
    return [
        compare(before.records, after.records, first=first, second=second, measure=measure)
        for second, after in others
        for measure in measures
    ]


def print_table(name: str, evaluations: Mapping[str, Evaluation], comparisons: Sequence[Comparison]) -> None:
    """Show the overall figures of all checkpoints side by side, with intervals and baselines."""
    from rich.console import Console
    from rich.table import Table

    names = list(evaluations)
    table = Table(title=f"{name}: value [95% interval]", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for shown in names:
        table.add_column(shown, justify="right")
    rows = {shown: {r.metric: r for r in e.rows if r.group is None} for shown, e in evaluations.items()}
    for metric in rows[names[0]]:
        table.add_row(metric, *(cell(rows[shown].get(metric)) for shown in names))
    console = Console()
    console.print(table)
    baseline = next((r.baseline for r in rows[names[0]].values() if r.baseline), None)
    if baseline:
        text = ", ".join(
            f"{key} {value:.1%}" if isinstance(value, float) else f"({key} {value})" for key, value in baseline.items()
        )
        print(f"without a model: {text}")
    for comparison in comparisons:
        what = {"correct": "answers as written", "likely_correct": "answers by likelihood"}[comparison.measure]
        print(f"{comparison.second} against {comparison.first}, {what}: {comparison.verdict}")


def cell(row: MetricRow | None) -> str:
    """Format one figure."""
    if row is None or row.value is None:
        return "- (n = 0)" if row is not None else ""
    if row.count is None:
        text = f"{row.value:.4f}"
        return text if row.interval is None else f"{text} [{row.interval.low:.3g}, {row.interval.high:.3g}]"
    assert row.interval is not None
    return f"{row.value:.1%} [{row.interval.low:.1%}, {row.interval.high:.1%}] ({row.count}/{row.n})"
