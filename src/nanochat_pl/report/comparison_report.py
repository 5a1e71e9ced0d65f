"""The whole of one comparison: tables, verdicts, notes, charts over the stages, answers side by side.

Terminal, Markdown, HTML and JSON all show the same `ComparisonReport`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nanochat_pl.eval.results import MetricRow
from nanochat_pl.eval.stats import Spread
from nanochat_pl.report.blocks import Answers, Block, Bullets, Code, Heading, Text, TextTable, render_markdown
from nanochat_pl.report.charts import Figure, chance_of, interval_chart
from nanochat_pl.report.compare import (
    ComparedMetric,
    Difference,
    compare_runs,
    missing_figures,
    settings_that_differ,
)
from nanochat_pl.report.efficiency import (
    Efficiency,
    compare_efficiency,
    efficiency_figure,
    efficiency_sentences,
    efficiency_table,
)
from nanochat_pl.report.enough import enough_cells, enough_text, size_text
from nanochat_pl.report.evaluated import (
    TRAINING,
    EvaluatedRun,
    evaluate_command,
    evaluation_names,
    question_key,
    stage_order,
)
from nanochat_pl.report.html import render_html
from nanochat_pl.report.read import Record
from nanochat_pl.report.scores import figure_text, format_value
from nanochat_pl.report.seeds import (
    SeedMetric,
    compare_seeds,
    group_by_seed,
    group_label,
    refuse_repeated,
    seeds_of,
    validated_alike,
)

__all__ = [
    "ComparisonReport",
    "SharedQuestion",
    "build_comparison",
    "comparison_html",
    "comparison_json",
    "comparison_markdown",
    "examples_page",
    "shared_questions",
    "short_verdicts",
    "side_by_side",
    "tables",
    "text_chart",
    "verdicts",
]

MANY = 8
"""Above this number of verdicts the terminal only counts those that name no winner."""
_BAR = 32
_ANSWER_FIELDS = {"prompt", "expected", "output", "correct"}


@dataclass(frozen=True, kw_only=True)
class SharedQuestion:
    """One question that several checkpoints answered."""

    task: str
    """Empty where the evaluation has only one."""
    id: str
    prompt: str
    expected: str
    answers: Mapping[str, Record] = field(repr=False)
    """Answers by the label of the checkpoint."""

    @property
    def name(self) -> str:
        """Name of the question within its evaluation."""
        return "/".join(filter(None, (self.task, self.id)))

    @property
    def differ(self) -> bool:
        """Whether some of them are right and some wrong."""
        return len({bool(answer.get("correct")) for answer in self.answers.values()}) > 1

    @property
    def block(self) -> Answers:
        """The answers as reports show them: label and verdict, what was written, and whether it is right."""
        rows = [(label, str(a["output"]), bool(a["correct"])) for label, a in self.answers.items()]
        return Answers(tuple((f"{label}: {'right' if ok else 'wrong'}", output, ok) for label, output, ok in rows))


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """The whole of one comparison."""

    runs: Sequence[EvaluatedRun]
    metrics: Sequence[ComparedMetric]
    groups: Sequence[Sequence[int]]
    """Indices of the runs of each group of seeds; empty where groups were not asked for."""
    seeds: Sequence[SeedMetric]
    answers: Mapping[str, Sequence[SharedQuestion]]
    """Questions by the name of the evaluation."""
    efficiency: Efficiency | None
    """What the bits per byte of training are worth; None where there are no curves to compare."""
    notes: Sequence[str]

    @property
    def labels(self) -> list[str]:
        return [run.label for run in self.runs]

    @property
    def group_labels(self) -> list[str]:
        """One for each run: the name of its group, if groups of seeds were asked for."""
        labels = self.labels
        for group in self.groups:
            name = group_label([self.runs[index] for index in group])
            labels = [name if index in group else label for index, label in enumerate(labels)]
        return labels


def build_comparison(
    runs: Sequence[EvaluatedRun], *, metrics: Sequence[str] | None = None, seeds: bool = False, limit: int = 30
) -> ComparisonReport:
    """Compare runs and collect all that a comparison shows.

    Args:
        runs: One or more; the others are compared with the first.
        metrics: As for `compare_runs`.
        seeds: Summarize groups of runs that differ in their seed only.
        limit: The most questions of each evaluation that are shown with their answers.

    Raises:
        ValueError: As `compare_runs`; or groups are asked for and the config of a run is not known.
    """
    compared = compare_runs(runs, metrics=metrics)
    groups = group_by_seed(runs) if seeds else []
    refuse_repeated(runs, groups)
    notes = [f"{run.label}: {problem}" for run in runs for problem in run.problems]
    notes += [*missing_figures(runs, compared), *settings_that_differ(runs)]
    if any(metric.evaluation == TRAINING for metric in compared):
        for index in (index for group in groups for index in validated_alike(group, runs)[1]):
            notes.append(
                f"{runs[index].label} was not validated at the same steps as its other seeds: left out of what is said "
                "of training over seeds"
            )
    for name in evaluation_names(runs):
        if without := [run for run in runs if name not in run.results]:
            labels = ", ".join(run.label for run in without)
            notes.append(f"no results of {name}: {labels}; {evaluate_command(without, name)}")
    if not seeds and len(runs) > 1 and all(run.config is not None for run in runs):
        for group in group_by_seed(runs):
            if len(group) > 1 and len({seeds_of(runs[i]) for i in group}) > 1:
                labels = ", ".join(runs[index].label for index in group)
                notes.append(f"{labels} differ in their seed only: --seeds gives their mean ± std")
    return ComparisonReport(
        runs=runs,
        metrics=compared,
        groups=groups,
        seeds=compare_seeds(runs, compared, groups) if groups else [],
        answers=side_by_side(runs, limit),
        efficiency=compare_efficiency(runs, groups, notes) if any(m.task == TRAINING for m in compared) else None,
        notes=notes,
    )


# --- tables and verdicts ---


def tables(report: ComparisonReport) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, header and rows of each table: one for each evaluation, one over seeds, one of training."""
    for name in dict.fromkeys(metric.evaluation for metric in report.metrics):
        rows = []
        for metric in report.metrics:
            if metric.evaluation == name:
                pairs = zip(metric.rows, metric.differences)
                cells = [_lines(figure_text(row), _difference_text(difference, row)) for row, difference in pairs]
                rows.append([_lines(metric.name, metric.baseline), *cells])
        yield f"{name}: value [95% interval], difference", ["", *(run.label for run in report.runs)], rows
    if report.seeds:
        rows = []
        for seeds, metric in zip(report.seeds, report.metrics):
            spreads = [_spread_text(spread, _is_share(metric)) for spread in seeds.spreads]
            rows.append([f"{seeds.evaluation} {seeds.name}", *spreads])
        header = ["", *(_group_text(report, group) for group in report.groups)]
        yield "over seeds: mean ± std [95% t interval of the mean]", header, rows
    if report.efficiency:
        yield efficiency_table(report.efficiency, report.group_labels)


def _judged(report: ComparisonReport) -> Iterator[tuple[str, Difference, bool]]:
    """Yield what was compared with what, the difference, and whether it is one of shares."""
    for metric in report.metrics:
        first = report.runs[metric.reference].label
        for run, difference in zip(report.runs, metric.differences):
            if difference is not None and not (report.seeds and difference.p_value is None):
                yield f"{run.label} against {first}, {metric.evaluation} {metric.name}", difference, _is_share(metric)
    for seeds, metric in zip(report.seeds, report.metrics):
        for group, difference in zip(report.groups, seeds.differences):
            if difference is not None:
                name = f"seeds of {_group_text(report, group)}, {seeds.evaluation} {seeds.name}"
                yield name, difference, _is_share(metric)


def _is_share(metric: ComparedMetric) -> bool:
    return any(row is not None and row.is_share for row in metric.rows)


def verdicts(report: ComparisonReport) -> list[str]:
    """Return one sentence for each run and figure: how it compares with the first run."""
    return [f"{name}: {difference.verdict}" for name, difference, _ in _judged(report)]


def short_verdicts(report: ComparisonReport) -> list[str]:
    """Return the verdicts, each with what its test could have found in a line below.

    Where there are more than `MANY`, those that name no winner are only counted.
    """
    found = list(_judged(report))
    shown = [
        _lines(f"{name}: {difference.verdict}", enough_text(difference.enough, difference.difference, share))
        for name, difference, share in found
        if len(found) <= MANY or "not distinguishable" not in difference.verdict
    ]
    if len(shown) < len(found):
        shown.append(f"{len(found) - len(shown)} further figures: not distinguishable")
    return shown


def _enough_table(report: ComparisonReport) -> TextTable | None:
    """Return what each test could have found, and how many questions or seeds the difference seen takes."""
    rows = [
        (name, size_text(difference.difference, share), f"{difference.corrected:.3g}", *enough_cells(enough, share))
        for name, difference, share in _judged(report)
        if (enough := difference.enough) is not None
    ]
    head = ("", "seen", "p (Holm)", "measured on", "found 4 times in 5", "enough for what was seen")
    return TextTable(head, tuple(rows)) if rows else None


def _lines(*parts: str) -> str:
    return "\n".join(filter(None, parts))


def _difference_text(difference: Difference | None, row: MetricRow | None) -> str:
    if difference is None or row is None:
        return ""
    scale, form, unit = (100, "+.1f", " points") if row.is_share else (1, "+.4f", "")
    text = f"{scale * difference.difference:{form}}"
    if difference.interval is not None:
        text += f" [{scale * difference.interval.low:{form}}, {scale * difference.interval.high:{form}}]"
    return text + unit


def _group_text(report: ComparisonReport, group: Sequence[int]) -> str:
    runs = [report.runs[index] for index in group]
    seeds, orders = zip(*map(seeds_of, runs))
    text = f"{group_label(runs)} (seed {_each(seeds)}"
    return text + (f"; data.order_seed {_each(orders)})" if any(order is not None for order in orders) else ")")


def _each(values: Sequence[Any]) -> str:
    shown = values if len({*values}) > 1 else values[:1]
    return ", ".join("null" if value is None else str(value) for value in shown)


def _spread_text(spread: Spread | None, share: bool) -> str:
    if spread is None:
        return "–"
    text = format_value(spread.mean, share)
    if spread.std is not None:
        text += f" ± {format_value(spread.std, share)}"
    if spread.interval is not None:
        text += f" [{format_value(spread.interval.low, share)}, {format_value(spread.interval.high, share)}]"
    return f"{text} (n = {spread.n})"


# --- the same questions ---


def shared_questions(records: Mapping[str, Sequence[Record]]) -> list[SharedQuestion]:
    """Return the questions that all checkpoints answered, in the order of the first one's answers.

    Args:
        records: Answers by the label of the checkpoint, with at least `id` and `prompt`.
    """
    answers = {label: {question_key(record): record for record in own} for label, own in records.items()}
    return [
        SharedQuestion(
            task=key[0],
            id=key[1],
            prompt=str(record["prompt"]),
            expected=str(record.get("expected", "?")),
            answers={label: own[key] for label, own in answers.items()},
        )
        for key, record in next(iter(answers.values()), {}).items()
        if all(key in own for own in answers.values())
    ]


def side_by_side(runs: Sequence[EvaluatedRun], limit: int) -> dict[str, list[SharedQuestion]]:
    """Return, for each evaluation, up to `limit` questions that all who were asked in it answered.

    Questions that some got right and some wrong come first, then those with different answers, then the others.
    """
    shown = {}
    for name in evaluation_names(runs):
        records = {
            run.label: [record for record in run.results[name].records if record.keys() >= _ANSWER_FIELDS]
            for run in runs
            if name in run.results and run.results[name].records
        }
        if len(records) < min(2, len(runs)):
            continue
        questions = shared_questions(records)
        questions.sort(key=lambda q: (not q.differ, len({str(a["output"]) for a in q.answers.values()}) == 1))
        if questions:
            shown[name] = questions[:limit]
    return shown


def examples_page(records: Mapping[str, Sequence[Record]], limit: int = 30) -> str:
    """Return a Markdown page with the answers of several checkpoints to the same questions, one below the other.

    Questions on which the checkpoints differ come first, then the others, each in the order asked.

    Args:
        records: Records by the name of their checkpoint.
        limit: The most questions that are shown.
    """
    shared = sorted(shared_questions(records), key=lambda question: not question.differ)
    blocks: list[Block] = [Heading(1, "Examples")]
    blocks.append(Text(f"{min(limit, len(shared))} of {len(shared)} questions; where the checkpoints differ first."))
    for question in shared[:limit]:
        blocks += [Heading(2, question.id), Code(question.prompt), Text(f"Expected: **{question.expected}**")]
        for title, output, _ in question.block.answers:
            blocks += [Heading(3, title), Code(output)]
    return render_markdown(blocks, escaped=False)


# --- figures over the stages of training ---


def _over_stages(report: ComparisonReport) -> Iterator[tuple[ComparedMetric, list[tuple[str, MetricRow]], float]]:
    """Yield each figure over the stages of training with labelled rows from the first stage on, and the scale."""
    if len({run.stage for run in report.runs}) < 2:
        return
    order = stage_order(report.runs)
    for metric in report.metrics:
        points = [
            (f"{report.runs[index].stage.split('_')[0].upper()} {report.runs[index].label}", row)
            for index in order
            if (row := metric.rows[index]) is not None and row.value is not None
        ]
        highest = max((row.bounds[1] for _, row in points), default=0.0)
        if len(points) > 1 and highest > 0 and min(row.value or 0.0 for _, row in points) >= 0:
            yield metric, points, 1.0 if all(row.is_share for _, row in points) else highest


def text_chart(report: ComparisonReport) -> str:
    """Draw each figure over the stages in characters: full up to the interval's low end, shaded up to its high end."""
    lines = []
    for metric, points, scale in _over_stages(report):
        width = max(len(label) for label, _ in points)
        lines.append("  ".join(filter(None, (f"{metric.evaluation} {metric.name}", metric.baseline))))
        for label, row in points:
            low, high = row.bounds
            full, whole = round(_BAR * max(low, 0.0) / scale), round(_BAR * high / scale)
            bar = "█" * full + "▒" * (whole - full)
            lines.append(f"  {label:{width}}  {bar:·<{_BAR}}  {format_value(row.value or 0.0, row.is_share)}")
    return "\n".join(lines)


def _stage_figures(report: ComparisonReport) -> Iterator[Figure]:
    for number, (metric, points, _) in enumerate(_over_stages(report)):
        title = f"{metric.evaluation} {metric.name}"
        dashed = "" if all(chance_of(row) is None for _, row in points) else "; dashed: what chance alone reaches"
        caption = f"{title}: point and 95% interval{dashed}"
        yield Figure(f"stages_{number}", interval_chart(dict(points), title=title), caption)


# --- pages ---


def _blocks(report: ComparisonReport, over_stages: Sequence[Block]) -> Iterator[Block]:
    yield Heading(1, "Comparison: " + ", ".join(run.label for run in report.runs))
    for title, header, rows in tables(report):
        yield Heading(2, title)
        yield TextTable(tuple(header), tuple(map(tuple, rows)))
    if report.efficiency:
        yield efficiency_figure(report.efficiency, report.group_labels)
        yield Bullets(tuple(efficiency_sentences(report.efficiency, report.group_labels)))
    if enough := _enough_table(report):
        yield Heading(2, "How much is enough")
        yield enough
    for title, sentences in (("Verdicts", verdicts(report)), ("Notes", report.notes)):
        if sentences:
            yield Heading(2, title)
            yield Bullets(tuple(sentences))
    if over_stages:
        yield Heading(2, "Over the stages")
        yield from over_stages
    for name, questions in report.answers.items():
        yield Heading(2, f"Answers: {name}")
        yield Text("Where some are right and some are wrong first.")
        for question in questions:
            yield from (Heading(3, question.name), Code(question.prompt), Code(question.expected, "Expected:"))
            yield question.block


def comparison_markdown(report: ComparisonReport) -> str:
    """Return the comparison as Markdown, without pictures; what models wrote is in fences that it cannot close."""
    chart = text_chart(report)
    blocks = [block for block in _blocks(report, [Code(chart)] if chart else []) if not isinstance(block, Figure)]
    return render_markdown(blocks, escaped=False)


def comparison_html(report: ComparisonReport) -> str:
    """Return the comparison as one page that loads nothing; what models wrote is escaped."""
    return render_html(list(_blocks(report, list(_stage_figures(report)))))


def _multipliers(report: ComparisonReport) -> list[dict[str, Any]]:
    if report.efficiency is None:
        return []
    return [
        {
            "runs": [report.runs[index].label for index in own],
            "baseline": [[report.runs[index].label for index in runs] for runs in report.efficiency.baseline],
            "bpb": report.efficiency.final(own),
            **{key: asdict(multiplier) for key, multiplier in found.items()},
        }
        for own, found in zip(report.efficiency.variants, report.efficiency.multipliers)
    ]


def comparison_json(report: ComparisonReport) -> str:
    """Return the comparison as JSON: `entrants`, `lines`, `seed_groups`, `seeds`, `multipliers`, …"""

    def line(metric: ComparedMetric) -> dict[str, Any]:
        fields = asdict(metric)
        return fields | {"judgements": fields.pop("differences")}  # as the file calls them

    document = {
        "entrants": [
            {"label": run.label, "stage": run.stage, "results": {n: str(r.file) for n, r in run.results.items()}}
            for run in report.runs
        ],
        "lines": [line(metric) for metric in report.metrics],
        "seed_groups": [[report.runs[index].label for index in group] for group in report.groups],
        "seeds": [asdict(seeds) | {"verdicts": seeds.verdicts} for seeds in report.seeds],
        "multipliers": _multipliers(report),
        "verdicts": verdicts(report),
        "notes": list(report.notes),
        "answers": {
            name: [
                {
                    "id": question.name,
                    "prompt": question.prompt,
                    "expected": question.expected,
                    "answers": {
                        label: {"output": answer["output"], "correct": answer["correct"]}
                        for label, answer in question.answers.items()
                    },
                }
                for question in questions
            ]
            for name, questions in report.answers.items()
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
