"""Pretraining batches: their order belongs to the logical shards alone, and their cursor is exact."""

import gc
import io
import itertools
import json
import random
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nanochat_pl.data.batch import Batch, merge_cursors
from nanochat_pl.data.corpus import TextCorpus
from nanochat_pl.data.packing import PACKINGS, PackedBatches, TokenBatches
from nanochat_pl.data.parquet import Address, DocumentStream
from nanochat_pl.tokenizer import Tokenizer

TOKENIZER = Tokenizer([bytes([byte]) for byte in range(256)])
BOS = TOKENIZER.bos_id
B, T = 2, 11


def write_files(folder, group_counts=(4, 6, 4), seed=0):
    """Files of documents of 0-40 letters, in row groups of four; every document is different."""
    rng = random.Random(seed)
    files = []
    for number, groups in enumerate(group_counts):
        texts = ["".join(rng.choices("abcdefgh", k=rng.choice([0, 3, 8, 15, 40]))) for _ in range(groups * 4 - 1)]
        files.append(folder / f"shard_{number}.parquet")
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), files[-1], row_group_size=4)
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("text"))


def make(files, *, rank=0, world_size=1, micro_batches=4, logical_shards=4, tokenizer=TOKENIZER, **options):
    options = {"num_workers": 0, "buffer_documents": 6} | options
    return TokenBatches(
        files,
        tokenizer,
        batch_rows=B,
        sequence_len=T,
        micro_batches=micro_batches,
        logical_shards=logical_shards,
        rank=rank,
        world_size=world_size,
        **options,
    )


def run(files, steps, *, cursor=None, world_size=1, **options):
    """Return the global micro-batches, in order, as (inputs, targets) lists, and the ranks' merged cursor."""
    ranks = []
    for rank in range(world_size):
        batches = iter(make(files, rank=rank, world_size=world_size, cursor=cursor, **options))
        ranks.append(list(itertools.islice(batches, steps)))
        batches.close()
    micro_batches = []
    for step in range(steps):
        first = ranks[0][step].cursor["micro_batch"] - options.get("micro_batches", 4)
        own = {rank: iter(zip(ranks[rank][step].inputs, ranks[rank][step].targets)) for rank in range(world_size)}
        for index in range(first, first + options.get("micro_batches", 4)):
            inputs, targets = next(own[index % world_size])
            micro_batches.append((inputs.tolist(), targets.tolist()))
    return micro_batches, merge_cursors([batches[-1].cursor for batches in ranks])


def tokens_of_shard(files, logical_shards, shard):
    for text, _ in DocumentStream(files, logical_shards, shard):
        yield TOKENIZER.encode(text, prepend=BOS)


def tokens_of_shard_once(files, logical_shards, shard):
    """The documents of one epoch."""
    return itertools.islice(
        tokens_of_shard(files, logical_shards, shard), DocumentStream(files, logical_shards, shard).rows
    )


def plain_stream(files, count, logical_shards):
    """The law of `stream`, written down the slow way."""
    shards = [itertools.chain.from_iterable(tokens_of_shard(files, logical_shards, s)) for s in range(logical_shards)]
    for index in range(count):
        tokens = list(itertools.islice(shards[index % logical_shards], B * T + 1))
        rows = range(0, B * T, T)
        yield [tokens[row : row + T] for row in rows], [tokens[row + 1 : row + T + 1] for row in rows]


def plain_bestfit(files, count, logical_shards, buffer_documents):
    """The law of `bestfit`, written down the slow way."""
    shards = [tokens_of_shard(files, logical_shards, shard) for shard in range(logical_shards)]
    buffers: list[list[list[int]]] = [[] for _ in shards]
    for index in range(count):
        documents, buffer = shards[index % logical_shards], buffers[index % logical_shards]
        rows = []
        for _ in range(B):
            row: list[int] = []
            while len(row) < T + 1:
                while len(buffer) < buffer_documents:
                    buffer.append(next(documents))
                space = T + 1 - len(row)
                fitting = [document for document in buffer if len(document) <= space]
                chosen = max(fitting, key=len) if fitting else min(buffer, key=len)
                del buffer[next(i for i, document in enumerate(buffer) if document is chosen)]
                row += chosen[:space]
            rows.append(row)
        yield [row[:-1] for row in rows], [row[1:] for row in rows]


@pytest.mark.parametrize("logical_shards", [1, 2, 4])
def test_stream_is_one_token_stream_per_logical_shard_taken_in_turn(files, logical_shards):
    micro_batches, _ = run(files, 10, logical_shards=logical_shards)
    assert micro_batches == list(plain_stream(files, 40, logical_shards))


@pytest.mark.parametrize("logical_shards", [1, 4])
def test_bestfit_takes_the_largest_that_fits_else_crops_the_shortest(files, logical_shards):
    micro_batches, _ = run(files, 10, logical_shards=logical_shards, packing="bestfit")
    assert micro_batches == list(plain_bestfit(files, 40, logical_shards, buffer_documents=6))


def test_what_bestfit_read_is_in_rows_or_counted_as_cropped_over_stops_and_any_ranks(files):
    rng = random.Random(1)
    documents = [list(map(len, tokens_of_shard_once(files, 4, shard))) for shard in range(4)]
    packed = cropped = 0
    cursor = None
    for _ in range(12):
        world_size, steps, num_workers = rng.choice([1, 2, 4]), rng.randint(1, 4), rng.choice([0, 2])
        ranks = []
        for rank in range(world_size):
            own = iter(make(files, rank=rank, world_size=world_size, cursor=cursor, packing="bestfit",
                            num_workers=num_workers))  # fmt: skip
            ranks.append(list(itertools.islice(own, steps)))
            own.close()
        packed += sum(batch.targets.numel() // T * (T + 1) for batches in ranks for batch in batches)
        cropped += sum(batch.cropped for batches in ranks for batch in batches)
        cursor = merge_cursors([batches[-1].cursor for batches in ranks])
        read = 0
        for shard, stream in enumerate(DocumentStream(files, 4, shard) for shard in range(4)):
            state = cursor["shards"][str(shard)]
            upto = stream.rows_before(Address(*(state[name] for name in Address._fields)))
            read += upto // stream.rows * sum(documents[shard]) + sum(documents[shard][: upto % stream.rows])
            held = [Address(*group, doc) for *group, docs in state["buffer"] for doc in docs]
            read -= sum(len(TOKENIZER.encode(text, prepend=BOS)) for text in stream.read(held))
        assert packed + cropped == read
    assert cropped > packed / 20


def test_a_stream_crops_nothing_so_it_counts_nothing(files):
    assert next(iter(make(files))).cropped is None


def test_every_bestfit_row_begins_with_a_document(files):
    micro_batches, _ = run(files, 10, packing="bestfit")
    assert all(row[0] == BOS for inputs, _ in micro_batches for row in inputs)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("seed", range(6))
def test_ranks_workers_and_stops_never_change_the_global_stream(files, packing, seed):
    rng = random.Random(seed)
    logical_shards = rng.choice([2, 4])
    options = {"logical_shards": logical_shards, "packing": packing, "order_seed": rng.choice([None, seed])}
    straight, _ = run(files, 24, **options)
    assert len({str(micro_batch) for micro_batch in straight}) > 12  # several epochs of few documents, yet much differs
    pieces, cursor, done = [], None, 0
    while done < 24:
        steps = min(rng.randint(1, 7), 24 - done)
        world_size = rng.choice([w for w in (1, 2, 4) if logical_shards % w == 0])
        more, cursor = run(
            files, steps, cursor=cursor, world_size=world_size, num_workers=rng.choice([0, 1, 3]), **options
        )
        cursor = json.loads(json.dumps(cursor))
        pieces += more
        done += steps
    assert pieces == straight


@pytest.mark.parametrize("packing", PACKINGS)
def test_another_seed_of_the_order_gives_other_batches_and_goes_on_with_no_other(files, packing):
    orders = {seed: run(files, 12, packing=packing, order_seed=seed) for seed in (None, 1, 2)}
    assert len({str(micro_batches) for micro_batches, _ in orders.values()}) == 3
    for (then, (_, cursor)), now in itertools.permutations([*orders.items()], 2):
        now = now[0]
        with pytest.raises(ValueError, match=rf"data\.order_seed={then or 'null'}, not {now or 'null'}; set it back"):
            make(files, packing=packing, order_seed=now, cursor=cursor)
    assert "order_seed" not in orders[None][1], "the cursors of runs without one are as they were"


def test_a_fraction_of_the_text_goes_on_with_no_other(files):
    whole, part = run(files, 12), run(files, 12, frac=0.5)
    assert "text_frac" not in whole[1] and part[1]["text_frac"] == 0.5
    with pytest.raises(ValueError, match=r"data\.text_frac=0\.5, not 1\.0; set it back"):
        make(files, cursor=part[1])


def test_another_number_of_micro_batches_goes_on_in_the_same_order(files):
    straight, _ = run(files, 9)
    first, cursor = run(files, 3, micro_batches=2, world_size=2)
    second, cursor = run(files, 3, micro_batches=6, cursor=cursor)
    third, _ = run(files, 3, micro_batches=4, world_size=4, cursor=cursor)
    assert first + second + third == straight


def test_stream_loses_and_repeats_no_token_over_a_resume_at_every_step(files):
    cursor, read = None, []
    for _ in range(60):
        (micro_batch,), cursor = run(files, 1, cursor=cursor, micro_batches=1, logical_shards=1)
        inputs, targets = micro_batch
        read += [*itertools.chain.from_iterable(inputs), targets[-1][-1]]
    tokens = itertools.chain.from_iterable(tokens_of_shard(files, 1, 0))
    assert read == list(itertools.islice(tokens, len(read)))


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_cursor_is_plain_small_and_the_same_whichever_way_it_was_reached(files, packing):
    _, straight = run(files, 8, packing=packing, num_workers=2)
    _, cursor = run(files, 5, packing=packing, world_size=2)
    _, resumed = run(files, 3, packing=packing, cursor=cursor)
    assert resumed == straight
    assert json.loads(json.dumps(straight)) == straight
    assert len(json.dumps(straight)) < 2000
    saved = io.BytesIO()
    torch.save(straight, saved)
    saved.seek(0)
    assert torch.load(saved, weights_only=True) == straight


def test_every_iteration_begins_at_the_cursor_given(files):
    batches = make(files, num_workers=1)
    first, second = next(iter(batches)), next(iter(batches))
    assert torch.equal(first.inputs, second.inputs)


def test_rows_counts_the_documents_that_begin(files):
    batch = next(iter(make(files)))
    assert batch.rows == int((batch.inputs == BOS).sum()) > 0
    assert batch.supervised_tokens == batch.targets.numel() == 4 * B * T


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logical_shards": 3, "world_size": 2}, r"data\.logical_shards = 3 .* \(3 / 2 = 1\.5\); make it 2 or 4"),
        ({"micro_batches": 3, "world_size": 2}, r"micro-batches of a step .* = 3 .*\(3 / 2 = 1\.5"),
        ({"logical_shards": 1, "world_size": 2}, r"make it 2, or change trainer\.devices"),
        ({"packing": "bestfill"}, r"data\.packing=bestfill is not one of stream, bestfit, bestfit_split"),
        ({"logical_shards": 64}, r"logical shard 53 of 64 gets no document: the 3 files hold 53"),
        ({"logical_shards": 54, "world_size": 2, "rank": 0}, r"logical shard 53 of 54 gets no document"),
    ],
)
def test_numbers_that_do_not_divide_are_refused_with_the_arithmetic(files, options, message):
    with pytest.raises(ValueError, match=message):
        make(files, **options)


def test_a_resume_with_changed_files_names_the_first_that_differs(files, tmp_path):
    _, cursor = run(files, 2)
    with pytest.raises(ValueError, match=r"file 2 was shard_2.parquet .*now it is no file \(3 files then, 2 now\)"):
        make(files[:2], cursor=cursor)
    changed = write_files(tmp_path, (4, 5, 4))
    with pytest.raises(ValueError, match=r"file 1 was shard_1.parquet \(23 rows in 6 .*, now it is .* \(19 rows in 5"):
        make(changed, cursor=cursor)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_run_from_before_documents_were_dealt_evenly_goes_on_as_it_began(files, packing):
    options = {"batch_rows": B, "sequence_len": T, "micro_batches": 4, "logical_shards": 4, "rank": 0, "world_size": 1,
               "num_workers": 0, "packing": packing, "buffer_documents": 6}  # fmt: skip
    before = TextCorpus(files, TOKENIZER, cursor={"files": "of a checkpoint, without the word dealing"})
    straight = list(itertools.islice(PackedBatches(before, **options), 40))
    assert [batch.inputs.tolist() for batch in straight] != [
        batch.inputs.tolist() for batch in itertools.islice(TokenBatches(files, TOKENIZER, **options), 40)
    ]
    for step in (3, 20):
        cursor = straight[step].cursor
        assert "dealing" not in cursor
        resumed = list(itertools.islice(TokenBatches(files, TOKENIZER, **options, cursor=cursor), 39 - step))
        assert all(torch.equal(one.inputs, two.inputs) for one, two in zip(resumed, straight[step + 1 :], strict=True))
        assert resumed[-1].cursor == straight[-1].cursor


def test_a_resume_with_another_order_is_refused(files):
    _, cursor = run(files, 2)
    with pytest.raises(ValueError, match=r"data\.logical_shards=4, not 2"):
        make(files, cursor=cursor, logical_shards=2)
    with pytest.raises(ValueError, match=r"data\.packing=stream, not bestfit"):
        make(files, cursor=cursor, packing="bestfit")


def test_a_resume_with_another_tokenizer_is_noticed_where_it_can_be(files):
    class OneToken:
        bos_id = 0

        def encode(self, text):
            return []

    _, cursor = run(files, 2, logical_shards=1)
    assert cursor["shards"]["0"]["token"] > 0
    with pytest.raises(ValueError, match="written with another tokenizer"):
        next(iter(make(files, cursor=cursor, logical_shards=1, tokenizer=OneToken())))


def test_the_cursor_of_one_of_several_ranks_is_refused(files):
    cursors = [next(iter(make(files, rank=rank, world_size=2))).cursor for rank in range(2)]
    with pytest.raises(ValueError, match=r"no place for logical shards 1, 3 \(it has 0, 2\)"):
        make(files, cursor=cursors[0])
    with pytest.raises(ValueError, match="logical shards 1, 3 have no cursor"):
        merge_cursors(cursors[:1])
    later = list(itertools.islice(make(files, rank=1, world_size=2), 2))[1].cursor
    with pytest.raises(ValueError, match="they differ in micro_batch, step"):
        merge_cursors([cursors[0], later])


class Breaks:
    """A tokenizer that fails at the n-th document."""

    bos_id = BOS

    def __init__(self, at):
        self.left = at

    def encode(self, text):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the tokenizer broke")
        return TOKENIZER.encode(text)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_an_exception_in_a_worker_is_raised_in_the_consumer(files, num_workers):
    with pytest.raises(RuntimeError, match="the tokenizer broke"):
        for _ in make(files, num_workers=num_workers, tokenizer=Breaks(at=40)):
            pass
    assert no_threads_left()


def no_threads_left(within_s=10.0):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not [thread for thread in threading.enumerate() if thread.name.startswith(("encode", "pack", "render"))]:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("how", ["close", "delete", "never started"])
def test_an_iterator_that_is_dropped_leaves_no_thread(files, how):
    batches = iter(make(files, num_workers=2))
    if how != "never started":
        next(batches)
        assert not no_threads_left(within_s=0)
    if how == "close":
        batches.close()
    del batches
    gc.collect()
    assert no_threads_left()


def test_the_interpreter_ends_with_an_iterator_still_running(files):
    program = (
        "import sys; from nanochat_pl.data.packing import TokenBatches; from nanochat_pl.tokenizer import Tokenizer\n"
        "batches = iter(TokenBatches(sys.argv[1:], Tokenizer([bytes([b]) for b in range(256)]), batch_rows=2,"
        "sequence_len=11, micro_batches=2, logical_shards=1, rank=0, world_size=1, num_workers=2))\n"
        "next(batches)\n"
        "print('leaving')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *map(str, files)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "leaving\n"
    assert ended.stderr == ""


def test_a_batch_moves_as_a_whole_and_keeps_its_count():
    inputs = torch.zeros(1, 2, 3, dtype=torch.int64)
    targets = torch.tensor([[[1, -1, 2], [-1, -1, 3]]])
    batch = Batch(inputs, targets, positions=inputs.clone(), cursor={"step": 1}, rows=2)
    moved = batch.to("meta")
    assert {moved.inputs.device.type, moved.targets.device.type, moved.positions.device.type} == {"meta"}
    assert (moved.supervised_tokens, moved.rows, moved.cursor) == (3, 2, {"step": 1})


@pytest.mark.gpu
def test_a_batch_moves_to_the_gpu_unchanged(files):
    batch = next(iter(make(files)))
    moved = batch.to("cuda")
    assert torch.equal(moved.inputs.cpu(), batch.inputs)
    assert torch.equal(moved.targets.cpu(), batch.targets)
