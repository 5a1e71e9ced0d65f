"""Laws of tables as other people have them: what loses nothing is repaired and counted, all else named and refused."""

import bz2
import csv
import gzip
import json
import logging
import re
from datetime import datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_pl.rows import parse_json
from nanochat_pl.tasks.arc import ARC
from nanochat_pl.tasks.chats import Chats
from nanochat_pl.tasks.gsm8k import GSM8K
from nanochat_pl.tasks.humaneval import HumanEval
from nanochat_pl.tasks.mmlu import MMLU
from nanochat_pl.tasks.recall import Recall
from nanochat_pl.tasks.scienceqa import ScienceQA

GOOD = {"question": "Is ice cold?", "choices": ["yes", "no", "both"], "answer": 1}
ARC_ROW = {"question": "Q?", "choices": {"text": ["w", "x", "y"], "label": ["A", "B", "C"]}, "answerKey": "B"}
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix in (".jsonl", ".ndjson"):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows, indent=1))
    else:
        with file.open("w", newline="") as text:
            writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return file.parent


def only(task):
    (conversation,) = list(task)
    return conversation


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "json", "jsonl", "ndjson"])
def test_a_table_means_the_same_in_every_form(tmp_path, ending):
    rows = [GOOD | {"hint": 'say "x"\nand, y'}, GOOD | {"answer": 0, "hint": ""}]
    folder = write(tmp_path / f"train.{ending}", rows)
    expected = ScienceQA(write(tmp_path / "plain" / "train.parquet", rows))
    assert list(ScienceQA(folder)) == list(expected)


@pytest.mark.parametrize("line_end", ["\r", "\n", "\r\n"])
def test_the_lines_of_a_csv_file_end_as_any_program_ends_them(tmp_path, line_end):
    head, row = "question,choices,answer", """Q?,"['x', 'y']",1"""
    (tmp_path / "train.csv").write_bytes(line_end.join([head, row, row, ""]).encode("utf-8-sig"))
    assert [c["answer"] for c in ScienceQA(tmp_path)] == ["B", "B"]


WRITTEN = [
    "['yes', 'no', 'both']",
    '["yes", "no", "both"]',
    "('yes', 'no', 'both')",
    "['yes' 'no' 'both']",
    "['yes' 'no'\n 'both']",
    "array(['yes', 'no', 'both'], dtype=object)",
    "{'text': array(['yes', 'no', 'both'], dtype=object), 'label': array(['A', 'B', 'C'], dtype=object)}",
    "{'text': ['yes' 'no' 'both'], 'label': ['A' 'B' 'C']}",
    "['yes', 'no', r'both']",
    {"text": ["yes", "no", "both"], "label": ["A", "B", "C"]},
    {"label": ["A", "B", "C"], "text": ["yes", "no", "both"]},
    {"A": "yes", "B": "no", "C": "both", "D": None},
    {"c": "both", "a": "yes", "b": "no"},
    "{'A': 'yes', 'B': 'no', 'C': 'both'}",
    [{"text": "yes", "label": "A"}, {"text": "no", "label": "B"}, {"text": "both", "label": "C"}],
]


@pytest.mark.parametrize("choices", WRITTEN, ids=str)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_choices_written_as_text_or_with_labels_are_read_whole_and_counted(tmp_path, caplog, choices, ending):
    caplog.set_level(logging.INFO)
    task = ScienceQA(write(tmp_path / f"train.{ending}", [GOOD | {"choices": choices}]))
    assert only(task)["choices"] == ["yes", "no", "both"] and only(task)["answer"] == "B"
    (line,) = [record.getMessage() for record in caplog.records if "repaired" in record.getMessage()]
    assert "choices: 1 " in line and "train." in line


@pytest.mark.parametrize("answer", [1, "1", "B", "b", " B ", "(B)", "B.", "no", 1.0, "1.0"])
@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_an_answer_may_be_number_letter_or_text_of_a_choice(tmp_path, answer, ending):
    folder = write(tmp_path / f"train.{ending}", [GOOD | {"answer": answer}])
    assert only(ScienceQA(folder))["answer"] == "B"


def test_an_ambiguous_answer_is_read_like_the_rest_of_its_column_or_refused(tmp_path):
    numbers = {"question": "2 + 2?", "choices": ["1", "2", "4", "3"]}
    texts = write(tmp_path / "a" / "train.jsonl", [numbers | {"answer": "4"}, numbers | {"answer": "1"}])
    assert [c["answer"] for c in ScienceQA(texts)] == ["C", "A"]
    letters = {"question": "Which note?", "choices": ["C", "B", "A"]}
    unsure = write(tmp_path / "b" / "train.jsonl", [letters | {"answer": "A"}])
    with pytest.raises(ValueError, match=r"row 0 .*column answer: \"A\" may be choice 0 \(by letters\) or choice 2"):
        ScienceQA(unsure)
    labelled = [{"question": "Q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "2"}]
    assert only(ScienceQA(write(tmp_path / "c" / "train.jsonl", labelled)))["answer"] == "B"
    for name, answer in (("d", 1), ("e", 1.0)):  # the second choice, or the one that is labelled 1
        unsure = write(tmp_path / name / "train.jsonl", [labelled[0] | {"answer": answer}])
        with pytest.raises(ValueError, match=r"column answer: 1.* may be choice 1 \(by .*\) or choice 0 \(by labels\)"):
            ScienceQA(unsure)
    from_zero = labelled[0] | {"choices": {"text": ["x", "y"], "label": ["0", "1"]}, "answer": 1}
    assert only(ScienceQA(write(tmp_path / "f" / "train.jsonl", [from_zero])))["answer"] == "B"


def test_missing_optional_texts_are_empty_and_numbers_become_text(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    more = {"hint": float("nan"), "grade": 3, "topic": 7.0, "lecture": None}
    task = ScienceQA(write(tmp_path / "train.parquet", [GOOD | more, GOOD | more]))
    assert [(c["hint"], c["grade"], c["topic"]) for c in task] == [("", "3", "7")] * 2
    assert "hint: 2 missing values read as empty" in caplog.text and "grade: 2 numbers made text" in caplog.text
    assert (
        only(ScienceQA(write(tmp_path / "n" / "train.parquet", [GOOD | {"choices": [1, 2, 30]}])))["choices"][2] == "30"
    )


REFUSED = [
    ({"answer": 0.5}, "column answer: 0.5 where the number of a choice is needed, 0 to 2"),
    ({"answer": float("nan")}, "column answer: nan"),
    ({"answer": None}, "column answer: null"),
    ({"answer": True}, "column answer: true"),
    ({"answer": "maybe"}, 'column answer: "maybe"'),
    ({"answer": "D"}, 'column answer: "D"'),
    ({"answer": 3}, "answer=3"),
    ({"answer": 1e30}, "column answer: 1e+30"),
    ({"answer": "-1"}, 'column answer: "-1"'),
    ({"choices": ["yes", None, "no"]}, "column choices: item 2 is null where text is needed"),
    ({"choices": [["yes"], ["no"], []]}, "column choices: item 1 is"),
    ({"choices": "yes, no, both"}, 'column choices: the text "yes, no, both" where a list'),
    ({"choices": "['yes', nan, 'no']"}, "column choices: the text"),
    ({"choices": "['yes', 'no' 'both']"}, "column choices: the text"),
    ({"choices": "__import__('os').system('touch x')"}, "column choices: the text"),
    ({"choices": "[__import__('os').system('touch x')]"}, "column choices: the text"),
    ({"choices": '["yes", "\\ud800"]'}, "column choices: the text"),
    ({"choices": "['yes', '\\ud800']"}, "column choices: the text"),
    ({"choices": '{"text": ["a", "b"], "text": ["c", "d"]}'}, "column choices: the text"),
    ({"choices": "{'text': ['a', 'b'], 'text': ['c', 'd']}"}, "column choices: the text"),
    ({"choices": "['yes', 'no', ..., 'both']"}, "where `...` stands for items that were left out"),
    ({"choices": "['yes' 'no' ... 'both']"}, """column choices: the text "['yes' 'no' ... 'both']", where `...`"""),
    ({"choices": "['yes' 'no', 'both']"}, """column choices: the text "['yes' 'no', 'both']" where a list"""),
    ({"choices": {"A": "yes", "C": "no"}}, "column choices: {'A': 'yes', 'C': 'no'} where a list is needed"),
    ({"choices": r"['$\frac{1}{2}$', 'it\'s', 'c']"}, r"in which \frac may be a command of LaTeX"),
    ({"choices": r"['$\times$', 'a\nb', 'c']"}, r"in which \times may be a command of LaTeX"),
    ({"choices": r"['$x \to y$', 'a', 'c']"}, r"in which \to may be a command of LaTeX"),
    ({"choices": None}, "column choices: null where a list is needed"),
    ({"choices": ["yes", " ", "no"]}, "column choices: a choice is blank"),
    ({"choices": ["yes", "\u3000", "no"]}, "column choices: a choice is blank"),
    ({"question": " \n"}, "column question: question is blank"),
    ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "column choices: 2 texts and other labels"),
    ({"question": None}, "column question: null where text is needed"),
    ({"question": float("nan")}, "column question: nan where text is needed"),
    ({"hint": ["a"]}, "column hint: "),
    ({"grade": float("inf")}, "column grade: inf where text is needed"),
    ({"grade": True}, "column grade: true where text is needed"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=str)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_what_cannot_be_repaired_is_refused_by_file_row_and_column(tmp_path, changes, message, ending):
    changed = GOOD | changes
    rows = [changed] if ending == "parquet" else [GOOD, changed]
    with pytest.raises(ValueError) as error:
        ScienceQA(write(tmp_path / f"train.{ending}", rows))
    assert f"train.{ending}, row {len(rows) - 1} (counted from 0)" in str(error.value) and message in str(error.value)
    assert "mend or drop the row" in str(error.value) and not list(tmp_path.glob("x"))


LATEX = [
    (r"['$\frac{1}{2}$', '$\theta$']", [r"$\frac{1}{2}$", r"$\theta$"]),
    (r'["$\frac{1}{2}$", "$\theta$"]', [r"$\frac{1}{2}$", r"$\theta$"]),
    (r"['$x \to y$' '$\alpha \neq \%$']", [r"$x \to y$", r"$\alpha \neq \%$"]),
    (r"['$\\frac{1}{2}$', '$\\theta$']", [r"$\frac{1}{2}$", r"$\theta$"]),
    (r"['a\nb \x0c', 'it\'s']", ["a\nb \x0c", "it's"]),
    (r"[r'\frac', 'b']", [r"\frac", "b"]),
    (r"['\boo', 'C:\files']", [r"\boo", r"C:\files"]),
    (r"['\sqrt{2}', '\(2\)']", [r"\sqrt{2}", r"\(2\)"]),
]


@pytest.mark.parametrize(("choices", "read"), LATEX, ids=str)
@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_command_of_latex_in_a_written_list_never_becomes_a_control_character(tmp_path, choices, read, ending):
    folder = write(tmp_path / f"train.{ending}", [GOOD | {"choices": choices}])
    assert only(ScienceQA(folder))["choices"] == read


def test_decimal_numbers_are_read_as_numbers_are(tmp_path):
    decimals = {"grade": Decimal("3.00"), "topic": Decimal("1.50"), "answer": Decimal("1.0"), "hint": None}
    conversation = only(ScienceQA(write(tmp_path / "train.parquet", [GOOD | decimals])))
    assert [conversation[key] for key in ("grade", "topic", "answer", "hint")] == ["3", "1.50", "B", ""]


BLANK = [
    (lambda p: MMLU(p, "dev"), "dev", {"question": " ", "choices": list("wxyz"), "answer": 0}, "question"),
    (lambda p: ARC(p), "ARC-Easy/train", ARC_ROW | {"question": "\t"}, "question"),
    (lambda p: ARC(p), "ARC-Easy/train", ARC_ROW | {"choices": {"text": ["w", ""], "label": ["A", "B"]}}, "choices"),
    (lambda p: GSM8K(p), "train", {"question": " ", "answer": "#### 3"}, "question"),
    (lambda p: GSM8K(p), "train", {"question": "Q?", "answer": " "}, "answer"),
    (lambda p: Recall(p), "train", {"question": "Q?", "answer": ""}, "answer"),
    (
        lambda p: HumanEval(p),
        "test",
        {"task_id": "a", "prompt": "p", "canonical_solution": "s", "test": " ", "entry_point": "f"},
        "test",
    ),
]


@pytest.mark.parametrize(("make", "place", "row", "column"), BLANK)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_blank_text_that_is_asked_or_learned_is_refused(tmp_path, make, place, row, column, ending):
    write(tmp_path / f"{place}.{ending}", [row])
    with pytest.raises(ValueError, match=rf"\.{ending}, row 0 \(counted from 0\), column {column}: .* is blank"):
        make(tmp_path)


def test_blank_choices_of_mmlu_are_asked_as_the_original_does_and_counted(tmp_path, caplog):
    row = {"question": "Q?", "choices": ["w", "", "y", "z"], "answer": 0}
    assert only(MMLU(write(tmp_path / "dev.parquet", [row]), "dev"))["choices"] == row["choices"]
    assert "1 of the 1 questions of MMLU dev have an empty choice" in caplog.text


def test_numbers_without_end_are_refused_and_an_empty_table_is_named(tmp_path):
    for column, name in (("answer", "answer"), ("grade", "grade"), ("question", "question")):
        folder = write(tmp_path / column / "train.jsonl", [GOOD | {column: 10**400}])
        with pytest.raises(ValueError, match=rf"row 0 .*column {name}: a number of 1,329 bits"):
            ScienceQA(folder)
    with pytest.raises(ValueError, match=r"row 0 .*column answer: 1000"):
        ScienceQA(write(tmp_path / "long" / "train.jsonl", [GOOD | {"answer": 10**30}]))
    table = pa.Table.from_pylist([GOOD]).slice(0, 0)
    (tmp_path / "empty").mkdir()
    pq.write_table(table, tmp_path / "empty" / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet holds no rows"):
        ScienceQA(tmp_path / "empty")


def test_pictures_are_counted_however_they_are_stored(tmp_path):
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [None, {"bytes": b"png", "path": None}, {"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}]
    table = pa.Table.from_pylist([GOOD] * 4).append_column("image", pa.array(images, image))
    pq.write_table(table, tmp_path / "train.parquet")
    assert [c["has_image"] for c in ScienceQA(tmp_path)] == [False, True, True, False]
    pq.write_table(table, tmp_path / "train.parquet", write_statistics=False)
    assert [c["has_image"] for c in ScienceQA(tmp_path)] == [False, True, True, False]
    images = [{"bytes": b"", "path": ""}, {"bytes": b"png", "path": ""}, {"bytes": b"", "path": None}]
    table = pa.Table.from_pylist([GOOD] * 3).append_column("image", pa.array(images, image))
    (tmp_path / "empty").mkdir()
    pq.write_table(table, tmp_path / "empty" / "train.parquet")
    assert [c["has_image"] for c in ScienceQA(tmp_path / "empty")] == [False, True, False]
    for name, column in {"text": ["", "a.png", None], "bytes": [b"", b"png", None], "list": [[], [1], None]}.items():
        (tmp_path / name).mkdir()
        table = pa.Table.from_pylist([GOOD] * 3).append_column("image", pa.array(column))
        pq.write_table(table, tmp_path / name / "train.parquet")
        assert [c["has_image"] for c in ScienceQA(tmp_path / name)] == [False, True, False], name
    images = [None, {"bytes": None, "path": "a.png"}, {"bytes": "", "path": ""}]
    texts = write(tmp_path / "t" / "train.csv", [GOOD | {"image": ""}, GOOD | {"image": "a.png"}])
    assert [c["has_image"] for c in ScienceQA(texts)] == [False, True]
    objects = write(tmp_path / "o" / "train.jsonl", [GOOD | {"image": value} for value in images])
    assert [c["has_image"] for c in ScienceQA(objects)] == [False, True, False]


OTHERS = [
    (lambda p: MMLU(p, "dev"), "dev", {"question": "Q?", "choices": list("wxyz"), "answer": "C"}, "C"),
    (lambda p: MMLU(p, "dev"), "dev", {"question": "Q?", "choices": "['w' 'x' 'y' 'z']", "answer": "2"}, "C"),
    (lambda p: ARC(p), "ARC-Easy/train", ARC_ROW | {"answerKey": "x"}, "B"),
    (lambda p: ARC(p), "ARC-Easy/train", ARC_ROW | {"choices": ["w", "x", "y"]}, "B"),
    (lambda p: ARC(p), "ARC-Easy/train", ARC_ROW | {"choices": "['w', 'x', 'y']"}, "B"),
    (
        lambda p: ARC(p),
        "ARC-Easy/train",
        ARC_ROW | {"choices": {"text": ["w", "x"], "label": [1, 2]}, "answerKey": 2},
        "2",
    ),
    (
        lambda p: ARC(p),
        "ARC-Easy/train",
        ARC_ROW | {"choices": [{"text": "w", "label": "A"}, {"text": "x", "label": "B"}]},
        "B",
    ),
    (lambda p: Recall(p), "train", {"question": "How many?", "answer": 8, "grade": None}, "8"),
]


@pytest.mark.parametrize(("make", "place", "row", "answer"), OTHERS)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_other_tasks_repair_the_same_values(tmp_path, make, place, row, answer, ending):
    write(tmp_path / f"{place}.{ending}", [row])
    assert only(make(tmp_path))["answer"] == answer


OTHERS_REFUSED = [
    (lambda p: MMLU(p, "dev"), "dev", {"question": "Q?", "choices": list("wxyz"), "answer": 0.5}, "answer"),
    (lambda p: MMLU(p, "dev"), "dev", {"question": "Q?", "choices": ["w", None, "y", "z"], "answer": 0}, "choices"),
    (lambda p: ARC(p), "ARC-Easy/train", ARC_ROW | {"answerKey": None}, "answerKey"),
    (lambda p: ARC(p), "ARC-Easy/train", ARC_ROW | {"choices": {"text": ["w", None], "label": ["A", "B"]}}, "choices"),
    (lambda p: ARC(p), "ARC-Easy/train", ARC_ROW | {"choices": "w x"}, "choices"),
    (lambda p: GSM8K(p), "train", {"question": None, "answer": "#### 3"}, "question"),
    (lambda p: GSM8K(p), "train", {"question": "Q?", "answer": ["#### 3"]}, "answer"),
    (lambda p: Recall(p), "train", {"question": "Q?", "answer": None}, "answer"),
    (
        lambda p: HumanEval(p),
        "test",
        {"task_id": "a", "prompt": "p", "canonical_solution": None, "test": "t", "entry_point": "f"},
        "canonical_solution",
    ),
    (lambda p: Chats(p), "train", {"messages": [CHAT[0], {"role": "assistant", "content": None}]}, "messages"),
    (lambda p: Chats(p), "train", {"messages": "hello"}, "messages"),
    (lambda p: Chats(p), "train", {"messages": None}, "messages"),
]


@pytest.mark.parametrize(("make", "place", "row", "column"), OTHERS_REFUSED)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_other_tasks_refuse_the_same_values(tmp_path, make, place, row, column, ending):
    write(tmp_path / f"{place}.{ending}", [row])
    with pytest.raises(ValueError, match=rf"\.{ending}, row 0 \(counted from 0\), column {column}: "):
        make(tmp_path)


PROBLEM = {
    "task_id": "a",
    "prompt": "def f(x):\n",
    "canonical_solution": "    return x\n",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n",
    "entry_point": "f",
}
UNGRADABLE = [
    (HumanEval, "test", PROBLEM | {"test": "assert f(1) == 1\n"}, "a test without a function check"),
    (HumanEval, "test", PROBLEM | {"test": "def check(candidate):\n    pass\n"}, "a test without a function check"),
    (HumanEval, "test", PROBLEM | {"test": "def check(candidate)\n"}, "a test without a function check"),
    (HumanEval, "test", PROBLEM | {"entry_point": "class"}, "no entry point ('class' is no name of a function)"),
    (HumanEval, "test", PROBLEM | {"entry_point": "g"}, "an entry point that its prompt does not name ('g')"),
    (ARC, "ARC-Easy/train", ARC_ROW | {"choices": {"text": ["w", "x"], "label": ["B", "B"]}}, "the labels B, B"),
    (ARC, "ARC-Easy/train", ARC_ROW | {"choices": {"text": ["w", "x"], "label": ["B", " "]}}, "the labels B,  "),
    (Recall, "train", {"question": "Where?", "answer": "..."}, "an answer of marks alone"),
]


@pytest.mark.parametrize(("task", "place", "row", "fault"), UNGRADABLE)
def test_a_question_that_would_be_right_or_wrong_whatever_is_said_is_refused(tmp_path, task, place, row, fault):
    write(tmp_path / f"{place}.jsonl", [row])
    with pytest.raises(ValueError, match=rf"\.jsonl, row 0 \(counted from 0\) .* has .*{re.escape(fault)}"):
        task(tmp_path)


def test_rows_with_the_same_id_get_different_ones(tmp_path):
    write(tmp_path / "test.jsonl", [PROBLEM | {"task_id": name} for name in ("a", "a", "b", "a", "a-2")])
    assert [c["id"] for c in HumanEval(tmp_path, shuffle=False)] == ["a", "a-2", "b", "a-3", "a-2-2"]
    write(tmp_path / "ARC-Easy" / "train.jsonl", [ARC_ROW | {"id": "x"}] * 2)
    assert [c["id"] for c in ARC(tmp_path, shuffle=False)] == ["x", "x-2"]


def test_a_number_in_a_tool_call_is_not_the_final_answer(tmp_path):
    write(tmp_path / "train.jsonl", [{"question": "Q?", "answer": '<<"#### 7"=7>>7\n#### 8'}])
    assert only(GSM8K(tmp_path))["answer"] == "8"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"messages": json.dumps(CHAT)},
        {"messages": str(CHAT)},
        {"messages": f"[{CHAT[0]}\n {CHAT[1]}]"},
        {"messages": [message | {"name": "x"} for message in CHAT]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy"}]},
        {"instruction": "Hi", "input": "", "output": "Ahoy"},
        {"prompt": "Hi", "completion": "Ahoy"},
        {"conversations": [{"from": "Human", "value": "Hi"}, {"from": "GPT", "value": "Ahoy"}]},
        {"conversations": str([{"from": "human", "value": "Hi"}, {"from": "bard", "value": "Ahoy"}])},
        {
            "messages": [
                {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]} for message in CHAT
            ]
        },
        {"messages": [message | {"weight": None, "tool_calls": None, "loss": True} for message in CHAT], "label": 3},
    ],
)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_chats_are_read_in_every_known_layout(tmp_path, row, ending):
    assert only(Chats(write(tmp_path / f"train.{ending}", [row])))["messages"] == CHAT


MIXED = [
    {"messages": CHAT},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy"}]},
    {"instruction": "Hi", "input": "", "output": "Ahoy"},
    {"prompt": "Hi", "completion": "Ahoy"},
    {"prompt": "Hi", "completion": "Ahoy"},
]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_the_form_of_chats_is_told_row_by_row(tmp_path, caplog, ending):
    caplog.set_level(logging.INFO)
    keys = dict.fromkeys(key for row in MIXED for key in row)
    rows = [{key: row.get(key) for key in keys} for row in MIXED] if ending != "jsonl" else MIXED
    assert [c["messages"] for c in Chats(write(tmp_path / f"train.{ending}", rows))] == [CHAT] * 5
    assert "5 conversations (form: 2 prompt and completion, 1 messages, 1 ShareGPT, 1 Alpaca)" in caplog.text


def test_times_are_named_in_words_where_text_is_needed(tmp_path):
    folder = write(tmp_path / "train.parquet", [GOOD | {"hint": datetime(2020, 1, 2)}])
    with pytest.raises(ValueError, match="column hint: the time 2020-01-02 00:00:00 where text is needed"):
        ScienceQA(folder)


def test_numbers_and_bytes_in_messages_of_a_table_are_text(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = [{"messages": [{"role": "user", "content": b"Hi"}, {"role": "assistant", "content": b"Ahoy"}]}]
    assert only(Chats(write(tmp_path / "b" / "train.parquet", rows)))["messages"] == CHAT
    rows = [{"prompt": 2, "completion": Decimal("4.0")}]
    assert only(Chats(write(tmp_path / "n" / "train.parquet", rows)))["messages"][1]["content"] == "4"
    assert "messages: 2 bytes read as text" in caplog.text and "messages: 2 numbers made text" in caplog.text


CALLS = ("text", "python")


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_of_chats_may_be_bare_lists_of_messages(tmp_path, ending, count):
    assert [c["messages"] for c in Chats(write(tmp_path / f"train.{ending}", [CHAT] * count))] == [CHAT] * count


CHATS_REFUSED = [
    ({"messages": [CHAT[0], CHAT[1] | {"weight": 0}]}, "message 2 has `weight` 0"),
    ({"messages": [CHAT[0], CHAT[1] | {"tool_calls": [{"id": "1"}]}]}, "message 2 has `tool_calls`"),
    ({"messages": CHAT, "weight": 0.5}, "the object has `weight` 0.5"),
    ({"messages": CHAT, "loss_weight": "0.5"}, 'the object has `loss_weight` "0.5"'),
    ({"messages": CHAT, "system": "Be brief.", "loss": False}, "the object has `loss` false"),
    ({"messages": [CHAT[0], CHAT[1] | {"content": " "}]}, r"message 2 \(assistant\) has an empty content"),
    ({"messages": [{"role": "system", "content": ""}, *CHAT]}, r"message 1 \(system\) has an empty content"),
    (
        {"messages": [{"role": m["role"], "content": [{"type": t, "text": "1"}]} for m, t in zip(CHAT, CALLS)]},
        "calls of the calculator are read from JSON Lines only",
    ),
    ({"instruction": "Hi", "input": "", "output": " "}, "an empty content"),
]


@pytest.mark.parametrize(("row", "fault"), CHATS_REFUSED, ids=str)
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_chats_refuse_what_lines_of_conversations_refuse(tmp_path, row, fault, ending):
    folder = write(tmp_path / f"train.{ending}", [row])
    with pytest.raises(ValueError, match=rf"train\.{ending}, row 0 \(counted from 0\), .*{fault}"):
        Chats(folder)


def test_empty_contents_of_the_hub_s_chats_are_learned_as_the_original_does_and_counted(tmp_path, caplog):
    rows = [{"messages": CHAT}, {"messages": [CHAT[0], {"role": "assistant", "content": ""}]}]
    assert len(Chats(write(tmp_path / "train.parquet", rows), fetch=True)) == 2
    (warning,) = [record for record in caplog.records if "1 of the 2 chats" in record.getMessage()]
    assert "have an empty content (assistant)" in warning.getMessage() and warning.levelname == "WARNING"


def test_the_user_of_a_chat_may_say_nothing_and_that_is_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    silent = [CHAT[0] | {"content": " "}, CHAT[1]]
    assert only(Chats(write(tmp_path / "train.parquet", [{"messages": silent}])))["messages"] == silent
    assert "1 of the 1 chats" in caplog.text and "have an empty content (user)" in caplog.text


def test_rows_of_several_files_are_named_by_their_own(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [GOOD, GOOD])
    write(tmp_path / "train-00001-of-00002.parquet", [GOOD, GOOD | {"answer": 9}])
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet, row 1 .*answer=9"):
        ScienceQA(tmp_path)
    write(tmp_path / "train-00001-of-00002.parquet", [GOOD | {"hint": "Look."}])
    assert [c["hint"] for c in ScienceQA(tmp_path)] == ["", "", "Look."]


def test_a_split_in_two_forms_is_read_once_and_the_other_named(tmp_path, caplog):
    write(tmp_path / "train.csv", [GOOD] * 3)
    write(tmp_path / "train.parquet", [GOOD])
    assert len(ScienceQA(tmp_path)) == 1
    assert "train.parquet is read and" in caplog.text and "train.csv is not" in caplog.text


TEXT_FAULTS = {
    "train.csv": [
        (b"question,choices,answer\nQ?,\"['a', 'b']\"\n", "line 2: 2 fields where the header has 3"),
        (b"question,question,answer\n", "the column question stands twice"),
        (b"question,choices,answer\nQ\xff,\"['a', 'b']\",0\n", "not UTF-8 (byte 0xff)"),
        ("question,choices,answer\n".encode("utf-16"), "byte order mark of UTF-16"),
        (b"question;answer\nQ;1\n", "no column choices (it has: question, answer)"),
        (b"question,choices,answer\n", "holds no rows"),
        (b"", "holds no rows"),
        (b'question,choices,answer\n"Q?,', "a double quote that opens a text is never closed"),
        (b'question,choices,answer\n"Q?" x,1,1', "something follows a closing double quote"),
        (b"PK\x03\x04\x14\0", "it is a zip archive"),
    ],
    "train.jsonl": [
        (json.dumps(GOOD).encode() + b'\n{"question": ', "train.jsonl:2: not JSON"),
        (b'{"question": "Q?", "question": "R?"}\n', "train.jsonl:1: the key 'question' stands twice"),
        (json.dumps(GOOD).encode("utf-16"), "byte order mark of UTF-16"),
        (b"[1]\n", "row 0 (counted from 0) is no object"),
        (b'{"question": "\\ud800"}', "surrogate"),
        (b'{"answer": ' + b"9" * 5000 + b"}", "train.jsonl:1: a whole number of 5,000 digits is too long"),
        (b"PK\x03\x04\x14\0", "train.jsonl: it is a zip archive, as .xlsx and .docx files are"),
        (b"%PDF-1.4\n", "it is a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
        (b"<!DOCTYPE html>\n", "it is a web page"),
        (b"\x1f\x8b\x08\0cut off", "train.jsonl is truncated or not what its name says"),
        (b"", "holds no rows"),
        (b"[]", "holds no rows"),
        (b"[\n]\n", "holds no rows"),
    ],
    "train.jsonl.gz": [(b"{}", "is truncated or not what its name says"), (b"", "holds no rows")],
    "train.parquet": [
        (b"PK\x03\x04", "train.parquet is a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "train.parquet is a pointer of Git LFS"),
        (b"PAR1", "is truncated or not a parquet file"),
        (gzip.compress(b"PAR1", mtime=0), "is compressed by gzip; unpack it"),
    ],
}


@pytest.mark.parametrize(("name", "content", "message"), [(n, *f) for n, fs in TEXT_FAULTS.items() for f in fs])
def test_faults_of_text_tables_are_named_with_their_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        ScienceQA(tmp_path)
    assert name in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lambda data: pa.Codec("zstd").compress(data).to_pybytes()]
)
def test_compressed_tables_are_read_whatever_their_name(tmp_path, pack):
    ending = {b"\x1f": ".gz", b"B": ".bz2", b"\x28": ".zst"}[pack(b"")[:1]]
    content = pack((json.dumps(GOOD) + "\n").encode())
    for name in (f"train.jsonl{ending}", "train.jsonl", f"train-00000-of-00001.jsonl{ending}"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(content)
        assert only(ScienceQA(folder))["answer"] == "B", name


BROKEN_JSON = {
    "{a: 1}": "`a: 1}` where a key in double quotes is needed (column 2)",
    "{'a': 1}": "JSON puts texts and keys into double quotes",
    '{"a" 1}': "`1}` where a colon is needed (column 6)",
    '{"a": 1 "b": 2}': '`"b": 2}` where a comma or a closing bracket is needed (column 9)',
    '{"a": 1} {"b": 2}': '`{"b": 2}` follows the value; a line holds one value (column 10)',
    '{"a": "x': 'the text `"x` has no closing double quote (column 7)',
    '{"a": "x\ty"}': "control character in a text",
    '{"a": "\\q"}': "begins no escape",
    '{"a": "\\u12"}': "begins no escape",
    '{"a": ': "the end where a value is needed (column 7)",
    '{"a": None}': "JSON writes null, true and false",
    '{"a": 1' + "0" * 4300 + "}": "a whole number of 4,301 digits is too long",
}
PARSERS_OWN = "Expecting|Extra data|Unterminated|Invalid|Exceeds|delimiter"


@pytest.mark.parametrize("text", BROKEN_JSON)
def test_errors_in_json_say_what_json_needs_there(text):
    with pytest.raises(ValueError) as error:
        parse_json(text.encode())
    assert BROKEN_JSON[text] in str(error.value) and not re.search(PARSERS_OWN, str(error.value))


def counted(rows, first, choices=4):
    """Make rows whose answers count from `first`."""
    return [
        {"question": f"Q{i}?", "choices": [f"c{i}{k}" for k in range(choices)], "answer": i % choices + first}
        for i in range(rows)
    ]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize("task", [ScienceQA, MMLU])
def test_answers_that_count_from_1_are_refused_or_warned_of(tmp_path, task, ending, caplog):
    split = "train" if task is ScienceQA else "validation"

    def read(name, rows):
        return task(write(tmp_path / name / f"{split}.{ending}", rows), split)

    with pytest.raises(ValueError, match=r"row 3 .*answer=4 of 4 choices.*10 such rows.*none of its 40 .*subtract 1"):
        read("ones", counted(40, 1))
    few = [row for row in counted(40, 1) if row["answer"] < 4]  # the last choice is never right
    assert len(read("few", few)) == 30 and "none of its 30 answers is 0" in caplog.text
    caplog.clear()
    read("zeros", counted(40, 0))
    read("short", few[:8])  # eight answers without a 0 prove nothing
    read("lettered", [row | {"answer": "BCD"[row["answer"] - 1]} for row in few])
    assert "subtract" not in caplog.text


def test_two_columns_of_one_name_and_text_that_is_not_utf8_are_named(tmp_path):
    table = pa.Table.from_pylist([GOOD])
    pq.write_table(table.append_column("question", table.column("question")), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="two columns of the name question"):
        ScienceQA(tmp_path)
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array(["xx"]).buffers()[:2] + [pa.py_buffer(b"\xff\xfe")])
    pq.write_table(table.set_column(0, "question", bad), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"row 0 .*column question: text that is not UTF-8"):
        ScienceQA(tmp_path)


def test_reading_leaves_nothing_in_the_library_s_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    ScienceQA(write(tmp_path / "data" / "train.jsonl", [GOOD]))
    chats = Chats(write(tmp_path / "chats" / "train.parquet", [{"messages": CHAT}]), shuffle=True)
    assert len(chats) == 1 and not (tmp_path / "cache").exists()


def test_a_saved_split_is_not_read_after_its_source_changed(tmp_path, caplog):
    source, saved = tmp_path / "source", tmp_path / "formatted"
    write(source / "train.parquet", [GOOD])
    assert only(ScienceQA(source, formatted_dir=saved))["answer"] == "B"
    write(source / "train.parquet", [GOOD | {"answer": 2}])
    assert only(ScienceQA(source, formatted_dir=saved))["answer"] == "C"
    assert len(list(saved.iterdir())) == 2
    for file in saved.iterdir():
        file.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is truncated or not a parquet file; delete it, and it is made again"):
        ScienceQA(source, formatted_dir=saved)
    for file in saved.iterdir():
        file.unlink()
    assert only(ScienceQA(source, formatted_dir=saved))["answer"] == "C"
    (source / "train.parquet").unlink()
    assert only(ScienceQA(source, formatted_dir=saved))["answer"] == "C"
    assert "its rows are those saved from it before" in caplog.text
