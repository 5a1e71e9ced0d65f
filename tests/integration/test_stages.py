"""The stages between pretraining and reinforcement learning: mid, sft, and the chain of their weights."""

import json
import math
from pathlib import Path

import pytest
import torch

from nanochat_pl.checkpoint import load_model
from nanochat_pl.training.datamodules import StepBatches
from tests.integration.conftest import BASE, TINY, Train, metrics
from tests.integration.test_processes import command, last_weights, run
from tests.integration.test_training import weights

CHATS = "nanochat_pl.tasks.chats.Chats"
MIXTURE = [
    "~mixture",  # in place of the default one of the stage
    "++mixture.tasks={chats:{_target_:%s,path:'${data.root}/smoltalk'}}" % CHATS,  # noqa: UP031  (braces and ${})
    "++mixture.val_tasks={chats:{_target_:%s,path:'${data.root}/smoltalk',split:test}}" % CHATS,  # noqa: UP031
]
MID = [
    *TINY,
    *MIXTURE,
    "stage=mid",
    "stage.total_batch_tokens=512",
    "stage.val_tokens=512",
    "stage.num_steps=20",
]
SFT = [
    *TINY,
    *MIXTURE,
    "stage=sft",
    "stage.sequence_len=256",
    "stage.total_batch_rows=8",
    "stage.val_rows=8",
    "stage.num_steps=20",
    "optim.init_lr_frac=0.5",
]


@pytest.fixture
def base(train: Train, tmp_path: Path) -> Path:
    """A base run of a few steps."""
    train(*BASE, "stage.num_steps=4")
    return tmp_path / "base" / "tiny"


@pytest.mark.parametrize(
    "case",
    ["mid stream", *(pytest.param(c, marks=pytest.mark.slow) for c in ("mid bestfit", "sft packed", "sft padded"))],
)
def test_resume_equals_a_straight_run_bit_for_bit(train: Train, tmp_path: Path, base: Path, case: str):
    stage, how = case.split()
    option = f"data.packing={how}" if stage == "mid" else f"stage.packed={str(how == 'packed').lower()}"
    config = [*(MID if stage == "mid" else SFT), option, f"init_from={base}", "stage.val_every_steps=5"]
    train(*config, "run_name=straight")
    assert train(*config, "run_name=halves", "trainer.stop_after_steps=10")["step"] == 10
    summary = train(*config, "run_name=halves", "resume=auto", "data.num_workers=0")
    straight, halves = tmp_path / stage / "straight", tmp_path / stage / "halves"
    names = ("train/loss", "train/grad_norm", "val/loss", "tokens", "epoch")
    for name in (*names, "val/bpb") if stage == "mid" else names:
        assert metrics(halves, name) == metrics(straight, name), name
    assert len(metrics(straight, "epoch")) == 20
    losses = [float(value) for value in metrics(straight, "val/loss").values()]
    assert losses[-1] < losses[0]
    one, two = (weights(folder / "checkpoints" / "last.ckpt") for folder in (straight, halves))
    assert all(torch.equal(one[key], two[key]) for key in one)
    recorded = json.loads((straight / "summary.json").read_text())
    assert summary["inputs"] == recorded["inputs"]
    assert summary.get("conversations") == recorded.get("conversations")


def test_each_stage_goes_on_from_the_one_before(train: Train, tmp_path: Path, base: Path):
    assert "base" in train(*MID, "stage.num_steps=2", "stage.val_every_steps=null")["init_from"]
    summary = train(*SFT, "stage.num_steps=2")
    assert str(tmp_path / "mid") in summary["init_from"]
    assert load_model(tmp_path / "sft" / "tiny").stage == "sft"
    # and any other checkpoint may be named, for each of them
    checkpoint = tmp_path / "sft" / "tiny" / "checkpoints" / "last.ckpt"
    again = train(*MID, "stage.num_steps=2", f"init_from={checkpoint}", "run_name=again")
    assert "(sft, step 2)" in again["init_from"]


def test_the_schedules_begin_where_a_stage_begins(train: Train, tmp_path: Path, base: Path):
    train(*MID, "stage.num_steps=10", f"init_from={base}")
    factors = [float(value) for value in metrics(tmp_path / "mid" / "tiny", "train/lrm").values()]
    assert factors == pytest.approx([1.0] * 9 + [0.5])
    train(*SFT, "stage.num_steps=4", f"init_from={base}")
    factors = [float(value) for value in metrics(tmp_path / "sft" / "tiny", "train/lrm").values()]
    assert factors == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_pretraining_goes_on_from_a_checkpoint_with_its_model_and_tokenizer(train: Train, base: Path, tmp_path: Path):
    before = float(metrics(base, "val/bpb")[4])
    summary = train(*BASE, f"init_from={base / 'checkpoints' / 'last.ckpt'}", "run_name=more", "stage.num_steps=6")
    assert "(base, step 4)" in summary["init_from"]
    assert float(metrics(tmp_path / "base" / "more", "val/bpb")[0]) == pytest.approx(before, abs=1e-4)
    assert summary["val/bpb"] < before


def test_the_steps_of_mid_follow_from_its_epochs(train: Train, base: Path, tmp_path: Path):
    summary = train(*MID, f"init_from={base}", "stage.num_steps=null", "stage.num_epochs=1",
                    "stage.total_batch_tokens=2048", "stage.val_tokens=1000000")  # fmt: skip
    epochs = [float(value) for value in metrics(tmp_path / "mid" / "tiny", "epoch").values()]
    assert 1 - 2 / summary["num_steps"] < epochs[-1] <= 1
    assert "all 600 conversations counted" in (tmp_path / "mid" / "tiny" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["cut", "drop"])
@pytest.mark.parametrize("packed", ["true", "false"])
def test_conversations_longer_than_a_row_are_counted(
    train: Train, base: Path, tmp_path: Path, policy: str, packed: str
):
    config = [*SFT, f"init_from={base}", "stage.sequence_len=96", f"stage.long_conversations={policy}",
              f"stage.packed={packed}", "stage.num_steps=null", "stage.num_epochs=1", "run_name=long"]  # fmt: skip
    stopped = train(*config, "trainer.stop_after_steps=7")
    summary = train(*config, "resume=auto")
    counts, before = summary["conversations"], stopped["conversations"]
    name, other = ("cut", "dropped") if policy == "cut" else ("dropped", "cut")
    assert counts[name] > before[name] > 0 == counts[other]
    asked = summary["num_steps"] * 8
    assert 600 - 8 < asked + counts["dropped"] <= 600 if policy == "cut" else 560 < asked + counts["dropped"] <= 600
    assert f"{counts[name]} {name}" in (tmp_path / "sft" / "long" / "log.txt").read_text()


@pytest.mark.parametrize("packed", ["true", "false"])
@pytest.mark.parametrize("rows", ["masked step", "masked micro-batch"])
def test_a_batch_without_anything_to_learn_changes_no_weight_and_its_loss_is_no_number(
    train: Train, base: Path, tmp_path: Path, packed: str, rows: str, monkeypatch: pytest.MonkeyPatch
):
    transfer = StepBatches.on_after_batch_transfer

    def mask(self: StepBatches, batch, index: int):
        targets = batch.targets.clone()
        targets[: 1 if rows == "masked micro-batch" else None] = -1
        batch.__dict__.pop("supervised_tokens", None)
        object.__setattr__(batch, "targets", targets)
        return transfer(self, batch, index)

    monkeypatch.setattr(StepBatches, "on_after_batch_transfer", mask)
    train(*SFT, f"init_from={base}", f"stage.packed={packed}", "stage.num_steps=2", "stage.device_batch=1")
    losses = [float(value) for value in metrics(tmp_path / "sft" / "tiny", "train/loss").values()]
    before, after = weights(base / "checkpoints" / "best.ckpt"), weights(tmp_path / "sft/tiny/checkpoints/last.ckpt")
    unmoved = all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert (all(map(math.isnan, losses)) and unmoved) if rows == "masked step" else (min(losses) > 0 and not unmoved)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage.total_batch_rows=8"], r"total_batch_rows counts conversations; stage=mid"),
        (["stage.val_rows=8"], r"val_rows counts conversations; stage=mid"),
        (["stage.packed=false"], r"no effect on stage=mid"),
        (["stage.long_conversations=drop"], r"no effect on stage=mid"),
        (
            ["stage.num_steps=null", "stage.tokens_per_param=20"],
            r"num_epochs or stage\.num_steps, not tokens_per_param",
        ),
        (["stage.total_batch_tokens=500"], r"500 is not a multiple of device_batch 4 x sequence_len 64"),
        (
            ["stage.num_steps=null", "stage.num_epochs=1", "stage.total_batch_tokens=131072"],
            r"131072 is more than 1 epochs of the 600",
        ),
    ],
)
def test_settings_that_cannot_take_effect_are_refused(train: Train, base: Path, overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        train(*MID, f"init_from={base}", *overrides)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("packing", ["stream", "bestfit"])
def test_two_processes_train_mid_as_one(world: Path, tmp_path: Path, packing: str):
    assert run(command(world, tmp_path, *BASE, "stage.num_steps=2"), tmp_path).returncode == 0
    config = [*MID, "stage.num_steps=6", "data.logical_shards=2", f"data.packing={packing}", "stage.val_every_steps=3",
              f"init_from={tmp_path / 'base' / 'tiny'}", "optim.ns_dtype=float32"]  # fmt: skip
    for devices in (1, 2):
        done = run(command(world, tmp_path, *config, f"run_name=n{devices}", f"trainer.devices={devices}"), tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "mid" / "n1", tmp_path / "mid" / "n2"
    for name in ("train/loss", "train/grad_norm", "val/loss", "val/bpb", "epoch"):
        first, second = ([float(v) for v in metrics(folder, name).values()] for folder in (one, two))
        assert first == pytest.approx(second, abs=2e-4), name
    a, b = last_weights(one), last_weights(two)
    assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-3


@pytest.mark.slow
@pytest.mark.dist
def test_counts_of_two_processes_are_added_up_and_go_on_on_one(world: Path, tmp_path: Path):
    assert run(command(world, tmp_path, *BASE, "stage.num_steps=2"), tmp_path).returncode == 0
    config = [*SFT, "stage.num_steps=8", "stage.sequence_len=96", "stage.val_every_steps=null",
              f"init_from={tmp_path / 'base' / 'tiny'}"]  # fmt: skip
    assert run(command(world, tmp_path, *config, "run_name=n1"), tmp_path).returncode == 0
    two_ranks = "trainer.devices=2"
    for extra in ([two_ranks, "trainer.stop_after_steps=3"], [two_ranks, "trainer.stop_after_steps=2"], []):
        done = run(command(world, tmp_path, *config, "run_name=n2", "resume=auto", *extra), tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / "sft" / n / "summary.json").read_text())["conversations"] for n in ("n1", "n2"))
    assert one == two
    assert one["cut"] > 0
