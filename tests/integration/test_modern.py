"""The recipe of 2026, and a short convolution on top of it, through the stages as users run them."""

from pathlib import Path

import pytest
import torch

from nanochat_pl.checkpoint import load_model
from nanochat_pl.engine import Engine, Request
from tests.integration.conftest import BASE, SFT, TINY, Train, metrics

MODERN = ("model=modern", "optim=modern", "depth=2", "model.short_conv=4", "model.window_pattern=SL")


def states(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Return weights, and optimizer states as text that is equal where all bits are."""
    torch.set_printoptions(threshold=10**9, precision=9)
    try:
        loaded = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        return loaded["state_dict"], str(loaded["optimizer_states"])
    finally:
        torch.set_printoptions(profile="default")


@pytest.mark.parametrize("stage", ["base", "sft_scienceqa"])
def test_resume_equals_a_straight_run_bit_for_bit(train: Train, tmp_path: Path, stage: str):
    run = [*(BASE if stage == "base" else SFT), *MODERN, "stage.num_steps=6"]
    if stage != "base":
        train(*BASE, *MODERN, "stage.num_steps=2")
        run.append(f"init_from={tmp_path / 'base' / 'tiny'}")
    train(*run)
    train(*run, "run_name=halves", "trainer.stop_after_steps=3")
    train(*run, "run_name=halves", "resume=auto")
    straight, halves = states(tmp_path / stage / "tiny"), states(tmp_path / stage / "halves")
    assert all(torch.equal(straight[0][name], halves[0][name]) for name in straight[0])
    assert straight[1] == halves[1] and "second_moment" in straight[1]
    names = ["resid_lambdas_0", "resid_lambdas_1", "x0_lambdas_0", "x0_lambdas_1", "smear_lambda", "backout_lambda"]
    for name in names:
        logged = metrics(tmp_path / stage / "tiny", f"scalar/{name}")
        assert [*logged] == [0, 6] and logged == metrics(tmp_path / stage / "halves", f"scalar/{name}"), name
    assert float(logged[6]) == pytest.approx(float(straight[0]["model.backout_lambda"]))


@pytest.mark.slow
def test_the_whole_chain_trains_and_the_engine_answers_as_the_model_does(train: Train, tmp_path: Path):
    train(*BASE, *MODERN)
    mid = [
        "stage=mid",
        "mixture=microworld_mid",
        "stage.num_steps=4",
        "stage.total_batch_tokens=512",
        "stage.val_tokens=512",
    ]
    train(*TINY, *MODERN, *mid)
    train(*SFT, *MODERN)
    rl = ["rl.prompts_per_step=2", "rl.num_samples=2", "rl.max_new_tokens=4", "rl.val_questions=2", "rl.val_samples=1"]
    train(*TINY, *MODERN, "stage=rl", "mixture=microworld_rl", "stage.sequence_len=256", "stage.num_steps=2", *rl)
    loaded = load_model(tmp_path / "rl" / "tiny")
    assert loaded.model.config.short_conv == 4 and loaded.model.config.smear
    trained = load_model(tmp_path / "base" / "tiny").model  # with rows of another length
    assert loaded.model.windows == trained.windows and loaded.model.config.sequence_len != trained.config.sequence_len
    prompt = loaded.tokenizer.encode("The sun is", prepend=loaded.tokenizer.bos_id)
    row = list(prompt)
    for _ in range(100):  # past the length that the layers see
        row.append(int(loaded.model(torch.tensor([row]))[0, -1].argmax()))
    (completion,) = Engine(loaded.model, (), dtype="float32").run(
        [Request(prompt, max_new_tokens=100, temperature=0.0)]
    )
    assert completion.tokens == row[len(prompt) :]


@pytest.mark.slow
def test_a_compiled_model_computes_what_an_eager_one_does(train: Train, tmp_path: Path):
    eager = train(*BASE, *MODERN, "stage.num_steps=3")
    compiled = train(*BASE, *MODERN, "stage.num_steps=3", "run_name=compiled", "trainer.compile=true")
    assert compiled["val/loss"] == pytest.approx(eager["val/loss"], abs=1e-4)
