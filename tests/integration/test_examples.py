"""The pages in `examples/` compute what the framework computes: equal weights, equal tokens."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from examples.generate import generate
from examples.pretrain import pretrain

from nanochat_pl import Engine, Request, load_model
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
