"""The compute multiplier: exact where the answer is known, and its interval as often right as it says."""

from math import exp

import numpy as np
import pytest

from nanochat_pl.eval.multiplier import FURTHEST, SpentCurve, compute_multiplier, reached

COMPUTE = np.geomspace(1e12, 1e14, 12)


def power_law(times: float = 1.0, floor: float = 0.0, spent: np.ndarray = COMPUTE) -> SpentCurve:
    """A curve that has at some compute the loss that the law has at `times` as much."""
    return tuple(zip(spent.tolist(), (floor + 30 * (spent * times) ** -0.1).tolist()))


def noisy(draw: np.random.Generator, times: float = 1.0, std: float = 0.003) -> SpentCurve:
    """A run that lies higher or lower than others as a whole, and wavers on its way."""
    return tuple(
        (spent, loss * exp(draw.normal(0, std / 3)) * exp(offset))
        for offset in [draw.normal(0, std)]
        for spent, loss in power_law(times, 0.5, np.linspace(1e12, 2e13, 20))
    )


@pytest.mark.parametrize("times", [0.1, 0.5, 0.937, 1.0, 1.3, 2.0, 3.99])
def test_a_curve_shifted_by_a_factor_gives_the_factor(times):
    found = compute_multiplier([[power_law()]], [power_law(times)])
    assert found.value == pytest.approx(times, rel=1e-9)
    assert found.extrapolated == pytest.approx(max(1.0, times), rel=1e-9)
    assert found.interval is None
    several = compute_multiplier([[power_law()] * 3], [power_law(times)] * 2)
    assert several.value == pytest.approx(times, rel=1e-9)
    assert several.interval is None, "seeds that do not differ say nothing about others"


def test_beyond_a_factor_nothing_is_said():
    assert FURTHEST == 4
    for times in (4.1, 100.0):
        found = compute_multiplier([[power_law()]], [power_law(times)])
        assert (found.value, found.interval) == (None, None)
        assert "4 times" in found.reason
    late = tuple(point for point in power_law() if point[0] > 3e13)
    assert compute_multiplier([[late]], [power_law(0.5)]).value == pytest.approx(0.5)
    early = ((1e12, power_law()[0][1]),)  # a variant that has not come to where the baseline begins
    assert compute_multiplier([[late]], [early]).value is None


@pytest.mark.parametrize("times", [0.4, 0.6, 0.8, 0.95])
def test_with_a_loss_that_nothing_removes_the_multiplier_is_right_to_a_hundredth(times):
    spent = np.linspace(5e12, 1e14, 20)  # as runs validate: at equal steps
    variant = tuple(zip(spent.tolist(), (0.6 + 30 * (spent * times) ** -0.12).tolist()))
    baseline = tuple(zip(spent.tolist(), (0.6 + 30 * spent**-0.12).tolist()))
    assert compute_multiplier([[baseline]], [variant]).value == pytest.approx(times, rel=0.01)


def test_of_several_ways_down_the_last_counts():
    curve = ((1.0, 4.0), (2.0, 2.0), (4.0, 3.0), (8.0, 1.0))
    assert reached(curve, 2.5)[0] == pytest.approx(4 * 2 ** (np.log(3 / 2.5) / np.log(3)))
    assert reached(curve, 2.5)[1] == 1
    assert reached(curve, 3.5)[0] < 2  # the bump does not reach it
    assert reached(curve, 3.0)[0] == pytest.approx(4 / 3)  # at or below from there on
    assert reached(((1.0, 3.0), (2.0, 1.0), (4.0, 2.0)), 1.5)[1] > 1  # not kept to the end: lost again


def test_a_curve_that_does_not_fall_or_is_one_point_says_nothing_beyond_itself():
    for baseline, reason in (
        (((1e12, 2.0), (2e12, 2.0), (4e12, 2.1)), "does not fall at the end"),
        (((4e12, 2.0),), "was validated once only; train it with stage.val_every_steps="),
    ):
        found = compute_multiplier([[baseline]], [((4e12, 1.9),)])
        assert found.value is None
        assert reason in found.reason
    assert compute_multiplier([[((4e12, 2.0),)]], [((2e12, 2.0),)]).value == pytest.approx(2.0)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("times", [0.7, 1.0, 1.3])
def test_the_interval_over_seeds_holds_the_true_multiplier_as_often_as_it_says(seeds, times):
    draw = np.random.default_rng(seeds)
    true = compute_multiplier([[noisy(draw, std=0.0)]], [noisy(draw, times, std=0.0)]).value
    assert true is not None
    held, trials = 0, 250
    for _ in range(trials):
        found = compute_multiplier([[noisy(draw) for _ in range(seeds)]], [noisy(draw, times) for _ in range(seeds)])
        assert found.value is not None and found.interval is not None
        assert found.interval.low < found.value < found.interval.high
        held += found.interval.low <= true <= found.interval.high
    assert held / trials >= 0.95 - 4 * (0.95 * 0.05 / trials) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_in_pairs_the_interval_holds_the_true_multiplier_as_often_and_is_narrower(seeds):
    draw = np.random.default_rng(seeds)

    def moved(curve: SpentCurve, by: float) -> SpentCurve:
        return tuple((spent, loss * exp(by)) for spent, loss in curve)

    true = compute_multiplier([[noisy(draw, std=0.0)]], [noisy(draw, 0.7, std=0.0)]).value
    assert true is not None
    held, narrower, trials = 0, 0, 250
    for _ in range(trials):
        common = draw.normal(0, 0.01, seeds)  # what a seed changes for both
        sets = [[moved(noisy(draw, times, 0.001), by) for by in common] for times in (1.0, 0.7)]
        found, alone = (compute_multiplier(sets[:1], sets[1], paired=paired) for paired in (True, False))
        assert found.value == alone.value
        assert found.interval is not None and alone.interval is not None
        held += found.interval.low <= true <= found.interval.high
        narrower += found.interval.high - found.interval.low < alone.interval.high - alone.interval.low
    assert held / trials >= 0.95 - 4 * (0.95 * 0.05 / trials) ** 0.5
    assert narrower / trials > (0.7 if seeds == 2 else 0.95)
    with pytest.raises(ValueError, match="as many runs each"):
        compute_multiplier(sets[:1], sets[1][1:], paired=True)
    assert compute_multiplier([sets[0][:1]], sets[1][:1], paired=True).interval is None


def test_runs_of_several_lengths_are_a_curve_of_their_final_points():
    def run(length: float, end: float) -> SpentCurve:
        """A run whose loss on the way says nothing of what a shorter run ends with."""
        return ((length / 4, 2 * end), (length / 2, 1.5 * end), (length, end))

    lengths = [[run(spent, loss)] for spent, loss in power_law()]
    for times in (0.3, 1.0, 2.5):
        [(spent, loss)] = power_law(times)[-1:]
        found = compute_multiplier(lengths, [run(spent, loss)])
        assert found.value == pytest.approx(times, rel=1e-9)
        assert compute_multiplier(lengths[::-1], [run(spent, loss)]) == found
    alone = compute_multiplier([lengths[-1]], [run(1e14, power_law(0.3)[-1][1])])
    assert alone.value != pytest.approx(0.3, rel=0.1)  # its way down is another curve


def test_a_single_run_of_a_length_that_decides_leaves_no_interval_and_one_far_away_does():
    draw = np.random.default_rng(0)
    lengths = [[((spent, loss * exp(draw.normal(0, 0.003))),) for _ in range(3)] for spent, loss in power_law()]
    variant = [((1e14, power_law(0.5)[-1][1] * exp(draw.normal(0, 0.003))),) for _ in range(3)]
    assert compute_multiplier(lengths, variant).interval is not None
    assert compute_multiplier([lengths[0][:1], *lengths[1:]], variant).interval is not None
    assert compute_multiplier([*lengths[:9], lengths[9][:1], *lengths[10:]], variant).interval is None
    assert compute_multiplier(lengths, variant[:1]).interval is None


def test_runs_of_one_set_need_the_same_steps():
    with pytest.raises(ValueError, match="same steps"):
        compute_multiplier([[power_law(), power_law()[1:]]], [power_law()])
