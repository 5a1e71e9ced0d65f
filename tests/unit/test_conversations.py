"""Batches of conversations: exact counts, nothing lost between packed and padded, nothing that breaks them."""

import itertools
import json
import random
from collections import Counter

import pytest
import torch

from nanochat_pl.data.batch import IGNORE, merge_cursors
from nanochat_pl.data.conversations import ConversationBatches, conversation_batches, measure_lengths, num_row_steps
from nanochat_pl.tokenizer import Tokenizer

TOKENIZER = Tokenizer([bytes([byte]) for byte in range(256)])
PAD = TOKENIZER.special_id("<|assistant_end|>")


def conversation(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def make_rows(count, seed=0, longest=20):
    rng = random.Random(seed)
    return [conversation(f"q{i}", "x" * rng.randint(0, longest)) for i in range(count)]


def make(rows, *, packed=True, rank=0, world_size=1, total_batch_rows=8, batch_rows=2, sequence_len=40, **options):
    return ConversationBatches(
        rows,
        TOKENIZER,
        total_batch_rows=total_batch_rows,
        batch_rows=batch_rows,
        sequence_len=sequence_len,
        rank=rank,
        world_size=world_size,
        packed=packed,
        **{"seed": 3, "num_workers": 0} | options,
    )


def take(batches, count):
    return list(itertools.islice(batches, count))


def examples(batch):
    """Return every conversation of a batch as (inputs, targets), and check its layout."""
    found = []
    shape = (-1, batch.inputs.shape[-1])
    positions = torch.arange(shape[1]).expand(batch.inputs.shape) if batch.positions is None else batch.positions
    for inputs, targets, places in zip(batch.inputs.view(shape), batch.targets.view(shape), positions.reshape(shape)):
        starts = [*(places == 0).nonzero().flatten().tolist(), shape[1]]
        assert starts[0] == 0
        for start, end in itertools.pairwise(starts):
            assert places[start:end].tolist() == list(range(end - start))
            piece, goals = inputs[start:end].tolist(), targets[start:end].tolist()
            if piece[0] == TOKENIZER.bos_id:
                found.append((tuple(piece), tuple(goals)))
            else:  # filling: nothing to learn in it
                assert set(piece) == {PAD}
                assert set(goals) == {IGNORE}
    return found


def supervised_pairs(batch):
    return Counter(
        (inputs, targets)
        for inputs, targets in zip(batch.inputs.flatten().tolist(), batch.targets.flatten().tolist())
        if targets != IGNORE
    )


@pytest.mark.parametrize(("batch_rows", "world_size"), [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (4, 2)])
def test_packed_and_padded_hold_the_same_pairs_of_input_and_target(batch_rows, world_size):
    rows = make_rows(20)
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "batch_rows": batch_rows}
        pairs = zip(take(make(rows, **options), 5), take(make(rows, packed=False, **options), 5))
        for packed, padded in pairs:
            assert supervised_pairs(packed) == supervised_pairs(padded)
            assert packed.supervised_tokens == padded.supervised_tokens > 0
            assert packed.inputs.shape[1:] == packed.positions.shape[1:] == (batch_rows, 40)
            assert padded.inputs.shape[:2] == (8 // world_size // batch_rows, batch_rows)


def test_a_packed_conversation_is_its_rendering_shifted_by_one():
    rows = make_rows(8)
    (batch,) = take(make(rows), 1)
    expected = []
    for row in rows:
        ids, mask = TOKENIZER.render_conversation(row)
        targets = [token if learn else IGNORE for token, learn in zip(ids[1:], mask[1:])]
        expected.append((tuple(ids[:-1]), tuple(targets)))
    assert sorted(examples(batch)) == sorted(expected)


def test_packing_fills_rows_better_than_one_conversation_a_row():
    (batch,) = take(make(make_rows(64), total_batch_rows=64, batch_rows=1, sequence_len=128), 1)
    used = sum(len(inputs) for inputs, _ in examples(batch))
    assert len(batch.inputs) <= -(-used // 128) + 1


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_one_step_is_exactly_the_total_whatever_the_number_of_ranks(packed, world_size):
    rows = make_rows(30)
    options = {"packed": packed, "world_size": world_size, "num_workers": 1}
    ranks = [take(make(rows, rank=rank, **options), 7) for rank in range(world_size)]
    for parts, expected in zip(zip(*ranks), take(make(rows), 7), strict=True):
        assert [part.rows for part in parts] == [8 // world_size] * world_size
        together = [example for part in parts for example in examples(part)]
        if not packed:  # rows are as long as the longest of their rank's step
            together = [unpadded(*example) for example in together]
        assert sorted(together) == sorted(examples(expected))


def unpadded(inputs, targets):
    last = max(i for i, target in enumerate(targets) if target != IGNORE)
    return inputs[: last + 1], targets[: last + 1]


def test_an_epoch_is_a_permutation_without_its_remainder():
    rows = make_rows(30)
    steps = num_row_steps(len(rows), 8, 3)
    batches = take(make(rows), steps)
    orders = []
    for epoch in range(3):
        seen = [question(inputs) for batch in batches[epoch * 3 : epoch * 3 + 3] for inputs, _ in examples(batch)]
        assert len(set(seen)) == len(seen) == 24
        orders.append(seen)
    assert orders[0] != orders[1]
    assert [batch.cursor["epoch"] for batch in batches] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def question(inputs):
    return TOKENIZER.decode(inputs).split("<|user_end|>")[0]


def test_num_steps_drops_the_remainder_of_each_epoch():
    assert num_row_steps(12_000, 64, 4) == 748
    assert num_row_steps(64, 64, 1) == 1
    with pytest.raises(ValueError, match=r"stage\.total_batch_rows=64 is more than the 63 .* 63 // 64 = 0 steps"):
        num_row_steps(63, 64, 4)


@pytest.mark.parametrize("packed", [True, False])
def test_resuming_at_any_step_with_any_number_of_ranks_goes_on_exactly(packed):
    rows = make_rows(30)
    straight = take(make(rows, packed=packed), 10)
    for stop in range(10):
        cursor = json.loads(json.dumps(merge_cursors([straight[stop].cursor, straight[stop].cursor])))
        resumed = take(make(rows, packed=packed, cursor=cursor, num_workers=stop % 2), 10 - stop - 1)
        for batch, expected in zip(resumed, straight[stop + 1 :], strict=True):
            assert torch.equal(batch.inputs, expected.inputs)
            assert torch.equal(batch.targets, expected.targets)
            assert batch.cursor == expected.cursor
    ranks = [take(make(rows, packed=packed, rank=r, world_size=2, cursor=straight[3].cursor), 1)[0] for r in range(2)]
    assert sum(map(supervised_pairs, ranks), Counter()) == supervised_pairs(straight[4])


def test_the_same_seed_gives_the_same_order_and_another_seed_another():
    rows = make_rows(30)
    first, again, other = (take(make(rows, seed=seed), 1)[0] for seed in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs)
    assert set(map(question, dict(examples(first)))) != set(map(question, dict(examples(other))))


def test_a_cursor_of_other_rows_or_another_seed_is_refused():
    (batch,) = take(make(make_rows(30)), 1)
    with pytest.raises(ValueError, match=r"num_rows=30 .*now it is 29"):
        make(make_rows(29), cursor=batch.cursor)
    with pytest.raises(ValueError, match=r"seed=3 .*now it is 4"):
        make(make_rows(30), cursor=batch.cursor, seed=4)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("batch_rows", range(1, 9))
@pytest.mark.parametrize("sequence_len", [1, 5, 12, 64])
def test_any_mix_of_lengths_and_masks_survives(packed, batch_rows, sequence_len):
    unanswered = {"messages": [{"role": "user", "content": "nobody answers"}]}
    rows = [*make_rows(batch_rows, longest=30), *[unanswered] * batch_rows]
    batches = make(
        rows,
        packed=packed,
        total_batch_rows=batch_rows,
        batch_rows=batch_rows,
        sequence_len=sequence_len,
        num_workers=1,
    )
    for batch in take(batches, 6):
        assert batch.rows == batch_rows == len(examples(batch))
        assert batch.inputs.shape[1] == batch_rows
        assert batch.inputs.shape[2] <= sequence_len
        assert batch.inputs.min() >= 0


@pytest.mark.parametrize("packed", [True, False])
def test_a_step_without_anything_to_learn_is_a_batch_like_any_other(packed):
    rows = [{"messages": [{"role": "user", "content": "nobody answers"}]}] * 8
    (batch,) = take(make(rows, packed=packed), 1)
    assert batch.supervised_tokens == 0
    assert len(examples(batch)) == 8


@pytest.mark.parametrize("packed", [True, False])
def test_too_long_conversations_are_cut_at_the_end_and_counted(packed):
    # tokens: bos, user_start, question, user_end, assistant_start, answer, assistant_end
    rows = [
        conversation("a", "b" * 15),  # 21 = T+1: fits
        conversation("a", "b" * 16),  # 22: loses its end token
        conversation("q" * 30, "b"),  # nothing of the answer is left
        {"messages": [{"role": "user", "content": "u" * 50}]},
    ]
    batches = make(rows, packed=packed, total_batch_rows=4, batch_rows=2, sequence_len=20)
    for number, batch in enumerate(take(batches, 3), 1):
        kept = sorted(goal for _, goals in examples(batch) for goal in goals if goal != IGNORE)
        assert kept == sorted([*b"b" * 15, PAD, *b"b" * 16])
        assert batch.cursor["counts"] == {"cut": 3 * number, "dropped": 0, "unsupervised": 2 * number}


def mixed_rows(count=40):
    """Every third conversation is longer than a row of 40 tokens."""
    return [conversation(f"q{i}", "x" * (60 if i % 3 == 1 else 5)) for i in range(count)]


@pytest.mark.parametrize("packed", [True, False])
def test_dropped_conversations_leave_every_step_full_and_the_rest_of_the_order_as_it_was(packed):
    rows = mixed_rows()
    kept = [f"q{i}" for i in range(40) if i % 3 != 1]
    batches = take(make(rows, packed=packed, drop_long=True), 6)
    seen = [question(inputs).split("<|user_start|>")[1] for batch in batches for inputs, _ in examples(batch)]
    assert [batch.rows for batch in batches] == [8] * 6
    for epoch in (seen[:24], seen[24:]):
        assert len(set(epoch)) == 24
        assert set(epoch) <= set(kept)
    in_order = take(make(rows, packed=packed, drop_long=True, shuffle=False, total_batch_rows=2, batch_rows=1), 3)
    asked = [sorted(question(inputs).split("<|user_start|>")[1] for inputs, _ in examples(b)) for b in in_order]
    assert asked == [["q0", "q2"], ["q3", "q5"], ["q6", "q8"]]


@pytest.mark.parametrize("world_size", [2, 4])
def test_dropping_does_not_depend_on_the_number_of_ranks(world_size):
    rows = mixed_rows()
    ranks = [take(make(rows, rank=r, world_size=world_size, drop_long=True), 7) for r in range(world_size)]
    for parts, expected in zip(zip(*ranks), take(make(rows, drop_long=True), 7), strict=True):
        assert [part.rows for part in parts] == [8 // world_size] * world_size
        assert sorted(e for part in parts for e in examples(part)) == sorted(examples(expected))
        assert merge_cursors([part.cursor for part in parts]) == expected.cursor


@pytest.mark.parametrize("drop_long", [True, False])
def test_counts_of_a_resumed_run_are_those_of_a_straight_one(drop_long):
    rows = mixed_rows()
    straight = take(make(rows, drop_long=drop_long), 9)
    name = "dropped" if drop_long else "cut"
    assert straight[-1].cursor["counts"][name] > straight[3].cursor["counts"][name] > 0
    resumed = take(make(rows, drop_long=drop_long, cursor=straight[3].cursor, num_workers=1), 5)
    assert [batch.cursor for batch in resumed] == [batch.cursor for batch in straight[4:]]


@pytest.mark.parametrize("shown", [0, 7])
def test_too_few_conversations_that_fit_are_refused_and_do_not_loop_forever(shown):
    rows = [conversation(f"q{i}", "x" * (5 if i < shown else 60)) for i in range(20)]
    with pytest.raises(ValueError, match=rf"{shown} of 20 conversations fit .*=40.*long_conversations=cut"):
        take(make(rows, drop_long=True), 1)
    lengths = measure_lengths(rows, TOKENIZER, seed=0)
    with pytest.raises(ValueError, match=rf"{shown} of 20 conversations fit"):
        num_row_steps(20, 8, 1, lengths, 40)


def test_the_steps_of_an_epoch_count_the_conversations_that_fit():
    rows = mixed_rows()
    steps = num_row_steps(len(rows), 8, 2, measure_lengths(rows, TOKENIZER, seed=0, num_workers=0), 40)
    assert steps == 27 // 8 * 2
    batches = take(make(rows, drop_long=True), steps + 1)
    assert batches[steps - 1].epoch <= 2 < batches[steps].epoch


def test_an_epoch_is_counted_in_conversations_read():
    batches = take(make(make_rows(32)), 5)
    assert [batch.epoch for batch in batches] == [0.25, 0.5, 0.75, 1.0, 1.25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"total_batch_rows": 9, "world_size": 2},
            r"=9 is not a multiple of world 2; set .*=8 or 10, or change trainer",
        ),
        (
            {"total_batch_rows": 8, "world_size": 2, "batch_rows": 3, "packed": False},
            r"=8 is not a multiple of world 2 x stage\.device_batch 3 = 6; set .*=6 or 12, or lower",
        ),
        ({"total_batch_rows": 31}, r"total_batch_rows=31 is more than the 30 conversations there are"),
    ],
)
def test_numbers_that_do_not_divide_are_refused_with_the_arithmetic(options, message):
    with pytest.raises(ValueError, match=message):
        make(make_rows(30), **options)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_conversation_that_cannot_be_rendered_is_named(num_workers):
    rows = make_rows(8)
    rows[5] = {"messages": [{"role": "assistant", "content": "I begin"}]}
    with pytest.raises(ValueError, match=r"conversation 5 cannot be rendered: message 0"):
        take(make(rows, num_workers=num_workers), 1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_validation_set_is_the_first_rows_in_order_the_same_every_time(world_size):
    rows = make_rows(40)
    options = {"total_batch_rows": 8, "batch_rows": 2, "sequence_len": 40, "world_size": world_size}
    ranks = [list(conversation_batches(rows, TOKENIZER, num_rows=17, rank=r, **options)) for r in range(world_size)]
    assert [len(batches) for batches in ranks] == [3] * world_size
    for number, parts in enumerate(zip(*ranks)):
        expected = [f"q{i}" for i in range(number * 8, min(number * 8 + 8, 17))]
        assert sum(part.rows for part in parts) == len(expected)
        asked = [question(inputs).split("<|user_start|>")[1] for part in parts for inputs, _ in examples(part)]
        assert sorted(asked) == sorted(expected)
    again = list(conversation_batches(rows, TOKENIZER, num_rows=17, rank=0, **options))
    assert all(torch.equal(batch.inputs, other.inputs) for batch, other in zip(ranks[0], again, strict=True))


def test_more_validation_rows_than_there_are_is_refused_with_both_numbers():
    options = {"total_batch_rows": 8, "batch_rows": 2, "sequence_len": 40, "rank": 0, "world_size": 1}
    with pytest.raises(ValueError, match=r"stage\.val_rows=41, but there are 40"):
        next(conversation_batches(make_rows(40), TOKENIZER, num_rows=41, **options))
    assert sum(batch.rows for batch in conversation_batches(make_rows(40), TOKENIZER, num_rows=None, **options)) == 40
