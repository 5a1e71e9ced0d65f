"""Two checkpoints on the same questions: a winner only outside the noise; the scores that a figure is the mean of."""

import numpy as np
import pytest

from nanochat_pl.eval.compare import compare, scores_behind, verdict
from nanochat_pl.eval.results import MetricRow, mean_row, proportion_row
from nanochat_pl.eval.stats import paired_interval, sign_flip_test
from nanochat_pl.tasks.answers import pass_at_k


def records(right):
    return [{"id": str(number), "correct": bool(flag)} for number, flag in enumerate(right)]


def test_a_clear_difference_names_the_better_checkpoint():
    outcome = compare(records([0] * 30 + [1] * 10), records([1] * 36 + [0] * 4), first="base", second="tuned")
    assert (outcome.only_first, outcome.only_second, outcome.n) == (4, 30, 40)
    assert outcome.difference == pytest.approx(outcome.mean_second - outcome.mean_first) == pytest.approx(0.65)
    assert outcome.interval.low > 0
    assert outcome.verdict.startswith("tuned is better than base by 65.0 points (p < 0.001")
    swapped = compare(records([1] * 36 + [0] * 4), records([0] * 30 + [1] * 10), first="tuned", second="base")
    assert swapped.verdict == outcome.verdict


def test_a_difference_within_noise_is_not_distinguishable():
    outcome = compare(records([1, 0] * 25), records([1, 0] * 24 + [1, 1]))
    assert outcome.verdict == "not distinguishable (p = 1.000, n = 50)"


def test_comparing_different_questions_is_refused():
    with pytest.raises(ValueError, match="3 questions, second 2, 2 in common"):
        compare(records([1, 0, 1]), records([1, 0]))
    with pytest.raises(ValueError, match="same"):
        compare([], [])


def test_scores_are_judged_by_how_far_they_lie_apart():
    before, after = [0.25, 0.5, 0.0, 1.0] * 10, [0.5, 0.5, 0.25, 0.875] * 10
    first, second = ([{"id": n, "score": s} for n, s in enumerate(scores)] for scores in (before, after))
    outcome = compare(first, second, measure="score")
    assert outcome.p_value == sign_flip_test(before, after)
    assert outcome.difference == pytest.approx(0.09375)
    assert (outcome.mean_first, outcome.only_first, outcome.only_second) == (0.4375, 10, 20)
    assert outcome.verdict.startswith("second is better than first by 9.4 points (p = 0.002, n = 40)")
    swapped = compare(second, first[::-1], measure="score")
    assert swapped.verdict.startswith("first is better than second by 9.4 points")
    assert (swapped.interval.low, swapped.interval.high) == (
        pytest.approx(-outcome.interval.high, abs=0.005),
        pytest.approx(-outcome.interval.low, abs=0.005),
    )


def several(right, samples=4):
    return [{"id": str(n), "num_samples": samples, "num_right": count} for n, count in enumerate(right)]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_scores_behind_pass_at_k_are_the_estimates_of_each_question(k):
    right = [0, 1, 4, 2, 3]
    expected = [pass_at_k(4, count, k) for count in right]
    row = mean_row("gsm8k", f"pass@{k}", expected)
    assert scores_behind(row, several(right)) == [{"id": str(n), "score": s} for n, s in enumerate(expected)]


@pytest.mark.parametrize(
    ("metric", "record"),
    [
        ("accuracy", {"correct": True}),
        ("strict/accuracy_over_asked", {"correct": True}),
        ("loglikelihood/accuracy", {"likely_correct": True}),
        ("letter_regex/accuracy_over_asked", {"regex_letter": "B", "expected": "B"}),
    ],
)
def test_scores_behind_a_metric_follow_its_extractor(metric, record):
    row = proportion_row("any", metric, [True])
    wrong = {"correct": False, "likely_correct": False, "regex_letter": "A", "expected": "B"}
    assert scores_behind(row, [{"id": "x", **wrong, **record}]) == [{"id": "x", "score": 1.0}]
    assert scores_behind(row, [{"id": "x", **wrong}]) == []


@pytest.mark.parametrize(
    "row",
    [
        proportion_row("any", "exact_match", [True, False, False]),  # another number of right answers
        proportion_row("any", "exact_match", [True, True]),  # another number of questions
        proportion_row("any", "truncation/rate", [True, True, False]),  # no way to read it again
        MetricRow(task="any", metric="core_metric", value=2 / 3, n=3),  # no mean over questions
        MetricRow(task="any", metric="exact_match", value=None, n=0),
        mean_row("any", "pass@2", [1.0, 1.0, 0.0]),  # records of one sample
    ],
)
def test_a_metric_over_other_records_has_no_scores_behind_it(row):
    assert scores_behind(row, records([1, 1, 0])) == []
    assert scores_behind(row, several([1, 1, 0], samples=1)) == []


def test_interval_without_disagreements_has_width_and_shrinks_with_n():
    few, many = (compare(records([1, 0] * n), records([1, 0] * n)) for n in (5, 500))
    for outcome, n in ((few, 10), (many, 1000)):
        assert (outcome.difference, outcome.only_first, outcome.only_second) == (0.0, 0, 0)
        assert outcome.interval.high == pytest.approx(1.96 / (n + 2), rel=1e-3) == -outcome.interval.low
    same = [{"id": n, "score": score} for n, score in enumerate([0.25, 0.5] * 5)]
    outcome = compare(same, same, measure="score")
    assert outcome.interval.high == pytest.approx(few.interval.high) == -outcome.interval.low


def test_the_interval_of_a_difference_covers_it_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        kinds = draw.choice(4, size=40, p=[0.5, 0.25, 0.05, 0.2])  # both right, the second only, the first only, none
        first, second = np.isin(kinds, (0, 2)), np.isin(kinds, (0, 1))
        interval = paired_interval(first.astype(float), second.astype(float))
        covered += interval.low <= 0.2 <= interval.high
    assert 0.93 <= covered / 400 <= 0.99


def test_a_verdict_says_points_of_shares_and_whether_the_better_one_is_above_chance():
    guess = proportion_row(
        "scienceqa", "strict/accuracy_over_asked", [True] * 14 + [False] * 26, baseline={"chance": 0.33}
    )
    know = proportion_row(
        "scienceqa", "strict/accuracy_over_asked", [True] * 38 + [False] * 2, baseline={"chance": 0.33}
    )
    said = verdict("base", "sft", 0.334, 0.0001, 40, share=True, rows=(None, guess))
    assert said == "sft is better than base by 33.4 points (p < 0.001, n = 40), but not than chance"
    assert verdict("base", "sft", 0.6, 0.01, 40, share=True, rows=(guess, know), num_tests=3) == (
        "sft is better than base by 60.0 points (p = 0.010, Holm over 3 tests, n = 40)"
    )
    assert verdict("base", "sft", -0.6, 0.01, 40, share=False, rows=(know, guess)).startswith(
        "base is better than sft by 0.6000 (p"
    )


def test_weighted_scores_of_which_lower_are_better():
    scores = [[3.0, 2.0, 5.0] * 15, [2.5, 2.25, 4.0] * 15]
    weights = [1, 4, 2] * 15
    first, second = (
        [{"id": n, "score": score, "weight": weight} for n, (score, weight) in enumerate(zip(own, weights))]
        for own in scores
    )
    outcome = compare(first, second, measure="score", share=False, direction=-1)
    assert outcome.difference == pytest.approx((-0.5 + 4 * 0.25 - 2) / 7)
    assert (outcome.mean_first, outcome.only_first, outcome.only_second) == (pytest.approx(3.0), 15, 30)
    assert outcome.p_value == sign_flip_test(*(np.multiply(own, weights) for own in scores))
    assert outcome.interval.low < outcome.difference < outcome.interval.high
    assert outcome.verdict.startswith("second is better than first by 0.2143 (p")
    with pytest.raises(ValueError, match="other weights"):
        compare(first, [{**entry, "weight": 1} for entry in second], measure="score")
