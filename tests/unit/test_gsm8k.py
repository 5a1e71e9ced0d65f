"""Laws of GSM8K: sums become calls of the calculator, the number after #### is the answer."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_pl.tasks.answers import final_answer
from nanochat_pl.tasks.gsm8k import GSM8K, solution_parts
from nanochat_pl.tasks.tables import hub_order

SOLUTION = "He has 48/2 = <<48/2=24>>24.\nIn all <<24=24=24>><<7>>24.\n#### 1,024"


def write(folder, *solutions):
    rows = [{"question": f"Question {i}?", "answer": solution} for i, solution in enumerate(solutions)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    return folder


def test_a_solution_becomes_text_and_calls_split_at_the_last_equals_sign():
    assert [(part["type"], part["text"]) for part in solution_parts(SOLUTION)] == [
        ("text", "He has 48/2 = "),
        ("python", "48/2"),
        ("python_output", "24"),
        ("text", "24.\nIn all "),
        ("python", "24=24"),
        ("python_output", "24"),
        ("text", ""),
        ("python", "7"),
        ("python_output", ""),
        ("text", "24.\n#### 1,024"),
    ]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 18", "18"),
        ("#### -1,234.5 and #### 7", "-1234.5"),
        ("####18", "18"),
        ("18", None),
        ("#### eighteen", None),
        ("#### $18", "18"),
    ],
)
def test_the_answer_is_the_first_number_after_the_mark(text, answer):
    assert final_answer(text) == answer


def test_rows_become_conversations_in_the_hub_s_order(tmp_path):
    task = GSM8K(write(tmp_path, SOLUTION, *(f"#### {i}" for i in range(20))), shuffle=False)
    user, assistant = task[0]["messages"]
    assert (user["content"], assistant["content"]) == ("Question 0?", solution_parts(SOLUTION))
    assert (task[0]["id"], task[0]["question"], task[0]["answer"]) == ("train/0", "Question 0?", "1024")
    assert [c["id"] for c in GSM8K(tmp_path)] == hub_order([c["id"] for c in task])


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("I think #### 1024", True),
        ("#### 1,024", True),
        ("#### 1024.0", True),
        ("1024", False),
        ("", False),
        ("#### 24", False),
    ],
)
def test_an_answer_is_compared_by_value_and_never_right_without_the_mark(tmp_path, text, right):
    task = GSM8K(write(tmp_path, SOLUTION))
    assert task.grade(task[0], text) is right and task.reward(task[0], text) == float(right)


def test_a_solution_without_an_answer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"row 1 .*train split"):
        GSM8K(write(tmp_path, SOLUTION, "no idea"))


def test_real_solutions_lose_nothing_and_grade_themselves_right(data_root):
    for split in ("train", "test"):
        task = GSM8K(data_root / "gsm8k", split)
        rows = pq.read_table(data_root / "gsm8k" / f"{split}.parquet").to_pylist()
        for row in rows:
            parts = solution_parts(row["answer"])
            text = "".join(part["text"] for part in parts if part["type"] == "text")
            assert text == re.sub(r"<<[^>]+>>", "", row["answer"])
        for conversation in task:
            said = "".join(part["text"] for part in conversation["messages"][-1]["content"])
            assert task.grade(conversation, said) and not task.grade(conversation, "#### none")
