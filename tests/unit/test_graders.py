"""What counts as an answer: the tables of docs/evaluation.md are run against the graders that RL and evaluation use."""

import re
import time
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_pl.sandbox import probe
from nanochat_pl.tasks.answers import final_answer, original_final_answer, recalled_answer, right_number, strict_letter
from nanochat_pl.tasks.arc import ARC
from nanochat_pl.tasks.arithmetic import Arithmetic
from nanochat_pl.tasks.gsm8k import GSM8K
from nanochat_pl.tasks.humaneval import HumanEval, extract_code
from nanochat_pl.tasks.mmlu import MMLU
from nanochat_pl.tasks.recall import Recall
from nanochat_pl.tasks.scienceqa import ScienceQA
from nanochat_pl.tasks.spelling import SpellingBee

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


def table(beginning: str) -> list[tuple[str, str]]:
    """Return what is said and what is read in the table below the line that begins so."""
    text = PAGE.read_text(encoding="utf-8")
    lines = text[text.index(f"\n{beginning}") :].split("\n\n")[1].strip().splitlines()
    assert lines[0] == "| said | read as | why |"
    rows = []
    for line in lines[2:]:
        said, read, why = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        fence = re.match("`+", said).group()
        said = said.removeprefix(fence).removesuffix(fence)
        said = said[1:-1] if said.startswith(" ") and said.endswith(" ") else said
        assert why
        rows.append((said.replace("\\n", "\n").replace("\\|", "|"), read))
    return rows


def write(file: Path, **row: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row]), file)
    return file.parent


@pytest.fixture(scope="module")
def choices(tmp_path_factory):
    """The three tasks whose answer is a letter, each with one question of four choices, right answer B."""
    folder = tmp_path_factory.mktemp("choices")
    texts = ["rock", "lion", "salt", "ice"]
    write(folder / "mmlu" / "dev.parquet", question="What?", choices=texts, answer=1, subject="")
    write(
        folder / "arc" / "ARC-Easy" / "test.parquet",
        id="0",
        question="What?",
        choices={"text": texts, "label": list("ABCD")},
        answerKey="B",
    )
    write(folder / "scienceqa" / "test.parquet", question="What?", choices=texts, answer=1)
    return [MMLU(folder / "mmlu", "dev"), ARC(folder / "arc", split="test"), ScienceQA(folder / "scienceqa", "test")]


@pytest.mark.parametrize(("said", "read"), table("Letters, "))
def test_a_letter_is_read_as_the_table_says_and_rewarded_so(said, read, choices):
    assert strict_letter(said, list("ABCD")) == (None if read == "nothing" else read)
    for task in choices:
        assert task.grade(task[0], said) is (read == "B")
        assert task.reward(task[0], said) == float(read == "B")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """The three tasks whose answer is a number, each with one of its conversations, expecting 18."""
    folder = tmp_path_factory.mktemp("problems")
    (folder / "words.txt").write_text("\n".join(f"{a}{b}" for a in "abcdefgh" for b in "ijklmnop"))
    tasks = [
        GSM8K(write(folder / "test.parquet", question="How many?", answer="#### 18"), "test"),
        Arithmetic(size=1),
        SpellingBee(folder / "words.txt", size=1),
    ]
    return [(task, {**task[0], "answer": "18"}) for task in tasks]


@pytest.mark.parametrize(("said", "read"), table("Numbers, "))
def test_a_number_is_read_as_the_table_says_and_rewarded_so(said, read, problems):
    number = final_answer(said)
    assert (None if number is None else Fraction(number)) == (None if read == "nothing" else Fraction(read))
    for task, conversation in problems:
        assert task.grade(conversation, said) is (read == "18")
        assert task.reward(conversation, said) == float(read == "18")


@pytest.mark.parametrize(("said", "read"), table("Programs, "))
def test_a_program_is_graded_as_the_table_says(said, read, tmp_path):
    prompt = 'def double(x):\n    """Return twice x."""\n'
    test = "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(-2) == -4\n"
    folder = write(
        tmp_path / "test.parquet",
        task_id="0",
        prompt=prompt,
        canonical_solution="    return 2 * x\n",
        test=test,
        entry_point="double",
    )
    task = HumanEval(folder, sandbox="auto" if probe().isolation else "weak", timeout_s=20)
    said = said.replace("…", "def double(x):\n    return 2 * x")
    assert {"right": True, "wrong": False}[read] is task.grade(task[0], said)


@pytest.mark.parametrize(("said", "read"), table("Short answers, "))
def test_a_short_answer_is_read_as_the_table_says_and_rewarded_so(said, read, tmp_path):
    assert recalled_answer(said) == read
    task = Recall(write(tmp_path / "test.parquet", question="Where?", answer="Asia"), "test")
    assert task.grade(task[0], said) is (read == "asia")


def test_the_original_s_rules_can_be_had_where_figures_are_to_be_compared(tmp_path):
    folder = write(tmp_path / "test.parquet", question="How many?", answer="#### 1,800")
    for said, stated, original in (
        ("#### 1800", True, True),
        ("#### 1,800", True, True),
        ("#### 1800.", True, False),
        ("#### $1800", True, False),
        ("#### 1800/2", False, True),
    ):
        for strict, right in (("stated", stated), ("original", original)):
            task = GSM8K(folder, "test", strict=strict)
            assert task.grade(task[0], said) is right, (said, strict)
    assert original_final_answer("#### -1,234.5.") == "-1234.5."
    assert right_number("#### 18", "18", "original") and not right_number("####18", "18", "original")
    mmlu = write(tmp_path / "mmlu" / "dev.parquet", question="?", choices=list("wxyz"), answer=2, subject="")
    task = MMLU(mmlu, "dev", strict="original")
    assert task.grade(task[0], " C\n") and not task.grade(task[0], "C.") and not task.grade(task[0], "The answer is C")
    assert extract_code("```py\nx\n```", strict="original") == "```py\nx\n```"
    assert extract_code("a\n```python\nx = 1\n```", strict="original") == "x = 1"
    with pytest.raises(ValueError, match="strict=loose is unknown; choose stated"):
        GSM8K(folder, "test", strict="loose")


def test_endless_digits_are_no_number():
    for said in ("#### " + "9" * 5000, "#### 1/" + "3" * 5000, "#### 1 1/" + "3" * 5000):
        assert final_answer(said) is None and not right_number(said, "3")


def test_a_letter_that_is_a_digit_is_not_the_beginning_of_a_number():
    for said in (
        "Answer: 3,000",
        "The answer is 3.5",
        "3:30",
        "-3",
        r"\boxed{36}",
        "Answer: 3 - 2 = 1",
        "Answer: 1, 2",
    ):
        assert strict_letter(said, list("1234")) is None, said
    assert strict_letter("The answer is 3.", list("1234")) == "3" == strict_letter("3) salt", list("1234"))


@pytest.mark.parametrize(
    "piece",
    [
        *(" ", "\n", "*", "(", "$", "`", "~", "#", "A", "A ", "A\n", "answer is ", "####", "9", ",9", "'999", "```\n"),
        *(
            "\\boxed{",
            "\\frac{",
            "A, ",
            "def f",
            "```python\n",
            "x```\n",
            "½",
            "9 a ",
            "so, ",
            "not ",
            "A) ",
            "Answer: A, ",
            "A is correct, ",
        ),
    ],
)
def test_graders_read_hostile_answers_in_bounded_time(piece):
    begin = time.process_time()
    for text in (piece * 20_000, f"The answer is {piece * 20_000}B", f"#### {piece * 20_000}", f"```{piece * 20_000}"):
        strict_letter(text, list("ABCD"))
        final_answer(text)
        extract_code(text, "f")
    assert time.process_time() - begin < 10
