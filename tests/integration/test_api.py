"""`nanochat_pl.train` and `nanochat_pl.evaluate` do what the scripts do, and raise what those report."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import nanochat_pl
from nanochat_pl.cli.train import main as train_command
from nanochat_pl.training.callbacks.summary import Summary

STAGE = {"num_steps": 2, "sequence_len": 32, "device_batch": 2, "total_batch_tokens": 128, "val_tokens": 256}
TRAINER = {"accelerator": "cpu", "compute_dtype": "float32"}
TINY: dict[str, Any] = {"depth": 1, "model": {"n_embd": 64}, "tokenizer": {"vocab_size": 300}, "trainer": TRAINER}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_train_and_evaluate_leave_and_return_what_the_scripts_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    base = nanochat_pl.train("stage=base", run_name="called", **TINY, **{f"stage.{k}": v for k, v in STAGE.items()})
    assert base.folder == Path("outputs/base/called")
    assert base.summary == json.loads((base.folder / "summary.json").read_text())
    assert repr(base) == "RunResult(folder=PosixPath('outputs/base/called'))"

    tokenizer = f"tokenizer.path={Path('outputs/tokenizer/called').resolve()}"
    typed = [f"stage.{key}={value}" for key, value in STAGE.items()]
    typed += [*(f"trainer.{key}={value}" for key, value in TRAINER.items()), "model.n_embd=64", "depth=1"]
    assert train_command(["stage=base", "run_name=typed", "tokenizer.vocab_size=300", tokenizer, *typed]) == 0
    ours, theirs = weights(base.folder), weights(Path("outputs/base/typed"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    [measured] = nanochat_pl.evaluate(ckpt=base.folder, eval={"name": "bpb", "val_tokens": 256}, trainer=TRAINER)
    assert measured.folder == base.folder / "eval" / "bpb" / "best"
    assert measured.summary["name"] == "bpb" and measured.summary["metrics"]

    loaded = nanochat_pl.load_model(base.folder)
    assert repr(loaded).startswith("LoadedModel('outputs/base/called/checkpoints/")
    assert len(repr(loaded)) < 160


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depht": 2}, "depht"),
        ({"depth": [1, 2]}, "depth"),
        ({"sweep": "matrix_lr"}, "a sweep runs many jobs"),
        ({"experiment": "quickstart"}, "a chain runs its stages"),
        ({"trainer": {"devices": 2}}, "2 devices take 2 processes"),
        ({"stage": "mid"}, "python train.py stage=base"),
    ],
    ids=str,
)
def test_what_the_script_would_refuse_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], said: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        nanochat_pl.train(**arguments)
    assert not any(tmp_path.iterdir())


def test_a_signal_interrupts_the_caller_and_the_run_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def interrupt(self: Summary, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Summary, "on_train_batch_end", interrupt)
    with pytest.raises(KeyboardInterrupt, match="step 2 and saved"):
        nanochat_pl.train(stage=STAGE | {"num_steps": 3}, run_name="stopped", **TINY)
    assert (tmp_path / "outputs/base/stopped/checkpoints/last.ckpt").is_file()
