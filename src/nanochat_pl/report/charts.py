"""Draw curves and scores with matplotlib: axes with units, the best step marked, intervals as whiskers.

Colours are Okabe and Ito's (2008), which colour-blind readers can distinguish; lines differ in shape as well. A figure
is as wide as a phone shows it, so that its letters stay readable there. Each comes as SVG for pages, where text stays
text and follows the reader's dark mode, and as PNG to be pasted where SVG is not accepted. Long series are thinned:
ten thousand points on 400 pixels would only be slower.
"""

import base64
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nanochat_pl.eval.results import MetricRow
from nanochat_pl.report.read import Curve, best_point, validation_metric

__all__ = [
    "LEGEND",
    "OKABE_ITO",
    "ChartBar",
    "ChartLine",
    "Drawing",
    "Figure",
    "bar_chart",
    "bar_figures",
    "chance_of",
    "curve_figures",
    "data_url",
    "drawn",
    "interval_chart",
    "line_chart",
    "plain",
    "png_bytes",
    "styled",
    "thin",
]

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_WIDTH_IN = 4.6
_PNG_DPI = 200
_BAR_GROUPS = ("subject", "grade")
_MAX_BAR_PARTS = 16
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nanochat_pl",  # equal reports are equal bytes
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.usetex": False,
    "axes.unicode_minus": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
}
_FAMILIES = (
    "DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "Hiragino Sans", "PingFang SC",
    "Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "WenQuanYi Zen Hei", "Noto Sans", "Arial Unicode MS",
)  # fmt: skip
"""The font that comes with matplotlib, and fonts of common systems for scripts that it lacks."""
_DARK = """<style>@media (prefers-color-scheme: dark) {
svg { fill: #e4e6e9 } text { fill: #e4e6e9 !important }
[style*="fill: #ffffff"] { fill: #16181b !important } [style*="stroke: #ffffff"] { stroke: #16181b !important }
[style*="fill: #000000"] { fill: #e4e6e9 !important } [style*="stroke: #000000"] { stroke: #a3abb3 !important }
[style*="stroke: #333333"] { stroke: #e4e6e9 !important } [style*="stroke: #e3e3e3"] { stroke: #363b41 !important }
[style*="stroke: #0072b2"] { stroke: #4ba3e3 !important } [style*="fill: #0072b2"] { fill: #4ba3e3 !important }
}</style>"""
"""Colours for readers in dark mode, on the background of the pages; each is named as matplotlib writes it."""
_PATCH: Any = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 0.8}
LEGEND: Any = {"frameon": False, "fontsize": 9, "columnspacing": 1.2, "handlelength": 1.6}


@dataclass(frozen=True, kw_only=True)
class ChartLine:
    """A named curve of a chart."""

    label: str
    points: Curve
    best: tuple[int, float] | None = None
    """A point of it to mark as the best step."""
    sparse: bool = False
    """It was measured at some steps only: its points are shown as marks."""


@dataclass(frozen=True, kw_only=True)
class ChartBar:
    """One score of a bar chart."""

    part: str
    """What was scored, such as a subject; bars of one part are drawn together."""
    series: str
    """What it is a score of, such as a checkpoint."""
    row: MetricRow
    """The score, a share with its interval."""


@dataclass(frozen=True)
class Drawing:
    """One picture in two formats; equal pictures are equal bytes."""

    svg: str
    figure: Any = field(compare=False, repr=False)
    """Matplotlib's figure, from which the PNG is drawn when it is asked for."""

    @property
    def png(self) -> bytes:
        return png_bytes(self.figure)


@dataclass(frozen=True)
class Figure:
    """A picture, with a caption that says what it shows."""

    kind: ClassVar[str] = "figure"
    name: str
    """Name for a file; letters, digits and underscores."""
    drawing: Drawing
    caption: str
    narrow: Drawing | None = None
    """The same picture for a phone; a figure that has it is as wide as the page."""


def thin(points: Curve, limit: int = 600) -> Curve:
    """Return at most `limit` points that look the same: both ends, and the lowest and highest point of each stretch.

    Raises:
        ValueError: `limit` is below 4.
    """
    if limit < 4:
        raise ValueError(f"limit={limit} is too few points for a curve; give at least 4")
    if len(points) <= limit:
        return points
    stretches = (limit - 2) // 2
    inner = points[1:-1]
    kept = [points[0]]
    for index in range(stretches):
        stretch = inner[index * len(inner) // stretches : (index + 1) * len(inner) // stretches]
        # NaN compares false with everything: it is treated as the lowest, so that a gap stays a gap.
        low = min(stretch, key=lambda point: -math.inf if math.isnan(point[1]) else point[1])
        high = max(stretch, key=lambda point: -math.inf if math.isnan(point[1]) else point[1])
        kept += sorted({low, high})
    return (*kept, points[-1])


def line_chart(lines: Sequence[ChartLine], *, y_label: str, x_label: str = "step", from_zero: bool = False) -> Drawing:
    """Draw curves over steps, each in another colour.

    Args:
        y_label: What is measured, with its unit.
        from_zero: The axis begins at 0, for what is compared by its size.
    """
    figure, axes = _figure(2.9, fitted=False)
    for index, line in enumerate(lines):
        steps, values = zip(*thin(line.points)) if line.points else ((), ())
        colour = OKABE_ITO[index % len(OKABE_ITO)]
        mark = _MARKERS[index % len(_MARKERS)] if line.sparse and len(steps) <= 60 else None
        single = "o" if len(steps) == 1 else mark
        axes.plot(
            steps,
            values,
            color=colour,
            label=line.label,
            linewidth=0.7 if len(steps) > 300 else 1.5,  # where a stroke is wider than a step, it hides the noise
            marker=single,
            markersize=3.5,
            zorder=3 if mark else 2,
        )
        if line.best is not None:
            step, value = line.best
            axes.plot(
                [step],
                [value],
                linestyle="none",
                marker="*",
                markersize=13,
                color="#000000",
                markeredgecolor="#ffffff",
                label=f"best: {value:.4g} at step {step:,}",
                zorder=4,
                clip_on=False,
            )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if from_zero:
        tallest = max((v for line in lines for _, v in line.points if math.isfinite(v)), default=0.0)
        axes.set_ylim(0, 1.06 * tallest if tallest > 0 else 1)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:,.0f}")
    if from_zero or max((abs(v) for line in lines for _, v in line.points if math.isfinite(v)), default=0) >= 1e4:
        axes.yaxis.set_major_formatter(lambda value, position: _short(value))
    if len(lines) > 1 or any(line.best for line in lines):
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, **LEGEND)
    return drawn(figure)


def bar_chart(bars: Sequence[ChartBar], *, x_label: str) -> Drawing:
    """Draw scores as horizontal bars with whiskers and a dotted line at each part's chance.

    Args:
        bars: The scores, from top to bottom in the order of their parts.
    """
    parts = list(dict.fromkeys(bar.part for bar in bars))
    series = list(dict.fromkeys(bar.series for bar in bars))
    height = 0.8 / len(series)
    figure, axes = _figure(0.9 + 0.25 * len(series) + len(parts) * max(0.34, 0.2 * len(series)), fitted=True)
    for index, name in enumerate(series):
        own = [bar for bar in bars if bar.series == name]
        places = [parts.index(bar.part) + (index + 0.5) * height - 0.4 for bar in own]
        values = [bar.row.value for bar in own]
        axes.barh(places, values, height * 0.9, color=OKABE_ITO[index % len(OKABE_ITO)], label=name)
        for place, bar in zip(places, own):
            axes.plot(bar.row.bounds, [place, place], color="#333333", linewidth=1, marker="|", markersize=4)
    chance = {bar.part: share for bar in bars if (share := chance_of(bar.row)) is not None}
    for index, (part, share) in enumerate(chance.items()):
        place = parts.index(part)
        label = "chance" if index == 0 else None
        axes.plot(
            [share, share], [place - 0.46, place + 0.46], color="#000000", linestyle=":", linewidth=1.8, label=label
        )
    counts = {bar.part: bar.row.n for bar in bars}
    axes.set_yticks(range(len(parts)), [f"{part} (n={counts[part]:,})" for part in parts])
    axes.set_ylim(len(parts) - 0.45, -0.55)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, position: f"{100 * value:.0f}%")
    axes.set_xlabel(x_label)
    axes.grid(axis="y", visible=False)
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda index: names[index] == "chance")
    named = [handles[index] for index in order], [names[index] for index in order]
    figure.legend(*named, loc="outside upper center", ncols=3, **LEGEND)
    return drawn(figure)


def interval_chart(rows: Mapping[str, MetricRow], *, title: str) -> Drawing:
    """Draw scores as points with their intervals, one row each below its label, and chance as a dashed line.

    A label has its own row, so that long names and narrow screens do no harm. The axis ends at 100% where all scores
    are shares, else at the highest interval.
    """
    share = all(row.is_share for row in rows.values())
    figure, axes = _figure(0.75 + 0.42 * len(rows), fitted=True)
    for place, (label, row) in enumerate(rows.items()):
        value = row.value or 0.0
        text = f"{_shortened(label)}: {f'{value:.1%}' if share else plain(value)}"
        axes.text(0, place - 0.42, text, ha="left", va="center", fontsize=9, bbox=_PATCH)
        axes.plot(row.bounds, [place, place], color=OKABE_ITO[0], linewidth=2.5)
        axes.plot([value], [place], color=OKABE_ITO[0], marker="o", markersize=6, clip_on=False)
    if chances := [chance for row in rows.values() if (chance := chance_of(row)) is not None]:
        axes.axvline(chances[0], color="#333333", linestyle="--", linewidth=1, zorder=1)
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.set_xlim(0, 1 if share else 1.02 * max(row.bounds[1] for row in rows.values()))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, position: f"{100 * value:.0f}%" if share else f"{value:g}")
    axes.set_title(_shortened(title), loc="left", fontsize=10, fontweight="bold")
    return drawn(figure)


def curve_figures(curves: Mapping[str, Curve], name: str) -> Iterator[Figure]:
    """Draw what a run logged over its steps, with the best step marked on the curve that chose it."""
    chosen = validation_metric(curves)
    answers = _answer_curves(curves)

    def line(metric: str, label: str) -> ChartLine:
        validation = metric.startswith(("val/", "pass@")) or metric in answers
        best = best_point(curves[metric], chosen[1]) if chosen and metric == chosen[0] else None
        return ChartLine(label=label, points=curves[metric], best=best, sparse=validation)

    charts: tuple[tuple[str, str, dict[str, str], bool], ...] = (
        ("loss", "loss (nats per token)", {"train/loss": "training", "val/loss": "validation"}, False),
        ("bpb", "bits per byte", {"val/bpb": "validation"}, False),
        ("answers", "bits per byte of the answer", answers, False),
        ("reward", "mean reward", {"reward": "training"}, False),
        ("pass", "share solved", {"pass@1": "pass@1", "pass@1_greedy": "greedy"}, True),
        ("lr", "learning rate (× peak rate)", {"train/lrm": "multiplier"}, True),
        ("speed", "tokens per second", {"train/tok_per_sec": "training"}, True),
    )
    for key, y_label, metrics, from_zero in charts:
        lines = [line(metric, label) for metric, label in metrics.items() if curves.get(metric)]
        if not lines or (key == "loss" and "reward" in curves):  # a policy's loss says nothing by its size
            continue
        words = [f"{each.label} from {plain(each.points[0][1])} to {plain(each.points[-1][1])}" for each in lines]
        words += [f"best {plain(each.best[1])} at step {each.best[0]:,}" for each in lines if each.best]
        drawing = line_chart(lines, y_label=y_label, from_zero=from_zero)
        yield Figure(re.sub(r"\W+", "_", f"{name}_{key}"), drawing, f"{y_label} over steps: {'; '.join(words)}")


def _answer_curves(curves: Mapping[str, Curve]) -> dict[str, str]:
    """Return the curves of answer-BPB with the names of their tasks: that over all tasks alone, where there is one."""
    found = [name for name in curves if re.fullmatch(r"[^/]+/.+/answer_bpb", name)]
    found = [name for name in found if name == "core/CORE/answer_bpb"] or found[: len(OKABE_ITO)]
    return {name: name.split("/", 1)[1].removesuffix("/answer_bpb") for name in found}


def bar_figures(columns: Mapping[str, Sequence[MetricRow]], name: str) -> Iterator[Figure]:
    """Draw the shares of an evaluation by subject and by grade, one figure for each metric.

    Args:
        columns: Rows by the name of their checkpoint.
    """
    for by in _BAR_GROUPS:
        rows = [
            (label, row)
            for label, own in columns.items()
            for row in own
            if row.group and set(row.group) == {by} and row.interval and row.value is not None and row.count is not None
        ]
        for metric in dict.fromkeys(row.metric for _, row in rows):
            bars = [
                ChartBar(part=row.group[by], series=label, row=row)
                for label, row in rows
                if row.metric == metric and row.group
            ]
            if 2 <= len({bar.part for bar in bars}) <= _MAX_BAR_PARTS:
                caption = f"{name}, {metric} by {by}, with 95% intervals"
                drawing = bar_chart(bars, x_label=metric)
                yield Figure(re.sub(r"\W+", "_", f"{name}_{metric}_{by}"), drawing, caption)


def data_url(svg: str) -> str:
    """Return SVG text as a `data:` address, which keeps its ids and styles apart from those of the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def styled() -> Any:
    """Return a context in which matplotlib draws in the style of all figures here."""
    # Its messages about caches, fonts and settings files do not help a reader of figures.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib
    from matplotlib.font_manager import fontManager

    present = set(fontManager.get_font_names())
    families = [name for name in _FAMILIES if name in present]
    return matplotlib.rc_context(_STYLE | {"font.family": [*families, "sans-serif"]})


def drawn(figure: Any) -> Drawing:
    """Draw a matplotlib figure as SVG, and as PNG when it is asked for."""
    text = _saved(figure, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))).decode()
    text = text[text.index("<svg") :]  # without the doctype, which names an address that nobody should ask
    end = text.index(">") + 1
    return Drawing(text[:end] + _DARK + text[end:], figure)


def png_bytes(figure: Any) -> bytes:
    """Draw a matplotlib figure as PNG, sharp on screens of high resolution."""
    return _saved(figure, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})


def _saved(figure: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    with styled(), warnings.catch_warnings():
        # A name in a script that no font here has: a browser may have one.
        warnings.filterwarnings("ignore", message=".*Glyph.*missing from font.*")
        figure.savefig(file, **options)
    return file.getvalue()


def _figure(height_in: float, fitted: bool) -> tuple[Any, Any]:
    """Make a figure with one pair of axes; with `fitted` the margins follow the labels, which takes twice the time."""
    with styled():
        from matplotlib.figure import Figure as Canvas

        if fitted:
            figure = Canvas(figsize=(_WIDTH_IN, height_in), layout="constrained")
            return figure, figure.add_subplot()
        figure = Canvas(figsize=(_WIDTH_IN, height_in))
        left, right, bottom, top = 0.68 / _WIDTH_IN, 1 - 0.26 / _WIDTH_IN, 0.5 / height_in, 1 - 0.32 / height_in
        return figure, figure.add_axes((left, bottom, right - left, top - bottom))


def chance_of(row: MetricRow) -> float | None:
    """Return what guessing reaches, or None where that is not known."""
    return float(row.baseline["chance"]) if row.baseline and "chance" in row.baseline else None


def _shortened(text: str, limit: int = 48) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 2 + 1 :]}"


def plain(value: float) -> str:
    """Format a number with four digits, and large ones in full."""
    return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}"


def _short(value: float) -> str:
    """Shorten a tick: 1.5k, 20M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
