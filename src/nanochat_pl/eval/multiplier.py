"""Compute multiplier: how many times a variant's compute the baseline takes to reach the variant's final loss.

Above 1 the variant saves compute. It says what a better loss is worth: 1 % of the loss is little or much, depending on
how flat the curve is. It is read off the baseline's curve of loss against compute, in which a straight line of the
logarithms is a power law; tokens and seconds can stand in the place of compute.

A point on the way of a run is not what a shorter run would have ended with, because the learning rate falls towards the
end of each. So a baseline may be several sets of runs, of several lengths, whose final points alone are the curve; a
baseline of one length has no other curve than the way there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, sqrt
from statistics import pvariance

import numpy as np

from nanochat_pl.eval.stats import Interval, t_quantile

__all__ = ["FURTHEST", "Multiplier", "SpentCurve", "baseline_curve", "compute_multiplier", "mean_curve", "reached"]

FURTHEST = 4.0
"""The factor by which a curve is extrapolated at most, as a power law of its last points; nothing is said beyond."""
_EQUAL = 1e-12
"""Logarithms of losses that differ by no more are equal: a mean of equal numbers is off by less."""
_NOTHING = 1e-24
"""A variance of logarithms that is no larger is one of rounding."""
SpentCurve = tuple[tuple[float, float], ...]
"""Points (spent, loss), both above 0, ordered by what was spent: FLOPs, tokens or seconds."""


@dataclass(frozen=True, kw_only=True)
class Multiplier:
    """What the baseline spends to reach the variant's final loss, in multiples of what the variant spent."""

    value: float | None
    """None where the baseline's curve says nothing about it; `reason` says why."""
    interval: Interval | None = None
    """Over seeds: Student's t on the logarithm, with the jackknife's error; None where a set is a single run."""
    extrapolated: float = 1.0
    """How far beyond the curve's end, or below its start, the baseline's spending lies, as a factor; 1 = within."""
    reason: str = ""


def reached(curve: SpentCurve, loss: float) -> tuple[float, float]:
    """Return the smallest spending from which on a curve stays at or below a loss, and by which factor it is outside.

    Where a curve goes down through the loss, up and down again, the last way down counts: what is lost again was luck.
    Between two points logarithms are interpolated. Beyond the ends the curve is a power law through its end, with the
    slope of the points within a factor `FURTHEST` of it.

    Returns:
        (spent, factor): factor 1 within the curve, above 1 beyond either end; (nan, nan) where one point alone, or a
        curve that does not fall, has no slope to go by.
    """
    x, y = np.log(np.array(curve, dtype=np.float64)).T
    target = log(loss)
    above = np.flatnonzero(y > target + _EQUAL)
    if above.size and above[-1] < y.size - 1:
        left = int(above[-1])
        share = (y[left] - target) / (y[left] - y[left + 1])
        return exp(x[left] + share * (x[left + 1] - x[left])), 1.0
    end = -1 if above.size else 0
    if abs(y[end] - target) <= _EQUAL:
        return exp(x[end]), 1.0
    near = np.abs(x - x[end]) <= log(FURTHEST) * (1 + 1e-9)
    if near.sum() < 2:
        near = np.abs(x - x[end]) <= np.sort(np.abs(x - x[end]))[min(1, x.size - 1)]
    along, fall = x[near] - x[end], y[near] - y[end]
    square = float(along @ along)
    slope = float(along @ fall) / square if square > 0 else 0.0
    if slope >= 0:
        return float("nan"), float("nan")
    beyond = (target - y[end]) / slope
    return (exp(x[end] + beyond), exp(abs(beyond))) if abs(beyond) < 500 else (float("nan"), float("nan"))


def mean_curve(curves: Sequence[SpentCurve]) -> SpentCurve:
    """Return the curve of geometric means over runs that were validated at the same steps.

    Raises:
        ValueError: They have different numbers of points.
    """
    if len({len(curve) for curve in curves}) != 1:
        raise ValueError(f"runs of one set need the same steps of validation, got {sorted(map(len, curves))} points")
    means = np.exp(np.log(np.array(curves, dtype=np.float64)).mean(axis=0))
    return tuple((float(spent), float(loss)) for spent, loss in means)


def baseline_curve(sets: Sequence[Sequence[SpentCurve]]) -> SpentCurve:
    """Return the curve of a baseline: the way there of runs of one length, the mean final points of several lengths."""
    if len(sets) == 1:
        return mean_curve(sets[0])
    return tuple(sorted(mean_curve([run[-1:] for run in runs])[0] for runs in sets))


def compute_multiplier(
    baseline: Sequence[Sequence[SpentCurve]],
    variant: Sequence[SpentCurve],
    level: float = 0.95,
    *,
    paired: bool = False,
) -> Multiplier:
    """Return what the baseline spends to reach the variant's final loss, in multiples of what the variant spent.

    Args:
        baseline: Sets of runs that differ in their seed; several sets are of several lengths, and only their final
            points count.
        variant: Runs of one length, of which the final points count.
        level: Of the interval.
        paired: Entry i of all sets has the same seed.

    Raises:
        ValueError: Runs of one set have different numbers of points, or sets in pairs different numbers of runs.
    """
    if paired and len({len(runs) for runs in (*baseline, variant)}) != 1:
        raise ValueError(f"sets in pairs need as many runs each, got {[len(runs) for runs in (*baseline, variant)]}")
    value, factor = _log_multiplier(baseline, variant)
    if not isfinite(value):
        reason = "the baseline's loss does not fall at the end of its curve"
        if len(baseline_curve(baseline)) < 2:
            reason = (
                "the baseline was validated once only; train it with stage.val_every_steps=<steps>, or give runs of it "
                "of several lengths and --seeds"
            )
        return Multiplier(value=None, reason=reason)
    if factor > FURTHEST * (1 + 1e-9):
        return Multiplier(
            value=None, extrapolated=factor, reason=f"more than {FURTHEST:g} times outside the baseline's curve"
        )
    interval = (_paired_interval if paired else _interval)(baseline, variant, value, level)
    return Multiplier(value=exp(value), interval=interval, extrapolated=factor)


def _log_multiplier(baseline: Sequence[Sequence[SpentCurve]], variant: Sequence[SpentCurve]) -> tuple[float, float]:
    """Return the logarithm of the multiplier and the factor of extrapolation, NaN where there is none."""
    [(spent, loss)] = mean_curve([run[-1:] for run in variant])
    needed, factor = reached(baseline_curve(baseline), loss)
    return log(needed / spent), factor


def _interval(
    baseline: Sequence[Sequence[SpentCurve]], variant: Sequence[SpentCurve], value: float, level: float
) -> Interval | None:
    """Return Student's interval with the error of the jackknife over the runs of each set by itself (Tukey, 1958).

    For a difference of two means, which the logarithm nearly is, it is Welch's interval.
    """
    sets = [*baseline, variant]
    parts = []
    for index, runs in enumerate(sets):
        others: list[float] = []
        for left_out in range(len(runs)):
            kept = [*sets[:index], [run for i, run in enumerate(runs) if i != left_out], *sets[index + 1 :]]
            if len(runs) > 1:
                others.append(_log_multiplier(kept[:-1], kept[-1])[0])
        if len(runs) == 1 and _matters(sets, index):
            return None
        if others:
            parts.append(((len(runs) - 1) * pvariance(others), len(runs) - 1))
    variance = sum(part for part, _ in parts)
    df = variance**2 / sum(part**2 / own for part, own in parts) if variance > _NOTHING else 1
    return _students(value, variance, df, level)


def _paired_interval(
    baseline: Sequence[Sequence[SpentCurve]], variant: Sequence[SpentCurve], value: float, level: float
) -> Interval | None:
    """Return Student's interval with the error of the jackknife, which leaves out one seed of all sets at a time."""
    sets, n = [*baseline, variant], len(variant)
    if n < 2:
        return None
    kept = [[[*runs[:i], *runs[i + 1 :]] for runs in sets] for i in range(n)]
    others = [_log_multiplier(own[:-1], own[-1])[0] for own in kept]
    return _students(value, (n - 1) * pvariance(others), n - 1, level)


def _students(value: float, variance: float, df: float, level: float) -> Interval | None:
    """Return the interval of a multiplier whose logarithm is `value`; None where the error is not known."""
    if not isfinite(variance):
        return None
    if variance <= _NOTHING:  # seeds that do not differ say nothing about others
        return None
    reach = t_quantile(level, df) * sqrt(variance)
    return Interval(exp(value - reach), exp(value + reach), level) if reach < 500 else None


def _matters(sets: Sequence[Sequence[SpentCurve]], index: int) -> bool:
    """Return whether the losses of a set have any part in the multiplier: a length far from the crossing has none."""
    moved = [[tuple((spent, loss * (1 + 1e-7)) for spent, loss in run) for run in runs] for runs in sets]
    changed = [*sets[:index], moved[index], *sets[index + 1 :]]
    then, now = (_log_multiplier(own[:-1], own[-1])[0] for own in (sets, changed))
    return not abs(then - now) < 1e-12
