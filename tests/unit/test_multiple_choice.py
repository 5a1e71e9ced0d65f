"""Laws of MMLU and ARC: the original's wording, letters and order, and the letter of an answer."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_pl.tasks.arc import ARC
from nanochat_pl.tasks.mmlu import MMLU
from nanochat_pl.tasks.multiple_choice import render_choices
from nanochat_pl.tasks.tables import hub_order


def mmlu_row(number=0, **changes):
    return {
        "question": f"Question {number}?",
        "choices": ["w", "x", "y", "z"],
        "answer": number % 4,
        "subject": "anatomy",
    } | changes


def arc_row(labels="ABCD", answer="B", **changes):
    choices = {"text": [f"choice {label}" for label in labels], "label": list(labels)}
    return {"id": f"id {labels}", "question": "Why?", "choices": choices, "answerKey": answer} | changes


def write(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), file)


def test_a_question_is_worded_with_each_letter_after_its_choice():
    assert render_choices("How many?", "AB", ["one", "two"]) == (
        "Multiple Choice question: How many?\n- one=A\n- two=B\n\nRespond only with the letter of the correct answer."
    )


def test_mmlu_rows_become_conversations(tmp_path):
    write(tmp_path / "dev.parquet", mmlu_row(2))
    [conversation] = MMLU(tmp_path, "dev")
    assert conversation == {
        "messages": [
            {"role": "user", "content": render_choices("Question 2?", "ABCD", ["w", "x", "y", "z"])},
            {"role": "assistant", "content": "C"},
        ],
        "id": "dev/0",
        "question": "Question 2?",
        "choices": ["w", "x", "y", "z"],
        "letters": ["A", "B", "C", "D"],
        "answer": "C",
        "subject": "anatomy",
    }


def test_rows_come_in_the_hub_s_shuffled_order_or_the_file_s(tmp_path):
    write(tmp_path / "test.parquet", *map(mmlu_row, range(50)))
    plain = [c["id"] for c in MMLU(tmp_path, "test", shuffle=False)]
    assert plain == [f"test/{i}" for i in range(50)]
    assert [c["id"] for c in MMLU(tmp_path, "test")] == hub_order(plain) != plain
    assert [c["id"] for c in MMLU(tmp_path, "test", at_most=7)] == hub_order(plain)[:7]


def test_the_older_auxiliary_questions_wrapped_in_a_column_read_the_same(tmp_path):
    rows = [mmlu_row(i, subject="") for i in range(5)]
    write(tmp_path / "flat" / "auxiliary_train.parquet", *rows)
    write(tmp_path / "wrapped" / "auxiliary_train.parquet", *({"train": row} for row in rows))
    assert list(MMLU(tmp_path / "wrapped")) == list(MMLU(tmp_path / "flat")) and len(MMLU(tmp_path / "flat")) == 5


def test_arc_keeps_each_row_s_own_labels(tmp_path):
    rows = [arc_row("1234", "4"), arc_row("ABCDE", "E"), arc_row("ABC", "A"), arc_row("ABCD", "D", id=None)]
    write(tmp_path / "ARC-Challenge" / "test.parquet", *rows)
    task = ARC(tmp_path, "ARC-Challenge", "test", shuffle=False)
    assert ["".join(c["letters"]) for c in task] == ["1234", "ABCDE", "ABC", "ABCD"]
    assert task[0]["messages"] == [
        {"role": "user", "content": render_choices("Why?", "1234", [f"choice {label}" for label in "1234"])},
        {"role": "assistant", "content": "4"},
    ]
    assert [c["id"] for c in task][1:] == ["id ABCDE", "id ABC", "ARC-Challenge test/3"]


@pytest.mark.parametrize(
    ("text", "right"),
    [("C", True), (" C\n", True), ("A", False), ("c", False), ("C.", True), ("C or D", False), ("", False)],
)
def test_an_answer_is_right_if_it_commits_to_the_letter(tmp_path, text, right):
    write(tmp_path / "dev.parquet", mmlu_row(2))
    task = MMLU(tmp_path, "dev")
    assert task.grade(task[0], text) is right and task.reward(task[0], text) == float(right)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": ["w", "x"]}, "dev split.*2 choices"),
        ({"answer": 4}, "dev split.*answer=4"),
        ({"question": " "}, "column question: question is blank"),
    ],
)
def test_mmlu_rows_that_cannot_be_asked_are_named(tmp_path, changes, message):
    write(tmp_path / "dev.parquet", mmlu_row(), mmlu_row(1, **changes))
    with pytest.raises(ValueError, match=rf"row 1 .*{message}"):
        MMLU(tmp_path, "dev")


def test_arc_rows_that_cannot_be_asked_are_named(tmp_path):
    write(tmp_path / "ARC-Easy" / "train.parquet", arc_row(), arc_row("ABC", "D"))
    with pytest.raises(ValueError, match=r"row 1 .*ARC-Easy train has 3 choices, the labels A, B, C and answerKey=D"):
        ARC(tmp_path)


def test_splits_and_subsets_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(ValueError, match="split=train of MMLU is not one of auxiliary_train"):
        MMLU(tmp_path, "train")
    with pytest.raises(ValueError, match="subset=easy of ARC is not one of ARC-Easy"):
        ARC(tmp_path, "easy")
    with pytest.raises(FileNotFoundError, match="fetch=true to get it from allenai/ai2_arc"):
        ARC(tmp_path)
