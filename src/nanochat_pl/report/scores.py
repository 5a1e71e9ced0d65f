"""What the evaluations of runs say, side by side and with their intervals.

Nothing is claimed inside the noise: accuracies whose intervals contain what chance gives are called that, and every
figure stands beside what needs no model. Of long tables the headline figures come first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from nanochat_pl.eval.results import MetricRow
from nanochat_pl.report.markdown import Block, Folded, Heading, Table, Text
from nanochat_pl.report.plots import bar_figures
from nanochat_pl.report.runs import STAGES, Result, Run

__all__ = ["chance_verdict", "evaluated_checkpoints", "evaluation_blocks", "run_labels", "summary_table"]

_SUMMARY_STAGES = ("base", "mid", "sft", "rl")
_HEADLINES = {
    "core_metric": "",
    "chatcore_metric": "",
    "accuracy": "",
    "pass@1": "pass@1",
    "exact_match": "exact match",
    "strict/accuracy_over_asked": "as written",
    "loglikelihood/accuracy": "by likelihood",
    "pass_rate": "passed",
    "bpb": "bits per byte",
}
"""Metrics of the summary table -> how they are called after the name of the task."""
_LONG_TABLE_ROWS = 14


def summary_table(runs: Sequence[Run]) -> Table:
    """Return Metric | BASE | MID | SFT | RL: the headline figure of every evaluation, of the best checkpoint evaluated.

    CORE stands first and ChatCORE last. Other stages, and several runs of one stage, get columns of their own.
    """
    labels = run_labels(runs)
    columns = {label: _headline_rows(run) for run, label in zip(runs, labels) if run.stage != "tokenizer"}
    order = sorted({key for rows in columns.values() for key in rows})
    if all(run.name == runs[0].name for run in runs):
        extra = [label for label in columns if label not in _SUMMARY_STAGES]
        shown = sorted({*_SUMMARY_STAGES, *extra}, key=lambda name: (_position(name), name))
    else:
        shown = list(columns)
    body = tuple(
        (key[-1], *(_cell(columns[name][key]) if key in columns.get(name, {}) else "-" for name in shown))
        for key in order
    )
    return Table(("Metric", *(name.upper() if name in STAGES else name for name in shown)), body)


def chance_verdict(rows: Sequence[MetricRow]) -> tuple[str, int] | None:
    """Say how the accuracies stand to what chance gives, and how many are better; None if nothing can be compared.

    An accuracy is better than chance if its whole interval lies above; the intervals are not widened for their number.
    """
    compared = [
        (row, row.interval, float(row.baseline["chance"]))
        for row in rows
        if row.group is None and row.interval and row.count is not None and row.baseline and "chance" in row.baseline
    ]
    if not compared:
        return None
    alone = len({row.task for row, _, _ in compared}) == 1
    above = [_name(row, alone) for row, interval, chance in compared if interval.low > chance]
    below = [_name(row, alone) for row, interval, chance in compared if interval.high < chance]
    of = f"{len(compared)} accuracies" if len(compared) > 1 else "one accuracy"
    if len(above) == len(compared):
        return f"better than chance in all of {of}", len(above)
    if not above and not below:
        every = "every 95% interval contains" if len(compared) > 1 else "the 95% interval contains"
        return f"not distinguishable from chance ({of} measured; {every} its chance baseline)", 0
    if above:
        text = f"better than chance in {len(above)} of {of}: {', '.join(above)}"
        text += "; the intervals are not corrected for their number" if len(compared) > 5 else ""
    else:
        text = f"nowhere better than chance ({of} measured)"
    if below:
        text += f"; worse than chance: {', '.join(below)} (an answer that cannot be read counts as wrong)"
    return text, len(above)


def evaluation_blocks(runs: Sequence[Run], labels: Sequence[str]) -> Iterator[Block]:
    """Give the section on evaluations: of each its verdict on chance, its tables and its bars; nothing without any.

    Args:
        runs: Runs in the order of training.
        labels: Their names in the report, as `run_labels` gives them.
    """
    names = sorted({result.name for run in runs for result in run.results})
    if names:
        yield Heading(2, "Evaluations")
    for name in names:
        columns = evaluated_checkpoints(runs, labels, name)
        yield Heading(3, name)
        verdicts = {label: chance_verdict(result.rows) for label, result in columns.items()}
        for label, verdict in verdicts.items():
            if verdict is not None:
                yield Text(f"{label}: {verdict[0]}.", note=verdict[1] == 0)
        table = _metric_table(columns, grouped=False)
        if len(table.rows) > _LONG_TABLE_ROWS and (short := _headline_table(columns)).rows:
            yield short
            yield Folded(f"All {len(table.rows)} figures of {name}", (table,))
        elif table.rows:
            yield table
        yield from bar_figures({label: result.rows for label, result in columns.items()}, name)
        groups = _metric_table(columns, grouped=True)
        if groups.rows:
            yield Folded(f"{name} by part: {len(groups.rows)} figures", (groups,))


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Name each run as short as tells them apart: stage, stage and run name, or folder."""
    for label in (lambda run: run.stage, lambda run: f"{run.stage}/{run.name}"):
        labels = [label(run) for run in runs]
        if len(set(labels)) == len(runs):
            return labels
    return [str(run.folder) for run in runs]


def evaluated_checkpoints(runs: Sequence[Run], labels: Sequence[str], name: str) -> dict[str, Result]:
    """Return the results of the evaluation `name`, each under its run's label, with its file's name unless the best."""
    return {
        label if result.checkpoint == "best" else f"{label}:{result.checkpoint}": result
        for run, label in zip(runs, labels)
        for result in run.results
        if result.name == name
    }


def _metric_table(columns: Mapping[str, Result], grouped: bool) -> Table:
    """Put the figures of several checkpoints side by side, a row a figure, in the order they were measured."""
    cells: dict[tuple[str, str, str], dict[str, MetricRow]] = {}
    for label, result in columns.items():
        for row in result.rows:
            if (row.group is not None) == grouped:
                part = ", ".join(f"{by} {value}" for by, value in (row.group or {}).items())
                cells.setdefault((row.task, part, row.metric), {})[label] = row
    alone = len({task for task, _, _ in cells}) == 1  # the heading above names it
    rows = []
    for (task, part, metric), found in cells.items():
        counts = sorted({row.n for row in found.values()})
        baseline = next((row.baseline for row in found.values() if row.baseline), {})
        rows.append(
            (
                ", ".join(word for word in ("" if alone else task, part, metric) if word),
                *(_cell(found[label]) if label in found else "-" for label in columns),
                _baseline(baseline) or "-",
                " / ".join(f"{n:,}" for n in counts),
            )
        )
    return Table(("Metric" if alone else "Task, metric", *columns, "Without a model", "n"), tuple(rows))


def _headline_table(columns: Mapping[str, Result]) -> Table:
    rows = [row for result in columns.values() for row in result.rows if row.group is None and row.metric in _HEADLINES]
    chosen = {(row.task, row.metric) for row in rows}
    short = {
        label: replace(result, rows=tuple(row for row in result.rows if (row.task, row.metric) in chosen))
        for label, result in columns.items()
    }
    return _metric_table(short, grouped=False)


def _headline_rows(run: Run) -> dict[tuple[int, str, str], MetricRow]:
    """Find the headline figures of a run by their place in the summary table and their names."""
    found: dict[tuple[int, str, str], MetricRow] = {}
    for result in run.results:
        rows = [row for row in result.rows if row.group is None and row.metric in _HEADLINES]
        if any(row.metric == "core_metric" for row in rows):  # its 22 tasks are in its own table
            rows = [row for row in rows if row.metric == "core_metric"]
        for row in rows:
            place = {"core_metric": 0, "chatcore_metric": 2}.get(row.metric, 1)
            chance = f" (chance {row.baseline['chance']:.1%})" if row.baseline and "chance" in row.baseline else ""
            name = _name(row) + chance
            found.setdefault((place, name.casefold(), name), row)
    return found


def _position(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _name(row: MetricRow, alone: bool = False) -> str:
    """Name a figure by its task and metric; by its metric only where its task stands `alone`."""
    words = _HEADLINES.get(row.metric, row.metric)
    if alone and words:
        return words
    return f"{row.task}, {words}" if words else row.task


def _cell(row: MetricRow) -> str:
    if row.value is None:
        return f"- (n = {row.n})"
    share = row.count is not None or row.metric.startswith("pass@")
    scale, form = (100, ".1f") if share else (1, ".4g")
    text = f"{scale * row.value:{form}}{'%' if share else ''}"
    if row.interval is None:
        return text
    return f"{text} [{scale * row.interval.low:{form}}, {scale * row.interval.high:{form}}]"


def _baseline(baseline: Mapping[str, float | str]) -> str:
    """Write `chance 33.8%, majority 35.0% (A)`."""
    text = ""
    for key, value in baseline.items():
        text += f" ({value})" if isinstance(value, str) else f", {key} {value:.1%}"
    return text.lstrip(", ")
