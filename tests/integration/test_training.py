"""Whole runs of base and fine-tuning: counted once, resumed exactly, saved before measured, self-contained."""

import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import ClassVar

import lightning as L
import numpy as np
import pytest
import torch

from nanochat_pl.checkpoint import load_model
from nanochat_pl.config.run_folder import RUN_FILES
from nanochat_pl.report.history import run_picture
from nanochat_pl.training.module import DivergedError
from tests.integration.conftest import BASE, SFT, Train, metrics


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_one_pair_of_optimizer_steps_is_one_step(train: Train, tmp_path: Path):
    summary = train(*BASE, "stage.num_steps=6", "stage.val_every_steps=3", "stage.checkpoint_every_steps=2")
    folder = tmp_path / "base" / "tiny"
    assert summary["step"] == 6
    assert summary["status"] == "finished"
    assert sorted(metrics(folder, "train/loss")) == [0, 1, 2, 3, 4, 5]
    assert sorted(metrics(folder, "val/bpb")) == [0, 3, 6]
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "step_000004.ckpt", "step_000006.ckpt"]
    assert summary["val/bpb"] < float(metrics(folder, "val/bpb")[0])


@pytest.mark.parametrize("stage", ["base", "sft_scienceqa"])
def test_resume_equals_a_straight_run_bit_for_bit(train: Train, tmp_path: Path, stage: str):
    config = BASE
    if stage == "sft_scienceqa":
        train(*BASE, "stage.num_steps=2")
        config = [*SFT, f"init_from={tmp_path / 'base' / 'tiny'}"]
    cadence = ["stage.val_every_steps=5"]
    train(*config, *cadence, "run_name=straight")
    interrupted = train(*config, *cadence, "run_name=halves", "trainer.stop_after_steps=10")
    assert (interrupted["status"], interrupted["step"]) == ("stopped", 10)
    of_a_half = (tmp_path / stage / "halves" / "loss.png").read_bytes()
    train(*config, *cadence, "run_name=halves", "resume=auto", "data.num_workers=0")
    straight, halves = tmp_path / stage / "straight", tmp_path / stage / "halves"
    for name in ("train/loss", "train/grad_norm", "val/loss", "tokens"):
        assert metrics(halves, name) == metrics(straight, name), name
    whole = run_picture(straight, stage, "halves")
    assert whole == (halves / "loss.png").read_bytes() != of_a_half, "a resumed run draws what came before, too"
    losses = [float(value) for value in metrics(straight, "train/loss").values()]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    for name in ("last.ckpt", "best.ckpt"):
        one, two = weights(straight / "checkpoints" / name), weights(halves / "checkpoints" / name)
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_packed_and_padded_rows_train_alike(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2")
    for packed in ("true", "false"):
        train(*SFT, f"init_from={tmp_path / 'base' / 'tiny'}", f"stage.packed={packed}", f"run_name=packed_{packed}",
              "stage.num_steps=6")  # fmt: skip
    one, two = (metrics(tmp_path / "sft_scienceqa" / f"packed_{packed}", "train/loss") for packed in ("true", "false"))
    assert [float(v) for v in one.values()] == pytest.approx([float(v) for v in two.values()], abs=1e-4)


def test_a_checkpoint_is_enough_to_open_the_model(train: Train, tmp_path: Path):
    summary = train(*BASE, "stage.num_steps=2")
    loaded = load_model(tmp_path / "base" / "tiny", compute_dtype=torch.float32)
    assert loaded.step == 2
    assert loaded.stage == "base"
    assert loaded.config["depth"] == 1
    ids = loaded.tokenizer.encode("Iron is a metal.", prepend="<|bos|>")
    assert loaded.model(torch.tensor([ids])).shape == (1, len(ids), 512)
    assert sum(p.numel() for p in loaded.model.parameters()) == summary["num_parameters"]


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_checkpoint(train: Train, tmp_path: Path):
    train(*BASE, "trainer.stop_after_steps=3")
    folder = tmp_path / "base" / "tiny"
    before = weights(folder / "checkpoints" / "last.ckpt")
    with pytest.raises(DivergedError, match=r"at step \d+"):
        train(*BASE, "resume=auto", "optim.matrix_lr=1e37", "optim.unembedding_lr=1e37", "optim.grad_clip=null")
    after = weights(folder / "checkpoints" / "last.ckpt")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert json.loads((folder / "summary.json").read_text())["status"].startswith("failed")
    assert (folder / "loss.png").read_bytes() == run_picture(folder, "base", "tiny"), "the picture ends where it failed"


def test_a_run_folder_is_not_written_over(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2")
    with pytest.raises(ValueError, match=r"already holds .*resume=auto.*run_name=.*force=true"):
        train(*BASE, "stage.num_steps=2")
    assert train(*BASE, "stage.num_steps=3", "force=true")["step"] == 3


def test_a_run_without_its_last_checkpoint_goes_on_from_the_newest_whole_one_and_says_so(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = [*BASE, "stage.num_steps=6", "stage.checkpoint_every_steps=2", "stage.val_every_steps=3"]
    train(*config, "run_name=straight")
    train(*config, "trainer.stop_after_steps=5")
    folder = tmp_path / "base" / "tiny" / "checkpoints"
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:99_999])
    capsys.readouterr()
    train(*config, "resume=auto")
    said = capsys.readouterr().err
    assert "going on from the newest whole checkpoint" in said and "step_000004.ckpt (step 4)" in said
    assert "going on from the newest" in (folder.parent / "log.txt").read_text()
    one, two = weights(last), weights(tmp_path / "base" / "straight" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(one[key], two[key]) for key in one)
    for file in folder.glob("*.ckpt"):
        file.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole: best\.ckpt .*force=true"):
        train(*config, "resume=auto")
    assert train(*config, "resume=auto", "force=true", "stage.num_steps=2")["step"] == 2


def under_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what `srun` sets for a job of one process."""
    job = {"JOB_ID": "4711", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_a_forced_run_finds_nothing_of_the_run_before(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "base" / "tiny"
    train(*BASE, "stage.num_steps=2")
    expected, fresh = weights(folder / "checkpoints" / "last.ckpt"), {entry.name for entry in folder.iterdir()}
    fresh.discard(".lock")  # by which a process owns the folder
    assert all(any(Path(name).match(pattern) for pattern in RUN_FILES) for name in fresh), "all a run writes is listed"
    train(*BASE, "stage.num_steps=2", "force=true", "seed=7")
    shutil.copy(folder / "checkpoints" / "last.ckpt", folder / "hpc_ckpt_1.ckpt")
    for name in ("report/report.md", "eval/recall/last/results.json", "wandb/offline-run-1/run.wandb", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the run before")
    under_slurm(monkeypatch)
    train(*BASE, "stage.num_steps=2", "force=true")
    assert {entry.name for entry in folder.iterdir()} - {".lock"} == {*fresh, "notes.txt"}  # a user's own file stays
    again = weights(folder / "checkpoints" / "last.ckpt")
    assert all(torch.equal(expected[key], again[key]) for key in expected)


def test_lightning_loads_no_checkpoint_of_its_own_under_slurm(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train(*BASE, "stage.num_steps=2", "seed=7")
    expected = train(*BASE, "stage.num_steps=2", "run_name=plain")
    folder = tmp_path / "base" / "slurm"
    folder.mkdir()
    shutil.copy(tmp_path / "base" / "tiny" / "checkpoints" / "last.ckpt", folder / "hpc_ckpt_3.ckpt")
    under_slurm(monkeypatch)
    again = train(*BASE, "stage.num_steps=2", "run_name=slurm")  # without force=true: nothing was cleared
    assert again["train/loss"] == expected["train/loss"]
    assert [file.name for file in tmp_path.rglob("hpc_ckpt_*")] == ["hpc_ckpt_3.ckpt"]


def test_a_machine_that_has_slurm_trains_without_it_and_without_a_word_of_lightnings(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert train(*BASE, "stage.num_steps=2")["status"] == "finished"  # a warning would be an error here


def test_fine_tuning_says_how_to_make_the_weights_it_lacks(train: Train):
    with pytest.raises(FileNotFoundError, match=r"python train\.py stage=base run_name=tiny"):
        train(*SFT)


def test_rows_too_short_for_any_answer_are_refused(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2")
    with pytest.raises(ValueError, match=r"stage\.sequence_len=32 cuts the answer off every conversation"):
        train(*SFT, "stage.sequence_len=32", f"init_from={tmp_path / 'base' / 'tiny'}")


def conversations_file(folder: Path, *lengths: int) -> Path:
    """Write conversations whose questions have so many words; the tiny tokenizer makes at least a token of each."""
    path = folder / f"chats_{len(lengths)}.jsonl"
    rows = [
        [{"role": "user", "content": "word " * length}, {"role": "assistant", "content": "yes"}] for length in lengths
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def of_file(kind: str, path: Path) -> str:
    return f"mixture.{kind}={{own: {{_target_: nanochat_pl.tasks.jsonl.JSONL, path: {path}, val_fraction: 0}}}}"


def test_more_validation_rows_than_the_task_holds_means_all_of_them(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train(*BASE, "stage.num_steps=1", "run_name=start")
    path = conversations_file(tmp_path, 3, 3, 3)
    losses = []
    for rows in ("50", "null"):
        folder = tmp_path / "sft_scienceqa" / f"rows_{rows}"
        train(
            *SFT, "stage.num_steps=1", "stage.total_batch_rows=1", "stage.device_batch=1", f"stage.val_rows={rows}",
            f"init_from={tmp_path / 'base' / 'start'}", f"run_name={folder.name}", "~mixture",
            "+" + of_file("tasks", path), "+" + of_file("val_tasks", path),
        )  # fmt: skip
        losses.append([*metrics(folder, "val/loss").values()])
    said = capsys.readouterr()
    assert "there are 3 validation conversations, not stage.val_rows=50: all are used" in said.out + said.err
    assert losses[0] == losses[1] != []


def test_the_loss_of_a_step_without_a_supervised_token_is_no_number(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2", "run_name=start")
    path = conversations_file(tmp_path, 3, 500, 3, 500, 3, 500)
    train(
        *SFT, "stage.sequence_len=64", "stage.total_batch_rows=1", "stage.device_batch=1", "stage.num_steps=6",
        "stage.val_rows=3", f"init_from={tmp_path / 'base' / 'start'}", "~mixture", "+" + of_file("tasks", path),
        "+" + of_file("val_tasks", path), "stage.val_every_steps=null",
    )  # fmt: skip
    losses = [float(loss) for loss in metrics(tmp_path / "sft_scienceqa" / "tiny", "train/loss").values()]
    assert len(losses) == 6
    assert sum(map(math.isnan, losses)) == 3, losses
    assert all(loss > 0 for loss in losses if not math.isnan(loss))


def test_validation_whose_answers_are_all_cut_away_is_refused_before_training(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2", "run_name=start")
    short, long = conversations_file(tmp_path, *[3] * 8), conversations_file(tmp_path, 500, 400)
    with pytest.raises(
        ValueError, match=r"none of the 2 validation conversations .* set stage.sequence_len=\d+ or more"
    ):
        train(
            *SFT, "stage.sequence_len=64", "stage.num_steps=2", "stage.val_rows=null", "~mixture",
            f"init_from={tmp_path / 'base' / 'start'}", "+" + of_file("tasks", short), "+" + of_file("val_tasks", long),
        )  # fmt: skip
    assert not list((tmp_path / "sft_scienceqa").rglob("*.ckpt"))


class Dice(L.Callback):
    """A user's callback that draws from the random generators of Python and numpy."""

    drawn: ClassVar[list[tuple[float, float]]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: object, batch_idx: int):
        self.drawn.append((random.random(), float(np.random.random())))  # noqa: NPY002


def test_what_a_user_s_callback_draws_repeats_with_the_seed(train: Train):
    ours = ["+callbacks.dice={_target_: tests.integration.test_training.Dice}", "plugins.allow=[tests]"]
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        train(*BASE, "stage.num_steps=2", f"run_name={name}", f"seed={seed}", *ours)
    first, second, third = (Dice.drawn[i : i + 2] for i in (0, 2, 4))
    assert first == second != third
