"""Compose the report of runs, in the order in which it is read.

It begins with one picture of all stages, their figures side by side, and what came out. Then follow where it ran, each
stage with its settings and curves, the evaluations (`scores`), and what the models wrote. What was not recorded is left
out; what is missing is named.
"""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from nanochat_pl.config.stages import StageName
from nanochat_pl.report.blocks import Answers, Block, Code, Folded, Heading, Text, TextTable
from nanochat_pl.report.charts import curve_figures
from nanochat_pl.report.comparison_report import shared_questions
from nanochat_pl.report.history import chains, history_figure
from nanochat_pl.report.read import (
    RL_SETTINGS,
    SETTINGS,
    Run,
    best_point,
    last_value,
    setting,
    settings_shown,
    validation_metric,
)
from nanochat_pl.report.scores import (
    chance_verdict,
    evaluated_checkpoints,
    evaluation_blocks,
    overall_verdict,
    progress_sentence,
    run_labels,
    summary_table,
)
from nanochat_pl.report.textlog import TextLog

__all__ = ["report_blocks"]

_NOT_SHOWN = ("data.packing", "stage.num_steps")
_TOKENIZER_SETTINGS = (
    "data.source", "data.root", "seed", "tokenizer.backend", "tokenizer.vocab_size", "tokenizer.max_chars",
    "tokenizer.doc_cap_chars",
)  # fmt: skip
_SHOWN_QUESTIONS = 4
_SHOWN_CHARS = 700


def report_blocks(
    runs: Sequence[Run], logs: Sequence[TextLog] = (), *, usd_per_hour: float | None = None
) -> list[Block]:
    """Compose the report.

    Args:
        runs: Runs in the order of training.
        logs: Old text logs; each gets its own section.
        usd_per_hour: Price of the whole machine for an hour; None = no cost is given.
    """
    names = list(dict.fromkeys([run.name for run in runs] + [log.name for log in logs]))
    blocks: list[Block] = [Heading(1, f"Report: {', '.join(names)}")]
    labels = run_labels(runs)
    blocks += [figure for chain in chains(runs) if (figure := history_figure(chain)) is not None]
    if runs:
        blocks += _overview(runs, labels, usd_per_hour)
        environment = _environment(runs, labels)
        blocks.append(Heading(2, "Environment"))
        blocks.append(environment if environment.rows else Text("Nothing was recorded.", note=True))
        for run, label in zip(runs, labels):
            blocks += _stage(run, label)
        blocks += evaluation_blocks(runs, labels)
        blocks += _samples(runs, labels)
    for log in logs:
        blocks += _log(log)
    return blocks


def _overview(runs: Sequence[Run], labels: Sequence[str], usd_per_hour: float | None) -> Iterator[Block]:
    columns: dict[str, Callable[[Run], str]] = {
        "State": lambda run: run.status,
        "Steps": lambda run: _steps(run),
        "Tokens": lambda run: _count(last_value(run.curves, "tokens")),
        "Train loss": lambda run: _number(last_value(run.curves, "train/loss")) if run.stage != "rl" else "",
        "Val loss": lambda run: _number(last_value(run.curves, "val/loss")),
        "Bits per byte": lambda run: _number(last_value(run.curves, "val/bpb")),
        "pass@1": lambda run: _number(last_value(run.curves, "pass@1"), ".1%"),
        "Best step": lambda run: _count(run.summary.get("best_step")),
        "Tokens/s": lambda run: _count(run.median_speed),
        "Time": lambda run: _time(run.seconds),
    }
    table = {name: [of(run) for run in runs] for name, of in columns.items()}
    table = {name: cells for name, cells in table.items() if any(cells)}
    rows = tuple((label, *(cells[i] or "-" for cells in table.values())) for i, label in enumerate(labels))
    yield TextTable(("Stage", *table), rows)
    trained = sum(run.seconds or 0 for run in runs)
    evaluated = sum(result.seconds for run in runs for result in run.results)
    at_least = "at least " if any(run.status != "finished" or run.seconds is None for run in runs) else ""
    text = f"Total time: {at_least}{_time(trained + evaluated)}"
    text += f" ({_time(trained)} training, {_time(evaluated)} evaluation)."
    if usd_per_hour is not None:
        cost = (trained + evaluated) / 3600 * usd_per_hour
        text += f" Cost at {usd_per_hour:,.2f} USD an hour for the machine: {at_least}{cost:,.2f} USD."
    yield Text(text)
    for run, label in zip(runs, labels):
        for problem in run.problems:
            yield Text(f"{label}: {problem}", note=True)
    verdicts = [chance_verdict(result.rows) for run in runs for result in run.results]
    known = [verdict for verdict in verdicts if verdict is not None]
    progress = progress_sentence(runs, labels)
    if conclusion := " ".join(filter(None, (progress, overall_verdict(known)))):
        mostly_chance = 2 * sum(len(v.above) for v in known) < sum(v.num_compared for v in known)
        yield Text(conclusion, note=mostly_chance and not progress)
    yield Heading(2, "Summary")
    summary = summary_table(runs)
    if summary.rows:
        yield summary
        yield Text("In brackets: 95% intervals. Figures are of best.ckpt where that was evaluated, else of last.ckpt.")
    else:
        yield Text("Nothing has been evaluated yet.", note=True)


def _environment(runs: Sequence[Run], labels: Sequence[str]) -> TextTable:
    facts: dict[str, dict[str, str]] = {}
    for run, label in zip(runs, labels):
        for key, value in _machine(run):
            if value is not None and value != "":
                facts.setdefault(key, {})[label] = str(value)
    rows = []
    for key, by_label in facts.items():
        where: dict[str, list[str]] = {}
        for label, value in by_label.items():
            where.setdefault(value, []).append(label)
        everywhere = len(where) == 1 and len(by_label) == len(runs)
        texts = [value if everywhere else f"{', '.join(among)}: {value}" for value, among in where.items()]
        rows.append((key, "; ".join(texts)))
    return TextTable(("Where it ran", ""), tuple(rows))


def _machine(run: Run) -> Iterator[tuple[str, Any]]:
    """Yield what run.json and summary.json say of where a run ran, including facts that this version does not know."""
    record = {key: value for key, value in run.record.items() if key not in ("argv", "started")}
    commit, branch = record.pop("git_commit", None), record.pop("git_branch", None)
    yield "git commit", f"{commit} (branch {branch})" if commit and branch else commit
    yield "uncommitted changes", None if run.dirty is None else "yes" if run.dirty else "no"
    cores = record.pop("cpu_count", None)
    yield "processor", ", ".join(map(str, filter(None, (record.pop("cpu", None), cores and f"{cores} cores"))))
    yield "memory", _bytes(record.pop("memory_bytes", None))
    yield "GPU", _gpus(record.pop("gpus", None))
    yield "device", run.summary.get("device")
    yield "compute dtype", run.summary.get("compute_dtype")
    yield "peak memory of the device", _bytes(run.summary.get("peak_memory_bytes"))
    versions = record.pop("versions", None)
    for key, value in record.items():
        yield key.replace("_", " "), json.dumps(value) if isinstance(value, dict | list) else value
    if isinstance(versions, Mapping):
        yield "versions", ", ".join(f"{name} {number}" for name, number in versions.items())


def _gpus(gpus: Any) -> str:
    """Return text such as `2 × NVIDIA A100 (80.00 GiB)`, equal GPUs together; empty where none are known."""
    known = [gpu for gpu in gpus if isinstance(gpu, Mapping)] if isinstance(gpus, list) else []
    names = Counter(f"{gpu.get('name')} ({_bytes(gpu.get('memory_bytes'))})" for gpu in known)
    return ", ".join(f"{count} × {name}" if count > 1 else name for name, count in names.items())


def _shown_settings(stage: str) -> tuple[str, ...]:
    if stage == StageName.tokenizer:
        return _TOKENIZER_SETTINGS
    shown = tuple(key for key in SETTINGS if key not in _NOT_SHOWN)
    if stage == StageName.base:
        return ("depth", *shown)  # later stages have the shape of their initial weights
    return shown + (RL_SETTINGS if stage == StageName.rl else ())


def _stage(run: Run, label: str) -> Iterator[Block]:
    yield Heading(2, label if run.name in label else f"{label}: {run.name}")
    if argv := run.record.get("argv"):
        yield Code(shlex.join(["python", "train.py", *map(str, argv[1:])]))
    yield TextTable(("Result", ""), tuple(_outcome(run)))
    settings = settings_shown(run.config, _shown_settings(run.stage))
    if isinstance(tasks := setting(run.config, "mixture.tasks"), Mapping) and tasks:
        settings.append(("mixture.tasks", ", ".join(tasks)))
    if settings:
        yield TextTable(("Setting", ""), tuple(settings))
    yield from curve_figures(run.curves, label)
    if run.config_text:
        yield Folded("All settings (config.yaml)", (Code(run.config_text.rstrip()),))
    if run.summary:
        yield Folded("All recorded figures (summary.json)", (Code(json.dumps(run.summary, indent=2)),))


def _outcome(run: Run) -> Iterator[tuple[str, str]]:
    summary = run.summary
    yield "state", run.status
    if run.record.get("started"):
        yield "started", str(run.record["started"])
    if run.step is not None:
        yield "steps", _steps(run)
    for key, text in (("init_from", "initial weights"), ("device", "device"), ("compute_dtype", "compute dtype")):
        if summary.get(key):
            yield text, str(summary[key])
    bytes_per_token = filter(None, (_number(summary.get(f"{of}_bytes_per_token"), ".2f") for of in ("train", "val")))
    texts = (
        ("parameters", _count(summary.get("num_parameters"))),
        ("vocabulary", _count(summary.get("vocab_size"))),
        ("bytes per token, training and validation text", ", ".join(bytes_per_token)),
        ("tokens", _count(last_value(run.curves, "tokens"))),
        ("training FLOPs", _number(last_value(run.curves, "total_training_flops"), ".2e")),
        ("tokens per second, median", _count(run.median_speed)),
        ("MFU", f"{mfu:.1f}%" if (mfu := last_value(run.curves, "train/mfu")) is not None else ""),
        ("training time", _time(last_value(run.curves, "total_training_time"))),
        ("time in all", _time(run.seconds)),
    )
    yield from ((key, text) for key, text in texts if text)
    chosen = validation_metric(run.curves)
    if chosen is None:
        return
    metric, higher = chosen
    best = best_point(run.curves[metric], higher)
    yield f"{metric}, first and last", f"{run.curves[metric][0][1]:.4f}, {run.curves[metric][-1][1]:.4f}"
    if best is not None:
        yield f"{metric}, best", f"{best[1]:.4f} at step {best[0]:,}"
        kept = summary.get("best_step")
        if kept is not None and kept != best[0]:
            why = "; the start itself is never kept" if best[0] == 0 else ""
            yield "best.ckpt", f"of step {kept:,}, {metric} {_number(summary.get('best'))}{why}"


def _samples(runs: Sequence[Run], labels: Sequence[str]) -> Iterator[Block]:
    blocks: list[Block] = []
    for name in sorted({result.name for run in runs for result in run.results}):
        results = evaluated_checkpoints(runs, labels, name)
        needed = {"id", "prompt", "output"}
        records = {label: [r for r in result.records if needed <= r.keys()] for label, result in results.items()}
        shared = shared_questions({label: own for label, own in records.items() if own})
        # Questions on which the checkpoints differ come first; sorting keeps the order asked.
        for question in sorted(shared, key=lambda question: not question.differ)[:_SHOWN_QUESTIONS]:
            answers = []
            for label, answer in question.answers.items():
                right = None if answer.get("correct") is None else bool(answer["correct"])
                verdict = {None: "not judged", True: "right", False: "wrong"}[right]
                answers.append((f"{label} ({verdict}):", _cut(answer["output"]), right))
            shown = (Code(_cut(question.prompt)), Text(f"Expected: {question.expected}"), Answers(tuple(answers)))
            blocks.append(Folded(f"{name}: {_cut(question.prompt, 80)}", shown))
    for run, label in zip(runs, labels):
        blocks += _continued(run, label)
        for sample in [sample for sample in run.samples if "answers" in sample][-_SHOWN_QUESTIONS:]:
            inside: list[Block] = [Code(_cut(sample.get("question", "")))]
            for answer in sample.get("answers", [])[:_SHOWN_QUESTIONS]:
                inside += [Text(f"reward {answer.get('reward')}:"), Code(_cut(answer.get("text", "")))]
            blocks.append(Folded(f"{label}, step {sample.get('step')}", tuple(inside)))
    if blocks:
        yield Heading(2, "Samples")
        yield from blocks


def _continued(run: Run, label: str) -> Iterator[Block]:
    """Yield what the model wrote after fixed prompts while it learned: the first, a middle and the last time."""
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for sample in run.samples:
        if "prompt" in sample:
            by_prompt.setdefault(str(sample["prompt"]), []).append(sample)
    for prompt, samples in list(by_prompt.items())[:_SHOWN_QUESTIONS]:
        inside: list[Block] = [Code(_cut(prompt))]
        for number in sorted({0, len(samples) // 2, len(samples) - 1}):
            shown = samples[number]
            end = "" if shown.get("stopped") else f", cut after {shown.get('tokens')} tokens"
            inside += [Text(f"step {shown.get('step')}{end}:"), Code(_cut(shown.get("output", "")))]
        yield Folded(f"{label}: {_cut(' '.join(prompt.split()), 80)}", tuple(inside))


def _log(log: TextLog) -> Iterator[Block]:
    yield Heading(2, f"Text log {log.name}")
    rows = [("lines understood", f"{log.num_lines:,}")]
    last = max(curve[-1][0] for curve in log.curves.values())
    rows.append(("last step", f"{last:,}" + (f" of {log.num_steps:,}" if log.num_steps else "")))
    for metric in ("train/loss", "val/loss"):
        if metric in log.curves:
            values = log.curves[metric]
            rows.append((f"{metric}, first and last", f"{values[0][1]:.4f}, {values[-1][1]:.4f}"))
    if best := best_point(log.curves.get("val/loss", ())):
        rows.append(("val/loss, best", f"{best[1]:.4f} at step {best[0]:,}"))
    yield TextTable(("Log", ""), tuple(rows))
    yield from curve_figures(log.curves, "log_" + log.name.replace("\\", "/").rpartition("/")[2])


# --- numbers as text ---


def _steps(run: Run) -> str:
    if run.step is None:
        return ""
    total = run.summary.get("num_steps")
    return f"{run.step:,}" if total in (None, run.step) else f"{run.step:,} of {total:,}"


def _number(value: float | None, form: str = ".4f") -> str:
    """Format a number; an unknown one is empty."""
    return "" if value is None else format(value, form)


def _count(value: float | None) -> str:
    return _number(value, ",.0f")


def _bytes(value: float | None) -> str:
    return "" if value is None else f"{value / 2**30:.2f} GiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def _cut(text: str, limit: int = _SHOWN_CHARS) -> str:
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"
