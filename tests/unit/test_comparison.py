"""Comparisons of finished evaluations: who may be called better, and what cannot be compared."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from nanochat_pl.eval.answer_bpb import answer_rows, mean_over_tasks
from nanochat_pl.eval.metrics import metric_of
from nanochat_pl.eval.results import MetricRow, mean_row, proportion_row
from nanochat_pl.eval.stats import mcnemar_exact, sign_flip_test
from nanochat_pl.report.compare import compare_runs, settings_that_differ
from nanochat_pl.report.comparison_report import build_comparison, comparison_markdown
from nanochat_pl.report.evaluated import EvaluatedRun
from nanochat_pl.report.read import EvaluationResult
from tests.unit.evaluated import answers, entrant, pattern, recalled, result, sampled


def verdicts(*entrants: EvaluatedRun, **more) -> list[str]:
    return [j.verdict for line in compare_runs(entrants, **more) for j in line.differences if j is not None]


# -- who is better ------------------------------------------------------------------------------------------------


def test_a_winner_is_named_where_the_questions_decide_and_only_there():
    first, second = pattern(10, 2, 20, 8)
    [verdict] = verdicts(entrant("a", recalled(first)), entrant("b", recalled(second)))
    assert verdict == "b is better than a by 45.0 points (p < 0.001, n = 40)"
    [verdict] = verdicts(entrant("b", recalled(second)), entrant("a", recalled(first)))
    assert verdict == "b is better than a by 45.0 points (p < 0.001, n = 40)"
    first, second = pattern(10, 8, 12, 10)
    [verdict] = verdicts(entrant("a", recalled(first)), entrant("b", recalled(second)))
    assert verdict == f"not distinguishable (p = {mcnemar_exact(8, 12):.3f}, n = 40)"


def test_one_small_p_value_among_several_tests_makes_no_winner():
    first, second = pattern(20, 2, 10, 8)  # p = 0.039 alone
    assert mcnemar_exact(2, 10) < 0.05
    tasks = {"one": (first, second)} | {f"even{n}": pattern(15, 5, 5, 15) for n in range(3)}

    def chat(place: int) -> EvaluationResult:
        rows = [proportion_row(task, "accuracy", pair[place]) for task, pair in tasks.items()]
        records = [record for task, pair in tasks.items() for record in answers(pair[place], task)]
        return result(rows, records, name="chat")

    lines = compare_runs([entrant("a", chat(0)), entrant("b", chat(1))])
    judged = [line.differences[1] for line in lines]
    assert [line.task for line in lines] == list(tasks)
    assert all(j is not None and j.verdict.startswith("not distinguishable") for j in judged)
    assert judged[0] is not None
    assert judged[0].p_value == pytest.approx(mcnemar_exact(2, 10))
    assert judged[0].corrected == pytest.approx(4 * mcnemar_exact(2, 10))
    assert "Holm over 4 tests" in judged[0].verdict


def test_equal_models_hardly_ever_win_anywhere():
    won = tempted = 0
    for seed in range(20):
        draw = random.Random(seed)
        pairs = [([draw.random() < 0.5 for _ in range(40)], [draw.random() < 0.5 for _ in range(40)]) for _ in range(8)]

        def chat(place: int, pairs: list = pairs) -> EvaluationResult:
            rows = [proportion_row(f"task{n}", "accuracy", pair[place]) for n, pair in enumerate(pairs)]
            return result(rows, [r for n, pair in enumerate(pairs) for r in answers(pair[place], f"task{n}")], "chat")

        lines = compare_runs([entrant("a", chat(0)), entrant("b", chat(1))])
        judged = [difference for line in lines if (difference := line.differences[1]) is not None]
        assert len(judged) == 8
        won += any("is better" in difference.verdict for difference in judged)
        tempted += any(difference.p_value < 0.05 for difference in judged if difference.p_value is not None)
    assert won <= 1 < tempted  # one comparison in twenty is what is promised


def test_a_winner_whose_interval_reaches_chance_is_not_better_than_chance():
    first, second = pattern(0, 0, 10, 40)
    rows = [[proportion_row("arc", "accuracy", right, baseline={"chance": 0.25})] for right in (first, second)]
    [verdict] = verdicts(
        entrant("a", result(rows[0], answers(first), "arc")), entrant("b", result(rows[1], answers(second), "arc"))
    )
    assert verdict.startswith("b is better than a")
    assert verdict.endswith("but not than chance")


@pytest.mark.parametrize(("right", "said"), [(21, "not distinguishable"), (38, "b is better than a")])
def test_without_answers_the_verdict_is_by_intervals_and_says_unpaired(right, said):
    rows = [[proportion_row("mmlu", "accuracy", [n < count for n in range(40)])] for count in (18, right)]
    [verdict] = verdicts(entrant("a", result(rows[0], [], "mmlu")), entrant("b", result(rows[1], [], "mmlu")))
    assert verdict.startswith(said)
    assert "unpaired" in verdict


def test_answers_that_do_not_make_the_figure_are_not_paired_with_it():
    first, second = pattern(10, 2, 20, 8)
    other = [proportion_row("recall", "exact_match", [True] * 40)]
    [verdict] = verdicts(entrant("a", recalled(first)), entrant("b", result(other, answers(second))))
    assert "unpaired" in verdict


def test_bits_per_byte_are_better_when_lower_and_need_the_same_text():
    def bpb(value: float, n: int = 4096, spread: float | None = None) -> EvaluationResult:
        row = MetricRow(task="val", metric="bpb", value=value, n=n)
        values = [value - spread, value + spread] * 50 if spread else []
        return result([mean_row("val", "bpb", values) if spread else row], [], "bpb", "base")

    [line] = compare_runs([entrant("a", bpb(1.5)), entrant("b", bpb(1.25))])
    assert line.differences[1] is not None
    assert line.differences[1].difference == -0.25
    assert line.differences[1].verdict == "no interval, no verdict"
    assert verdicts(entrant("a", bpb(1.5)), entrant("b", bpb(1.4, 8192))) == [
        "not the same text: 4,096 and 8,192 tokens"
    ]
    apart = verdicts(entrant("a", bpb(1.5, spread=0.1)), entrant("b", bpb(1.2, spread=0.1)))
    assert apart == ["b is better than a (intervals do not overlap; unpaired)"]


def test_a_run_without_an_evaluation_leaves_the_others_comparable():
    first, second = pattern(10, 2, 20, 8)
    bpb = result([MetricRow(task="val", metric="bpb", value=1.5, n=9)], [], "bpb", "base")
    lines = compare_runs([entrant("a", bpb), entrant("b", recalled(first)), entrant("c", recalled(second))])
    line = next(line for line in lines if line.evaluation == "recall")
    assert line.rows[0] is None
    assert line.reference == 1
    assert line.differences[2] is not None
    assert line.differences[2].verdict.startswith("c is better than b")


def measured(bits: Sequence[float | None], tasks: Sequence[str] = ("arc",), stage: str = "sft") -> EvaluationResult:
    """Answers of 2 to 5 bytes, with wrong choices of 3 bytes and 9 bits."""
    records: list[dict] = [
        {**record, "answer_bits": b, "answer_bytes": 2 + n % 4, "wrong_bits": [9.0, 9.0], "wrong_bytes": [3, 3]}
        for task in tasks
        for n, (record, b) in enumerate(zip(answers([False] * len(bits), task), bits))
    ]
    for number, record in enumerate(records):
        record["id"] = f"{record['task']}/{number}"
    rows = [row for task in tasks for row in answer_rows([r for r in records if r["task"] == task], task)]
    rows += [*mean_over_tasks(rows, "CORE", "answer_bpb"), *mean_over_tasks(rows, "CORE", "answer_margin")] * (
        len(tasks) > 1
    )
    rows += [MetricRow(task="CORE", metric="core_metric", value=0.1, n=len(records))] * (len(tasks) > 1)
    return result(rows, records, "core", stage)


def test_bits_of_answers_are_compared_question_by_question_and_fewer_are_better():
    draw = random.Random(0)
    first = [draw.uniform(2, 20) for _ in range(40)]
    second = [bits - draw.uniform(-0.5, 1) for bits in first]
    lines = compare_runs([entrant("a", measured(first)), entrant("b", measured(second))])
    assert [line.metric for line in lines] == ["answer_bpb", "answer_margin"]  # of wrong choices neither is better
    for line, sign in zip(lines, (-1, 1), strict=True):
        one, other = line.rows
        judged = line.differences[1]
        assert one is not None and other is not None and judged is not None and judged.interval is not None
        assert judged.difference == pytest.approx((other.value or 0) - (one.value or 0))
        assert sign * judged.difference > 0
        assert judged.interval.low < judged.difference < judged.interval.high
        assert one.interval is not None and other.interval is not None
        assert one.interval.low < other.interval.high and other.interval.low < one.interval.high  # unpaired: nothing
        assert judged.verdict.startswith(f"b is better than a by {abs(judged.difference):.4f} bits per byte (p")
        assert judged.verdict.endswith(", Holm over 2 tests, n = 40)")
    size = sum(2 + n % 4 for n in range(40))
    pooled = lines[0].differences[1]
    assert pooled is not None and pooled.p_value is not None
    assert pooled.difference == pytest.approx((sum(second) - sum(first)) / size)
    # What is tested are the bits saved, since those add up to the difference.
    assert pooled.p_value == pytest.approx(sign_flip_test(first, second), abs=0.01)
    worse = verdicts(entrant("b", measured(second)), entrant("a", measured(first)))
    assert all(sentence.startswith("b is better than a by") for sentence in worse)


def test_the_mean_over_tasks_is_paired_too_and_details_of_tasks_are_not_tested():
    draw = random.Random(1)
    first = [draw.uniform(2, 20) for _ in range(30)]
    runs = [entrant("a", measured(first, "xyz")), entrant("b", measured([b - draw.random() for b in first], "xyz"))]
    lines = compare_runs(runs)
    assert [(line.task, line.metric) for line in lines] == [
        *((task, "answer_bpb") for task in "xyz"),
        ("CORE", "answer_bpb"),
        ("CORE", "answer_margin"),
        ("CORE", "core_metric"),
    ]
    paired = [line.differences[1].p_value is not None for line in lines if line.differences[1] is not None]
    assert paired == [True] * 5 + [False]
    assert "b is better than a" in str(lines[3].differences[1])
    assert len(compare_runs(runs, metrics=["answer_margin"])) == 4


def test_answers_that_only_one_measured_are_not_paired_and_a_run_from_before_says_what_it_lacks():
    bits = [float(n % 7 + 3) for n in range(20)]
    whole, cut = measured(bits), measured([None, *bits[1:]])
    assert set(verdicts(entrant("a", whole), entrant("b", cut))) == {"not the same questions: 20 and 19 measured"}
    before = replace(
        whole, records=answers([False] * 20, "arc"), rows=[proportion_row("arc", "accuracy", [False] * 20)]
    )
    before = replace(before, records=[{**r, "id": w["id"]} for r, w in zip(before.records, whole.records)])
    both = replace(whole, rows=[*before.rows, *whole.rows])
    report = build_comparison([entrant("old", before), entrant("new", both)])
    assert report.notes[0] == (
        "old has no answer_bpb, answer_margin of core: it was evaluated before these were measured, or with other "
        "settings; python evaluate.py 'ckpt=[outputs/sft/d4/checkpoints/best.ckpt]' eval=core"
    )
    assert "new" in comparison_markdown(report)


@pytest.mark.parametrize(
    ("metric", "sign"),
    [
        ("answer_bpb", -1), ("answer_margin", 1), ("wrong_bpb", 0),
        ("strict/accuracy_over_asked", 1), ("strict/accuracy_over_scored", 0), ("exact_match", 1), ("pass@8", 1),
        ("core_metric", 1), ("chatcore_metric", 1), ("bpb", -1), ("val/loss", -1), ("truncation_rate", 0),
        ("output_tokens", 0), ("strict/parse_rate", 0), ("centered", 0),
    ],
)  # fmt: skip
def test_the_direction_of_a_metric(metric, sign):
    assert metric_of(metric).direction == sign


def test_named_metrics_are_shown_and_unknown_ones_refused_with_what_there_is():
    rows = [proportion_row("recall", "exact_match", [True]), proportion_row("recall", "truncation_rate", [False])]
    both = [entrant(name, result(rows, answers([True]))) for name in "ab"]
    assert [line.metric for line in compare_runs(both, metrics=["truncation_rate"])] == ["truncation_rate"]
    assert len(compare_runs(both, metrics=["all"])) == 2
    with pytest.raises(ValueError, match="there are exact_match, truncation_rate"):
        compare_runs(both, metrics=["perplexity"])


# -- several samples of each question -----------------------------------------------------------------------------


def test_of_several_samples_the_questions_decide_where_the_intervals_overlap():
    draw = random.Random(0)
    first = [draw.choice((0, 0, 1, 6, 7)) for _ in range(60)]
    second = [min(8, n + draw.choice((0, 0, 1, 1))) for n in first]
    both = [entrant("a", sampled(first, 8)), entrant("b", sampled(second, 8))]
    [line] = compare_runs(both, metrics=["pass@1"])
    before, after, difference = line.rows[0], line.rows[1], line.differences[1]
    assert before is not None and after is not None and difference is not None
    assert before.interval is not None and after.interval is not None
    assert after.interval.low < before.interval.high  # unpaired, nothing could be said
    assert difference.verdict == "b is better than a by 5.4 points (p < 0.001, n = 60)"
    assert difference.difference == pytest.approx((sum(second) - sum(first)) / 8 / 60)
    assert difference.interval is not None
    assert 0 < difference.interval.low < difference.difference < difference.interval.high
    assert compare_runs(both, metrics=["pass@1"]) == [line]
    assert verdicts(*reversed(both), metrics=["pass@1"]) == [difference.verdict]


def test_every_k_that_is_shown_is_paired_and_corrected():
    first, second = [0] * 9 + [2] * 11, [1] * 8 + [0] + [2] * 11
    lines = compare_runs([entrant("a", sampled(first, 2)), entrant("b", sampled(second, 2))])
    judged = {line.metric: line.differences[1] for line in lines}
    assert list(judged) == ["pass@1", "pass@2"]
    for difference in judged.values():
        assert difference is not None
        assert difference.p_value == pytest.approx(mcnemar_exact(0, 8))
        assert "Holm over 2 tests" in difference.verdict


def test_pass_at_1_and_pass_at_n_are_shown_and_the_others_on_request():
    both = [entrant("a", sampled([1, 3] * 9, 8)), entrant("b", sampled([1, 2] * 9, 4))]
    assert [line.metric for line in compare_runs(both[:1])] == ["pass@1", "pass@8"]
    assert [line.metric for line in compare_runs(both, metrics=["pass@2", "pass@3"])] == ["pass@2", "pass@3"]
    assert {line.metric for line in compare_runs(both, metrics=["all"])} > {f"pass@{k}" for k in range(1, 9)}


def test_numbers_of_samples_may_differ_as_shares_are_compared():
    first, second = [1] * 40, [4] * 40
    assert verdicts(entrant("a", sampled(first, 2)), entrant("b", sampled(second, 8)), metrics=["pass@1"]) == [
        "not distinguishable (p = 1.000, n = 40)"
    ]


def test_equal_models_hardly_ever_win_with_several_samples():
    won = tempted = 0
    for seed in range(20):
        draw = random.Random(seed)
        ease = [draw.random() for _ in range(40)]
        first, second = ([sum(draw.random() < p for _ in range(4)) for p in ease] for _ in range(2))
        lines = compare_runs([entrant("a", sampled(first, 4)), entrant("b", sampled(second, 4))])
        judged = [difference for line in lines if (difference := line.differences[1]) is not None]
        assert len(judged) == 2
        won += any("is better" in difference.verdict for difference in judged)
        tempted += any(difference.p_value < 0.05 for difference in judged if difference.p_value is not None)
    assert won <= 1 <= tempted


def test_samples_that_were_not_kept_leave_only_intervals():
    both = [entrant(name, sampled([3, 5] * 9, 8)) for name in "ab"]
    bare = [{key: value for key, value in r.items() if key != "num_right"} for r in both[1].results["chat"].records]
    rows = both[1].results["chat"].rows
    [verdict] = verdicts(both[0], entrant("b", result(list(rows), bare, "chat")), metrics=["pass@1"])
    assert "unpaired" in verdict


# -- different questions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [answers([True] * 30), answers([True] * 40, prompt="Name {}.")])
def test_answers_to_different_questions_are_refused_with_the_command_that_asks_the_same(others):
    rows = [proportion_row("recall", "exact_match", [True] * len(others))]
    with pytest.raises(ValueError, match="different questions") as error:
        compare_runs([entrant("a", recalled([True] * 40)), entrant("b", result(rows, others))])
    assert f"40 and {len(others)}" in str(error.value)
    assert "python evaluate.py 'ckpt=[outputs/sft/d4/checkpoints/best.ckpt,outputs/sft" in str(error.value)


def test_nothing_in_common_is_refused_with_what_each_has():
    bpb = result([MetricRow(task="val", metric="bpb", value=1.5, n=9)], [], "bpb", "base")
    with pytest.raises(ValueError, match="a has bpb; b has recall"):
        compare_runs([entrant("a", bpb), entrant("b", recalled([True]))])


def test_settings_that_differ_are_listed():
    both = [entrant(name, recalled([True], max_new_tokens=n, data={"seed": n})) for name, n in (("a", 16), ("b", 128))]
    assert settings_that_differ(both) == ["recall: max_new_tokens was not the same for all: 16, 128"]


def test_figures_that_an_older_evaluation_lacks_are_no_other_setting():
    older, newer = entrant("a", recalled([True])), entrant("b", recalled([True], answer_bpb=True))
    assert settings_that_differ([older, newer]) == []
