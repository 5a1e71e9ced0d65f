"""Laws of HumanEval: its wording, what counts as an answer's code, and that only what passes the tests is right."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_pl.sandbox import probe
from nanochat_pl.tasks.humaneval import HumanEval, extract_code, extract_imports
from nanochat_pl.tasks.tables import hub_order

PROMPT = 'import math\n\n# roots\nfrom typing import List\n\n\ndef root(x: float) -> List[float]:\n    """A root."""\n'
BODY = "    return [math.sqrt(x)]\n"
TEST = "\n\ndef check(candidate):\n    assert candidate(4.0) == [2.0]\n    assert candidate(9.0) == [3.0]\n\n"

needs_isolation = pytest.mark.skipif(probe().isolation is None, reason=f"no isolation holds here: {probe().reasons}")


def row(number=0, **changes):
    base = {
        "task_id": f"HumanEval/{number}",
        "prompt": PROMPT,
        "canonical_solution": BODY,
        "test": TEST,
        "entry_point": "root",
    }
    return base | changes


def write(folder, *rows):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "test.parquet")
    return folder


@pytest.fixture
def task(tmp_path):
    return HumanEval(write(tmp_path, row()), sandbox="weak")


def test_wording_is_prompt_and_prompt_with_solution(task):
    assert task[0]["messages"] == [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": f"{PROMPT}\n{BODY}"},
    ]
    assert {key: task[0][key] for key in ("id", "entry_point", "test", "prompt")} == {
        "id": "HumanEval/0",
        "entry_point": "root",
        "test": TEST,
        "prompt": PROMPT,
    }


def test_rows_come_in_the_hub_s_order(tmp_path):
    folder = write(tmp_path, *(row(i) for i in range(20)))
    names = [conversation["id"] for conversation in HumanEval(folder, shuffle=False)]
    assert names == [f"HumanEval/{i}" for i in range(20)]
    assert [conversation["id"] for conversation in HumanEval(folder)] == hub_order(names)
    assert [conversation["id"] for conversation in HumanEval(folder, stop=3)] == hub_order(names)[:3]


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nand\n```\ny\n```", "x = 1"),
        ("```\n  x = 1\n\ny = 2\n```", "x = 1\n\ny = 2"),
        ("```python\n```\nx", "```python\n```\nx"),
        ("  x = 1\n", "x = 1"),
        ("```js\nx\n```", "```js\nx\n```"),
        ("```python\nx = 1", "x = 1"),
    ],
)
def test_code_is_the_first_fenced_block_or_all(completion, code):
    assert extract_code(completion) == code


def test_imports_are_the_leading_ones():
    assert extract_imports(PROMPT) == "import math\nfrom typing import List"
    assert extract_imports("def f():\n    import math\n") == "" == extract_imports("")


@pytest.mark.parametrize(
    "answer",
    [
        PROMPT + BODY,
        f"Sure!\n```python\n{PROMPT}{BODY}```\nDone.",
        "```\ndef root(x):\n    return [x ** 0.5]\n```",
        "root = lambda x: [math.sqrt(x)]",
        "def root(x):\n    print('x' * 10**6)\n    return [x ** 0.5]",
    ],
)
def test_code_that_passes_the_tests_is_right(task, answer):
    assert task.grade(task[0], answer) and task.reward(task[0], answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I do not know.",
        PROMPT,
        PROMPT + "    return [x]\n",
        PROMPT + "    return [math.sqrt(x)\n",
        "def other(x):\n    return [x ** 0.5]",
        "import sys\ndef root(x):\n    sys.exit(0)",
        "import os\nos._exit(0)",
        "def check(candidate):\n    pass\nraise SystemExit",
        "```js\nroot\n```",
    ],
)
def test_code_that_fails_them_or_ends_early_is_wrong(task, answer):
    assert not task.grade(task[0], answer) and task.reward(task[0], answer) == 0.0


def test_code_that_never_ends_is_wrong_in_time(tmp_path):
    task = HumanEval(write(tmp_path, row()), sandbox="weak", timeout_s=1.0)
    right, result = task.run(task[0], "while True: pass")
    assert not right and result.timed_out and result.isolation == "weak"


@needs_isolation
def test_by_default_code_runs_isolated(tmp_path):
    task = HumanEval(write(tmp_path, row()))
    right, result = task.run(task[0], PROMPT + BODY)
    assert right and result.isolation == probe().isolation


def test_unknown_sandbox_and_missing_things_are_errors(tmp_path):
    task = HumanEval(write(tmp_path, row()), sandbox="none")
    with pytest.raises(ValueError, match="sandbox=none is unknown"):
        task.grade(task[0], "")
    with pytest.raises(FileNotFoundError, match=r"no train\.parquet"):
        HumanEval(tmp_path, "train")
    with pytest.raises(ValueError, match="no column entry_point"):
        HumanEval(write(tmp_path / "a", {key: text for key, text in row().items() if key != "entry_point"}))
    with pytest.raises(ValueError, match=r"row 1 .*, column test: test is blank"):
        HumanEval(write(tmp_path / "b", row(), row(1, test="")))
    with pytest.raises(ValueError, match=r"row 0 .* has no entry point"):
        HumanEval(write(tmp_path / "c", row(entry_point="f); evil(")))


@needs_isolation
@pytest.mark.slow
def test_every_canonical_solution_is_right_and_the_next_one_s_is_wrong(data_root):
    task = HumanEval(data_root / "humaneval", timeout_s=30)
    answers = [conversation["messages"][-1]["content"] for conversation in task]
    fenced = [f"```python\n{answer}\n```" for answer in answers]
    assert len(task) >= 100
    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(task.run, task, fenced))
        wrong = list(pool.map(task.grade, task, fenced[1:] + fenced[:1]))
    assert [result.error for passed, result in right if not passed] == []
    assert not any(wrong)
