"""The pages in `examples/` compute what the framework computes: equal weights, equal tokens."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from examples.generate import generate
from examples.pretrain import pretrain
from examples.rl import reward_sums
from examples.sft import finetune

from nanochat_pl import Engine, Request, load_model
from nanochat_pl.tasks.arithmetic import Arithmetic
from tests.integration.conftest import train_below

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("example")
    return folder, pretrain(folder, num_steps=6, rows=2, length=64)


@pytest.mark.slow
def test_the_pretraining_page_gives_the_weights_and_figures_of_train_py(pretrained: tuple[Path, float], tmp_path: Path):
    folder, bits_per_byte = pretrained
    page = load_model(folder / "base.ckpt")
    page.tokenizer.save(tmp_path / "tokenizer")
    summary = train_below(
        tmp_path,
        folder,
        *("stage=base", "run_name=same", "depth=1", f"data.root={folder / 'world'}", "tokenizer.vocab_size=2048"),
        *("stage.sequence_len=64", "stage.device_batch=2", "stage.total_batch_tokens=256", "stage.num_steps=6"),
        *("stage.val_tokens=16384", "trainer.accelerator=cpu", "trainer.compute_dtype=float32"),
        *("trainer.compile=false", f"tokenizer.path={tmp_path / 'tokenizer'}"),
    )
    trained = load_model(tmp_path / "base" / "same")
    ours, theirs = page.model.state_dict(), trained.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert summary["val/bpb"] == bits_per_byte


@pytest.mark.slow
def test_the_generation_page_gives_the_engines_tokens(pretrained: tuple[Path, float]):
    loaded = load_model(pretrained[0] / "base.ckpt")
    prompt = loaded.tokenizer.encode("The sun is", prepend=loaded.tokenizer.bos_id)
    (completion,) = Engine(loaded.model, (), dtype="float32").run([Request(prompt, max_new_tokens=16, temperature=0.0)])
    assert generate(loaded.model, prompt, 16) == completion.tokens
    told = subprocess.run(
        [sys.executable, "examples/generate.py", str(pretrained[0] / "base.ckpt"), "The sun is"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.startswith("The sun is")


SAME = (
    *("mixture=arithmetic", "run_name=same", "depth=1", "stage.sequence_len=64", "trainer.accelerator=cpu"),
    *("trainer.compute_dtype=float32", "trainer.compile=false"),
)


def equal_weights(page: Path, run: Path) -> bool:
    ours, theirs = (load_model(path).model.state_dict() for path in (page, run))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_the_fine_tuning_page_gives_the_weights_and_figures_of_train_py(pretrained: tuple[Path, float], tmp_path: Path):
    folder, _ = pretrained
    loss = finetune(folder / "base.ckpt", folder, num_steps=4, conversations=8, length=64)
    summary = train_below(
        tmp_path,
        folder,
        *("stage=sft", *SAME, f"init_from={folder / 'base.ckpt'}", "stage.num_steps=4", "stage.total_batch_rows=8"),
        *("stage.device_batch=4", "stage.val_rows=100", "optim.init_lr_frac=0.2"),
    )
    assert equal_weights(folder / "sft.ckpt", tmp_path / "sft" / "same" / "last")
    assert summary["val/loss"] == loss


@pytest.mark.slow
def test_the_page_of_rewards_gives_the_weights_and_rewards_of_train_py(
    pretrained: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, _ = pretrained
    # Nothing is right after six steps: a reward that tells answers apart lets the weights move.
    monkeypatch.setattr(Arithmetic, "grade", lambda self, conversation, completion: len(completion) % 2 == 0)
    rewards = reward_sums(folder / "base.ckpt", folder, num_steps=3, prompts=2, length=64)
    summary = train_below(
        tmp_path,
        folder,
        *("stage=rl", *SAME, f"init_from={folder / 'base.ckpt'}", "stage.num_steps=3", "stage.device_batch=8"),
        *("rl.prompts_per_step=2", "rl.num_samples=8", "rl.max_new_tokens=32", "rl.val_questions=2"),
        *("rl.val_samples=1", "optim.init_lr_frac=0.05"),
    )
    assert equal_weights(folder / "rl.ckpt", tmp_path / "rl" / "same" / "last")
    assert not equal_weights(folder / "rl.ckpt", folder / "base.ckpt")
    assert summary["reward"] == rewards[-1]
