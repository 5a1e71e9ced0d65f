"""How far a score can be trusted: intervals for one model, tests for two models on the same questions.

Fifty questions say little: 21 of 50 is 42 % give or take 13 points. Every accuracy of this project is therefore given
with an interval, and two checkpoints are compared question by question before either is called better. NumPy and the
standard library only; random resampling is seeded, so that equal records always give equal numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb, exp, fsum, lgamma, log, pi, sqrt, tan
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np

__all__ = [
    "Interval",
    "Spread",
    "binomial_test",
    "bootstrap_interval",
    "holm_correction",
    "mcnemar_exact",
    "p_text",
    "paired_bootstrap",
    "paired_interval",
    "paired_t_test",
    "seed_spread",
    "sign_flip_test",
    "std_interval",
    "t_quantile",
    "t_tail",
    "weighted_sum_interval",
    "welch_df",
    "welch_test",
    "wilson_interval",
]

_DRAWS_PER_CHUNK = 4_000_000
"""Random indices held at once while resampling: 32 MB, whatever the number of questions."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval `[low, high]` at `level`."""

    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class Spread:
    """One metric over several runs that differ in their seed only."""

    mean: float
    std: float | None
    """The sample standard deviation (divisor n - 1); None for a single run, which says nothing about seeds."""
    n: int
    interval: Interval | None
    """The interval of the mean over all seeds (Student's t); None for a single run, and where all runs are equal."""


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Bound a proportion by inverting the score test (Wilson, 1927).

    Unlike the textbook `p +- 1.96 s` it stays inside [0, 1] and keeps its coverage near 0 and 1 and for few trials.

    Raises:
        ValueError: No trials, or `successes` outside 0..trials, or `level` outside (0, 1).
    """
    _check_level(level)
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"wilson_interval needs 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / trials
    shrunk = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrunk
    reach = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / shrunk
    # At 0 and at all successes one bound is exactly 0 or 1, not 1e-17 off.
    low = 0.0 if successes == 0 else centre - reach
    high = 1.0 if successes == trials else centre + reach
    return Interval(low, high, level)


def weighted_sum_interval(parts: Sequence[tuple[float, float, Interval]]) -> Interval:
    """Bound a weighted sum of independent values by the interval of each (Zou and Donner, 2008).

    Unlike a bootstrap over their questions it does not shrink to a point where a value is 0 or 1 by luck.

    Args:
        parts: (weight above 0, value, its interval) of each; the intervals are of one level.

    Raises:
        ValueError: No parts, or intervals of several levels.
    """
    levels = {interval.level for _, _, interval in parts}
    if len(levels) != 1:
        raise ValueError(
            f"the intervals to be added up are of the levels {sorted(levels)}; give some, all of one level"
        )
    centre = sum(weight * value for weight, value, _ in parts)
    below = sum((weight * (value - interval.low)) ** 2 for weight, value, interval in parts)
    above = sum((weight * (interval.high - value)) ** 2 for weight, value, interval in parts)
    return Interval(centre - sqrt(below), centre + sqrt(above), levels.pop())


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Interval:
    """Bound the mean of `values` by percentiles of the means of resamples drawn with replacement (Efron, 1979).

    With `weights` it is the weighted mean, such as bits over bytes, and a resample draws values with their weights: a
    ratio of two sums varies with both of them.

    Raises:
        ValueError: No values, a value that is not finite, a weight that is not above 0, or `level` outside (0, 1).
    """
    _check_level(level)
    sample = _finite(values, "bootstrap")
    heavy = None if weights is None else _finite(weights, "bootstrap")
    if heavy is not None and (heavy.shape != sample.shape or heavy.min() <= 0):
        raise ValueError(f"a bootstrap needs a weight above 0 for each of {sample.size} values, got {heavy.size}")
    draw = np.random.default_rng(seed)
    means = np.empty(num_resamples)
    rows = max(1, _DRAWS_PER_CHUNK // sample.size)
    for start in range(0, num_resamples, rows):
        stop = min(start + rows, num_resamples)
        drawn = draw.integers(0, sample.size, (stop - start, sample.size))
        if heavy is None:
            means[start:stop] = sample[drawn].mean(axis=1)
        else:
            means[start:stop] = (sample * heavy)[drawn].sum(axis=1) / heavy[drawn].sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(low), float(high), level)


def paired_bootstrap(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Interval:
    """Bound mean(second) - mean(first), where entry i of both is the same question.

    Questions are resampled, not answers: what both models find easy cancels, so the interval is narrower than that of
    two independent samples. `weights` are those of the questions, as for `bootstrap_interval`.

    Raises:
        ValueError: The lengths differ, or as `bootstrap_interval`.
    """
    return bootstrap_interval(_paired_differences(first, second, "bootstrap"), level, num_resamples, seed, weights)


def paired_interval(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, level: float = 0.95, seed: int = 0
) -> Interval:
    """Bound mean(second) - mean(first), where entry i of both is the score of the same question, from 0 to 1.

    For right or wrong answers it is Wald's interval with half a question added to each of the four ways that two
    answers can come out (Agresti and Min, 2005). For other scores it is the paired bootstrap, but at least as wide as
    the former is where the two models never differ: a few questions without disagreement do not prove equality.

    Raises:
        ValueError: The lengths differ, no values, one that is not finite, or `level` outside (0, 1).
    """
    _check_level(level)
    differences = _paired_differences(first, second, "interval")
    z, n = NormalDist().inv_cdf(0.5 + level / 2), differences.size + 2
    if {*np.unique(first), *np.unique(second)} <= {0.0, 1.0}:
        won, lost = (int((differences == sign).sum()) + 0.5 for sign in (1.0, -1.0))
        centre, reach = (won - lost) / n, z * sqrt(won + lost - (won - lost) ** 2 / n) / n
        return Interval(max(-1.0, centre - reach), min(1.0, centre + reach), level)
    found, centre, least = paired_bootstrap(first, second, level, seed=seed), float(differences.mean()), z / n
    return Interval(min(found.low, centre - least), max(found.high, centre + least), level)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value that two models answer equally well (McNemar, 1947, exact binomial form).

    The arguments count the questions that only one of the two got right; the others carry no information.

    Raises:
        ValueError: A negative count.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"mcnemar_exact counts questions, got {only_first} and {only_second}")
    discordant, fewer = only_first + only_second, min(only_first, only_second)
    # Integers of any size: exact where a float binomial would underflow beyond a thousand questions.
    tail = sum(comb(discordant, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**discordant)


def binomial_test(successes: int, trials: int, chance: float) -> float:
    """Return the two-sided p-value of the hypothesis that trials succeed by `chance`: twice the smaller exact tail."""

    def tail(numbers: range) -> float:
        if not 0 < chance < 1:
            return float((trials if chance else 0) in numbers)
        odds, constant = log(chance / (1 - chance)), lgamma(trials + 1) + trials * log(1 - chance)
        return fsum(exp(constant - lgamma(k + 1) - lgamma(trials - k + 1) + k * odds) for k in numbers)

    return min(1.0, 2 * min(tail(range(successes + 1)), tail(range(successes, trials + 1))))


def p_text(p_value: float, alpha: float = 0.05) -> str:
    """Format a p-value with three digits, or with as many more as show on which side of `alpha` it lies.

    0.0496 is not written as 0.050, which would contradict a verdict drawn at 0.05.
    """
    if p_value < 0.001 <= alpha:
        return "p < 0.001"
    text = ""
    for digits in range(3, 18):
        text = f"{p_value:.{digits}f}"
        if (float(text) < alpha) == (p_value < alpha) and (float(text) or not p_value):
            break
    return f"p = {text}"


def sign_flip_test(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    num_resamples: int = 100_000,
    seed: int = 0,
) -> float:
    """Return the two-sided p-value that two models score equally well, where entry i of both is the same question.

    If they do, the difference at each question could as well have the other sign (Fisher, 1935): p is the share of all
    ways to give signs whose sum is at least as far from 0. For scores of 0 and 1 this is McNemar's exact test.

    Where there are at most `num_resamples` ways, all are counted, and p is exact. Otherwise `num_resamples` of them are
    drawn, and the observed one is counted among them, so that p is never 0.

    Raises:
        ValueError: The lengths differ, no scores, or one that is not finite.
    """
    differences = _paired_differences(first, second, "sign-flip test")
    # Where both score the same, the sign changes nothing.
    distances = np.abs(differences[differences != 0])
    # Sums that are equal on paper differ in their last bits by the order of adding.
    reach = abs(differences.sum()) - 1e-9 * distances.sum()
    if 2**distances.size <= num_resamples:
        sums = np.zeros(1)
        for distance in distances:
            sums = np.concatenate([sums + distance, sums - distance])
        return float((np.abs(sums) >= reach).mean())
    draw = np.random.default_rng(seed)
    as_far, rows = 1, max(1, _DRAWS_PER_CHUNK // distances.size)
    for start in range(0, num_resamples, rows):
        shape = (min(rows, num_resamples - start), -(-distances.size // 8))
        positive = np.unpackbits(draw.integers(0, 256, shape, dtype=np.uint8), axis=1, count=distances.size)
        as_far += int((np.abs(2 * (positive @ distances) - distances.sum()) >= reach).sum())
    return as_far / (num_resamples + 1)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple testing; return them in the order given (Holm, 1979).

    Rejecting where the adjusted value is below alpha keeps the probability of any false rejection at or below alpha,
    however the tests depend on each other.

    Raises:
        ValueError: A value outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"holm_correction needs p-values between 0 and 1, got {list(p_values)}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        # Never below that of a smaller p-value: the procedure stops at the first it does not reject.
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def seed_spread(values: Sequence[float], level: float = 0.95) -> Spread:
    """Summarize one metric over runs of different seeds: mean, standard deviation, t interval of the mean.

    Three seeds are few: at two degrees of freedom the interval is 4.3 standard errors to each side, not 2.

    Raises:
        ValueError: No values, a value that is not finite, or `level` outside (0, 1).
    """
    _check_level(level)
    n = len(values)
    if n < 1 or not np.isfinite(values).all():
        raise ValueError(f"a spread over seeds needs at least one value, all finite; got {list(values)}")
    mean = fmean(values)
    if n == 1:
        return Spread(mean, None, n, None)
    std = stdev(values)
    if not std:  # equal values say nothing of how others vary
        return Spread(mean, 0.0, n, None)
    reach = t_quantile(level, n - 1) * std / sqrt(n)
    return Spread(mean, std, n, Interval(mean - reach, mean + reach, level))


def std_interval(std: float, df: int, level: float = 0.95) -> Interval:
    """Bound a standard deviation by the chi-square distribution of its square over `df` degrees of freedom.

    Three seeds leave a factor of twelve between the ends.
    """
    _check_level(level)

    def within(x: float) -> float:  # the series of the incomplete gamma function (Abramowitz and Stegun, 6.5.29)
        half = df / 2
        term = total = exp(half * log(x / 2) - x / 2 - lgamma(half + 1))
        for k in range(1, 100_000):
            term *= x / 2 / (half + k)
            total += term
            if term < 1e-16 * total:
                break
        return total

    def quantile(share: float) -> float:
        low, high = 0.0, 2.0 * df + 60
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if within(middle) < share else (low, middle)
        return low

    tail = (1 - level) / 2
    return Interval(std * sqrt(df / quantile(1 - tail)), std * sqrt(df / quantile(tail)), level)


def welch_test(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> tuple[float, Interval | None]:
    """Test whether two recipes are equally good by a figure of several runs of each, which may vary unequally.

    Returns:
        The two-sided p-value of Welch's t test (1947), and the interval of mean(second) - mean(first). Where no run
        differs from the others of its recipe, nothing is known of how they vary: p is the share of all ways to deal the
        runs out that part them as well, and there is no interval.

    Raises:
        ValueError: Fewer than two values on a side, a value that is not finite, or `level` outside (0, 1).
    """
    _check_level(level)
    if min(len(first), len(second)) < 2 or not np.isfinite([*first, *second]).all():
        raise ValueError(f"a test over seeds needs two finite values of each, got {list(first)} and {list(second)}")
    difference = fmean(second) - fmean(first)
    before, after = (stdev(values) ** 2 / len(values) for values in (first, second))
    error, rounding = sqrt(before + after), _rounding(first, second)
    if error <= rounding:
        ways = comb(len(first) + len(second), len(first)) / (2 if len(first) == len(second) else 1)
        return 1.0 if abs(difference) <= rounding else 1 / ways, None
    df = float(welch_df(before, after, len(first), len(second)))
    reach = t_quantile(level, df) * error
    return t_tail(abs(difference) / error, df), Interval(difference - reach, difference + reach, level)


def paired_t_test(
    first: Sequence[float], second: Sequence[float], level: float = 0.95
) -> tuple[float, Interval | None]:
    """Test whether two recipes are equally good by runs in pairs: entry i of both has the same seed.

    Where runs of one seed read the same text in the same order, most of what varies from seed to seed is common to both
    and drops out of their difference.

    Returns:
        The two-sided p-value of Student's t test of the differences (1908), and the interval of their mean, second
        minus first. Where all pairs differ by the same, as shares of few questions do, nothing is known of how they
        vary: p is that of equal signs, 2 / 2**n, and there is no interval.

    Raises:
        ValueError: The lengths differ, fewer than two pairs, a value that is not finite, or `level` outside (0, 1).
    """
    spread = seed_spread(_paired_differences(first, second, "t test").tolist(), level)
    if spread.std is None:
        raise ValueError("a paired t test needs two pairs of runs at least, got one")
    rounding = _rounding(first, second)
    if spread.interval is None or spread.std <= rounding:
        return 1.0 if abs(spread.mean) <= rounding else 2 / 2**spread.n, None
    return t_tail(abs(spread.mean) / spread.std * sqrt(spread.n), spread.n - 1), spread.interval


def _rounding(*samples: Sequence[float]) -> float:
    """Return what differences of these values may be by rounding alone."""
    return 1e-12 * max(abs(value) for sample in samples for value in sample)


def welch_df(first: Any, second: Any, n_first: int, n_second: int) -> Any:
    """Return the degrees of freedom of the sum of two squared standard errors (Satterthwaite, 1946)."""
    return (first + second) ** 2 / (first**2 / (n_first - 1) + second**2 / (n_second - 1))


def t_tail(t: float, df: float) -> float:
    """Return the probability that Student's t is outside [-t, t]; `df` need not be whole.

    It is the incomplete beta function at df / (df + t^2) (Abramowitz and Stegun, 26.7.1 and 26.5.8).
    """
    a, b = df / 2, 0.5
    x, rest = df / (df + t * t), t * t / (df + t * t)
    if t <= 0:
        return 1.0
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log(rest)) if x > 0 else 0.0
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, rest) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Evaluate the continued fraction of the incomplete beta function from its front (Lentz, 1976)."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / (1 + term * d), 1 + term / c
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


@cache
def t_quantile(level: float, df: float) -> float:
    """Return the t for which Student's distribution lies within [-t, t] with probability `level`."""
    low, high = 0.0, pi / 2  # the angle of t / sqrt(df), which has both ends
    while low < (middle := (low + high) / 2) < high:
        within = 1 - t_tail(sqrt(df) * tan(middle), df) < level
        low, high = (middle, high) if within else (low, middle)
    return sqrt(df) * tan(low)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level} is not a confidence level; give a number between 0 and 1, such as 0.95")


def _finite(values: Sequence[float] | np.ndarray, what: str) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"a {what} needs at least one value, all finite, in one dimension; got shape {sample.shape}")
    return sample


def _paired_differences(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, what: str
) -> np.ndarray:
    before, after = _finite(first, what), _finite(second, what)
    if before.shape != after.shape:
        raise ValueError(f"a paired {what} needs as many values of both, got {before.shape} and {after.shape}")
    return after - before
