"""Laws of text in other forms: converted once, losslessly, with a validation part that shares no document."""

import bz2
import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_pl.config.inputs import prepare_text
from nanochat_pl.config.schema import DataConfig
from nanochat_pl.data.parquet import read_documents

TEXTS = [f'Document {i} says: {"word " * (i % 7 + 1)}\n\nand ends, "so".' for i in range(300)]


def write(file: Path, texts: list, column: str = "text") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    forms = [suffix.lower() for suffix in file.suffixes if suffix.lower() in (".jsonl", ".json", ".csv", ".parquet")]
    rows = [{"id": i, column: text} for i, text in enumerate(texts)]
    if forms == [".parquet"]:
        pq.write_table(pa.Table.from_pylist(rows), file)
        return
    if forms == [".jsonl"]:
        content = "".join(json.dumps(row) + "\n" for row in rows)
    elif forms == [".json"]:
        content = json.dumps(rows, indent=1)
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["id", column])
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue()
    raw = content.encode()
    if file.suffix.lower() == ".gz":
        raw = gzip.compress(raw[:1000]) + gzip.compress(raw[1000:])
    elif file.suffix == ".bz2":
        raw = bz2.compress(raw)
    elif file.suffix == ".zst":
        raw = pa.Codec("zstd").compress(raw, asbytes=True)
    file.write_bytes(raw)


def prepare(tmp_path: Path, **settings):
    data = DataConfig(source="local", **{"root": str(tmp_path / "root"), "text": "own"} | settings)
    return prepare_text(data, True, tmp_path / "outputs")


def documents(shards) -> tuple[list[str], list[str]]:
    return list(read_documents(shards.train)), list(read_documents([shards.val]))


NAMES = [
    "own/a.jsonl",
    "own/a.jsonl.zst",
    "own/a.jsonl.gz",
    "own/a.jsonl.bz2",
    "own/a.json",
    "own/a.json.gz",
    "own/a.JSON",
    "own/a.csv",
    "own/a.csv.gz",
    "own/a.csv.GZ",
    "own/deep/er/a.parquet",
    "a.jsonl",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_form_gives_every_document_once_in_order(tmp_path, name, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "root" / name, TEXTS)
    train, val = documents(prepare(tmp_path))
    assert train == [text for text in TEXTS if text not in set(val)] and 0 < len(val) <= 30
    assert set(train) | set(val) == set(TEXTS)
    assert ": converted once into" in caplog.text and f"{len(train)} documents for training" in caplog.text
    caplog.clear()
    assert documents(prepare(tmp_path)) == (train, val)
    assert ": converted once into" not in caplog.text and "converted from" in caplog.text


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_another_column_is_read_where_it_is_named_and_asked_for_where_it_is_not(tmp_path, ending):
    for name in ("x", "y"):
        write(tmp_path / "root" / "own" / f"{name}.{ending}", TEXTS, "body")
    with pytest.raises(ValueError, match=rf"x\.{ending}.* has no column 'text' \(it has: id, body\)"):
        prepare(tmp_path)
    train, val = documents(prepare(tmp_path, column="body"))
    assert set(train) | set(val) == set(TEXTS)
    assert not list((tmp_path / "outputs").glob("data/*.part"))


def test_copies_of_a_document_are_never_on_both_sides(tmp_path):
    texts = [TEXTS[i % 40] for i in range(400)]
    write(tmp_path / "root" / "own" / "a.jsonl", texts[:200])
    write(tmp_path / "root" / "own" / "b.jsonl", [*texts[200:], " ", ""])
    train, val = documents(prepare(tmp_path))
    assert not set(train) & set(val) and len(train) + len(val) == 400 and 0 < len(val) <= 40


def test_a_named_validation_file_is_validation_and_trained_on_nowhere(tmp_path):
    write(tmp_path / "root" / "own" / "train.jsonl", TEXTS)
    write(tmp_path / "root" / "own" / "held.jsonl", TEXTS[:5])
    train, val = documents(prepare(tmp_path, val_shard="held.jsonl"))
    assert (train, val) == (TEXTS[5:], TEXTS[:5])
    with pytest.raises(
        FileNotFoundError, match=r"val_shard=no\.jsonl does not exist; .* holds held\.jsonl, train\.jsonl"
    ):
        prepare(tmp_path, val_shard="no.jsonl")


def test_mended_sources_are_converted_anew(tmp_path):
    file = tmp_path / "root" / "own" / "a.jsonl"
    write(file, TEXTS)
    before = prepare(tmp_path)
    write(file, ["Mended.", *TEXTS[1:]])
    after = prepare(tmp_path)
    assert before.val != after.val and "Mended." in {text for part in documents(after) for text in part}


def test_many_text_files_are_a_document_each_and_one_is_cut_at_empty_lines(tmp_path):
    folder = tmp_path / "root" / "own"
    folder.mkdir(parents=True)
    for i in range(12):
        (folder / f"{i:02}.txt").write_text(f"File {i}.\n\nIt ends." * 3)
    train, val = documents(prepare(tmp_path))
    assert len(train) == 11 and len(val) == 1
    for file in folder.iterdir():
        file.unlink()
    paragraphs = [f"Paragraph {i} " + "goes on " * 40 + ".\n\n" for i in range(200)]
    (folder / "book.txt").write_text("".join(paragraphs))
    train, val = documents(prepare(tmp_path))
    assert all(piece.endswith("\n\n") and len(piece) < 3000 for piece in [*train, *val]) and val
    assert sum(map(len, [*train, *val])) == sum(map(len, paragraphs))
    (folder / "book.txt").write_text("<|endoftext|>\n".join(f"Story {i}.\n" for i in range(50)))
    train, val = documents(prepare(tmp_path))
    assert set(train) | set(val) == {f"Story {i}." for i in range(50)}


def test_parquet_in_its_folder_is_read_as_it_is_and_what_lies_beside_is_named(tmp_path, caplog):
    for name in ("a", "b"):
        write(tmp_path / "root" / "own" / f"{name}.parquet", [name, name + name])
    write(tmp_path / "root" / "own" / "c.jsonl", TEXTS)
    shards = prepare(tmp_path)
    assert [file.name for file in (*shards.train, shards.val)] == ["a.parquet", "b.parquet"]
    assert "1 text files such as" in caplog.text and "c.jsonl are not read" in caplog.text
    assert not (tmp_path / "outputs").exists()


FAULTS = [
    ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl:2: not JSON"),
    ("a.jsonl", b'{"text": "x"}\n{"text": 7}\n', r"a\.jsonl:2, column text: '7' is no text"),
    ("a.jsonl", b'{"text": "x"}\n[1]\n', r"a\.jsonl:2 is no object"),
    ("a.jsonl", '{"text": "x"}'.encode("utf-16"), r"a\.jsonl: line 1 .*UTF-16"),
    ("a.jsonl.zst", b"no zstd", r"a\.jsonl\.zst is truncated or not what its name says"),
    ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9999, mtime=0)[:-20], r"a\.jsonl\.gz is truncated"),
    ("a.csv", b"text,b\nx\n", r"a\.csv, line 2: 1 fields where the header has 2"),
    ("a.txt", b"x\n\xff\n", r"a\.txt, line 2: byte 0xff is not UTF-8"),
    ("deep/a.parquet", b"PAR1", r"a\.parquet is truncated"),
    ("a.jsonl", b'{"text": "x"}\n{"text": "x"}\n{"text": " "}\n', "holds 1 different documents; two are needed"),
    ("a.jsonl", b"", "the 1 text files below .* hold no rows with text"),
    ("a.json", b"[]", "hold no rows with text"),
    ("a.csv", b"text\n", "hold no rows with text"),
    ("a.txt", b" \n", "hold no rows with text"),
    ("a.jsonl", b'{"text": 1' + b"0" * 5000 + b"}", r"a\.jsonl:1: a whole number of 5,001 digits is too long"),
    ("a.txt", b"%PDF-1.4\n", r"a\.txt: it is a PDF"),
    ("a.csv", b"PK\x03\x04", r"a\.csv: it is a zip archive"),
    ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
    ("deep/a.parquet", b"<html><body>404", r"a\.parquet is a web page"),
]


@pytest.mark.parametrize(("name", "content", "message"), FAULTS)
def test_bad_sources_are_refused_and_leave_no_partial_files(tmp_path, name, content, message):
    file = tmp_path / "root" / "own" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path)
    assert not [path for path in tmp_path.glob("outputs/data/*") if path.suffix != ".lock"]


def test_a_column_that_nothing_reads_is_refused_and_a_folder_of_other_things_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.column=body has no effect on data=hub"):
        DataConfig(source="hub", root="x", column="body")
    write(tmp_path / "root" / "scienceqa" / "train.parquet", ["a"], "question")
    with pytest.raises(ValueError, match=r"no folder .*own, so the text files of .* set data\.text to the folder"):
        prepare(tmp_path)


def test_documents_spread_over_row_groups_and_shards(tmp_path, monkeypatch):
    from nanochat_pl.data import textfiles

    monkeypatch.setattr(textfiles, "SHARD_CHARS", 3000)
    write(tmp_path / "root" / "own" / "a.jsonl", TEXTS)
    shards = prepare(tmp_path)
    assert len(shards.train) > 3 and pq.ParquetFile(shards.train[0]).num_row_groups > 8
    train, val = documents(shards)
    assert train == [text for text in TEXTS if text not in set(val)]
