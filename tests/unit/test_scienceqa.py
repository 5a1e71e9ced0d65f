"""Laws of the ScienceQA task: wording, subset, options, and what it says about broken files."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_pl.tasks import tables
from nanochat_pl.tasks.scienceqa import ScienceQA, format_answer, format_question
from nanochat_pl.world.write import write_microworld


def row(number=0, **changes):
    base = {
        "image": None, "question": f"Question {number}?", "choices": ["tin", "gold", "lead"], "answer": number % 3,
        "hint": "",
        "task": "", "grade": "grade3", "subject": "natural science", "topic": "chemistry", "category": "", "skill": "",
        "lecture": "", "solution": "",
    }  # fmt: skip
    return base | changes


def write(folder, rows, name="train"):
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": image, "choices": pa.list_(pa.string()), "answer": pa.int8()}
    schema = pa.schema([(key, columns.get(key, pa.string())) for key in rows[0]])
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet")
    return folder


def contents(conversation):
    return [message["content"] for message in conversation["messages"]]


def test_wording_is_the_spec_s(tmp_path):
    full = row(1, hint="Gold is heavy.", solution="Because.", lecture="Metals shine.")
    task = ScienceQA(write(tmp_path, [full]), persona="You are a tutor.")
    assert contents(task[0]) == [
        "You are a tutor.",
        "Gold is heavy.\n\nQuestion 1?\n\nA. tin\nB. gold\nC. lead",
        "The correct answer is B. gold\n\nExplanation: Because.\n\nBackground: Metals shine.",
    ]
    assert [message["role"] for message in task[0]["messages"]] == ["system", "user", "assistant"]
    bare = ScienceQA(tmp_path, persona=None, hint=False, solution=False, lecture=False)[0]
    assert contents(bare) == ["Question 1?\n\nA. tin\nB. gold\nC. lead", "The correct answer is B. gold"]
    assert bare["letters"] == ["A", "B", "C"] and bare["answer"] == "B" and bare["id"] == "train/0"
    assert bare["solution"] == "Because." and not bare["has_image"]
    assert (
        format_question("Q", ["x", "y"]) == "Q\n\nA. x\nB. y"
        and format_answer(["x", "y"], 0) == "The correct answer is A. x"
    )


def test_subset_is_the_one_of_datasets_shuffle_42(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = write(tmp_path / "data", [row(i) for i in range(50)])
    table = pq.read_table(folder / "train.parquet", columns=["question"])
    expected = datasets.Dataset(table).shuffle(seed=42).select(range(20))["question"]
    assert [c["question"] for c in ScienceQA(folder, rows=20)] == list(expected)
    assert [c["question"] for c in ScienceQA(folder)] == table["question"].to_pylist()
    assert [c["id"] for c in ScienceQA(folder, rows=3)] == [
        f"train/{i}" for i in np.random.default_rng(42).permutation(50)[:3]
    ]


def test_more_rows_than_there_are_is_an_error_with_both_numbers(tmp_path):
    folder = write(tmp_path, [row(i, image={"bytes": b"", "path": "p.png"} if i < 4 else None) for i in range(10)])
    with pytest.raises(ValueError, match=r"12,000 rows .* there are 10 rows"):
        ScienceQA(folder, rows=12_000)
    with pytest.raises(ValueError, match=r"8 rows .* there are 6 rows without a picture"):
        ScienceQA(folder, rows=8, text_only=True)


def test_text_only_drops_rows_with_a_picture(tmp_path):
    folder = write(
        tmp_path, [row(i, image={"bytes": b"not a png", "path": "p.png"} if i % 2 else None) for i in range(6)]
    )
    assert [c["has_image"] for c in ScienceQA(folder)] == [False, True] * 3
    assert [c["id"] for c in ScienceQA(folder, text_only=True)] == ["train/0", "train/2", "train/4"]


def test_shuffled_choices_keep_letter_and_text_together_and_change_every_epoch(tmp_path):
    folder = write(tmp_path, [row(i, choices=list("vwxyz"), answer=3) for i in range(40)])
    plain, shuffled = ScienceQA(folder), ScienceQA(folder, shuffle_choices=True, epochs=2)
    for conversation in shuffled:
        index = conversation["letters"].index(conversation["answer"])
        assert conversation["choices"][index] == "y" and sorted(conversation["choices"]) == list("vwxyz")
        assert f"{conversation['answer']}. y" in contents(conversation)[1]
        assert contents(conversation)[2].startswith(f"The correct answer is {conversation['answer']}. y")
    assert {c["answer"] for c in plain} == {"D"} and len({c["answer"] for c in shuffled}) == 5
    assert [c["answer"] for c in shuffled[:40]] != [c["answer"] for c in shuffled[40:]]
    assert list(shuffled) == list(ScienceQA(folder, shuffle_choices=True, epochs=2))


def test_curriculum_goes_up_the_grades(tmp_path):
    grades = ["grade10", "grade2", "", "grade12", "grade1"]
    task = ScienceQA(write(tmp_path, [row(i, grade=grade) for i, grade in enumerate(grades)]), curriculum=True)
    assert [c["grade"] for c in task] == ["grade1", "grade2", "grade10", "grade12", ""]
    assert task.ordered


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": [f"c{i}" for i in range(27)]}, "27 choices"),
        ({"choices": ["only"], "answer": 0}, "1 choices"),
        ({"answer": 3}, "answer=3"),
        ({"answer": -1}, "answer=-1"),
        ({"question": ""}, "column question: question is blank"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path, changes, message):
    folder = write(tmp_path, [row(0), row(1, **changes)])
    with pytest.raises(ValueError, match=rf"train\.parquet, row 1 .*{message}"):
        ScienceQA(folder)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no test\.parquet"):
        ScienceQA(tmp_path, "test")
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="truncated"):
        ScienceQA(tmp_path, "test")
    write(tmp_path, [{"question": "Q?", "choices": ["a", "b"]}], "validation")
    with pytest.raises(ValueError, match="no column answer"):
        ScienceQA(tmp_path, "validation")


def test_hub_names_are_read_and_missing_columns_are_empty(tmp_path):
    rows = [{key: row(i)[key] for key in ("question", "choices", "answer")} for i in range(2)]
    write(tmp_path / "data", rows, "train-00000-of-00001")
    assert ScienceQA(tmp_path)[1]["subject"] == ""


def test_formatted_split_is_saved_and_read_without_the_source(tmp_path):
    source, saved = write(tmp_path / "source", [row(i, hint="Look.") for i in range(9)]), tmp_path / "formatted"
    first = list(ScienceQA(source, rows=5, formatted_dir=saved))
    file = next(saved.iterdir())
    assert pq.read_table(file).column("messages").to_pylist()[0] == first[0]["messages"]
    (source / "train.parquet").unlink()
    assert list(ScienceQA(source, rows=5, formatted_dir=saved)) == first
    with pytest.raises(FileNotFoundError):
        ScienceQA(source, rows=5, hint=False, formatted_dir=saved)


def test_hub_files_are_fetched_once_and_never_offline(tmp_path, monkeypatch):
    source, asked = write(tmp_path / "hub", [row(0)], "train-00000-of-00001"), []

    def fetch(repo, name, dest):
        asked.append((repo, name))
        dest.parent.mkdir()
        return dest.write_bytes((source / "train-00000-of-00001.parquet").read_bytes()) and dest

    names = ["README.md", "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]
    monkeypatch.setattr(tables, "list_hub_files", lambda repo: names)
    monkeypatch.setattr(tables, "fetch_hub_file", fetch)
    with pytest.raises(FileNotFoundError, match="offline=true"):
        ScienceQA(tmp_path / "here", hub="someone/ScienceQA", offline=True)
    for _ in range(2):
        assert len(ScienceQA(tmp_path / "here", hub="someone/ScienceQA")) == 1
    assert asked == [("someone/ScienceQA", "data/train-00000-of-00001.parquet")]


def test_generated_world_is_read_like_the_real_set(tmp_path):
    world = write_microworld(tmp_path / "world")
    task = ScienceQA(world / "scienceqa", "test")
    assert len(task) >= 500
    assert all(c["choices"][c["letters"].index(c["answer"])] in contents(c)[-1] for c in task)


def test_real_rows_are_read(data_root):
    train = ScienceQA(data_root / "scienceqa", rows=200, solution=False)
    assert len(train) == 200 and not any(c["has_image"] for c in train)
    with pytest.raises(ValueError, match=r"12,000 rows .* there are 5,963"):
        ScienceQA(data_root / "scienceqa", rows=12_000)
