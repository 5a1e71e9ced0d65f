"""Conversations as text: every token once an epoch, the same whatever the ranks, a validation set that stays."""

import itertools
import json
import random

import numpy as np
import pytest
import torch

from nanochat_pl.data import conversations as conversations_module
from nanochat_pl.data.batch import IGNORE, merge_cursors
from nanochat_pl.data.conversation_corpus import ConversationCorpus, conversation_text_batches, num_token_steps
from nanochat_pl.data.conversations import measure_lengths
from nanochat_pl.data.packing import PACKINGS, PackedBatches
from nanochat_pl.tokenizer import Tokenizer

TOKENIZER = Tokenizer([bytes([byte]) for byte in range(256)])
BOS = TOKENIZER.bos_id
B, T = 2, 15


def make_rows(count=37, seed=0):
    """Conversations of 8 to 68 tokens: many are several rows long."""
    rng = random.Random(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": f"{i}"},
                {"role": "assistant", "content": "".join(rng.choices("abcdef", k=rng.choice([1, 5, 20, 60])))},
            ]
        }
        for i in range(count)
    ]


ROWS = make_rows()


def make(rows=ROWS, *, rank=0, world_size=1, micro_batches=4, logical_shards=4, shuffle=True, seed=3, **options):
    return PackedBatches(
        ConversationCorpus(rows, TOKENIZER, seed=seed, shuffle=shuffle),
        batch_rows=B,
        sequence_len=T,
        micro_batches=micro_batches,
        logical_shards=logical_shards,
        rank=rank,
        world_size=world_size,
        **{"num_workers": 0, "buffer_documents": 6} | options,
    )


def run(steps, *, world_size=1, **options):
    """Return the global micro-batches in order, and the ranks' merged cursor."""
    ranks = []
    for rank in range(world_size):
        batches = iter(make(rank=rank, world_size=world_size, **options))
        ranks.append(list(itertools.islice(batches, steps)))
        batches.close()
    found = []
    for parts in zip(*ranks):
        own = [iter(zip(part.inputs.tolist(), part.targets.tolist())) for part in parts]
        found += [next(own[index % world_size]) for index in range(4)]
    return found, merge_cursors([batches[-1].cursor for batches in ranks])


def rendered(rows):
    return [TOKENIZER.render_conversation(row, max_tokens=10**6)[0] for row in rows]


@pytest.mark.parametrize("logical_shards", [1, 2])
def test_the_stream_is_the_conversations_whole_one_behind_the_other(logical_shards):
    micro_batches, _ = run(12, logical_shards=logical_shards, shuffle=False)
    streams = [
        itertools.chain.from_iterable(itertools.cycle(rendered(ROWS)[shard::logical_shards]))
        for shard in range(logical_shards)
    ]
    for index, (inputs, targets) in enumerate(micro_batches):
        tokens = list(itertools.islice(streams[index % logical_shards], B * T + 1))
        assert list(itertools.chain(*inputs)) == tokens[:-1]
        assert list(itertools.chain(*targets)) == tokens[1:]


def test_an_epoch_reads_every_conversation_once_in_an_order_of_its_own():
    corpus = ConversationCorpus(ROWS, TOKENIZER, seed=3)
    for shards in (1, 3, 37):
        streams = [corpus.stream(shards, shard, None) for shard in range(shards)]
        for epoch in range(2):
            read = []
            for stream in streams:
                blocks = itertools.takewhile(lambda block: block[0].epoch < 2, stream.blocks())
                read += [row for address, rows in blocks if address.epoch == epoch for row in rows]
            assert sorted(read) == list(range(len(ROWS)))
    assert corpus.order(0).tolist() != corpus.order(1).tolist() != list(range(len(ROWS)))
    assert ConversationCorpus(ROWS, TOKENIZER, seed=4).order(0).tolist() != corpus.order(0).tolist()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("seed", range(4))
def test_ranks_workers_and_stops_never_change_the_global_stream(packing, seed):
    rng = random.Random(seed)
    logical_shards = rng.choice([2, 4])
    options = {"logical_shards": logical_shards, "packing": packing}
    straight, _ = run(24, **options)
    pieces, cursor, done = [], None, 0
    while done < 24:
        steps = min(rng.randint(1, 7), 24 - done)
        world_size = rng.choice([w for w in (1, 2, 4) if logical_shards % w == 0])
        more, cursor = run(steps, cursor=cursor, world_size=world_size, num_workers=rng.choice([0, 1, 3]), **options)
        cursor = json.loads(json.dumps(cursor))
        pieces += more
        done += steps
    assert pieces == straight


@pytest.mark.parametrize("packing", ["stream", "bestfit"])
def test_epochs_are_counted_in_conversations_used_up(packing):
    batches = list(itertools.islice(make(packing=packing, logical_shards=1), 30))
    epochs = [batch.epoch for batch in batches]
    assert epochs == sorted(epochs)
    # a conversation may begin with what is only a target: the last of a row, or of a micro-batch of the stream
    last = [batch.targets[..., -1] if packing != "stream" else batch.targets[:, -1, -1] for batch in batches]
    begun = sum(batch.rows + int((targets == BOS).sum()) for batch, targets in zip(batches, last))
    assert begun - 1 <= round(epochs[-1] * len(ROWS)) <= begun


def test_a_cursor_of_other_conversations_or_another_seed_is_refused():
    _, cursor = run(2)
    with pytest.raises(ValueError, match=r"num_rows=37 .*now it is 36"):
        make(ROWS[1:], cursor=cursor)
    with pytest.raises(ValueError, match=r"seed=3 .*now it is 4"):
        make(seed=4, cursor=cursor)


def test_more_logical_shards_than_conversations_are_refused():
    with pytest.raises(ValueError, match=r"logical shard 3 of 4 gets none of the 3 conversations; .*to 3 or lower"):
        make(ROWS[:3])


def test_a_conversation_that_cannot_be_rendered_is_named():
    rows = [*ROWS[:5], {"messages": [{"role": "assistant", "content": "I begin"}]}]
    with pytest.raises(ValueError, match="conversation 5 cannot be rendered: message 0"):
        list(itertools.islice(make(rows, logical_shards=1), 20))


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("num_epochs", [1, 3])
def test_the_planned_steps_are_the_epochs_that_were_asked_for(packing, num_epochs):
    rows = make_rows(3000)
    plan = {"batch_rows": B, "sequence_len": T, "micro_batches": 4, "packing": packing, "num_epochs": num_epochs}
    steps = num_token_steps(measure_lengths(rows, TOKENIZER, seed=0), **plan)
    batches = make(rows, logical_shards=1, packing=packing, buffer_documents=1000)
    *_, last = itertools.islice(batches, steps)
    assert last.epoch == pytest.approx(num_epochs, rel=0.02)
    if packing == "stream":
        assert last.epoch <= num_epochs


def test_many_conversations_are_sampled_and_the_estimate_is_near(monkeypatch: pytest.MonkeyPatch):
    rows = make_rows(3000)
    exact = measure_lengths(rows, TOKENIZER, seed=0, num_workers=2)
    assert (exact.exact, exact.total) == (True, sum(map(len, rendered(rows))))
    monkeypatch.setattr(conversations_module, "COUNTED_ROWS", 2000)
    monkeypatch.setattr(conversations_module, "SAMPLED_ROWS", 1000)
    sample = measure_lengths(rows, TOKENIZER, seed=0)
    assert not sample.exact
    assert sample.total == pytest.approx(exact.total, rel=0.1)
    assert sample.num_within(20) == pytest.approx(exact.num_within(20), rel=0.2)
    assert "1,000 of 3,000" in sample.method
    assert np.array_equal(sample.values, measure_lengths(rows, TOKENIZER, seed=0).values)


def test_less_than_one_step_is_refused_with_the_arithmetic():
    lengths = measure_lengths(ROWS[:2], TOKENIZER, seed=0)
    with pytest.raises(ValueError, match=r"total_batch_tokens=3000 is more than 1 epochs of the 2 conversations"):
        num_token_steps(lengths, batch_rows=2, sequence_len=15, micro_batches=100, packing="stream", num_epochs=1)


VAL = {"batch_rows": B, "sequence_len": T, "rank": 0, "world_size": 1}


def test_a_streamed_validation_set_supervises_every_token_but_the_first_once():
    batches = conversation_text_batches(ROWS, TOKENIZER, val_tokens=10**6, packing="stream", **VAL)
    tokens = list(itertools.chain(*rendered(ROWS)))
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    assert targets[targets != IGNORE].tolist() == tokens[1:]
    inputs = torch.cat([batch.inputs.flatten() for batch in batches])
    assert inputs[targets != IGNORE].tolist() == tokens[:-1]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("val_tokens", [1, 200, 10**6])
@pytest.mark.parametrize("count", [1, 37])
def test_a_validation_set_is_a_fixed_prefix_whatever_the_ranks_and_however_small(packing, val_tokens, count):
    def collect(world_size):
        ranks = []
        for rank in range(world_size):
            options = VAL | {"rank": rank, "world_size": world_size}
            ranks.append(
                conversation_text_batches(ROWS[:count], TOKENIZER, val_tokens=val_tokens, packing=packing, **options)
            )
        most = max(map(len, ranks))
        return [batches[i] for i in range(most) for batches in ranks if i < len(batches)]

    alone = collect(1)
    assert sum(batch.supervised_tokens for batch in alone) > 0
    assert sum(batch.inputs.numel() for batch in alone) <= max(val_tokens, B * T)
    for world_size in (2, 4):
        together = collect(world_size)
        assert [batch.targets.tolist() for batch in together] == [batch.targets.tolist() for batch in alone]
    if packing != "stream":
        rows = torch.cat([batch.inputs.view(-1, T) for batch in alone])
        assert (rows[:, 0] == BOS).all()


def test_a_validation_set_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no validation conversations"):
        conversation_text_batches([], TOKENIZER, val_tokens=100, packing="stream", **VAL)
