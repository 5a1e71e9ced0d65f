"""What a recipe's better or worse loss is worth in FLOPs, tokens and seconds, from the validation curves of its runs.

`eval/multiplier.py` computes; here runs are put into sets by their seed and length, their curves are read off what they
logged, and the outcome gets its words and its picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from nanochat_pl.eval.multiplier import Multiplier, SpentCurve, baseline_curve, compute_multiplier, mean_curve
from nanochat_pl.report.charts import LEGEND, OKABE_ITO, Drawing, Figure, drawn, plain, styled
from nanochat_pl.report.evaluated import TRAINING, VALIDATED_ON, EvaluatedRun
from nanochat_pl.report.read import Curve, setting
from nanochat_pl.report.seeds import group_by_seed, pair_by_seed, validated_alike

__all__ = ["SPENT", "Efficiency", "compare_efficiency", "efficiency_figure", "efficiency_sentences", "efficiency_table"]

SPENT = {"total_training_flops": "FLOPs", "tokens": "tokens", "total_training_time": "seconds"}
"""What training spends, as metrics.csv calls it -> as people do."""
TITLE = "compute multiplier: what the first spends to get there ÷ what was spent"
_MOST_SETS = len(OKABE_ITO)


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The variants of a comparison against its baseline."""

    baseline: Sequence[Sequence[int]]
    """Indices of the baseline's runs, a set for each length."""
    variants: Sequence[Sequence[int]]
    """Indices of the runs of each variant."""
    curves: Mapping[str, Mapping[int, SpentCurve]]
    """Validation curves by what was spent (a key of `SPENT`) and by the index of the run."""
    multipliers: Sequence[Mapping[str, Multiplier]]
    """One for each variant, by what was spent."""

    @property
    def has_lengths(self) -> bool:
        """Whether the baseline's curve are the final points of several lengths."""
        return len(self.baseline) > 1

    def final(self, runs: Sequence[int]) -> float:
        """Return the mean of the final bits per byte of some runs."""
        return fmean(self.curves["tokens"][index][-1][1] for index in runs)


def compare_efficiency(
    runs: Sequence[EvaluatedRun], groups: Sequence[Sequence[int]], notes: list[str]
) -> Efficiency | None:
    """Compare the validation curves of runs with those of the first; None where there are no two of one stage.

    Args:
        runs: The first belongs to the baseline.
        groups: Indices of runs that differ in their seed; empty = each run alone.
        notes: What was left out is appended to it.
    """
    if not runs or any(TRAINING not in run.results for run in runs[:1]):
        return None
    curves: dict[int, dict[str, SpentCurve]] = {}
    for index, run in enumerate(runs):
        if TRAINING not in run.results:
            continue
        found = spent_curves(run.curves)
        if other := _validated_otherwise(runs[0], run):
            notes.append(f"{run.label} was validated on other text than {runs[0].label} ({other}): no multiplier")
        elif not all(found.values()):
            notes.append(f"{run.label} has no validation after its first step: no multiplier")
        else:
            curves[index] = found
    sets = []
    for group in groups or [[index] for index in range(len(runs))]:
        if own := validated_alike([index for index in group if index in curves], runs)[0]:
            sets.append(own)
    if not sets or sets[0][0] != 0:
        return None
    of_baseline = {0}
    if groups:
        of_baseline = next({*group} for group in group_by_seed(runs, any_length=True) if 0 in group)
    baseline = [own for own in sets if own[0] in of_baseline]
    variants = [own for own in sets if own[0] not in of_baseline]
    if not variants:
        return None
    by_spent = {key: {index: own[key] for index, own in curves.items()} for key in SPENT}
    multipliers = []
    for variant in variants:
        sets = [*baseline, variant]
        pairs = pair_by_seed(runs, sets)
        multipliers.append(
            {
                key: compute_multiplier(*_curves(own, pairs or sets), paired=pairs is not None)
                for key, own in by_spent.items()
            }
        )
    return Efficiency(baseline=baseline, variants=variants, curves=by_spent, multipliers=multipliers)


def _curves(
    own: Mapping[int, SpentCurve], sets: Sequence[Sequence[int]]
) -> tuple[list[list[SpentCurve]], list[SpentCurve]]:
    """Return the curves of the baseline's sets and of the variant, the last set."""
    *baseline, variant = ([own[index] for index in indices] for indices in sets)
    return baseline, variant


def spent_curves(curves: Mapping[str, Curve]) -> dict[str, SpentCurve]:
    """Return bits per byte over what was spent until then, without step 0, where nothing was.

    The row of a step holds what was spent until after its update; rows are logged now and then, and between them equal
    steps spend equally.
    """
    found: dict[str, SpentCurve] = {}
    validated = [(step, value) for step, value in curves.get("val/bpb", ()) if step > 0 and 0 < value < float("inf")]
    for key in SPENT:
        if not (rows := curves.get(key)) or not validated:
            found[key] = ()
            continue
        updates, sums = np.array([(0, 0.0), *((step + 1, value) for step, value in rows)], dtype=np.float64).T
        steps = np.array([step for step, _ in validated], dtype=np.float64)
        spent = np.interp(steps, updates, sums) + np.maximum(steps - updates[-1], 0) * sums[-1] / updates[-1]
        found[key] = tuple((float(x), value) for x, (_, value) in zip(spent, validated) if x > 0)
    return found


def _validated_otherwise(first: EvaluatedRun, run: EvaluatedRun) -> str:
    """Return the settings in which the validation sets differ, separated by commas; empty where they are equal."""
    one, other = first.config or {}, run.config or {}
    differ = [key for key in VALIDATED_ON if setting(one, key) != setting(other, key)]
    return ", ".join(differ)


# --- words ---


def efficiency_table(efficiency: Efficiency, labels: Sequence[str]) -> tuple[str, list[str], list[list[str]]]:
    """Return title, header and rows: the baseline's sets, then each variant with its multipliers."""
    rows = [[labels[own[0]], _bits(efficiency.final(own)), *["1"] * len(SPENT)] for own in efficiency.baseline]
    for own, multipliers in zip(efficiency.variants, efficiency.multipliers):
        cells = [multiplier_text(multipliers[key]) for key in SPENT]
        rows.append([labels[own[0]], _bits(efficiency.final(own)), *cells])
    return TITLE, ["", "bits per byte", *SPENT.values()], rows


def multiplier_text(multiplier: Multiplier, mark: str = "\nextrapolated") -> str:
    """Return a multiplier with its interval, such as `1.25 [1.10, 1.42]`, and a mark where it is extrapolated."""
    if multiplier.value is None:
        return "–"
    text = _times(multiplier.value)
    if multiplier.interval is not None:
        text += f" [{_times(multiplier.interval.low)}, {_times(multiplier.interval.high)}]"
    return text + mark * (multiplier.extrapolated > 1)


def _times(value: float) -> str:
    """Write three digits, and 1.00 rather than 1."""
    return f"{value:.3g}" if value >= 100 or value < 0.001 else f"{value:#.3g}"


def efficiency_sentences(efficiency: Efficiency, labels: Sequence[str]) -> Iterator[str]:
    """Yield what the multipliers mean, and why there is none: a sentence or two for each variant."""
    first = labels[efficiency.baseline[0][0]]
    for own, multipliers in zip(efficiency.variants, efficiency.multipliers):
        label, bits = labels[own[0]], _bits(efficiency.final(own))
        known = {name: found for key, name in SPENT.items() if (found := multipliers[key]).value is not None}
        if known:
            times = ", ".join(
                f"{multiplier_text(found, ' (extrapolated)')} times the {name}" for name, found in known.items()
            )
            alone = any(found.interval is None for found in known.values())
            hint = " (no interval: another seed may say otherwise)" if alone else ""
            yield f"{first} takes {times} of {label} to reach its {bits} bits per byte{hint}"
        reasons: dict[str, list[str]] = {}
        for key, name in SPENT.items():
            if multipliers[key].reason:
                reasons.setdefault(multipliers[key].reason, []).append(name)
        for reason, names in reasons.items():
            yield f"{label}, {bits} bits per byte: no multiplier of {', '.join(names)}: {reason}"


def _bits(value: float) -> str:
    return f"{value:.4f}"


# --- the picture ---


def efficiency_figure(efficiency: Efficiency, labels: Sequence[str]) -> Figure:
    """Draw bits per byte against FLOPs, both logarithmic, and where the baseline reaches each variant's last point."""
    many = len(efficiency.variants) >= _MOST_SETS
    caption = (
        "Bits per byte against FLOPs, both logarithmic"
        + (": final points of runs of each length" if efficiency.has_lengths else "; faint: single seeds")
        + (f"; the first {_MOST_SETS - 1} of {len(efficiency.variants)} variants" if many else "")
        + ". Dashed: from a variant's last point to where the baseline gets there; dotted: extrapolated."
    )
    return Figure("efficiency", _drawing(efficiency, labels), caption)


def _drawing(efficiency: Efficiency, labels: Sequence[str]) -> Drawing:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    curves = efficiency.curves["total_training_flops"]
    with styled():
        from matplotlib.figure import Figure as Canvas

        figure = Canvas(figsize=(4.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        baseline = baseline_curve([[curves[index] for index in runs] for runs in efficiency.baseline])
        shown = slice(-1, None) if efficiency.has_lengths else slice(None)  # of several lengths only the ends count
        own = [curves[index][shown] for runs in efficiency.baseline for index in runs]
        _draw_set(axes, own, baseline, labels[efficiency.baseline[0][0]], 0)
        drawn_sets = list(zip(efficiency.variants, efficiency.multipliers))[: _MOST_SETS - 1]
        for number, (indices, multipliers) in enumerate(drawn_sets, start=1):
            own = [curves[index][shown] for index in indices]
            mean = mean_curve(own)
            _draw_set(axes, own, mean, labels[indices[0]], number)
            found = multipliers["total_training_flops"]
            if found.value is not None:
                (spent, loss), needed = mean[-1], mean[-1][0] * found.value
                style = ":" if found.extrapolated > 1 else "--"
                axes.plot([spent, needed], [loss, loss], style, color="#333333", linewidth=1, zorder=1)
                axes.plot([needed], [loss], "|", color="#333333", markersize=9, zorder=4)
                if found.extrapolated > 1:
                    (x, y) = baseline[-1] if loss < baseline[-1][1] else baseline[0]
                    axes.plot([x, needed], [y, loss], ":", color=OKABE_ITO[0], linewidth=1.6, zorder=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("FLOPs of training")
        axes.set_ylabel("bits per byte")
        low, high = axes.get_ylim()
        steps = (1.0, 2.0, 5.0) if high / low > 8 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        axes.yaxis.set_major_locator(MaxNLocator(5) if high / low < 1.6 else LogLocator(subs=steps))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: plain(value)))
        left, right = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if right / left > 50 else (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:.0e}".replace("e+", "e")))
        figure.legend(loc="outside upper center", ncols=3, **LEGEND)
    return drawn(figure)


def _draw_set(axes: Any, runs: Sequence[SpentCurve], mean: SpentCurve, label: str, number: int) -> None:
    """Draw single runs faintly and their mean over them."""
    colour = OKABE_ITO[number % len(OKABE_ITO)]
    if len(runs) > 1:
        for run in runs:
            x, y = zip(*run)
            axes.plot(x, y, color=colour, alpha=0.35, linewidth=0.8, marker="." if len(run) == 1 else None)
    x, y = zip(*mean)
    axes.plot(x, y, color=colour, linewidth=1.6, marker="os^DvPX*"[number % 8], markersize=3.5, label=label, zorder=3)
