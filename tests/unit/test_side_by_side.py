"""Answers to the same questions: which are shown, and in which order."""

from nanochat_pl.eval.results import proportion_row
from nanochat_pl.report.comparison_report import side_by_side
from tests.unit.evaluated import answers, entrant, recalled, result


def test_differing_answers_come_first_and_every_question_is_shared():
    first, second = [True, True, False, False], [True, False, False, True]
    different = answers(second)
    different[2]["output"] = "perhaps"
    rows = [proportion_row("recall", "exact_match", second)]
    shown = side_by_side([entrant("a", recalled(first)), entrant("b", result(rows, different))], 10)["recall"]
    assert [question.id for question in shown] == ["test/1", "test/3", "test/2", "test/0"]
    assert [question.differ for question in shown] == [True, True, False, False]
    assert all(list(question.answers) == ["a", "b"] for question in shown)
    assert side_by_side([entrant("a", recalled(first)), entrant("b", recalled(second))], 0)["recall"] == []


def test_questions_that_one_of_them_lacks_are_not_shown():
    answered = entrant("a", recalled([True] * 4))
    assert [q.id for q in side_by_side([answered, entrant("b", recalled([True] * 2))], 9)["recall"]] == [
        "test/0",
        "test/1",
    ]
    bare = entrant("b", result([proportion_row("recall", "exact_match", [True])], [{"id": "test/0", "correct": True}]))
    assert side_by_side([answered, bare], 9) == {}
