"""Laws of a task's files: found as they are named here or on the hub, fetched whole, read with clear errors."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_pl.tasks import tables
from nanochat_pl.tasks.columns import Columns
from nanochat_pl.tasks.tables import find_split, hub_order, read_rows, read_split


def NAMED():
    return Columns(required=datasets.Features({"name": datasets.Value("string")}))


def write(file, *rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose files are named in a list that the test may change; gives (names, what was asked for)."""
    names, asked = ["README.md", "main/test-00000-of-00001.parquet"], []

    def fetch(repo, name, dest):
        asked.append(f"{repo}/{name}")
        return write(dest, {"name": name})

    monkeypatch.setattr(tables, "list_hub_files", lambda repo: names)
    monkeypatch.setattr(tables, "fetch_hub_file", fetch)
    return names, asked


def test_hub_order_is_the_one_of_datasets_shuffle():
    rows = list(range(1000))
    assert hub_order(rows) == list(datasets.Dataset.from_dict({"x": rows}).shuffle(seed=42)["x"])
    assert hub_order([]) == []


@pytest.mark.parametrize(
    "names", [["test.parquet"], ["test-00000-of-00002.parquet", "test-00001-of-00002.parquet"], ["main/test.parquet"]]
)
def test_a_split_is_found_under_every_usual_name_and_in_order(tmp_path, names):
    files = [write(tmp_path / name, {"name": name}) for name in names]
    write(tmp_path / "train.parquet", {"name": "another"})
    assert find_split(tmp_path, "test", folder="main") == files
    table = read_split(tmp_path, "test", NAMED(), folder="main")
    assert [row["name"] for row in table.rows()] == names


def test_a_split_of_which_files_are_missing_is_never_taken_for_the_whole(tmp_path, hub):
    names, asked = hub
    names[:] = [f"main/test-0000{i}-of-00003.parquet" for i in range(3)]
    write(tmp_path / "test-00001-of-00003.parquet", {"name": "here"})
    with pytest.raises(FileNotFoundError, match="1 of the 3 files of its test split"):
        find_split(tmp_path, "test", repo="a/b", folder="main")
    files = find_split(tmp_path, "test", repo="a/b", folder="main", fetch=True)
    assert [file.name for file in files] == [name.removeprefix("main/") for name in names] and len(asked) == 3


def test_a_missing_split_names_the_folder_what_it_holds_and_what_to_do(tmp_path):
    write(tmp_path / "train.parquet", {"a": 1})
    with pytest.raises(FileNotFoundError, match=r"no test\.parquet .*\(train\.parquet\).*set the task's path"):
        find_split(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match=r"no such folder.*fetch=true to get it from a/b"):
        find_split(tmp_path / "nowhere", "test", repo="a/b")


def test_missing_files_are_fetched_once_and_only_where_that_is_allowed(tmp_path, hub):
    _, asked = hub
    with pytest.raises(FileNotFoundError, match="offline=true forbids fetching"):
        find_split(tmp_path, "test", repo="a/b", folder="main", fetch=True, offline=True)
    with pytest.raises(FileNotFoundError, match="fetch=true"):
        find_split(tmp_path, "test", repo="a/b", folder="main")
    assert asked == []
    for offline in (False, True):
        files = find_split(tmp_path, "test", repo="a/b", folder="main", fetch=True, offline=offline)
        assert files == [tmp_path / "test-00000-of-00001.parquet"]
    assert asked == ["a/b/main/test-00000-of-00001.parquet"]
    with pytest.raises(FileNotFoundError, match=r"a/b has no main/dev-\*\.parquet; it has .*README"):
        find_split(tmp_path, "dev", repo="a/b", folder="main", fetch=True)


def test_a_hub_that_cannot_be_asked_is_named_with_the_reason(tmp_path, monkeypatch):
    def refuse(repo):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(tables, "list_hub_files", refuse)
    with pytest.raises(FileNotFoundError, match=r"which files a/b has \(no route to host\)"):
        find_split(tmp_path, "test", repo="a/b", fetch=True)


def test_only_the_columns_asked_for_are_read(tmp_path):
    file = write(tmp_path / "x.parquet", {"a": 1, "b": 2, "c": 3})
    assert read_rows(file, ["b"], ["a", "none"]) == [{"b": 2, "a": 1}]
    with pytest.raises(ValueError, match=r"x\.parquet has no column d, e \(it has: a, b, c\)"):
        read_rows(file, ["d", "a", "e"])


def test_records_wrapped_in_one_column_are_unwrapped(tmp_path):
    file = write(tmp_path / "x.parquet", {"train": {"a": 1, "b": 2, "c": 0}}, {"train": {"a": 3, "b": 4, "c": 0}})
    assert read_rows(file, ["a"], ["b"]) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    with pytest.raises(ValueError, match=r"no column d \(it has: a, b, c\)"):
        read_rows(file, ["d"])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(50) + b"PAR1"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.parquet is truncated or not a parquet file"):
        read_rows(tmp_path / "x.parquet", ["a"])


def test_a_file_cut_short_is_named(tmp_path):
    file = write(tmp_path / "x.parquet", *({"a": float(x)} for x in np.random.default_rng(0).random(1000)))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        read_rows(file, ["a"])
