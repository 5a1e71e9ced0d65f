"""Put the figures of evaluations into words and tables, side by side and with their intervals.

Nothing is claimed inside the noise: accuracies that chance explains are said to be chance, and every figure is shown
with what is reached without a model. Long tables begin with the headline figures.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from nanochat_pl.config.stages import STAGES, training_order
from nanochat_pl.eval.metrics import metric_of
from nanochat_pl.eval.results import MetricRow
from nanochat_pl.eval.stats import binomial_test, holm_correction, p_text
from nanochat_pl.paths import first_distinct
from nanochat_pl.report.blocks import Block, Folded, Heading, Text, TextTable
from nanochat_pl.report.charts import bar_figures
from nanochat_pl.report.read import EvaluationResult, Run

__all__ = [
    "Verdict",
    "chance_verdict",
    "evaluated_checkpoints",
    "evaluation_blocks",
    "figure_text",
    "format_value",
    "overall_verdict",
    "progress_sentence",
    "run_labels",
    "summary_table",
]

_SUMMARY_STAGES = [str(name) for name, stage in STAGES.items() if stage.in_summary]
_LONG_TABLE_ROWS = 14
_ALPHA = 0.05


def format_value(value: float, share: bool) -> str:
    """Return a share in percent, anything else with four decimals."""
    return f"{value:.1%}" if share else f"{value:.4f}"


def figure_text(row: MetricRow | None, missing: str = "–") -> str:
    """Return a figure with its interval, such as `36.8% [29.9%, 46.4%]`."""
    if row is None or row.value is None:
        return missing
    text = format_value(row.value, row.is_share)
    if row.interval is not None:
        text += f" [{format_value(row.interval.low, row.is_share)}, {format_value(row.interval.high, row.is_share)}]"
    return text


def summary_table(runs: Sequence[Run]) -> TextTable:
    """Return the table of headline figures of each stage's best evaluated checkpoint: Metric | BASE | MID | SFT | RL.

    CORE comes first and ChatCORE last. Other stages, and several runs of one stage, get their own columns.
    """
    labels = run_labels(runs)
    columns = {label: _headline_rows(run, runs) for run, label in zip(runs, labels) if run.stage != "tokenizer"}
    order = sorted({key for rows in columns.values() for key in rows})
    if all(run.name == runs[0].name for run in runs):
        extra = [label for label in columns if label not in _SUMMARY_STAGES]
        shown = sorted({*_SUMMARY_STAGES, *extra}, key=lambda name: (training_order(name), name))
    else:
        shown = list(columns)
    body = tuple(
        (key[-1], *(_cell(columns[name][key]) if key in columns.get(name, {}) else "-" for name in shown))
        for key in order
    )
    return TextTable(("Metric", *(name.upper() if name in STAGES else name for name in shown)), body)


class Verdict(NamedTuple):
    """How the accuracies of one evaluation compare with chance."""

    text: str
    above: tuple[str, ...]
    """Names of those that are better than chance."""
    num_compared: int


def chance_verdict(rows: Sequence[MetricRow]) -> Verdict | None:
    """Compare the accuracies with chance; None if nothing can be compared.

    Where there are no choices to guess among, always giving the commonest answer takes the place of chance. Each
    accuracy is tested against its chance (exact binomial test, two-sided), and all are corrected together (Holm):
    otherwise one of twenty tasks would be better by luck. Where the chance differs between questions, its mean is used,
    which makes the test conservative. CORE and ChatCORE, where 0 is chance, are judged by their intervals.
    """
    compared = [
        (row, guess)
        for row in rows
        if row.group is None and row.count is not None and row.n and (guess := _guess(row)) is not None
    ]
    if not compared:
        return None
    alone = len({row.task for row, _ in compared}) == 1
    corrected = holm_correction([binomial_test(row.count or 0, row.n, chance) for row, chance in compared])
    found = [(row, (row.value or 0.0) - chance) for (row, chance), p in zip(compared, corrected) if p < _ALPHA]
    above = [_name(row, alone) for row, difference in found if difference > 0]
    below = [_name(row, alone) for row, difference in found if difference < 0]
    of = f"{len(compared)} accuracies" if len(compared) > 1 else "one accuracy"
    holm = f", Holm over {len(compared)} tests" if len(compared) > 1 else ""
    if len(above) == len(compared):
        text = f"better than chance ({'all ' if holm else ''}{of} measured)"
    elif above:
        text = f"better than chance in {len(above)} of {of}: {', '.join(above)}"
    elif below:
        text = f"nowhere better than chance ({of} measured)"
    else:
        p = p_text(min(corrected), _ALPHA)
        text = f"not distinguishable from chance ({of} measured; {'smallest ' if holm else ''}{p}{holm})"
    if below:
        text += f"; worse than chance: {', '.join(below)} (an answer that cannot be read counts as wrong)"
    for row in rows:
        if (
            metric_of(row.metric).is_composite
            and row.interval is not None
            and row.interval.low <= 0 <= row.interval.high
        ):
            text += f"; {row.task} itself is not distinguishable from 0, which is guessing"
    names = [_name(row) for row, difference in found if difference > 0]
    return Verdict(text, tuple(names), len(compared))


def _guess(row: MetricRow) -> float | None:
    """Return what is reached without a model: chance, else the share of the commonest answer; None if not known."""
    baseline = row.baseline or {}
    guess = baseline.get("chance", baseline.get("majority"))
    return float(guess) if isinstance(guess, int | float) else None


def progress_sentence(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """Return which headline figures moved beyond their intervals over the stages of one chain; empty where none did.

    Each is compared between the first and the last stage that has it.
    """
    if len({run.name for run in runs}) != 1:
        return ""
    figures: dict[str, list[tuple[str, MetricRow]]] = {}
    for run, label in zip(runs, labels):
        for (*_, name), row in _headline_rows(run, runs).items():
            figures.setdefault(name.partition(" (chance")[0], []).append((label, row))
    moved = []
    for name, stages in figures.items():
        (before, first), (after, last) = stages[0], stages[-1]
        if len(stages) < 2 or not (
            first.interval and last.interval and first.value is not None and last.value is not None
        ):
            continue
        guess = _guess(last)
        then, now = format_value(first.value, first.is_share), format_value(last.value, last.is_share)
        if first.interval.high < last.interval.low and (guess is None or last.interval.low > guess):
            moved.append(f"{name} rose from {then} ({before}) to {now} ({after})")
        elif last.interval.high < first.interval.low:
            moved.append(f"{name} fell from {then} ({before}) to {now} ({after})")
    return f"{'; '.join(moved)}." if moved else ""


def overall_verdict(verdicts: Sequence[Verdict]) -> str:
    """Compare all evaluations of a report with chance in one sentence; empty where nothing was compared."""
    compared = sum(verdict.num_compared for verdict in verdicts)
    above = [name for verdict in verdicts for name in verdict.above]
    if not compared:
        return ""
    if not above:
        return f"Chance: none of {compared} accuracies is better than guessing; see the evaluations below."
    counted = Counter(above)
    named = ", ".join(f"{name} ({count} times)" if count > 1 else name for name, count in counted.most_common(6))
    more = ", …" if len(counted) > 6 else ""
    if 2 * len(above) < compared:
        return f"Mostly chance: {len(above)} of {compared} accuracies are better than guessing: {named}{more}."
    return f"{len(above)} of {compared} accuracies are better than guessing."


def evaluation_blocks(runs: Sequence[Run], labels: Sequence[str]) -> Iterator[Block]:
    """Yield the section on evaluations, if there are any: each has its verdict on chance, its tables and its bars.

    Args:
        runs: Runs in the order of training.
        labels: Their labels, from `run_labels`.
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
                yield Text(f"{label}: {verdict.text}.", note=not verdict.above)
        table = _metric_table(columns, grouped=False)
        headlines = {label: replace(result, rows=_headlines(result)) for label, result in columns.items()}
        if len(table.rows) > _LONG_TABLE_ROWS and (short := _metric_table(headlines, grouped=False)).rows:
            yield short
            yield Folded(f"All {len(table.rows)} figures of {name}", (table,))
        elif table.rows:
            yield table
        yield from bar_figures({label: result.rows for label, result in columns.items()}, name)
        groups = _metric_table(columns, grouped=True)
        if groups.rows:
            yield Folded(f"{name} by part: {len(groups.rows)} figures", (groups,))


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Return the shortest labels that distinguish the runs: stage, stage and run name, or folder."""
    labels = first_distinct([run.stage for run in runs], [f"{run.stage}/{run.name}" for run in runs])
    return labels or [str(run.folder) for run in runs]


def evaluated_checkpoints(runs: Sequence[Run], labels: Sequence[str], name: str) -> dict[str, EvaluationResult]:
    """Return the results of an evaluation by the label of the run, with the name of the file unless it is the best."""
    return {
        label if result.checkpoint_name == "best" else f"{label}:{result.checkpoint_name}": result
        for run, label in zip(runs, labels)
        for result in run.results
        if result.name == name
    }


def _metric_table(columns: Mapping[str, EvaluationResult], grouped: bool) -> TextTable:
    """Return the figures of several checkpoints side by side, one figure a row, in the order they were measured."""
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
        baseline = next((text for row in found.values() if (text := _baseline(row))), "-")
        rows.append(
            (
                ", ".join(word for word in ("" if alone else task, part, metric) if word),
                *(_cell(found[label]) if label in found else "-" for label in columns),
                baseline,
                " / ".join(f"{n:,}" for n in counts),
            )
        )
    return TextTable(("Metric" if alone else "Task, metric", *columns, "Without a model", "n"), tuple(rows))


def _headlines(result: EvaluationResult) -> list[MetricRow]:
    return [row for row in result.rows if row.group is None and metric_of(row.metric).is_headline]


def _headline_rows(run: Run, runs: Sequence[Run]) -> dict[tuple[int, str, str], MetricRow]:
    """Return the headline figures of a run by their position in the summary table and their names.

    Where two evaluations of the `runs` have a figure of one name, such as chat and arc, it has theirs in addition.
    """
    homes: dict[str, set[str]] = {}
    for result in (result for other in runs for result in other.results):
        for row in _headlines(result):
            homes.setdefault(_name(row), set()).add(result.name)
    found: dict[tuple[int, str, str], MetricRow] = {}
    for result in run.results:
        rows = _headlines(result)
        if core := {row.task for row in rows if row.metric == "core_metric"}:  # its 22 tasks are in its own table
            rows = [row for row in rows if row.task in core]
        for row in rows:
            place = {"core_metric": 0, "chatcore_metric": 2}.get(row.metric, 1)
            name = _name(row)
            name += f" ({result.name})" if len(homes[name]) > 1 else ""
            if row.count is not None and row.baseline and "chance" in row.baseline:
                name += f" (chance {row.baseline['chance']:.1%})"
            found.setdefault((place, name.casefold(), name), row)
    return found


def _name(row: MetricRow, alone: bool = False) -> str:
    """Return the name of a figure: its task and metric, or its metric alone where there is no other task (`alone`)."""
    words = metric_of(row.metric).words
    words = row.metric if words is None else words
    if alone and words:
        return words
    return f"{row.task}, {words}" if words else row.task


def _cell(row: MetricRow) -> str:
    if row.value is None:
        return f"- (n = {row.n})"
    plain = ".4f" if metric_of(row.metric).is_composite or metric_of(row.metric).unit == "bits per byte" else ".4g"
    scale, form = (100, ".1f") if row.is_share else (1, ",.0f" if abs(row.value) >= 1000 else plain)
    text = f"{scale * row.value:{form}}{'%' if row.is_share else ''}"
    if row.interval is None:
        return text
    return f"{text} [{scale * row.interval.low:{form}}, {scale * row.interval.high:{form}}]"


def _baseline(row: MetricRow) -> str:
    """Return `chance 33.8%, majority 35.0% (A)`, or `chance 0` for a figure over several tasks."""
    if metric_of(row.metric).is_composite:  # its baseline may be those of its tasks, which are scaled to 0
        return "chance 0"
    text = ""
    for key, value in (row.baseline or {}).items():
        if isinstance(value, str):
            text += f" ({value})"
        else:
            text += f", {key} {value:.4g}" if row.count is None else f", {key} {value:.1%}"
    return text.lstrip(", ")
