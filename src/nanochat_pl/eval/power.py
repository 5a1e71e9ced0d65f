"""How much is enough: which difference a test would find, and how many questions or seeds find a given one.

A test that finds nothing says little where it could hardly have found anything. Power is the probability that the very
test of this project (`mcnemar_exact`, `sign_flip_test`, `welch_test`, `paired_t_test`) is significant when there is a
difference of a given size; four in five is the usual demand (Cohen, 1988). Where tests are corrected together (Holm),
the smallest of m p-values is held against alpha / m: at that level power is a lower bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, lgamma, log, sqrt
from statistics import NormalDist
from typing import Literal, Protocol

import numpy as np

from nanochat_pl.eval.stats import t_quantile, welch_df

__all__ = [
    "POWER",
    "Design",
    "Enough",
    "PairedQuestions",
    "Seeds",
    "detectable_effect",
    "number_needed",
    "paired_design",
    "what_is_enough",
]

POWER = 0.8
"""How often a difference is to be found where there is one."""
MOST = 10_000_000
"""Numbers above this are not looked for."""
_EXACT_UP_TO = 400
"""Questions answered differently on average, up to which McNemar's power is summed exactly; then it is normal."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


class Design(Protocol):
    """What is known before a test: how the measurements vary, not how many there are."""

    @property
    def least(self) -> int:
        """The smallest number with which the test can be made."""

    @property
    def largest_effect(self) -> float:
        """No difference can be larger."""

    def error(self, n: int) -> float:
        """Return about the standard error of the difference that `n` give."""

    def power(self, n: int, effect: float, alpha: float = 0.05) -> float:
        """Return the probability that the two-sided test of `n` is significant where the difference is `effect`."""


@dataclass(frozen=True, kw_only=True)
class PairedQuestions:
    """Two models on the same questions."""

    disagreement: float
    """Share of the questions that one of the two answers better."""
    size: float | None = None
    """Root mean square of the differences at those questions, whatever their sign; None = 1 each: right or wrong."""
    grid: float = 0.0
    """What all differences are whole multiples of, as 0.25 of four samples a question; 0 = nothing."""

    def __post_init__(self) -> None:
        """Refuse impossible shares.

        Raises:
            ValueError: The share is outside 0..1, or the size is not above 0.
        """
        if not 0 <= self.disagreement <= 1 or (self.size is not None and not self.size > 0):
            raise ValueError(
                f"models disagree on a share of the questions from 0 to 1, by a size above 0; got {self.disagreement} "
                f"and {self.size}"
            )

    @property
    def least(self) -> int:
        return 1

    @property
    def largest_effect(self) -> float:
        return self.size or 1.0

    def error(self, n: int) -> float:
        return self.largest_effect * sqrt(max(self.disagreement, 1e-9) / n)

    def power(self, n: int, effect: float, alpha: float = 0.05) -> float:
        """Return the power of McNemar's exact test, or of the sign-flip test where differences have a size.

        The number of questions that tell the two apart varies with the questions drawn: power is the mean over it. A
        difference that is larger than the share of disagreement takes so many more of them.

        McNemar's is exact up to 400 such questions on average. The sign-flip test's is an approximation to
        about 0.05, and nothing where the smallest p of so few scores, 2 / 2**d, reaches alpha.
        """
        effect = abs(effect) / self.largest_effect
        share = max(self.disagreement, effect)
        if not 0 < share <= 1:
            return 0.0
        if self.size is None and n * share > _EXACT_UP_TO:
            spread = sqrt(n * max(share - effect**2, 1e-300))
            return float(_normal((n * effect - 1 + NormalDist().inv_cdf(alpha / 2) * sqrt(n * share)) / spread))
        counts, shares = _binomial(n, share)
        if self.size is None:
            found = _mcnemar(counts, 0.5 + 0.5 * effect / share, alpha)
        else:
            found = _sign_flip(counts, effect / share, self.grid / self.size, alpha)
        return float(shares @ found)


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Two sets of runs whose figure varies from seed to seed, equally in both."""

    std: float
    """Standard deviation of the figure, or of its difference between two runs of one seed; above 0."""
    reference: int | None = None
    """Number of runs of the set that is compared with; None = as many as of the other."""
    paired: bool = False
    """Both sets have the same seeds, and each run is compared with the other set's run of its seed."""

    def __post_init__(self) -> None:
        """Refuse figures that do not vary, and pairs of unequal numbers.

        Raises:
            ValueError: The standard deviation is not above 0, or `paired` comes with a number of the reference.
        """
        if self.paired and self.reference is not None:
            raise ValueError(f"runs in pairs are equally many of both sets; leave reference={self.reference} out")
        if not self.std > 0:
            raise ValueError(f"std={self.std} must be above 0: a figure that never varies needs no test")

    @property
    def least(self) -> int:
        return 2

    @property
    def largest_effect(self) -> float:
        return float("inf")

    def error(self, n: int) -> float:
        return self.std * sqrt(1 / n + (0 if self.paired else 1 / (self.reference or n)))

    def power(self, n: int, effect: float, alpha: float = 0.05) -> float:
        """Return the power of Welch's t test, or of the paired one, for normal figures.

        It is exact, by quadrature over the standard deviations that may be found.
        """
        reference = n if self.reference is None else self.reference
        if min(n, reference) < 2:
            return 0.0
        reach, weights = _paired(n, alpha) if self.paired else _welch(n, reference, alpha)
        scaled = abs(effect) / self.error(n)
        return float((weights * (_normal(scaled - reach) + _normal(-scaled - reach))).sum())


def paired_design(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> PairedQuestions | None:
    """Learn from two models' scores of the same questions how they differ.

    Half a question is added on either side, as in the interval of the difference: where nobody disagreed on a few
    questions, somebody might on the next. None where scores are not right or wrong and all differ by the same, or there
    is one only: that says nothing about how others would.
    """
    before, after = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    differences = after - before
    apart = differences[differences != 0]
    share = (apart.size + 1) / (differences.size + 2)
    if {*np.unique(before), *np.unique(after)} <= {0.0, 1.0}:
        return PairedQuestions(disagreement=share)
    if np.unique(differences).size < 2:
        return None
    if apart.size == differences.size:
        share = 1.0  # scores that are equal nowhere, such as likelihoods, are equal nowhere else either
    step = float(np.abs(apart).min())
    grid = step if np.allclose(apart / step, np.round(apart / step), rtol=0, atol=1e-6) else 0.0
    return PairedQuestions(disagreement=share, size=float(np.sqrt((apart**2).mean())), grid=grid)


def detectable_effect(design: Design, n: int, alpha: float = 0.05, power: float = POWER) -> float | None:
    """Return the smallest difference that `n` find with the power wanted, to four digits; None where there is none.

    Raises:
        ValueError: `power` is not above `alpha`, which is how often a difference of nothing is found.
    """

    def enough(effect: float) -> bool:
        return design.power(n, effect, alpha) >= power

    _check(alpha, power)
    if n < design.least or (n * design.largest_effect < MOST and not enough(design.largest_effect)):
        return None
    # Near the difference that a normal test would need.
    high = min(_reach(alpha, power) * design.error(n), design.largest_effect)
    while not enough(high):
        high = min(1.3 * high, design.largest_effect)
        if high > 1e6 * design.error(n):
            return None
    low = high / 1.3
    while low > 0 and enough(low):
        low, high = low / 1.3, low
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def number_needed(design: Design, effect: float, alpha: float = 0.05, power: float = POWER) -> int | None:
    """Return how many questions, or seeds of each set, find a difference of this size with the power wanted.

    The power of exact tests rises in small steps back and forth; the number is one that has it while the one before has
    it not. None where more than ten million would be needed, or none would do.

    Raises:
        ValueError: `power` is not above `alpha`.
    """
    _check(alpha, power)

    def enough(n: int) -> bool:
        return design.power(n, effect, alpha) >= power

    if effect == 0 or abs(effect) > design.largest_effect:
        return None
    normal = (_reach(alpha, power) * design.error(1) / effect) ** 2
    if normal > MOST:
        return None
    high = max(design.least, ceil(normal))
    while not enough(high):
        high += ceil(0.15 * high)
        if high > MOST:
            return None
    low = int(high / 1.15)
    while low >= design.least and enough(low):
        low, high = int(low / 1.15), low
    low = max(low, design.least - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _check(alpha: float, power: float) -> None:
    if not 0 < alpha < power < 1:
        raise ValueError(
            f"power {power:g} must lie between alpha {alpha:g}, with which chance alone finds a difference, and 1"
        )


def _reach(alpha: float, power: float) -> float:
    """Return how many standard errors from 0 a difference lies that a normal test finds."""
    return max(0.5, NormalDist().inv_cdf(power) - NormalDist().inv_cdf(alpha / 2))


@dataclass(frozen=True, kw_only=True)
class Enough:
    """What a test could have found, and what it would take to find what was seen."""

    n: int
    """Number of questions, or of seeds of the set that is compared with the reference."""
    unit: Literal["questions", "seeds"]
    detectable: float | None
    """The smallest difference that `n` find in four of five cases; None where they find none, however large."""
    needed: int | None
    """How many would find the difference that was seen in four of five cases; None where it was found, or is 0, or
    where more than ten million would be needed."""


def what_is_enough(design: Design, n: int, effect: float, alpha: float, *, found: bool) -> Enough:
    """Return what `n` could have found and, unless the difference was `found`, how many its size takes."""
    alike = replace(design, reference=None) if isinstance(design, Seeds) else design
    return Enough(
        n=n,
        unit="seeds" if isinstance(design, Seeds) else "questions",
        detectable=detectable_effect(design, n, alpha),
        needed=None if found else number_needed(alike, effect, alpha),
    )


# --- McNemar's test and sign flips ---


def _binomial(n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers that `n` trials of probability `share` can give, and the probability of each.

    Numbers further than eight standard deviations from the mean are left out.
    """
    reach = 8 * sqrt(n * share * (1 - share)) + 8
    counts = np.arange(max(0, ceil(n * share - reach)), min(n, int(n * share + reach)) + 1)
    weights = np.exp(_log_binomial(n, counts, share))
    return counts, weights / weights.sum()


def _log_binomial(n: int | np.ndarray, k: np.ndarray, share: float) -> np.ndarray:
    """Return the log-probability of `k` successes in `n` trials, -inf where `k` is more than `n`."""
    logs = _log_factorials(int(np.max(n)))
    rest = n - k
    with np.errstate(divide="ignore", invalid="ignore"):
        one, other = np.log([share, 1 - share])
        hits, misses = np.where(k == 0, 0.0, k * one), np.where(rest == 0, 0.0, rest * other)
    found = logs[n] - logs[k] - logs[np.maximum(rest, 0)] + hits + misses
    return np.where(rest < 0, -np.inf, found)


@lru_cache(maxsize=4)
def _log_factorials_to(size: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size)))])


def _log_factorials(largest: int) -> np.ndarray:
    return _log_factorials_to(1 << max(10, (largest + 1).bit_length()))


def _mcnemar(counts: np.ndarray, share: float, alpha: float) -> np.ndarray:
    """Return the power of the exact test for each number of questions answered differently.

    Args:
        share: Of them, those that the better model gets right.
    """
    limits = np.array([_mcnemar_limit(int(count), alpha) for count in counts])
    k = np.arange(max(0, int(limits.max(initial=-1))) + 1)
    n, inside = counts[:, None], k[None, :] <= limits[:, None]
    tails = (np.exp(_log_binomial(n, k[None, :], own)) for own in (share, 1 - share))
    return sum((np.where(inside, tail, 0.0).sum(axis=1) for tail in tails), np.zeros(counts.size))


@lru_cache(maxsize=65_536)
def _mcnemar_limit(count: int, alpha: float) -> int:
    """Return the most questions that the worse model alone may get right where the test is significant; -1 = none."""
    below = np.cumsum(np.exp(_log_binomial(count, np.arange(count // 2 + 1), 0.5)))
    return int(np.searchsorted(2 * below, alpha * (1 - 1e-12))) - 1


def _sign_flip(counts: np.ndarray, mean: float, grid: float, alpha: float) -> np.ndarray:
    """Return the power for each number of scores that are not equal, of this mean and a mean square of 1.

    On a grid the test is McNemar's of more than two sizes: the sum of squares hardly varies, and since sums as far from
    0 as the one seen count as further, half a step is lost. Other scores are taken for normal, and their sign flips for
    the t test.
    """
    found = np.zeros(counts.size)
    enough = np.flatnonzero((counts > 1) & (2.0 ** (1 - counts) < alpha))
    if not enough.size:
        return found
    # Power changes slowly with the number: 64 of many are computed, the others interpolated.
    chosen = np.unique(np.linspace(enough[0], enough[-1], 64).round().astype(int))
    df = (counts[chosen] - 1).astype(np.float64)
    if mean < 1 - 1e-9 and grid:
        roots, spread = np.sqrt(counts[chosen]), sqrt(1 - mean**2)
        critical = grid / roots - NormalDist().inv_cdf(alpha / 2)
        power = _normal((mean * roots - critical) / spread) + _normal((-mean * roots - critical) / spread)
    elif mean < 1 - 1e-9:
        nodes, weights = _chi(df)
        reach = _critical(alpha, df)[:, None] * nodes / np.sqrt(df)[:, None]
        away = (mean / sqrt(1 - mean**2) * np.sqrt(counts[chosen]))[:, None]
        power = (weights * (_normal(away - reach) + _normal(-away - reach))).sum(axis=1)
    else:
        power = np.ones(chosen.size)  # all differences are equal
    found[enough] = np.interp(enough, chosen, power)
    return found


# --- the t test ---


@lru_cache(maxsize=256)
def _welch(n: int, reference: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how far two means must lie apart, in standard errors, for each pair of standard deviations; its weight."""
    (first, first_weights), (second, second_weights) = (_chi(np.array([size - 1.0])) for size in (n, reference))
    a, b = (first[0] ** 2 / (n - 1) / n)[:, None], (second[0] ** 2 / (reference - 1) / reference)[None, :]
    df = welch_df(a, b, n, reference)
    reach = _critical(alpha, df) * np.sqrt((a + b) / (1 / n + 1 / reference))
    return reach, first_weights[0][:, None] * second_weights[0][None, :]


def _paired(n: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how far a mean of n must lie from 0, in true standard errors, for each standard deviation; its weight."""
    df = np.array([n - 1.0])
    (nodes,), (weights,) = _chi(df)
    return _critical(alpha, df) * nodes / sqrt(n - 1), weights


def _critical(alpha: float, df: np.ndarray) -> np.ndarray:
    """Return the t beyond which a test is significant at `alpha`, to four digits."""
    inverse, logs = _critical_table(alpha)
    return np.exp(np.interp(1 / df, inverse, logs))


@lru_cache(maxsize=64)
def _critical_table(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Return logarithms of critical values over 1 / df, in which they are smooth."""
    inverse = np.linspace(1e-9, 1, 96)
    return inverse, np.log([t_quantile(1 - alpha, 1 / value) for value in inverse])


def _chi(df: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights (F, 64) that integrate over the chi distribution of each of F degrees of freedom."""
    centre = np.sqrt(df)[:, None]
    low, high = np.maximum(centre - 6.5, 0.0), centre + 6.5
    nodes = low + (high - low) * (_NODES + 1) / 2
    constant = np.array([(value / 2 - 1) * log(2) + lgamma(value / 2) for value in df])[:, None]
    density = np.exp((df[:, None] - 1) * np.log(nodes) - nodes**2 / 2 - constant)
    weights = density * _WEIGHTS
    return nodes, weights / weights.sum(axis=1, keepdims=True)


def _polynomial(coefficients: Sequence[float]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.polyval(np.array(coefficients), x)


_TAIL = _polynomial((1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0))


def _normal(z: np.ndarray | float) -> np.ndarray:
    """Return the normal distribution function, to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    x = np.abs(z) / sqrt(2)
    upper = _TAIL(1 / (1 + 0.3275911 * x)) * np.exp(-x * x) / 2
    return np.where(np.asarray(z) > 0, 1 - upper, upper)
