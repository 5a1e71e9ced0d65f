"""What users get wrong: one clear line, a non-zero exit code, nothing lost, before any training."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nanochat_pl.cli import evaluate as evaluate_command
from nanochat_pl.cli import train as train_command
from tests.conftest import REPO
from tests.integration.conftest import BASE, SFT, TINY, Train

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])


def text_folder(root: Path, *tables: dict[str, list]) -> Path:
    (root / "fineweb_like").mkdir(parents=True)
    for index, table in enumerate(tables):
        pq.write_table(pa.table(table), root / "fineweb_like" / f"shard_{index:05d}.parquet")
    return root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optim.matrix_lrr=0.1"], r"no setting is called optim\.matrix_lrr; did you mean optim\.matrix_lr\?"),
        (["matrix_lr=0.1"], r"did you mean optim\.matrix_lr\?"),
        (["optim.matrix_lr=abc"], r"optim\.matrix_lr takes a number"),
        (["stage.num_steps=1.5"], r"stage\.num_steps takes a whole number, or null"),
        (["stage=sftt"], r"sftt"),
        (["+optim.foo=1"], r"no setting is called optim\.foo"),
        (["trainer.accelerator=tpu"], r"tpu"),
        (["optim.matrix_lr=0.1,0.2"], r"several values need -m"),
        (["stage.total_batch_tokens=5000"], r"5000.*stage\.device_batch|5000.*device_batch"),
        (["stage.num_steps=5", "stage.tokens_per_param=20"], r"both set how long to train"),
        (["stage.num_epochs=2"], r"stage\.num_steps"),
        (["optim.matrix_lr=-1"], r"optim\.matrix_lr=-1"),
        (["depth=0"], r"depth=0"),
        (["model.n_embd=100", "model.n_head=3"], r"model\.n_embd=100 is not a multiple"),
        (["stage=sft_scienceqa", "run_name=none"], r"python train\.py stage=base run_name=none"),
        (["stage=sft_scienceqa", "init_from=nowhere"], r"init_from=nowhere does not exist"),
        (["stage=sft_scienceqa", "stage.total_batch_tokens=64"], r"stage\.total_batch_rows"),
        (["resume=nowhere/last.ckpt"], r"nowhere"),
        (["data=local"], r"data\.root"),
        (["data=local", "data.root=nowhere"], r"data\.root=nowhere"),
        (["+callbacks.mine={_target_: os.system}"], r"_target_=os\.system is outside .*plugins\.allow=\[os\]"),
        (
            ["+callbacks.mine={_target_: nanochat_pl.paths.os.system}"],
            r"there is no module nanochat_pl\.paths\.os; give",
        ),
        (["trainer.compile=perhaps"], r"trainer\.compile=perhaps"),
        (["stage=tokenizer", "trainer.stop_after_steps=3"], r"trainer\.stop_after_steps has no effect"),
        (["-m", "experiment=quickstart", "seed=1,2"], r"a chain .*cannot be swept"),
        (["stage=sft_scienceqa", "depth=6"], r"stage=base run_name=d6 depth=6`"),
    ],
)
def test_a_wrong_command_says_what_to_do(arguments: list[str], message: str, capsys: Capture, tmp_path: Path):
    assert train_command.main([*arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert_matches(message, error)
    assert not (tmp_path / "outputs" / "base").exists()


def test_a_sweep_of_a_config_does_not_mind_a_run_folder_that_is_taken():
    from nanochat_pl.config.command_line import CommandLine
    from nanochat_pl.config.compose import compose_jobs

    assert compose_jobs("train", CommandLine.parse(["sweep=matrix_lr"]))[0].sweep is not None
    assert compose_jobs("train", CommandLine.parse(["-m", "depth=1,2"]))[0].sweep is not None
    assert compose_jobs("train", CommandLine.parse(["depth=1"]))[0].sweep is None


@pytest.mark.parametrize("argument", ["init_from={}/last.ckpt", "resume={}/last.ckpt"])
def test_a_run_in_a_folder_is_not_lost_to_weights_from_elsewhere(argument: str, capsys: Capture, tmp_path: Path):
    for name in ("mine", "other"):
        (tmp_path / "outputs" / "base" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "outputs" / "base" / name / "checkpoints" / "last.ckpt").touch()
    other = tmp_path / "outputs" / "base" / "other" / "checkpoints"
    assert train_command.main(["run_name=mine", argument.format(other)]) == 1
    assert_matches(r"outputs/base/mine already holds last\.ckpt", capsys.readouterr().err)
    assert train_command.main(["run_name=other", f"init_from={other}/last.ckpt", "force=true"]) == 1
    assert_matches(r"force=true would throw away", capsys.readouterr().err)


def test_paths_with_an_equals_sign_in_a_list_need_no_quotes(capsys: Capture):
    assert evaluate_command.main(["ckpt=[outputs/epoch=1.ckpt,b]"]) == 1
    assert_matches(r"no checkpoint at outputs/epoch=1\.ckpt", capsys.readouterr().err)


def assert_matches(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text.replace("\n", " ")), f"{pattern!r} is not in {text!r}"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], r"no \*\.parquet"),
        ([{"text": ["a b"]}], r"one shard only"),
        ([{"words": ["a b"]}, {"text": ["c d"]}], r"shard_00000\.parquet.*text"),
        ([{"text": pa.array([], pa.string())}, {"text": ["c d"]}], r"shard_00000\.parquet.*no documents"),
    ],
)
def test_unusable_text_files_are_named(tables: list[dict], message: str, capsys: Capture, tmp_path: Path):
    root = text_folder(tmp_path / "data", *tables)
    assert train_command.main([*BASE, "data=local", f"data.root={root}"]) == 1
    assert_matches(message, capsys.readouterr().err)


def test_a_truncated_parquet_is_named(capsys: Capture, tmp_path: Path):
    root = text_folder(tmp_path / "data", {"text": ["a b"] * 100}, {"text": ["c d"]})
    shard = root / "fineweb_like" / "shard_00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-20])
    assert train_command.main([*BASE, "data=local", f"data.root={root}"]) == 1
    assert_matches(r"shard_00000\.parquet", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"body": "x"}\n', r"a\.jsonl:1 has no column 'text' \(it has: body\).*data\.column="),
        ("a.csv", "body\nx\n", r"a\.csv, row 0 .* has no column 'text'"),
        ("deep/a.jsonl.zst", "x", r"a\.jsonl\.zst is truncated or not what its name says"),
        ("a.txt", "x\0", r"a\.txt: line 1 has zero bytes"),
    ],
)
def test_unusable_text_of_other_forms_is_named_before_anything_is_written(
    name: str, content: str, message: str, capsys: Capture, tmp_path: Path
):
    file = tmp_path / "data" / "fineweb_like" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert train_command.main([*BASE, "data=local", f"data.root={tmp_path / 'data'}"]) == 1
    assert_matches(message, capsys.readouterr().err)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("path", ["pirate.jsonl", "pirate.json", "pirate.ndjson"])
def test_a_file_of_conversations_that_is_not_there_is_named_with_its_task(path: str, capsys: Capture, tmp_path: Path):
    tasks = ("arc_easy", "arc_challenge", "gsm8k", "smoltalk", "identity", "spelling", "spelling_bee")
    others = [f"mixture.tasks.{name}=null" for name in tasks]
    arguments = ["stage=sft", "data=local", f"data.root={tmp_path}", *others]
    assert train_command.main([*arguments, f"+mixture.tasks.pirate={path}"]) == 1
    assert_matches(rf"there is no {path}, which mixture\.tasks\.pirate reads", capsys.readouterr().err)


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_a_checkpoint_that_carries_code_runs_nothing(train: Train, capsys: Capture, tmp_path: Path):
    for name, data in (
        ("code.ckpt", {"state_dict": {}, "nanochat_pl": Bomb()}),
        ("foreign.ckpt", {"weights": torch.zeros(2)}),
    ):
        torch.save(data, tmp_path / name)
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(Bomb()))
    train(*BASE, "stage.num_steps=2")
    whole = (tmp_path / "base" / "tiny" / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    for name, message in (
        ("code.ckpt", "nothing was executed"),
        ("pickle.ckpt", "nothing was executed|cannot be read"),
        ("foreign.ckpt", "was not written by this project"),
        ("truncated.ckpt", "truncated"),
    ):
        with pytest.raises(ValueError, match=message):
            train(*SFT, f"init_from={tmp_path / name}")
        assert not (tmp_path / "exploded").exists()


def test_evaluate_names_what_is_missing(capsys: Capture):
    assert evaluate_command.main(["ckpt=outputs/base/none"]) == 1
    assert_matches(r"outputs/base/none", capsys.readouterr().err)
    assert evaluate_command.main([]) in (1, 2)
    assert_matches(r"ckpt is not set", capsys.readouterr().err)
    assert evaluate_command.main(["ckpt=a,b"]) == 2
    assert_matches(r"'ckpt=\[a,b\]'", capsys.readouterr().err)


def test_a_path_with_an_equals_sign_needs_no_quotes(train: Train, capsys: Capture, tmp_path: Path):
    train(*BASE, "stage.num_steps=2")
    odd = tmp_path / "epoch=1-step=2.ckpt"
    odd.write_bytes((tmp_path / "base" / "tiny" / "checkpoints" / "last.ckpt").read_bytes())
    assert train_command.main([*SFT, f"init_from={odd}", "stage.total_batch_rows=7", "trainer.devices=2"]) == 1
    assert_matches(r"total_batch_rows=7 is not a multiple", capsys.readouterr().err)


def test_more_rows_than_there_are_is_refused_with_both_numbers(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2")
    with pytest.raises(ValueError, match=r"999,999.*there are [\d,]+"):
        train(*SFT, f"init_from={tmp_path / 'base' / 'tiny'}", "data.train_rows=999999")


def test_another_tokenizer_than_the_checkpoint_s_is_refused(train: Train, world: Path, tmp_path: Path):
    from nanochat_pl.tokenizer import Tokenizer

    train(*BASE, "stage.num_steps=2")
    Tokenizer.train(["one two three four five six seven"] * 3, 270).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"vocabulary 270.*vocabulary 512"):
        train(*SFT, f"init_from={tmp_path / 'base' / 'tiny'}", f"tokenizer.path={tmp_path / 'other'}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that the test wants missing")
def test_cuda_where_there_is_none_is_refused(train: Train):
    with pytest.raises(ValueError, match=r"CUDA|gpu"):
        train(*BASE, "trainer.accelerator=gpu")


def test_a_full_disk_keeps_the_earlier_checkpoint(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nanochat_pl.training.callbacks.checkpoints import CheckpointWriteError

    train(*BASE, "trainer.stop_after_steps=2")
    last = tmp_path / "base" / "tiny" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    def no_space(checkpoint: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(CheckpointWriteError, match=r"no space left.*earlier checkpoints are untouched"):
        train(*BASE, "resume=auto")
    assert last.read_bytes() == before
    assert [p.name for p in last.parent.iterdir() if p.suffix == ".tmp"] == []


@pytest.mark.slow
def test_the_script_itself_fails_fast_without_a_traceback(tmp_path: Path):
    command = [sys.executable, str(REPO / "train.py"), *TINY, "optim.matrix_lrr=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: optim.matrix_lrr=1")
    assert "Traceback" not in done.stderr
