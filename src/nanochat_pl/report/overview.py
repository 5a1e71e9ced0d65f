"""What one comparison has to say, gathered and put into words: tables, verdicts, notes, answers side by side.

Terminal, Markdown, HTML and JSON show the same overview, so that none of them says what another does not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nanochat_pl.eval.results import MetricRow
from nanochat_pl.report.comparison import Judgement, Line, compare_runs, settings_that_differ
from nanochat_pl.report.evaluated import EvaluatedRun, evaluate_command, evaluation_names
from nanochat_pl.report.seeds import SeedLine, compare_seeds, group_by_seed
from nanochat_pl.report.side_by_side import Shared, side_by_side

__all__ = [
    "Overview",
    "baseline_text",
    "briefly",
    "draw_up",
    "figure_name",
    "figure_text",
    "format_value",
    "tables",
    "verdicts",
]


MANY = 8
"""Beyond so many verdicts the terminal counts those that name no winner."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All that one comparison has to say."""

    entrants: Sequence[EvaluatedRun]
    lines: Sequence[Line]
    groups: Sequence[Sequence[int]]
    """Indices of the entrants of a group of seeds; empty where groups were not asked for."""
    seeds: Sequence[SeedLine]
    answers: Mapping[str, Sequence[Shared]]
    notes: Sequence[str]


def draw_up(
    entrants: Sequence[EvaluatedRun], *, metrics: Sequence[str] | None = None, seeds: bool = False, limit: int = 30
) -> Overview:
    """Compare the entrants and gather what there is to say about it.

    Args:
        entrants: One or more; the first is what the others are held against.
        metrics: As `compare_runs` takes them.
        seeds: Summarize groups of runs that differ in their seed only.
        limit: Most questions of each evaluation that are shown with their answers.

    Raises:
        ValueError: As `compare_runs`; or groups are asked for and the config of a run is not known.
    """
    lines = compare_runs(entrants, metrics=metrics)
    groups = group_by_seed(entrants) if seeds else []
    notes = settings_that_differ(entrants)
    for name in evaluation_names(entrants):
        if without := [entrant for entrant in entrants if name not in entrant.results]:
            names = ", ".join(entrant.label for entrant in without)
            notes.append(f"no results of {name}: {names}; {evaluate_command(without, name)}")
    if not seeds and len(entrants) > 1 and all(entrant.config is not None for entrant in entrants):
        for group in group_by_seed(entrants):
            if len(group) > 1 and len({(entrants[i].config or {}).get("seed") for i in group}) > 1:
                names = ", ".join(entrants[index].label for index in group)
                notes.append(f"{names} differ in their seed only: --seeds gives their mean ± std")
    return Overview(
        entrants=entrants,
        lines=lines,
        groups=groups,
        seeds=compare_seeds(entrants, lines, groups) if groups else [],
        answers=side_by_side(entrants, limit),
        notes=notes,
    )


def figure_name(line: Line | SeedLine) -> str:
    """Return the name of a figure within its evaluation: metric, with the task before it where that is another."""
    return line.metric if line.task == line.evaluation else f"{line.task} {line.metric}"


def format_value(value: float, share: bool) -> str:
    """Return a share in percent, anything else with four decimals."""
    return f"{value:.1%}" if share else f"{value:.4f}"


def figure_text(row: MetricRow | None, missing: str = "–") -> str:
    """Return a figure with its interval, such as `36.8% [29.9%, 46.4%]`."""
    if row is None or row.value is None:
        return missing
    share = row.is_share
    text = format_value(row.value, share)
    if row.interval is not None:
        text += f" [{format_value(row.interval.low, share)}, {format_value(row.interval.high, share)}]"
    return text


def _difference(judgement: Judgement | None, row: MetricRow | None) -> str:
    if judgement is None or row is None:
        return ""
    scale, form, unit = (100, "+.1f", " points") if row.is_share else (1, "+.4f", "")
    text = f"{scale * judgement.difference:{form}}"
    if judgement.interval is not None:
        text += f" [{scale * judgement.interval.low:{form}}, {scale * judgement.interval.high:{form}}]"
    return text + unit


def baseline_text(line: Line) -> str:
    """Say what a figure is without a model, such as `chance 25.0%`; empty where that is not known."""
    baseline = next((row.baseline for row in line.rows if row is not None and row.baseline), {})
    return ", ".join(f"{key} {value:.1%}" for key, value in baseline.items() if isinstance(value, float))


def verdicts(overview: Overview) -> Iterator[str]:
    """Say what each entrant is against the first, a sentence a figure."""
    for line in overview.lines:
        first = overview.entrants[line.reference].label
        for entrant, judgement in zip(overview.entrants, line.judgements):
            if judgement is not None:
                yield f"{entrant.label} against {first}, {line.evaluation} {figure_name(line)}: {judgement.verdict}"
    for seeds in overview.seeds:
        for group, verdict in zip(overview.groups, seeds.verdicts):
            if verdict:
                yield f"seeds of {_group(overview, group)}, {seeds.evaluation} {figure_name(seeds)}: {verdict}"


def briefly(said: Sequence[str]) -> list[str]:
    """Leave out, of more than `MANY` verdicts, those that name no winner, and say how many they were."""
    told = [sentence for sentence in said if len(said) <= MANY or "not distinguishable" not in sentence]
    if len(told) < len(said):
        told.append(f"{len(said) - len(told)} further figures: not distinguishable")
    return told


def _group(overview: Overview, group: Sequence[int]) -> str:
    entrants = [overview.entrants[index] for index in group]
    seeds = ", ".join(str((entrant.config or {}).get("seed")) for entrant in entrants)
    return f"{entrants[0].label} (seed {seeds})"


def _spread(line: SeedLine, index: int, share: bool) -> str:
    spread = line.spreads[index]
    if spread is None:
        return "–"
    text = format_value(spread.mean, share)
    if spread.std is not None and spread.interval is not None:
        low, high = format_value(spread.interval.low, share), format_value(spread.interval.high, share)
        text += f" ± {format_value(spread.std, share)} [{low}, {high}]"
    return f"{text} (n = {spread.n})"


def tables(overview: Overview) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Give title, header and rows of each table: one an evaluation, and one over seeds where there are groups."""
    shares = [any(row is not None and row.is_share for row in line.rows) for line in overview.lines]
    for name in dict.fromkeys(line.evaluation for line in overview.lines):
        rows = []
        for line in overview.lines:
            if line.evaluation == name:
                cells = [
                    "\n".join(filter(None, (figure_text(row), _difference(judgement, row))))
                    for row, judgement in zip(line.rows, line.judgements)
                ]
                rows.append(["\n".join(filter(None, (figure_name(line), baseline_text(line)))), *cells])
        yield f"{name}: value [95% interval], difference", ["", *(e.label for e in overview.entrants)], rows
    if overview.seeds:
        rows = [
            [f"{line.evaluation} {figure_name(line)}", *(_spread(line, i, share) for i in range(len(overview.groups)))]
            for line, share in zip(overview.seeds, shares)
        ]
        header = ["", *(_group(overview, group) for group in overview.groups)]
        yield "over seeds: mean ± std [95% t interval of the mean]", header, rows
