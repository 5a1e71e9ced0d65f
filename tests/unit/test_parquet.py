"""Text shards: what is refused, and the one order documents come in."""

import itertools
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat_pl.data import parquet
from nanochat_pl.data.parquet import (
    BLOCK_DOCUMENTS,
    DocumentStream,
    deal,
    list_shards,
    read_documents,
    read_footer,
)


def write(path, texts, group_rows=2):
    pq.write_table(pa.table({"text": texts}), path, row_group_size=group_rows)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three shards of 5, 3 and 4 documents, two to a row group."""
    for name, rows in (("b", 3), ("a", 5), ("c", 4)):
        write(tmp_path / f"shard_{name}.parquet", [f"{name}{i}" for i in range(rows)])
    return tmp_path


def names(paths):
    return [path.name for path in paths]


def test_the_last_shard_by_name_is_for_validation_and_is_logged(folder, caplog):
    with caplog.at_level(logging.INFO):
        shards = list_shards(folder)
    assert names(shards.train) == ["shard_a.parquet", "shard_b.parquet"]
    assert shards.val.name == "shard_c.parquet"
    assert "shard_c.parquet" in caplog.text


def test_a_named_validation_shard_is_taken_out_of_training(folder, tmp_path_factory):
    for val_shard in ("shard_a.parquet", folder / "shard_a.parquet"):
        shards = list_shards(folder, val_shard)
        assert names(shards.train) == ["shard_b.parquet", "shard_c.parquet"]
        assert shards.val == folder / "shard_a.parquet"
    elsewhere = write(tmp_path_factory.mktemp("val") / "shard_a.parquet", ["other"])
    assert len(list_shards(folder, elsewhere).train) == 3


def test_half_written_and_hidden_files_are_passed_over(folder):
    for name in ("shard_d.parquet.tmp", ".shard_e.parquet", "_shard_f.parquet", "notes.txt"):
        (folder / name).write_text("no parquet")
    assert len(list_shards(folder).train) == 2


def test_a_missing_folder_or_shard_names_what_exists(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere.*data\.root"):
        list_shards(folder / "nowhere")
    empty = tmp_path_factory.mktemp("empty")
    (empty / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet file \(it holds: notes\.txt\)"):
        list_shards(empty)
    with pytest.raises(FileNotFoundError, match=r"data\.val_shard=shard_x\.parquet .* shard_a\.parquet, shard_b"):
        list_shards(folder, "shard_x.parquet")


def test_one_shard_only_is_refused(tmp_path):
    write(tmp_path / "only.parquet", ["a"])
    with pytest.raises(ValueError, match=r"one shard only, only\.parquet.*add a second shard"):
        list_shards(tmp_path)


@pytest.mark.parametrize("kind", ["copy", "symlink"])
def test_a_validation_shard_with_the_content_of_a_training_shard_is_refused(folder, kind):
    twin = folder / "shard_z.parquet"
    if kind == "copy":
        twin.write_bytes((folder / "shard_a.parquet").read_bytes())
    else:
        twin.symlink_to(folder / "shard_a.parquet")
    with pytest.raises(ValueError, match=r"shard_z\.parquet and the training shard .*shard_a\.parquet are the same"):
        list_shards(folder)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
        (truncate, "truncated or not a parquet file; delete it or fetch it again"),
        (lambda path: path.write_text("a text file"), "not a parquet file"),
        (
            lambda path: pq.write_table(pa.table({"body": ["a"], "id": [1]}), path),
            r"no column 'text' \(it has: body, id",
        ),
        (lambda path: pq.write_table(pa.table({"text": [1, 2]}), path), "holds int64, not strings"),
        (
            lambda path: pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), path),
            r"has 2 columns named 'text' \(it has: text, text\); rename",
        ),
        (lambda path: pq.write_table(pa.table({"text": pa.array([], pa.string())}), path), "no documents"),
    ],
)
def test_an_unusable_file_is_named_with_its_remedy(folder, spoil, message):
    spoil(folder / "shard_b.parquet")
    with pytest.raises(ValueError, match=rf"shard_b\.parquet.*{message}"):
        list_shards(folder)


def test_a_file_damaged_between_its_ends_is_named_when_it_is_read(tmp_path):
    path = write(tmp_path / "a.parquet", ["x" * 1000 + str(i) for i in range(50)], group_rows=50)
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet: row group 0 cannot be read; fetch the file again"):
        next(iter(DocumentStream([path], 1, 0)))


@pytest.mark.parametrize("logical_shards", [1, 2])
def test_documents_are_dealt_in_turn_within_each_file_epoch_after_epoch(folder, logical_shards):
    files = list_shards(folder).train  # row groups: a0 a1 | a2 a3 | a4, b0 b1 | b2
    expected = {
        (1, 0): "a0 a1 a2 a3 a4 b0 b1 b2",
        (2, 0): "a0 a1 a4 b0",
        (2, 1): "a2 a3 b1 b2",
    }
    for shard in range(logical_shards):
        texts = expected[logical_shards, shard].split()
        stream = DocumentStream(files, logical_shards, shard)
        read = list(itertools.islice(stream, 2 * len(texts) + 1))
        assert [text for text, _ in read] == [*texts, *texts, texts[0]]
        assert [position["epoch"] for _, position in read] == [*[0] * len(texts), *[1] * len(texts), 2]


def read_shards(files, logical_shards, even=True):
    streams = [DocumentStream(files, logical_shards, shard, even=even) for shard in range(logical_shards)]
    return [[text for text, _ in itertools.islice(stream, stream.rows)] for stream in streams]


GROUPS = st.lists(st.lists(st.integers(0, 70), max_size=12).map(tuple), min_size=1, max_size=6).map(tuple)


@given(GROUPS, st.integers(1, 9))
def test_every_document_is_dealt_once_to_streams_of_nearly_equal_length(groups, logical_shards):
    dealt = deal(groups, logical_shards)
    assert all(parts == sorted(parts) and all(part.first < part.last for part in parts) for parts in dealt)
    found = [(*part[:2], doc) for parts in dealt for part in parts for doc in range(part.first, part.last)]
    there = [
        (file, group, doc)
        for file, sizes in enumerate(groups)
        for group, rows in enumerate(sizes)
        for doc in range(rows)
    ]
    assert sorted(found) == there
    sizes = [sum(part.last - part.first for part in parts) for parts in dealt]
    assert max(sizes) - min(sizes) <= max(1, 0.05 * max(sizes))
    for parts in dealt:  # so that a row group and a number say which document
        assert len({part[:2] for part in parts}) == len(parts)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 70), st.integers(1, 4))
def test_files_of_equal_row_groups_are_dealt_as_nanochat_does(logical_shards, rounds, rows, num_files):
    groups = ((rows,) * (rounds * logical_shards),) * num_files
    for shard, parts in enumerate(deal(groups, logical_shards)):
        assert [part[:2] for part in parts] == [
            (file, group)
            for file in range(num_files)
            for group in range(shard, rounds * logical_shards, logical_shards)
        ]


def test_row_groups_of_any_size_make_streams_of_equal_length(tmp_path):
    sizes = {"a": 65, "b": 60, "c": 60}
    files = [write(tmp_path / f"{name}.parquet", [f"{name}{i}" for i in range(n)], 64) for name, n in sizes.items()]
    shards = read_shards(files, 2)
    assert [len(texts) for texts in shards] == [93, 92]
    assert sorted(itertools.chain(*shards)) == sorted(read_documents(files))
    assert [len(texts) for texts in read_shards(files, 2, even=False)] == [184, 1]
    (one,) = (write(tmp_path / "one.parquet", [f"{i}" for i in range(1000)], 1000),)
    assert [len(texts) for texts in read_shards([one], 8)] == [125] * 8
    assert list(itertools.chain(*read_shards([one], 8))) == [f"{i}" for i in range(1000)]


@pytest.mark.parametrize(("logical_shards", "shard"), [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_a_stream_resumed_at_any_document_continues_exactly(folder, logical_shards, shard):
    files = list_shards(folder).train
    straight = list(itertools.islice(DocumentStream(files, logical_shards, shard), 20))
    for start, (_, position) in enumerate(straight):
        position = json.loads(json.dumps(position))
        resumed = itertools.islice(DocumentStream(files, logical_shards, shard, position), 20 - start)
        assert list(resumed) == straight[start:]


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_block_size_does_not_change_order_or_addresses(tmp_path, size):
    files = [write(tmp_path / f"{name}.parquet", [f"{name}{i}" for i in range(7)], group_rows=5) for name in "ab"]
    stream = DocumentStream(files, 1, 0, {"epoch": 0, "file": 0, "row_group": 0, "doc": 2})
    read = []
    for address, texts in itertools.islice(stream.blocks(size), 40):
        assert len(texts) <= size
        read += [(address._replace(doc=address.doc + i), text) for i, text in enumerate(texts)]
    assert [text for _, text in read[:12]] == [*(f"a{i}" for i in range(2, 7)), *(f"b{i}" for i in range(7))]
    for (address, text), (following, _) in itertools.pairwise(read):
        assert stream.following(address) == following
        assert stream.read([address]) == [text]


def epochs(files, count, order_seed, logical_shards=1, shard=0):
    """The first epochs of a stream, each as a list of texts."""
    stream = DocumentStream(files, logical_shards, shard, order_seed=order_seed)
    texts = [text for text, _ in itertools.islice(stream, count * stream.rows)]
    return [texts[epoch * stream.rows : (epoch + 1) * stream.rows] for epoch in range(count)]


@pytest.fixture
def held(monkeypatch):
    """Four documents are held at a time, so that row groups of seven take two pieces."""
    monkeypatch.setattr(parquet, "SHUFFLED_DOCUMENTS", 4)


def test_a_seed_of_the_order_shuffles_each_epoch_and_every_document_comes_once(tmp_path, held):
    files = [write(tmp_path / f"{name}.parquet", [f"{name}{i}" for i in range(40)], group_rows=7) for name in "abc"]
    plain, shuffled, other = epochs(files, 2, None), epochs(files, 3, 5), epochs(files, 3, 6)
    assert plain[0] == plain[1] == sorted(plain[0], key=lambda text: (text[0], int(text[1:])))
    assert all(sorted(epoch) == sorted(plain[0]) for epoch in (*shuffled, *other))
    assert len({str(epoch) for epoch in (plain[0], *shuffled, *other)}) == 7
    groups = [[group for group, _ in itertools.groupby((t[0], int(t[1:]) // 7) for t in epoch)] for epoch in shuffled]
    assert [len(order) for order in groups] == [18] * 3, "row groups are read whole"
    assert len({str(order) for order in groups}) == 3 and all(order != sorted(order) for order in groups)
    assert epochs(files, 3, 5) == shuffled
    dealt = [epochs(files, 1, 5, 3, shard)[0] for shard in range(3)]
    assert sorted(itertools.chain(*dealt)) == sorted(plain[0])


def test_even_a_single_row_group_is_shuffled(tmp_path):
    files = [write(tmp_path / "a.parquet", [f"{i}" for i in range(30)], group_rows=30)]
    assert len({str(epochs(files, 1, seed)) for seed in (None, 0, 1, 2)}) == 4


@pytest.mark.parametrize(("logical_shards", "shard"), [(1, 0), (3, 2)])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_a_shuffled_stream_resumes_at_any_document_and_reads_single_ones(tmp_path, held, logical_shards, shard, size):
    files = [write(tmp_path / f"{name}.parquet", [f"{name}{i}" for i in range(18)], group_rows=7) for name in "ab"]

    def stream(position=None):
        return DocumentStream(files, logical_shards, shard, position, order_seed=1)

    straight = list(itertools.islice(stream(), 80))
    for start, (text, position) in enumerate(straight[:40]):
        resumed = stream(json.loads(json.dumps(position)))
        assert list(itertools.islice(resumed, 40)) == straight[start : start + 40]
        assert resumed.rows_before(resumed.start) == start
        assert resumed.read([resumed.start]) == [text]
        assert resumed.following(resumed.start)._asdict() == straight[start + 1][1]
    addresses = [stream().start._replace(**position) for _, position in straight]
    assert stream().read(addresses) == [text for text, _ in straight]
    read = [text for _, texts in itertools.islice(stream().blocks(size), 80) for text in texts]
    assert read[:80] == [text for text, _ in straight]


@pytest.mark.parametrize("order_seed", [None, 5])
@pytest.mark.parametrize("logical_shards", [1, 2])
def test_a_fraction_of_the_text_is_the_same_documents_of_every_file_in_every_epoch(
    tmp_path, order_seed, logical_shards
):
    files = [write(tmp_path / f"{name}.parquet", [f"{name}{i}" for i in range(40)], group_rows=10) for name in "ab"]
    whole, part = set(), []
    for shard in range(logical_shards):
        stream = DocumentStream(files, logical_shards, shard, order_seed=order_seed, frac=0.2)
        read = list(itertools.islice(stream, 3 * stream.rows))
        texts = [text for text, _ in read]
        assert len({*texts}) == stream.rows, "three epochs of the same"
        assert [position["epoch"] for _, position in read] == [e for e in range(3) for _ in range(stream.rows)]
        resumed = DocumentStream(files, logical_shards, shard, read[7][1], order_seed=order_seed, frac=0.2)
        assert list(itertools.islice(resumed, 9)) == read[7:16]
        whole.update(texts)
        part.append(stream.rows)
    assert whole == {f"{name}{group + i}" for name in "ab" for group in (0, 10, 20, 30) for i in (0, 1)}
    assert sum(part) == 16


def test_single_documents_are_read_in_the_order_asked_for(folder):
    stream = DocumentStream(list_shards(folder).train, 1, 0)
    addresses = dict(itertools.islice(stream, 8))
    wanted = ["a1", "a3", "a4", "b0", "b2", "a1"]
    wanted_addresses = [stream.start._replace(**addresses[text]) for text in wanted]
    assert stream.read(wanted_addresses) == wanted


def test_a_document_beyond_the_first_block_of_its_row_group_is_found(tmp_path):
    count = 2 * BLOCK_DOCUMENTS + 3
    path = write(tmp_path / "a.parquet", [f"{i}" for i in range(count)], group_rows=count)
    stream = DocumentStream([path], 1, 0)
    for doc in (0, BLOCK_DOCUMENTS, count - 1):
        assert stream.read([stream.start._replace(doc=doc)]) == [f"{doc}"]


def test_a_null_is_an_empty_document_and_empty_row_groups_do_no_harm(tmp_path):
    path = tmp_path / "a.parquet"
    schema = pa.schema({"text": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        for texts in (["a", None], [], ["b"]):
            writer.write_table(pa.table({"text": pa.array(texts, pa.string())}), row_group_size=8)
    assert list(read_documents([path])) == ["a", "", "b"]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_arrow_string_type_is_read(tmp_path, kind):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["x", "y", "x"]).cast(kind)}), path)
    assert list(read_documents([path])) == ["x", "y", "x"]


def test_a_logical_shard_without_documents_is_refused(folder):
    with pytest.raises(
        ValueError,
        match=r"logical shard 8 of 9 gets no document: the 2 files hold 8; set data\.logical_shards .*to 8 or",
    ):
        DocumentStream(list_shards(folder).train, 9, 8)


@pytest.mark.parametrize(
    "change", [{"file": 2}, {"row_group": 1}, {"row_group": 9}, {"doc": 2}, {"doc": -1}, {"epoch": -1}]
)
def test_a_position_that_is_no_document_of_the_shard_is_refused(folder, change):
    position = {"epoch": 0, "file": 0, "row_group": 0, "doc": 0} | change
    with pytest.raises(ValueError, match="is no document of this logical shard"):
        DocumentStream(list_shards(folder).train, 2, 0, position)


def test_a_footer_is_read_again_when_the_file_changed(tmp_path):
    path = write(tmp_path / "a.parquet", ["a"])
    assert read_footer(path).rows == 1
    write(path, ["a", "b", "c"])
    assert read_footer(path).group_rows == (2, 1)
