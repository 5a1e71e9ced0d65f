"""Intervals and tests against scipy's."""

import numpy as np
import pytest
import scipy.stats

from nanochat_pl.eval.stats import (
    bootstrap_interval,
    holm_correction,
    mcnemar_exact,
    p_text,
    paired_bootstrap,
    paired_t_test,
    seed_spread,
    sign_flip_test,
    std_interval,
    t_quantile,
    t_tail,
    weighted_sum_interval,
    welch_test,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "trials"), [(21, 50), (0, 7), (7, 7), (1, 1), (903, 2050), (4240, 4241)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_equals_scipy(successes, trials, level):
    interval = wilson_interval(successes, trials, level)
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= interval.low <= successes / trials <= interval.high <= 1


@pytest.mark.parametrize(("a", "b"), [(0, 0), (3, 9), (9, 3), (1, 0), (5, 5), (40, 70), (1200, 1310)])
def test_mcnemar_equals_the_binomial_test(a, b):
    expected = scipy.stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar_exact(a, b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_exact(a, b) == mcnemar_exact(b, a)


def scipys_sign_flips(first, second, num_resamples=np.inf):
    return scipy.stats.permutation_test(
        (first, second),
        lambda a, b, axis: np.mean(b - a, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        rng=np.random.default_rng(5),
    ).pvalue


@pytest.mark.parametrize("seed", range(6))
def test_sign_flips_equal_scipys_where_all_are_counted(seed):
    draw = np.random.default_rng(seed)
    first, second = draw.integers(0, 9, (2, 11)) / 8 if seed % 2 else draw.random((2, 11))
    assert sign_flip_test(first, second) == pytest.approx(scipys_sign_flips(first, second), abs=1e-12)
    assert sign_flip_test(first, second) == sign_flip_test(second, first)


def test_sign_flips_agree_with_scipys_within_the_noise_of_drawing():
    draw = np.random.default_rng(0)
    first = draw.integers(0, 9, 150) / 8
    second = np.clip(first + draw.integers(-2, 4, 150) / 8 * (draw.random(150) < 0.4), 0, 1)
    theirs = scipys_sign_flips(first, second, 20_000)
    assert 0.01 < theirs < 0.3
    assert sign_flip_test(first, second) == pytest.approx(theirs, abs=5 * (theirs * (1 - theirs) / 20_000) ** 0.5)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (2, 9), (5, 5), (40, 62), (700, 771)])
def test_sign_flips_of_right_and_wrong_are_mcnemars_test(only_first, only_second):
    first = [1] * only_first + [0] * only_second + [1, 0]
    second = [0] * only_first + [1] * only_second + [1, 0]
    p = mcnemar_exact(only_first, only_second)
    assert sign_flip_test(first, second) == pytest.approx(p, abs=5 * (p * (1 - p) / 100_000) ** 0.5 + 1e-12)


def test_drawn_sign_flips_repeat_with_their_seed_and_are_never_impossible():
    first, second = np.zeros(200), np.linspace(0.1, 1, 200)
    assert sign_flip_test(first, second, num_resamples=999) == 1 / 1000
    noisy = np.random.default_rng(0).normal(0.05, 1, 200)
    assert sign_flip_test(first, noisy) == sign_flip_test(first, noisy)
    assert sign_flip_test(first, noisy) != sign_flip_test(first, noisy, seed=1)
    assert sign_flip_test(noisy, noisy) == 1.0


def test_bootstrap_agrees_with_scipy_within_resampling_noise():
    values = np.random.default_rng(1).gamma(2.0, size=300)
    ours = bootstrap_interval(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_bootstrap_of_a_weighted_mean_is_that_of_a_ratio_of_sums():
    draw = np.random.default_rng(1)
    sizes = draw.integers(1, 30, 300).astype(float)
    bits = sizes * draw.gamma(2.0, size=300)
    ours = bootstrap_interval(bits / sizes, weights=sizes)
    theirs = scipy.stats.bootstrap(
        (bits, sizes),
        lambda top, bottom, axis: top.sum(axis) / bottom.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    even = bootstrap_interval(bits, weights=[3.0] * 300)
    assert (even.low, even.high) == pytest.approx((bootstrap_interval(bits).low, bootstrap_interval(bits).high))


def test_bootstrap_repeats_with_its_seed_and_does_not_depend_on_chunks(monkeypatch):
    values = np.random.default_rng(0).random(55)
    whole = bootstrap_interval(values, seed=3)
    assert whole == bootstrap_interval(values, seed=3)
    assert whole != bootstrap_interval(values, seed=4)
    monkeypatch.setattr("nanochat_pl.eval.stats._DRAWS_PER_CHUNK", 1000)
    assert whole == bootstrap_interval(values, seed=3)


def test_bootstrap_of_equal_values_has_no_width():
    interval = bootstrap_interval([0.25] * 9)
    assert interval.low == interval.high == 0.25


def test_pairing_narrows_the_interval_where_both_find_the_same_questions_easy():
    draw = np.random.default_rng(0)
    easy = draw.random(400) < 0.5
    first, second = easy ^ (draw.random(400) < 0.05), easy ^ (draw.random(400) < 0.05)
    paired = paired_bootstrap(first, second)
    alone = bootstrap_interval(first)
    assert paired.high - paired.low < alone.high - alone.low
    assert paired.low < np.mean(second) - np.mean(first) < paired.high


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson_interval(0, 0),
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(1, 2, level=95),
        lambda: bootstrap_interval([]),
        lambda: bootstrap_interval([1.0, float("nan")]),
        lambda: bootstrap_interval([1.0], level=0.0),
        lambda: bootstrap_interval([1.0, 2.0], weights=[1.0]),
        lambda: bootstrap_interval([1.0, 2.0], weights=[1.0, 0.0]),
        lambda: paired_bootstrap([1, 0], [1]),
        lambda: mcnemar_exact(-1, 2),
        lambda: sign_flip_test([], []),
        lambda: sign_flip_test([0.5], [0.5, 1.0]),
        lambda: sign_flip_test([0.5], [float("nan")]),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize("count", [2, 3, 4, 7, 10, 31])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_the_spread_over_seeds_equals_scipys_t_interval(count, level):
    values = np.random.default_rng(count).normal(0.4, 0.02, count).tolist()
    spread = seed_spread(values, level)
    expected = scipy.stats.t.interval(level, count - 1, np.mean(values), scipy.stats.sem(values))
    assert spread.interval is not None
    assert (spread.interval.low, spread.interval.high) == pytest.approx(expected, rel=1e-9)
    assert (spread.mean, spread.std, spread.n) == (
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
        count,
    )


@pytest.mark.parametrize("df", [1, 1.37, 2, 4.5, 30, 4000.5])
def test_students_distribution_equals_scipys_for_any_degrees_of_freedom(df):
    for t in (0.0, 1e-6, 0.3, 1.0, 2.5, 12.0, 300.0):
        assert t_tail(t, df) == pytest.approx(2 * scipy.stats.t.sf(t, df), rel=1e-9)
    for level in (0.5, 0.95, 0.9999):
        assert t_quantile(level, df) == pytest.approx(scipy.stats.t.ppf(0.5 + level / 2, df), rel=1e-9)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (3, 5), (12, 4)])
def test_welch_equals_scipy(first, second):
    draw = np.random.default_rng(first)
    before, after = draw.normal(0.7, 0.01, first).tolist(), draw.normal(0.71, 0.03, second).tolist()
    p, interval = welch_test(before, after)
    expected = scipy.stats.ttest_ind(after, before, equal_var=False)
    assert p == pytest.approx(expected.pvalue, rel=1e-9)
    bounds = expected.confidence_interval()
    assert (interval.low, interval.high) == (pytest.approx(bounds.low), pytest.approx(bounds.high))
    assert welch_test([0.5, 0.5], [0.5, 0.5, 0.5])[0] == 1
    assert welch_test([0.5, 0.5], [0.75, 0.75]) == (pytest.approx(2 / 6), None)  # of six ways to deal four runs out
    assert welch_test([0.5, 0.5], [0.75] * 3) == (pytest.approx(1 / 10), None)
    with pytest.raises(ValueError, match="two finite values"):
        welch_test([0.5], [0.5, 0.6])


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("questions", "rate"), [(20, 0.05), (20, 0.3), (40, 0.3), (100, 0.05)])
def test_shares_of_few_questions_do_not_make_equal_recipes_differ(seeds, questions, rate):
    draw = np.random.default_rng(questions + seeds)
    shares = draw.binomial(questions, rate, (2000, 2, seeds)) / questions
    for test in (paired_t_test, welch_test):
        wrong = np.mean([test(first.tolist(), second.tolist())[0] < 0.05 for first, second in shares])
        assert wrong <= 0.05 + 4 * (0.05 * 0.95 / 2000) ** 0.5, test.__name__


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_paired_t_test_equals_scipy(count):
    draw = np.random.default_rng(count)
    before = draw.normal(0.7, 0.05, count)
    after = (before + draw.normal(0.01, 0.004, count)).tolist()
    p, interval = paired_t_test(before.tolist(), after, 0.9)
    expected = scipy.stats.ttest_rel(after, before)
    bounds = expected.confidence_interval(0.9)
    assert p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (interval.low, interval.high) == (pytest.approx(bounds.low), pytest.approx(bounds.high))
    assert paired_t_test([0.5, 0.6], [0.5, 0.6])[0] == 1
    assert paired_t_test([0.5, 0.6, 0.7], [0.6, 0.7, 0.8]) == (2 / 2**3, None)
    assert paired_t_test([2.4, 2.5], [np.nextafter(2.4, 3), np.nextafter(2.5, 3)]) == (1.0, None)
    for wrong in (([0.5], [0.6]), ([0.5, 0.6], [0.5]), ([0.5, 0.6], [0.5, float("nan")])):
        with pytest.raises(ValueError, match="t test"):
            paired_t_test(*wrong)


@pytest.mark.parametrize("df", [1, 2, 9, 200])
def test_the_interval_of_a_standard_deviation_equals_scipys(df):
    interval = std_interval(0.02, df)
    low, high = (0.02 * (df / scipy.stats.chi2.ppf(share, df)) ** 0.5 for share in (0.975, 0.025))
    assert (interval.low, interval.high) == (pytest.approx(low, rel=1e-9), pytest.approx(high, rel=1e-9))


def test_spread_of_one_seed_is_none_and_of_equal_seeds_zero():
    alone = seed_spread([0.4])
    assert (alone.mean, alone.std, alone.interval) == (0.4, None, None)
    same = seed_spread([0.25, 0.25, 0.25])
    assert same.std == 0
    assert same.interval is None, "equal values do not say how others vary"


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf"), 1.0]])
def test_a_spread_of_nothing_or_of_what_is_not_finite_is_refused(values):
    with pytest.raises(ValueError, match="finite"):
        seed_spread(values)


@pytest.mark.parametrize("seed", range(8))
def test_holm_rejects_what_its_steps_reject(seed):
    draw = np.random.default_rng(seed)
    p_values = (draw.random(draw.integers(1, 9)) ** 3).tolist()
    adjusted = holm_correction(p_values)
    for alpha in (0.01, 0.05, 0.2, 0.6):
        rejected = set()
        for rank, index in enumerate(np.argsort(p_values)):  # the procedure as published: stop at the first that holds
            if p_values[index] > alpha / (len(p_values) - rank):
                break
            rejected.add(int(index))
        assert rejected == {index for index, p in enumerate(adjusted) if p <= alpha}


def test_holm_never_lowers_a_p_value_and_leaves_one_alone_as_it_is():
    assert holm_correction([]) == []
    assert holm_correction([0.03]) == [0.03]
    assert holm_correction([0.01, 0.04, 0.03, 0.9]) == pytest.approx([0.04, 0.09, 0.09, 0.9])
    assert holm_correction([0.5, 0.6]) == [1.0, 1.0]
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm_correction([0.5, 1.2])


def test_the_interval_of_a_sum_of_one_is_that_one():
    interval = wilson_interval(3, 10)
    assert weighted_sum_interval([(1.0, 0.3, interval)]) == interval


def test_the_interval_of_a_mean_of_zeros_is_no_point_and_narrower_than_its_parts():
    interval = wilson_interval(0, 4)
    around = weighted_sum_interval([(0.5, 0.0, interval)] * 2)
    assert around.low == 0 and 0 < around.high < interval.high
    with pytest.raises(ValueError, match="all of one level"):
        weighted_sum_interval([])


@pytest.mark.parametrize(
    ("p_value", "alpha", "text"),
    [
        (0.0496, 0.05, "p = 0.0496"),
        (0.04996, 0.05, "p = 0.04996"),
        (0.0504, 0.05, "p = 0.050"),
        (0.05, 0.05, "p = 0.050"),
        (0.049, 0.05, "p = 0.049"),
        (0.0099, 0.01, "p = 0.0099"),
        (0.0002, 0.05, "p < 0.001"),
        (0.0002, 0.0003, "p = 0.0002"),
        (1.0, 0.05, "p = 1.000"),
    ],
)
def test_a_p_value_is_written_on_the_side_of_alpha_on_which_it_lies(p_value: float, alpha: float, text: str) -> None:
    assert p_text(p_value, alpha) == text
