"""Laws of the generated sums and differences."""

import re

import pytest

from nanochat_pl.tasks.arithmetic import Arithmetic, column_work


def problems(task: Arithmetic) -> set[tuple[int, int, str]]:
    return {(row["a"], row["b"], row["op"]) for row in task}


def test_no_problem_of_the_test_split_is_ever_trained_on():
    train, test = Arithmetic(size=20_000), Arithmetic("test", size=2_000)
    assert not problems(train) & problems(test)
    small = Arithmetic(size=500, largest=19), Arithmetic("test", size=500, largest=19)
    assert not problems(small[0]) & problems(small[1])


@pytest.mark.parametrize(
    ("a", "b", "op"), [(37, 48, "+"), (999, 999, "+"), (591, 196, "-"), (700, 1, "-"), (5, 5, "-")]
)
def test_column_work_holds_digit_by_digit(a: int, b: int, op: str):
    digits, steps = "", column_work(a, b, op).split(", ")
    for step in steps:
        left, result = step.split("=")
        numbers = [int(n) for n in re.split(r"[+-]", left)]
        assert int(result) == (sum(numbers) if op == "+" else numbers[0] - numbers[1])
        digits = (result if step is steps[-1] else result[-1]) + digits
    assert int(digits) == (a + b if op == "+" else a - b)


def test_both_ways_of_answering_are_drawn_anew_every_epoch():
    task = Arithmetic(size=400, worked=0.25, epochs=2)
    worked = ["=" in row["messages"][-1]["content"] for row in task]
    assert 0.15 < sum(worked) / len(worked) < 0.35
    assert worked[:400] != worked[400:]
    assert not any("=" in row["messages"][-1]["content"] for row in Arithmetic(size=50, worked=0))


def test_only_the_right_number_behind_the_marks_is_right():
    task = Arithmetic(size=50)
    for row in task:
        assert task.grade(row, row["messages"][-1]["content"])
        assert not task.grade(row, f"#### {int(row['answer']) + 1}")
        assert not task.grade(row, row["answer"]), "no marks"
        assert not task.grade(row, f"#### {row['answer']}0")
    assert {row["op"] for row in task} == {"+", "-"}


def test_settings_out_of_range_say_what_is_expected():
    with pytest.raises(ValueError, match="train, test"):
        Arithmetic("validation")
    with pytest.raises(ValueError, match="between 0 and 1"):
        Arithmetic(worked=2)
