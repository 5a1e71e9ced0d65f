"""How much is enough: what is promised of the tests is what they do, counted out or simulated with them."""

from math import comb, sqrt

import numpy as np
import pytest
import scipy.stats

from nanochat_pl.eval.power import (
    Design,
    PairedQuestions,
    Seeds,
    detectable_effect,
    number_needed,
    paired_design,
    what_is_enough,
)
from nanochat_pl.eval.stats import holm_correction, mcnemar_exact, paired_t_test, sign_flip_test, welch_test

ALPHA = 0.05


def noise(share: float, times: int) -> float:
    """Four standard errors of a share that was counted so many times."""
    return 4 * sqrt(max(share * (1 - share), 0.01) / times)


# -- McNemar ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "disagreement", "effect"), [(6, 1.0, 0.5), (14, 0.5, 0.3), (25, 0.3, 0.0), (30, 0.2, 0.4)]
)
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 16])
def test_the_power_of_mcnemars_test_is_counted_out(n, disagreement, effect, alpha):
    share = max(disagreement, effect)
    lose, win = (share - effect) / 2, (share + effect) / 2
    expected = sum(
        comb(n, b) * comb(n - b, c) * lose**b * win**c * (1 - share) ** (n - b - c)
        for b in range(n + 1)
        for c in range(n + 1 - b)
        if mcnemar_exact(b, c) < alpha
    )
    assert PairedQuestions(disagreement=disagreement).power(n, effect, alpha) == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "disagreement", "effect"), [(249, 0.3, 0.1), (1500, 0.4, 0.05), (80, 0.02, 0.19)])
def test_mcnemars_test_finds_a_difference_as_often_as_promised(n, disagreement, effect):
    share = max(disagreement, effect)
    draws = np.random.default_rng(0).multinomial(n, [(share - effect) / 2, (share + effect) / 2, 1 - share], 4000)
    pairs, counts = np.unique(draws[:, :2], axis=0, return_counts=True)
    found = sum(int(count) for pair, count in zip(pairs.tolist(), counts) if mcnemar_exact(*pair) < ALPHA) / 4000
    promised = PairedQuestions(disagreement=disagreement).power(n, effect)
    assert found == pytest.approx(promised, abs=noise(promised, 4000))


def test_where_the_exact_sum_ends_the_normal_power_goes_on():
    design = PairedQuestions(disagreement=0.3)
    for effect in (0.01, 0.03, 0.06):
        assert design.power(1330, effect) == pytest.approx(design.power(1336, effect), abs=0.01)


@pytest.mark.parametrize("design", [PairedQuestions(disagreement=0.3), PairedQuestions(disagreement=0.3, size=0.5)])
@pytest.mark.parametrize("n", [3, 12, 100, 900, 5000])
def test_equal_models_are_told_apart_no_more_often_than_alpha(design, n):
    assert design.power(n, 0.0) <= ALPHA + 1e-6
    assert design.power(n, 0.0, 0.01) <= 0.01 + 1e-6


# -- sign flips ---------------------------------------------------------------------------------------------------


def likelihoods(draw: np.random.Generator, n: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(n), draw.normal(gain, 1, n)


def samples(draw: np.random.Generator, n: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    ease = draw.beta(0.5, 1, n)
    return draw.binomial(4, ease) / 4, draw.binomial(4, np.clip(ease + gain, 0, 1)) / 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scores", "n", "gain"),
    [(likelihoods, 10, 1.0), (likelihoods, 60, 0.37), (samples, 60, 0.1), (samples, 200, 0.05), (samples, 60, 0.0)],
)
def test_sign_flips_find_a_difference_about_as_often_as_promised(scores, n, gain):
    draw = np.random.default_rng(0)
    many = scores(draw, 100_000, gain)
    design, effect = paired_design(*many), float((many[1] - many[0]).mean())
    pairs = [scores(draw, n, gain) for _ in range(600)]
    found = np.mean([sign_flip_test(*pair, num_resamples=2000, seed=i) < ALPHA for i, pair in enumerate(pairs)])
    promised = design.power(n, effect)
    # The approximation may err by 0.05 where there is something to find, and not upwards where there is nothing.
    assert found == pytest.approx(promised, abs=0.05 + noise(0.8, 600) / 2 if gain else noise(promised, 600))


def test_of_right_and_wrong_answers_both_designs_say_nearly_the_same():
    exact, scores = PairedQuestions(disagreement=0.3), PairedQuestions(disagreement=0.3, size=1.0, grid=1.0)
    for n, effect in ((60, 0.2), (200, 0.1), (1000, 0.05)):
        assert scores.power(n, effect) == pytest.approx(exact.power(n, effect), abs=0.03)


# -- seeds --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("n", "reference"), [(2, 2), (3, 3), (5, 3), (10, 10)])
def test_welchs_test_finds_a_difference_as_often_as_promised_and_none_rarely(n, reference):
    design = Seeds(std=0.004, reference=reference)
    effect = detectable_effect(design, n)
    assert effect is not None
    draw = np.random.default_rng(0)
    for true, promised in ((effect, 0.8), (0.0, design.power(n, 0.0))):
        first, second = draw.normal(0, 0.004, (3000, reference)), draw.normal(true, 0.004, (3000, n))
        found = np.mean([welch_test(a, b)[0] < ALPHA for a, b in zip(first.tolist(), second.tolist())])
        assert found == pytest.approx(promised, abs=noise(promised, 3000))
    assert design.power(n, 0.0) <= 0.052


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_paired_t_test_finds_a_difference_as_often_as_promised_whatever_pairs_share(n):
    design = Seeds(std=0.002, paired=True)
    effect = detectable_effect(design, n)
    assert effect is not None
    draw = np.random.default_rng(0)
    for true, promised in ((effect, 0.8), (0.0, 0.05)):
        first = draw.normal(0, 0.02, (3000, n))
        second = first + draw.normal(true, 0.002, (3000, n))
        found = np.mean([paired_t_test(a, b)[0] < ALPHA for a, b in zip(first.tolist(), second.tolist())])
        assert found == pytest.approx(promised, abs=noise(promised, 3000))


def test_the_power_of_pairs_is_that_of_students_test():
    for n, effect in ((3, 2.5), (5, 1.5), (10, 0.9), (200, 0.2)):
        critical, away = scipy.stats.t.ppf(0.975, n - 1), effect * sqrt(n)
        expected = scipy.stats.nct.sf(critical, n - 1, away) + scipy.stats.nct.cdf(-critical, n - 1, away)
        assert Seeds(std=1.0, paired=True).power(n, effect) == pytest.approx(expected, abs=5e-4)
    with pytest.raises(ValueError, match="equally many"):
        Seeds(std=1.0, paired=True, reference=3)


def test_the_power_of_many_seeds_is_that_of_the_t_test():
    for n, effect in ((40, 0.5), (200, 0.2)):
        df = 2 * n - 2
        critical, away = scipy.stats.t.ppf(0.975, df), effect * sqrt(n / 2)
        expected = scipy.stats.nct.sf(critical, df, away) + scipy.stats.nct.cdf(-critical, df, away)
        assert Seeds(std=1.0).power(n, effect) == pytest.approx(expected, abs=5e-4)


@pytest.mark.slow
def test_of_several_recipes_the_one_that_differs_is_found_after_holms_correction():
    effect = detectable_effect(Seeds(std=1.0), 5, ALPHA / 4)
    assert effect is not None
    draw = np.random.default_rng(0)
    found = 0
    for _ in range(1000):
        baseline, *recipes = draw.normal(0, 1, (5, 5)).tolist()
        recipes[2] = [value + effect for value in recipes[2]]
        found += holm_correction([welch_test(baseline, recipe)[0] for recipe in recipes])[2] < ALPHA
    assert found / 1000 >= 0.8 - noise(0.8, 1000)
    assert found / 1000 < 0.9  # a bound that gives nothing away would plan too much


# -- both ways ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("design", "effect"),
    [
        (PairedQuestions(disagreement=0.3), 0.1),
        (PairedQuestions(disagreement=0.3), 0.4),
        (PairedQuestions(disagreement=0.5), 0.005),
        (PairedQuestions(disagreement=0.0), 0.02),
        (PairedQuestions(disagreement=0.4, size=0.4, grid=0.25), 0.03),
        (PairedQuestions(disagreement=1.0, size=0.7), 0.1),
        (Seeds(std=0.004), 0.005),
        (Seeds(std=0.004), 0.0002),
        (Seeds(std=0.004), 4.0),
        (Seeds(std=0.004, paired=True), 0.005),
    ],
)
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 16])
def test_the_number_needed_is_enough_and_one_less_is_not(design: Design, effect, alpha):
    needed = number_needed(design, effect, alpha)
    assert needed is not None
    assert design.power(needed, effect, alpha) >= 0.8
    assert needed == design.least or design.power(needed - 1, effect, alpha) < 0.8
    assert needed == number_needed(design, -effect, alpha)
    least = detectable_effect(design, needed, alpha)
    assert least is not None
    assert least <= abs(effect) * 1.0001
    assert design.power(needed, least, alpha) == pytest.approx(0.8, abs=1e-3) or needed == design.least


def test_more_questions_find_smaller_differences():
    for design in (PairedQuestions(disagreement=0.3), Seeds(std=1.0), PairedQuestions(disagreement=1.0, size=1.0)):
        found = [detectable_effect(design, n) for n in (10, 30, 100, 300, 1000, 3000)]
        assert all(value is not None for value in found)
        assert found == sorted(found, reverse=True)


def test_too_few_find_nothing_and_the_impossible_takes_no_number():
    assert detectable_effect(PairedQuestions(disagreement=0.3), 5) is None  # the smallest p of five is 0.0625
    assert detectable_effect(PairedQuestions(disagreement=1.0, size=2.0), 5) is None
    assert detectable_effect(Seeds(std=1.0), 1) is None
    assert number_needed(PairedQuestions(disagreement=0.3), 0.0) is None
    assert number_needed(PairedQuestions(disagreement=0.3), 1.5) is None
    assert number_needed(Seeds(std=1.0), 1e-9) is None
    for wrong in (lambda: Seeds(std=0.0), lambda: PairedQuestions(disagreement=1.1)):
        with pytest.raises(ValueError):
            wrong()


def test_how_two_models_differ_is_learned_from_their_scores():
    assert paired_design([1, 1, 0, 0], [1, 0, 0, 0]) == PairedQuestions(disagreement=2 / 6)
    assert paired_design([1, 0], [1, 0]) == PairedQuestions(disagreement=1 / 4)
    for first, second in (([0.5, 0.25], [0.5, 0.25]), ([0.5], [0.7]), ([0.5, 0.25], [1.0, 0.75])):
        assert paired_design(first, second) is None, "equal differences do not say how others vary"
    learned = paired_design([0.0, 0.5, 0.5, 0.25], [0.5, 0.5, 0.25, 0.5])
    assert (learned.disagreement, learned.grid) == (4 / 6, 0.25)
    assert learned.size == pytest.approx(sqrt((0.25 + 0.0625 + 0.0625) / 3))
    measured = paired_design([0.1, 0.2, 0.35], [0.4, 0.15, 0.3])
    assert measured.disagreement == 1.0  # measured numbers are equal nowhere
    assert paired_design([0.1, 0.2, 0.37], [0.4, 0.15, 0.3]).grid == 0.0


def test_what_was_found_takes_no_number():
    design = Seeds(std=0.01, reference=5)
    found = what_is_enough(design, 3, 0.05, ALPHA, found=True)
    assert (found.n, found.unit, found.needed) == (3, "seeds", None)
    assert found.detectable == detectable_effect(design, 3)
    missed = what_is_enough(design, 3, 0.01, ALPHA, found=False)
    assert missed.needed == number_needed(Seeds(std=0.01), 0.01)  # of each recipe, however many there were
