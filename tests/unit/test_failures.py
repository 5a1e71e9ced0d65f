"""Each rule that sorts wrong answers, at its border; and the settings that the advice names."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nanochat_pl.cli.failures import main
from nanochat_pl.config.compose import ROOTS, config_dir, known_names
from nanochat_pl.eval.failures import KINDS, false_steps, kind_of, sort_failures

LETTERS = {"letters": ["A", "B", "C"], "choices": ["rock salt", "lion", "salt"], "expected": "B"}
NUMBER = {"expected": "42"}
TEXT = {"expected": "Asia"}
PROGRAM = {"expected": "def double(x):\n    return 2 * x\n"}


def record(output: str, kind: dict, **more) -> dict:
    return {"id": "test/0", "prompt": "?", "output": output, "correct": False, **kind, **more}


CASES = {
    "empty": [
        record("", TEXT),
        record(" \n .", LETTERS),
        record("<|python_start|>", NUMBER, truncated=True),
    ],
    "repetition loop": [
        record("the river and the river and the river and the river and the riv", TEXT, truncated=True),
        record("1" * 20, NUMBER),
        record("B. lion. " + "No, it is salt. " * 4, LETTERS),
        record("ha ha ha ha ha ha ha ha\ufffd", TEXT, truncated=True),
    ],
    "letter not offered": [
        record("The correct answer is D.", LETTERS),
        record("D", LETTERS),
        record("Answer: (E) lion", LETTERS),
        record("The answer is 4.", {"letters": ["1", "2", "3"], "choices": ["x", "y", "z"], "expected": "2"}),
    ],
    "format": [
        record("It is the lion.", LETTERS, truncated=True),
        record("b) lion", LETTERS),
        record("the answer is b.", LETTERS),
        record("My pick here would have been B.", LETTERS),
        record("So she has 42 apples.", NUMBER),
        record("40+2=42\n#### 42.0", NUMBER),
        record("#### $42", NUMBER),
        record("In Asia, I think", TEXT, truncated=True),
    ],
    "truncated": [
        record("Let us think about", LETTERS, truncated=True),
        record("She has 42 apples and then", NUMBER, truncated=True),
        record("It lies in the east of", TEXT, truncated=True),
        record("def double(x):\n    total = x\n    tot", PROGRAM, truncated=True),
    ],
    "unparseable": [
        record("A lion or salt", LETTERS),
        record("I do not know.", LETTERS),
        record("many apples", NUMBER),
    ],
    "arithmetic slip": [
        record("40+1=42\n#### 43", NUMBER),
        record("<<40/2=21>>21, so\n#### 21", NUMBER),
        record("A. Because 2 + 2 = 5.", LETTERS),
    ],
    "wrong tool use": [
        record("<|python_start|>40 apples<|python_end|>\n#### 7", NUMBER),
        record("#### 7 <|python_start|>40+2", NUMBER),
        record("#### 7", NUMBER, tool_errors=1),
    ],
    "wrong choice": [
        record("A. rock salt", LETTERS),
        record("C", LETTERS),
        record("A. It has a mane and", LETTERS, truncated=True),
        record("5", {"expected": "7", "picked": 1}),
    ],
    "wrong number": [
        record("40+3=43\n#### 43", NUMBER),
        record("She has 43 apples.", NUMBER),
        record("<|python_start|>40+3<|python_end|><|output_start|>43<|output_end|>\n#### 43", NUMBER),
    ],
    "other": [
        record("Europe", TEXT),
        record("Eurasia", TEXT),
        record("Europe\nand so on", TEXT, truncated=True),
        record("def double(x):\n    return x\n", PROGRAM),
    ],
}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [pytest.param(kind, wrong, id=f"{kind}-{wrong['output'][:20]!r}") for kind in CASES for wrong in CASES[kind]],
)
def test_kind_of_a_wrong_answer(kind, wrong):
    assert kind_of(wrong) == kind


def test_every_kind_has_a_case():
    assert [kind.name for kind in KINDS] == list(CASES)


@pytest.mark.parametrize(
    "text",
    [
        "ho ho ho, ho ho",
        "1111111",
        "abc abc abc",
        "1:a\n2:b\n3:c\n4:d\n5:e\n6:f\n7:g",
    ],
)
def test_a_short_repetition_or_a_list_is_no_loop(text):
    assert kind_of(record(text, TEXT)) == "other"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3+4=8", ["3+4 = 8"]),
        ("3+4 = 7+1 = 9", ["7+1 = 9"]),
        ("7+8=15, 3+4+1=9", ["3+4+1 = 9"]),
        ("<<48/2=24>>24 and <<24*2=49>>49", ["24*2 = 49"]),
        ("2*(3+4)=15", ["2*(3+4) = 15"]),
        ("$5 x 3 = $16", ["$5 × 3 = 16"]),
        ("5 − 3 = 1", ["5 - 3 = 1"]),
        ("1. 3+4=8", ["3+4 = 8"]),
        ("- 3 + 4 = 8", ["3 + 4 = 8"]),
        ("-3+4=2", ["-3+4 = 2"]),
        ("1,000 + 1 = 1,002", ["1,000 + 1 = 1,002"]),
        ("100/3 = 34", ["100/3 = 34"]),
        ("48/2 = <|python_start|>48/2<|python_end|><|output_start|>24<|output_end|>25", ["48/2 = 25"]),
    ],
)
def test_a_false_step_is_found_as_it_stands(text, steps):
    assert false_steps(text) == steps


@pytest.mark.parametrize(
    "text",
    [
        "3+4=7",
        "10/3 = 3.3",
        "2/3 = 0.67",
        "2/3 = 0.66",
        "10/3=3",
        "25 / 1/3 = 75",
        "12 ÷ 4 = 3.",
        "0.1+0.2=0.3",
        "5 x 3 = 15",
    ],
)
def test_a_true_or_rounded_step_is_no_slip(text):
    assert false_steps(text) == []


@pytest.mark.parametrize(
    "text",
    ["x - 3 + 4 = 8", "2x+3=8", "20% * 50 = 11", "2^3 + 1 = 8", "a = 3", "5 m + 3 m = 9 m", "3+4 == 8", "1/0 = 7"],
)
def test_a_step_that_cannot_be_parsed_for_certain_is_no_slip(text):
    assert false_steps(text) == []


def test_the_worked_solutions_of_gsm8k_hardly_slip(data_root):
    solutions = pq.read_table(data_root / "gsm8k" / "test.parquet")["answer"].to_pylist()
    assert sum(bool(false_steps(solution)) for solution in solutions) < 0.01 * len(solutions)


def test_the_kinds_of_a_task_add_up_to_its_wrong_answers():
    wrong = [
        {**failure, "id": str(number)} for number, failure in enumerate(f for kind in CASES.values() for f in kind)
    ]
    records = [*wrong, record("B", LETTERS) | {"correct": True}]
    [task] = sort_failures(records, "mixed")
    assert (task.task, task.asked) == ("mixed", len(records))
    assert task.kinds == {name: len(cases) for name, cases in CASES.items()}
    assert [failure.record["id"] for failure in task.failures] == [wrong_one["id"] for wrong_one in wrong]


def test_records_that_name_their_task_are_counted_apart():
    records = [record("C", LETTERS, task="arc"), record("#### 7", NUMBER, task="gsm8k"), record("Europe", TEXT)]
    assert [(found.task, found.kinds) for found in sort_failures(records, "rest")] == [
        ("arc", {"wrong choice": 1}),
        ("gsm8k", {"wrong number": 1}),
        ("rest", {"other": 1}),
    ]


def test_a_record_that_is_no_answer_is_refused_with_what_it_lacks():
    with pytest.raises(ValueError, match="record 1 of core has no prompt, output"):
        sort_failures([{"id": "0", "expected": "7", "correct": False}], "core")


def test_every_setting_that_advice_names_exists():
    known = {name for root in ROOTS.values() for name in known_names(root, config_dir())}
    stages = {path.stem for path in (config_dir() / "stage").glob("*.yaml")}
    for kind in KINDS:
        named = re.findall(r"`([^`]+)`", kind.remedy)
        assert named, f"{kind.name} names no setting to try"
        assert set(named) <= known, f"{kind.name} names {sorted(set(named) - known)}"
        assert set(re.findall(r"stage=(\w+)", kind.remedy)) <= stages


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "sft" / "d4" / "eval" / "recall" / "best"
    folder.mkdir(parents=True)
    metric = {"task": "recall", "metric": "exact_match", "value": 0.5, "n": 4, "count": 2}
    document = {"schema": 1, "name": "recall", "checkpoint": {"path": "best.ckpt"}, "config": {}, "config_hash": "0"}
    document["metrics"] = [metric]
    (folder / "results.json").write_text(json.dumps(document))
    answers = [("Asia", True), ("Europe", False), ("in Asia, <b>surely</b>", False), ("Asia", True)]
    lines = [
        record(text, TEXT, config="0") | {"id": str(n), "correct": right} for n, (text, right) in enumerate(answers)
    ]
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("given", ["", "results.json", "examples.jsonl", "../../.."])
def test_results_are_found_from_a_file_or_a_folder(results, given, capsys):
    assert main([str(results / given)]) == 0
    said = capsys.readouterr().out
    assert "2 of 4 answers are wrong" in said
    assert "format" in said
    assert "other" in said


def test_the_command_writes_what_it_says(results, tmp_path):
    page, data = tmp_path / "failures.md", tmp_path / "failures.json"
    assert main([str(results), "--limit", "1", "--markdown", str(page), "--json", str(data)]) == 0
    document = json.loads(data.read_text())
    [evaluation] = document["evaluations"]
    assert evaluation["tasks"] == [{"task": "recall", "asked": 4, "wrong": 2, "kinds": {"format": 1, "other": 1}}]
    assert [failure["id"] for failure in evaluation["failures"]] == ["1", "2"]
    text = page.read_text()
    assert "| recall | 4 | 2 |" in text
    assert "in Asia, <b>surely</b>" in text
    assert all(kind.remedy in text for kind in KINDS if kind.name in ("format", "other"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere"),
        (["--limit", "-1", "."], "--limit"),
        ([".", "--bogus"], "--bogus"),
        (["."], "neither best.ckpt nor last.ckpt"),
        (["run"], "python evaluate.py ckpt=run/checkpoints/last.ckpt"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert said in error


def test_results_without_examples_have_no_failures_to_sort(results, capsys):
    (results / "examples.jsonl").unlink()
    assert main([str(results / "results.json")]) == 2
    assert "examples.jsonl" in capsys.readouterr().err


def test_a_step_too_long_to_be_sure_of_is_passed_over():
    assert false_steps("1+" * 40 + "1 = 5") == ["1+" * 40 + "1 = 5"]
    assert false_steps("1+" * 60 + "1 = 5") == []
