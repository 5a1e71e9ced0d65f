"""Evaluate checkpoints: open them, choose what to measure, ask the same questions, write one schema of results."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat_pl.checkpoint import LoadedModel, load_model
from nanochat_pl.config.checks import check_penalties, hub_folder, no_data_error
from nanochat_pl.config.evaluations import EVALUATIONS, EvalName
from nanochat_pl.config.schema import DataConfig, EvaluateConfig
from nanochat_pl.config.shorthand import task_specs
from nanochat_pl.config.stages import MODEL_STAGES, STAGES, StageName, training_order
from nanochat_pl.config.targets import trusted_data, trusted_tasks
from nanochat_pl.eval.compare import Comparison, compare
from nanochat_pl.eval.core import core_csv
from nanochat_pl.eval.evaluations import EVAL_TASKS, EvalContext, EvalTask
from nanochat_pl.eval.results import (
    REQUESTS,
    Evaluation,
    ExampleLog,
    MetricRow,
    config_hash,
    evaluation_summary,
    headline_metrics,
    keep_other_results,
    results_document,
)
from nanochat_pl.paths import check_place, first_distinct, run_folder, run_label, write_atomically, writing
from nanochat_pl.report import terminal
from nanochat_pl.report.comparison_report import ComparisonReport, build_comparison, examples_page, short_verdicts
from nanochat_pl.report.evaluated import EvaluatedRun
from nanochat_pl.report.read import parse_result
from nanochat_pl.runtime import pick_compute_dtype, pick_device
from nanochat_pl.training.claim import claimed
from nanochat_pl.training.loggers import log_evaluation
from nanochat_pl.training.record import write_log

log = logging.getLogger(__name__)


def evaluate(
    cfg: EvaluateConfig, paths: Sequence[str], data_overrides: Mapping[str, Any], mixture: Mapping[str, Any] | None
) -> list[Path]:
    """Evaluate the checkpoints at `paths` and print a table; return the folder with the results of each.

    Args:
        paths: Whatever `load_model` opens.
        data_overrides: Keys of `data` that replace those in the checkpoints' configs.
        mixture: The tasks to ask; None = those of the last checkpoint's config.

    Raises:
        ValueError: The checkpoints do not say what to measure or to ask, and neither does the command line; or
            another process writes the same results.
    """
    write_log(None, first=True)
    device = pick_device(cfg.trainer.accelerator)
    dtype = pick_compute_dtype(cfg.trainer.compute_dtype, device)
    models = [load_model(path, device, dtype, hub_folder=hub_folder(cfg), offline=cfg.offline) for path in paths]
    for path, loaded in zip(paths, models):
        print(
            f"checkpoint: {loaded.path} ({loaded.stage}, step {loaded.step}"
            + (")" if loaded.format == "lightning" else f", {loaded.format})")
            + ("" if str(loaded.path) == path else f", from {path}")
        )
    name = cfg.eval.name
    if name == EvalName.auto:
        name, last_stage = default_eval(models)
        print(f"eval: {name} (eval=auto, for stage {last_stage})")
    check_penalties(name, cfg.eval)
    data, tasks = data_and_tasks(models, name, data_overrides, mixture, cfg.plugins.allow, cfg.outputs)
    names = checkpoint_names(models)
    folders = [output_folder(cfg, loaded, str(name)) for loaded in models]
    with owned_folders(folders):
        evaluations: dict[str, Evaluation] = {}
        documents: dict[str, Mapping[str, Any]] = {}
        for shown, loaded, folder in zip(names, models, folders):
            context = EvalContext(model=loaded.model, tokenizer=loaded.tokenizer, data=data, tasks=tasks, cfg=cfg)
            task = EVAL_TASKS[name](context)
            settings = {
                "eval": str(name),
                **task.settings,
                **cfg.eval.penalties(),
                "compute_dtype": str(dtype),
                "engine_dtype": str(pick_compute_dtype(str(cfg.engine.dtype), device, "engine.dtype")),
                "data": {k: str(v) for k, v in dataclasses.asdict(data).items()},
                "checkpoint": file_hash(loaded.path),
                "tokenizer": loaded.tokenizer.fingerprint(),
            }
            evaluations[shown], documents[shown] = evaluate_one(cfg, task, settings, loaded, folder, shown)
        report = draw_comparison(evaluations, documents)
        written = dict(zip(names, folders))
        write_views(name, evaluations, written, report)
    print_table(str(name), evaluations)
    for sentence in [] if report is None else short_verdicts(report):
        print(sentence)
    for shown, folder in written.items():
        print(f"{shown}: {folder / 'results.json'}")
    return [*written.values()]


@contextlib.contextmanager
def owned_folders(folders: Iterable[Path]) -> Iterator[None]:
    """Make and claim all folders that results go to, before anything is asked.

    New folders are removed again where the evaluation fails before anything was written to them.
    """
    made: list[Path] = []
    try:
        with contextlib.ExitStack() as owned:
            for folder in dict.fromkeys(folder.resolve() for folder in folders):
                new = [part for part in (folder, *folder.parents) if not part.exists()]
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                owned.enter_context(claimed(folder))
                made += new
            yield
    except BaseException:
        for folder in sorted(made, key=lambda folder: -len(folder.parts)):  # a folder before its parent
            with contextlib.suppress(OSError):  # another process owns it, or it holds answers to resume from
                if [entry.name for entry in folder.iterdir()] == [".lock"]:
                    (folder / ".lock").unlink()
                folder.rmdir()
        raise


def evaluate_one(
    cfg: EvaluateConfig, task: EvalTask, settings: Mapping[str, Any], loaded: LoadedModel, folder: Path, shown: str
) -> tuple[Evaluation, dict[str, Any]]:
    """Run or resume an evaluation of one checkpoint; return the outcome and the content of `results.json`."""
    if kept := keep_other_results(folder, settings):
        print(f"{shown}: {kept}")
    examples = ExampleLog(folder / "examples.jsonl", config_hash(settings))
    if cfg.eval.fresh:
        examples.clear()
        ExampleLog(folder / REQUESTS, examples.config).clear()
    with writing(folder / "examples.jsonl"):
        evaluation = task.run(examples, show_progress(shown))
    checkpoint = {"path": str(loaded.path), "hash": settings["checkpoint"], "stage": loaded.stage, "step": loaded.step}
    document = results_document(evaluation, name=settings["eval"], checkpoint=checkpoint, config=settings)
    write_atomically(folder / "results.json", json.dumps(document, indent=2) + "\n")
    if loaded.format == "lightning":
        log_evaluation(folder / "results.json", run_folder(loaded.path))
    return evaluation, document


def write_views(
    name: EvalName, evaluations: Mapping[str, Evaluation], folders: Mapping[str, Path], report: ComparisonReport | None
) -> None:
    """Write what some evaluations leave in addition to their results: the summary of ScienceQA, the table of CORE."""
    if name == EvalName.scienceqa:
        target = [*folders.values()][-1]
        comparisons = [dataclasses.asdict(compared) for compared in compare_all(evaluations, report)]
        summary = evaluation_summary(evaluations, comparisons)
        write_atomically(target / "evaluation_summary.json", json.dumps(summary, indent=2) + "\n")
        page = examples_page({shown: e.records for shown, e in evaluations.items()})
        write_atomically(target / "examples.md", page)
    if name == EvalName.core:
        for shown, folder in folders.items():
            write_atomically(folder / "core.csv", core_csv(evaluations[shown].rows))


def default_eval(models: Sequence[LoadedModel]) -> tuple[EvalName, StageName]:
    """Choose what to measure (`eval=auto`) by the latest stage among the models.

    Raises:
        ValueError: None of them says its stage.
    """
    stages = [StageName(m.stage) for m in models if m.stage in MODEL_STAGES]
    if not stages:
        raise ValueError(
            f"eval=auto measures by the stage of a model, and {models[-1].path} ({models[-1].format}) does not say its "
            "stage; give eval=bpb for a base model, eval=scienceqa or eval=chat for one that answers"
        )
    last = max(stages, key=training_order)
    return EvalName(STAGES[last].default_eval), last


def data_and_tasks(
    models: Sequence[LoadedModel],
    name: EvalName,
    data: Mapping[str, Any],
    mixture: Mapping[str, Any] | None,
    allow: Sequence[str] = (),
    outputs: str = "outputs",
) -> tuple[DataConfig, Mapping[str, Any]]:
    """Return data and tasks: the command line's, else those of the last model that has a config.

    Models that another program trained have none; the data and the mixture are then the command line's, if any.

    Args:
        data: Keys of the command line.
        mixture: The command line's, if given.
        allow: Packages, in addition to this one, whose tasks a model's config may name.
        outputs: Folder for results; what a model's config says to make or fetch goes nowhere else.

    Raises:
        ValueError: Nothing says where the data are, or a model's config is damaged, or asks to run something.
    """
    last = next((loaded for loaded in reversed(models) if loaded.config), None)
    if last is None:
        if "source" not in data and EVALUATIONS[name].reads_data:
            raise no_data_error(models[-1].path, models[-1].format, name)
        return DataConfig(**data), (mixture or {}).get("tasks") or {}
    try:
        settled = DataConfig(**(trusted_data(last.config["data"], last.path, outputs, data) | dict(data)))
        if mixture is not None:
            return settled, mixture["tasks"] or {}
        specs, _ = task_specs(last.config["mixture"]["tasks"] or {}, {})
        return settled, trusted_tasks(specs, allow, last.path, outputs)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the config in {last.path} is damaged: {error}; give data= and mixture=") from error


def checkpoint_names(models: Sequence[LoadedModel]) -> list[str]:
    """Return a short name for each checkpoint, unlike the others: its run folder, or its folder and file."""
    names = []
    for loaded in models:
        run = run_folder(loaded.path)
        if loaded.format != "lightning":
            names.append(f"{run.resolve().name}/{short_name(loaded)}")
            continue
        names.append(run_label(loaded.path) if run != loaded.path.parent else loaded.path.stem)
    longer = [f"{name}:{short_name(loaded)}" for name, loaded in zip(names, models)]
    paths = [str(loaded.path) for loaded in models]
    return first_distinct(names, longer) or paths


def output_folder(cfg: EvaluateConfig, loaded: LoadedModel, name: str) -> Path:
    """Return the folder for the results of a checkpoint: in its run, or below outputs/eval for a foreign model."""
    if cfg.output:
        root = Path(cfg.output) / config_hash({"path": str(loaded.path)})
    elif loaded.format == "lightning":
        root = run_folder(loaded.path)
    else:  # its folder is not ours, and perhaps read-only
        parent = loaded.path.resolve().parent
        root = Path(cfg.outputs) / "eval" / f"{parent.name}-{config_hash({'path': str(parent)})[:8]}"
    folder = root / "eval" / name / short_name(loaded)
    check_place(folder)
    return folder


def short_name(loaded: LoadedModel) -> str:
    """Return the name of a checkpoint's file without its ending (`model` of `model.safetensors.index.json`)."""
    return loaded.path.name.partition(".")[0] if loaded.format == "huggingface" else loaded.path.stem


def file_hash(path: Path) -> str:
    """Return 16 hex digits of the SHA-256 of a file's bytes, or of all shards that an index lists, in order."""
    files = sorted(path.parent.glob("*.safetensors")) if path.suffix == ".json" else [path]
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while chunk := content.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def show_progress(shown: str) -> Callable[[int, int], None]:
    """Return a function that prints how far an evaluation is, at most once a second and at its end."""
    begin = last = time.perf_counter()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if done == total or now - last >= 1:
            last = now
            print(f"{shown}: {done:,}/{total:,} questions, {now - begin:.0f} s", flush=True)

    return progress


def draw_comparison(
    evaluations: Mapping[str, Evaluation], documents: Mapping[str, Mapping[str, Any]]
) -> ComparisonReport | None:
    """Compare each checkpoint with the first one as `nanochat-pl compare` does; None where there is only one.

    The keys are the names of the checkpoints; `documents` are the contents of their results.json.
    """
    if len(evaluations) < 2:
        return None
    runs = []
    for shown, evaluation in evaluations.items():
        result = parse_result(Path("results.json"), documents[shown])
        result = dataclasses.replace(result, records=evaluation.records)
        runs.append(EvaluatedRun(label=shown, results={result.name: result}))
    try:
        return build_comparison(runs)
    except ValueError as error:  # the results are valid all the same
        log.warning("no comparison: %s", error)
        return None


def compare_all(evaluations: Mapping[str, Evaluation], report: ComparisonReport | None) -> list[Comparison]:
    """Return what evaluation_summary.json says of each checkpoint against the first, with the verdicts of `report`."""
    measures = {"strict/accuracy_over_asked": "correct", "loglikelihood/accuracy": "likely_correct"}
    lines = {line.metric: line for line in report.metrics} if report is not None else {}
    (first, before), *others = evaluations.items()
    compared = []
    for index, (second, after) in enumerate(others, start=1):
        for metric, measure in measures.items():
            found = compare(before.records, after.records, first=first, second=second, measure=measure)
            difference = lines[metric].differences[index] if metric in lines else None
            compared.append(found if difference is None else dataclasses.replace(found, verdict=difference.verdict))
    return compared


def print_table(name: str, evaluations: Mapping[str, Evaluation]) -> None:
    """Print the metrics of all checkpoints side by side, with intervals and baselines."""
    names = list(evaluations)
    rows = {shown: {(r.task, r.metric): r for r in e.rows if r.group is None} for shown, e in evaluations.items()}
    first = rows[names[0]]
    several = len({task for task, _ in first}) > 1
    lines = [  # the rest is in results.json
        [f"{task} {metric}" if several else metric, *(cell(rows[n].get((task, metric))) for n in names)]
        for task, metric in headline_metrics(list(first.values()))
    ]
    if name == EvalName.tokenizer:
        domains = {
            n: {tuple(r.group.values()): r for r in e.rows if r.group and r.metric == "bytes_per_token"}
            for n, e in evaluations.items()
        }
        for key in domains[names[0]]:
            lines.append([f"bytes_per_token {' '.join(key)}", *(cell(domains[n].get(key)) for n in names)])
    terminal.print_table(f"{name}: value [95% interval]", ["metric", *names], lines)
    baseline = next((r.baseline for r in first.values() if r.baseline), None)
    if baseline and not several:
        text = ", ".join(
            f"{key.replace('_', ' ')} {value:.1%}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
            for key, value in baseline.items()
        )
        print(f"without a model: {text}")


def cell(row: MetricRow | None) -> str:
    """Format one metric of one checkpoint."""
    if row is None or row.value is None:
        return "- (n = 0)" if row is not None else ""
    if row.count is None:
        text = f"{row.value:,.0f}" if row.value >= 10_000 else f"{row.value:.4f}"
        return text if row.interval is None else f"{text} [{row.interval.low:.3g}, {row.interval.high:.3g}]"
    assert row.interval is not None
    return f"{row.value:.1%} [{row.interval.low:.1%}, {row.interval.high:.1%}] ({row.count}/{row.n})"
