"""Draw a whole training in one picture: one stage, or all stages of a chain one after another.

A run writes the picture next to its metrics (`loss.png`), and a report begins with it. The losses of all stages share
an axis, in nats per token; the reward of reinforcement learning has its own axis at the right.
"""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_pl.report.charts import LEGEND, OKABE_ITO, Figure, drawn, png_bytes, styled, thin
from nanochat_pl.report.read import Curve, Run, best_point, last_value, read_metrics, start_of, validation_metric

__all__ = ["StageCurves", "chains", "draw_history", "history_figure", "run_picture", "smooth"]

_TRAINING, _VALIDATION = OKABE_ITO[0], OKABE_ITO[3]
_WIDE_IN, _NARROW_IN = (9.2, 3.7), (4.0, 3.7)
_LETTER_IN = 0.011
"""Mean width of a letter in inches for each point of its size."""
_SMOOTH_FROM = 20
"""Curves of fewer points are drawn without smoothing."""
_LOG_FROM = 4
"""Losses that fall by this factor or more get a logarithmic axis; otherwise the start would hide the rest."""


@dataclass(frozen=True, kw_only=True)
class StageCurves:
    """The name of one stage, and what it logged over its own steps."""

    name: str
    curves: Mapping[str, Curve]

    @property
    def rewarded(self) -> bool:
        """The stage is shown by its reward, because the size of a policy's loss says nothing."""
        return bool(self.curves.get("reward"))

    @property
    def training(self) -> Curve:
        return self.curves.get("reward" if self.rewarded else "train/loss", ())

    @property
    def validation(self) -> Curve:
        return self.curves.get("pass@1" if self.rewarded else "val/loss", ())

    @property
    def is_drawn(self) -> bool:
        return bool(self.training or self.validation)

    @property
    def best(self) -> tuple[int, float] | None:
        """The point of the validation curve at the step that validation chose as the best."""
        chosen = validation_metric(self.curves)
        point = best_point(self.curves[chosen[0]], chosen[1]) if chosen else None
        return next((own for own in self.validation if point and own[0] == point[0]), None)

    @property
    def num_steps(self) -> int:
        """Number of updates; the last training row is that of the last update, or of one shortly before."""
        training, validation = self.training[-1:], self.validation[-1:]
        return max([1, *(step + 1 for step, _ in training), *(step for step, _ in validation)])

    @property
    def size(self) -> str:
        tokens = last_value(self.curves, "tokens")
        steps = f"{self.num_steps:,} step{'s' * (self.num_steps > 1)}"
        return f"{steps}, {_amount(tokens)} tokens" if tokens else steps


def run_picture(folder: Path, stage: str, name: str) -> bytes | None:
    """Draw the metrics.csv of a run folder as a PNG; None where it holds no curve yet."""
    figure = draw_history([StageCurves(name=stage, curves=read_metrics(folder / "metrics.csv", []))], name)
    return None if figure is None else png_bytes(figure)


def history_figure(runs: Sequence[Run]) -> Figure | None:
    """Draw a chain for a page and for a phone; None where none of its runs logged a loss or a reward."""
    stages = [stage for run in runs if (stage := StageCurves(name=run.stage, curves=run.curves)).is_drawn]
    title = " → ".join(dict.fromkeys(run.name for run in runs if run.curves))
    wide = draw_history(stages, title)
    if wide is None:
        return None
    parts = [
        f"{'reward' if kind else 'loss'} of {', '.join(stage.name for stage in stages if stage.rewarded == kind)}"
        for kind in (False, True)
        if any(stage.rewarded == kind for stage in stages)
    ]
    text = " and ".join(parts)
    caption = f"{text[:1].upper()}{text[1:]} over the steps of training."
    scales = [
        stage.num_steps / share for stage, share in zip(stages, _shares(stages, _WIDE_IN[0] - sum(_sides(stages))))
    ]
    if max(scales) > 1.01 * min(scales):
        caption += " Short stages are drawn wider than their share of the steps."
    return Figure("loss", drawn(wide), caption, narrow=drawn(draw_history(stages, title, _NARROW_IN)))


def chains(runs: Sequence[Run]) -> list[list[Run]]:
    """Follow the initial weights of runs: one list for each run that no other continues, first stage first.

    A run that does not say what it started from is taken to continue the stage before it that has the same name.
    """
    parents: dict[int, int] = {}
    trained = [index for index, run in enumerate(runs) if run.stage != "tokenizer"]
    for index in trained:
        start, ancestor = start_of(runs[index].summary)
        before = [other for other in trained if other < index and runs[other].stage != runs[index].stage]
        if ancestor is not None:
            ends = ancestor.parts[-2:]
            before = [other for other in before if runs[other].folder.resolve().parts[-2:] == ends]
        elif start:
            before = []
        else:
            before = [other for other in before if runs[other].name == runs[index].name]
        if before:
            parents[index] = before[-1]
    found = []
    for index in trained:
        if index not in parents.values():
            path = [index]
            while path[0] in parents:
                path.insert(0, parents[path[0]])
            found.append([runs[number] for number in path])
    return found


def smooth(curve: Curve) -> Curve:
    """Return moving means over a fiftieth of the points on either side.

    At the beginning, where losses fall fast, the window grows from one point, so that the first point stays; at the end
    it is cut off. A point that is not finite stays as it is and is left out of the means of others.
    """
    numbers = [(index, value) for index, (_, value) in enumerate(curve) if math.isfinite(value)]
    reach = len(numbers) // 50 + 1
    sums = list(itertools.accumulate((value for _, value in numbers), initial=0.0))
    values = [value for _, value in curve]
    for position, (index, _) in enumerate(numbers):
        side = min(reach, position)
        low, high = position - side, min(position + side + 1, len(numbers))
        values[index] = (sums[high] - sums[low]) / (high - low)
    return tuple((step, value) for (step, _), value in zip(curve, values))


def draw_history(stages: Sequence[StageCurves], title: str, size_in: tuple[float, float] = _WIDE_IN) -> Any | None:
    """Draw stages one after another over their steps as a matplotlib figure; None where no stage has a curve.

    Steps are counted over all stages. Each stage is as wide as its share of the steps, but wide enough for its name.

    Args:
        stages: In the order of training; those without curves are left out.
        size_in: Width and height in inches.
    """
    stages = [stage for stage in stages if stage.is_drawn]
    if not stages:
        return None
    width, height = size_in
    kinds = {stage.rewarded for stage in stages}
    left, right = _sides(stages)
    bottom = 0.5
    if len(stages) == 1:
        title = f"{title}, {stages[0].name}"
    with styled():
        from matplotlib.figure import Figure as Canvas

        figure = Canvas(figsize=size_in)
        top = _head(figure, stages, title)
        shares = _shares(stages, width - left - right)
        scales = {kind: _scale([stage for stage in stages if stage.rewarded == kind]) for kind in kinds}
        ticks = _step_ticks(stages, shares)
        place, before = left, 0
        for index, (stage, share) in enumerate(zip(stages, shares)):
            box = (place / width, bottom / height, share / width, (height - bottom - top) / height)
            axes = figure.add_axes(box, label=str(index))
            axes.patch.set_visible(False)  # else it hides what reaches over the end of the stage before
            _draw_stage(axes, stage, before, share)
            axes.set_xlim(before, before + stage.num_steps)
            axes.set_xticks(ticks[index], [f"{tick:,}" for tick in ticks[index]], fontsize=9)
            _label_values(axes, stage, scales[stage.rewarded], index, len(kinds) > 1)
            if len(stages) > 1:
                _name_stage(figure, stage, share, (place + share / 2) / width, (height - top) / height)
            place, before = place + share, before + stage.num_steps
        figure.text((left + width - right) / 2 / width, 0.06 / height, "step", ha="center", va="bottom")
    return figure


def _head(figure: Any, stages: Sequence[StageCurves], title: str) -> float:
    """Draw the title and the legend; return the height in inches that is kept free above the axes."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    smoothed = any(len(stage.training) >= _SMOOTH_FROM for stage in stages)
    lines = [Line2D([], [], color=_TRAINING, linewidth=2.2, label="training, smoothed" if smoothed else "training")]
    if any(stage.validation for stage in stages):
        lines.append(Line2D([], [], color=_VALIDATION, linewidth=1.0, marker="s", markersize=3.5, label="validation"))
    if any(stage.best for stage in stages):
        lines.append(Line2D([], [], color="#000000", marker="*", markersize=10, linestyle="none", label="best"))
    if len(title) > 60 * width / _WIDE_IN[0]:
        title = f"{title[: int(60 * width / _WIDE_IN[0])]}…"
    named = _text_in(title, 12) + 0.25
    size = stages[0].size if len(stages) == 1 else ""
    beside = named + _text_in(size, 9) + 3.7 < width
    figure.text(0.1 / width, 1 - 0.1 / height, title, ha="left", va="top", fontsize=12, weight="bold")
    if size and named + _text_in(size, 9) < width:
        figure.text(named / width, 1 - 0.135 / height, size, ha="left", va="top", fontsize=9, color="#555555")
    anchor = (1 - 0.1 / width, 1 - 0.02 / height) if beside else (0.04 / width, 1 - 0.3 / height)
    figure.legend(
        handles=lines, loc="upper right" if beside else "upper left", bbox_to_anchor=anchor, ncols=3, **LEGEND
    )
    return (0.5 if beside else 0.72) + (0.4 if len(stages) > 1 else 0.0)


def _name_stage(figure: Any, stage: StageCurves, share: float, middle: float, above: float) -> None:
    """Write the name of a stage above its part and, where there is room, how long it was."""
    height = figure.get_size_inches()[1]
    fitting = min(11.0, 11 * (share - 0.05) / _text_in(stage.name, 11))
    figure.text(middle, above + 0.22 / height, stage.name, ha="center", va="bottom", fontsize=fitting, weight="bold")
    for size in (stage.size, stage.size.partition(",")[0]):
        if _text_in(size, 8) < share:
            figure.text(middle, above + 0.06 / height, size, ha="center", va="bottom", fontsize=8, color="#555555")
            break


def _draw_stage(axes: Any, stage: StageCurves, before: int, share: float) -> None:
    """Draw what a stage logged (faint), its smoothed curve, the validations, and the best of them with its value."""
    from matplotlib.patheffects import withStroke

    training = tuple((before + step, value) for step, value in stage.training)
    if training:
        course = training
        if len(training) >= _SMOOTH_FROM:
            axes.plot(*zip(*thin(training)), color=_TRAINING, alpha=0.3, linewidth=0.8)
            course = thin(smooth(training))
        axes.plot(*zip(*course), color=_TRAINING, linewidth=2.2, marker="o" if len(course) == 1 else None, markersize=4)
    if stage.validation:
        steps, values = zip(*stage.validation)
        few = len(steps) <= 9 * share  # nine marks an inch leave the lines visible
        where = [before + step for step in steps]
        axes.plot(where, values, color=_VALIDATION, linewidth=1.0, zorder=3)
        if few:
            axes.plot(where, values, "s", color=_VALIDATION, markersize=3.5, zorder=3, clip_on=False)
    if stage.best and math.isfinite(stage.best[1]):
        step, value = stage.best
        star = {"marker": "*", "markersize": 12, "color": "#000000", "markeredgecolor": "#ffffff", "linestyle": "none"}
        axes.plot([before + step], [value], zorder=4, clip_on=False, **star)
        late = step > stage.num_steps / 2
        place = (before + step, value), (-3 if late else 6, 9)
        axes.annotate(
            f"{value:#.3g}",
            *place,
            textcoords="offset points",
            ha="right" if late else "left",
            fontsize=9,
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="#ffffff")],
        )


def _step_ticks(stages: Sequence[StageCurves], shares: Sequence[float]) -> list[list[int]]:
    """Choose ticks for each stage: where it begins, where all ends, and round steps, as far as there is room."""
    from matplotlib.ticker import MaxNLocator

    begins = list(itertools.accumulate((stage.num_steps for stage in stages), initial=0))
    places = list(itertools.accumulate(shares, initial=0.0))
    locator = MaxNLocator(max(1, int(places[-1] / 0.8)), integer=True, steps=(1, 2, 5, 10))
    inner = [int(tick) for tick in locator.tick_values(0, begins[-1]) if 0 < tick < begins[-1]]
    chosen: list[list[int]] = [[] for _ in stages]
    taken: list[tuple[float, float]] = []
    for step in (begins[-1], *begins[:-1], *inner):
        index = min(bisect.bisect_right(begins, step), len(stages)) - 1
        place = places[index] + shares[index] * (step - begins[index]) / stages[index].num_steps
        half = _text_in(f"{step:,}", 10) / 2
        if all(abs(place - other) >= half + size for other, size in taken):
            taken.append((place, half))
            chosen[index].append(step)
    return [sorted(steps) for steps in chosen]


def _label_values(axes: Any, stage: StageCurves, scale: tuple[float, float, bool], index: int, two_kinds: bool) -> None:
    """Scale the axis of the values; label it at the left of the first stage and at the right of rewards."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high, logarithmic = scale
    if logarithmic:
        axes.set_yscale("log")
        steps = (1.0, 2.0, 5.0) if high / low > 15 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        axes.yaxis.set_major_locator(LogLocator(subs=steps))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.set_ylim(low, high)
    axes.tick_params(axis="y", labelsize=9)
    y_label = "reward, share solved" if stage.rewarded else "loss (nats per token)"
    if index == 0:
        axes.set_ylabel(y_label)
    elif two_kinds and stage.rewarded:
        axes.yaxis.tick_right()
        axes.yaxis.set_label_position("right")
        axes.spines["right"].set_visible(True)
        axes.set_ylabel(y_label)
    else:
        axes.tick_params(axis="y", left=False, labelleft=False)
    if index > 0:
        axes.spines["left"].set(color="#888888", linestyle=(0, (4, 3)))


def _scale(stages: Sequence[StageCurves]) -> tuple[float, float, bool]:
    """Return lowest and highest value of an axis, and whether it is logarithmic."""
    values = [v for stage in stages for _, v in (*stage.training, *stage.validation) if math.isfinite(v)] or [0.0]
    low, high = min(values), max(values)
    if not stages[0].rewarded and low > 0 and high / low >= _LOG_FROM:
        return low / 1.25, high * 1.15, True
    margin = 0.08 * (high - low) or 0.5
    return (0.0 if 0 <= low < margin else low - margin), high + margin, False


def _sides(stages: Sequence[StageCurves]) -> tuple[float, float]:
    """Return the inches left free at the left and the right for the labels of the values."""
    return 0.7, 0.68 if len({stage.rewarded for stage in stages}) > 1 else 0.25


def _shares(stages: Sequence[StageCurves], room: float) -> list[float]:
    """Return the width of each stage by its steps; one too narrow for its name gets its width from the others."""
    needed = [max(_text_in(stage.name, 12), _text_in(f"{stage.num_steps:,} steps", 8)) + 0.12 for stage in stages]
    if sum(needed) >= room:
        return [room * need / sum(needed) for need in needed]
    widened: set[int] = set()
    while True:
        rest = room - sum(needed[index] for index in widened)
        steps = sum(stage.num_steps for index, stage in enumerate(stages) if index not in widened)
        shares = [needed[i] if i in widened else rest * stage.num_steps / steps for i, stage in enumerate(stages)]
        short = {index for index, share in enumerate(shares) if share < needed[index] - 1e-9}
        if not short:
            return shares
        widened |= short


def _text_in(text: str, size: float) -> float:
    """Estimate the width of a line of text in inches; letters of many Asian scripts are twice as wide."""
    return _LETTER_IN * 0.8 * size * sum(2 if ord(letter) > 0x1100 else 1 for letter in text)


def _amount(number: float) -> str:
    """Shorten a count: 1.64M, 512k."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"
