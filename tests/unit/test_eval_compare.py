"""Two checkpoints on the same questions: a winner only outside the noise; the scores that a figure is the mean of."""

import pytest

from nanochat_pl.eval.compare import compare, scores_behind
from nanochat_pl.eval.results import MetricRow, mean_row, proportion_row
from nanochat_pl.eval.stats import sign_flip_test
from nanochat_pl.tasks.answers import pass_at_k


def records(right):
    return [{"id": str(number), "correct": bool(flag)} for number, flag in enumerate(right)]


def test_a_clear_difference_names_the_better_checkpoint():
    outcome = compare(records([0] * 30 + [1] * 10), records([1] * 36 + [0] * 4), first="base", second="tuned")
    assert (outcome.only_first, outcome.only_second, outcome.n) == (4, 30, 40)
    assert outcome.difference == pytest.approx(outcome.accuracy_second - outcome.accuracy_first) == pytest.approx(0.65)
    assert outcome.interval.low > 0
    assert outcome.verdict.startswith("tuned is better than base by 65.0% (p < 0.001")
    swapped = compare(records([1] * 36 + [0] * 4), records([0] * 30 + [1] * 10), first="tuned", second="base")
    assert swapped.verdict == outcome.verdict


def test_a_difference_inside_the_noise_is_called_so():
    outcome = compare(records([1, 0] * 25), records([1, 0] * 24 + [1, 1]))
    assert outcome.verdict == "not distinguishable (p = 1.000, n = 50)"


def test_other_questions_cannot_be_compared():
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
    assert (outcome.accuracy_first, outcome.only_first, outcome.only_second) == (0.4375, 10, 20)
    assert outcome.verdict.startswith("second is better than first by 9.4% (p = 0.002, n = 40)")
    swapped = compare(second, first[::-1], measure="score")
    assert swapped.verdict.startswith("first is better than second by 9.4%")
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
def test_an_answer_is_read_as_the_name_of_the_metric_says(metric, record):
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
def test_a_figure_that_is_not_over_these_answers_has_no_scores_behind_it(row):
    assert scores_behind(row, records([1, 1, 0])) == []
    assert scores_behind(row, several([1, 1, 0], samples=1)) == []
