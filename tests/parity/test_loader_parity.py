"""The pretraining loader gives nanochat's own batches, token for token."""

import itertools
import json

import pytest
import torch

from nanochat_pl.data.batch import merge_cursors
from nanochat_pl.data.packing import TokenBatches
from nanochat_pl.data.parquet import list_shards
from nanochat_pl.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def recorded(reference_root):
    return json.loads((reference_root / "dataloader.json").read_text())


@pytest.fixture(scope="module")
def make(reference_root, recorded):
    tokenizer = Tokenizer.load(reference_root / "base" / "tokenizer")
    shards = list_shards(reference_root / "base" / "base_data")

    def make(split="train", rank=0, world_size=1, cursor=None, num_workers=1):
        return TokenBatches(
            shards.train if split == "train" else [shards.val],
            tokenizer,
            batch_rows=recorded["B"],
            sequence_len=recorded["T"],
            micro_batches=world_size,
            logical_shards=world_size,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            cursor=cursor,
        )

    return make


def assert_equal(batches, expected):
    for number, (batch, reference) in enumerate(zip(itertools.islice(batches, len(expected)), expected, strict=True)):
        assert torch.equal(batch.inputs[0], torch.tensor(reference["x"])), f"inputs of batch {number}"
        assert torch.equal(batch.targets[0], torch.tensor(reference["y"])), f"targets of batch {number}"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("key", "split", "rank", "world_size"),
    [("train", "train", 0, 1), ("val", "val", 0, 1), ("rank1_of_2", "train", 1, 2)],
)
def test_stream_batches_equal_the_reference(make, recorded, key, split, rank, world_size, num_workers):
    assert_equal(make(split, rank, world_size, num_workers=num_workers), recorded[key])


@pytest.mark.parametrize(("key", "rank", "world_size"), [("resumed", 0, 1), ("rank1_of_2_resumed", 1, 2)])
def test_a_row_group_can_be_entered_where_the_reference_resumed(make, recorded, key, rank, world_size):
    # the original goes on at the first row group behind the one it had begun; ours is told the same place
    begun = recorded["resume_from"]
    row_group = (begun["rg_idx"] // world_size + 1) * world_size + rank
    ranks = [next(iter(make(rank=r, world_size=world_size))).cursor for r in range(world_size)]
    cursor = merge_cursors(ranks)
    cursor["shards"][str(rank)] = {"epoch": 0, "file": begun["pq_idx"], "row_group": row_group, "doc": 0, "token": 0}
    assert_equal(make(rank=rank, world_size=world_size, cursor=cursor), recorded[key])
