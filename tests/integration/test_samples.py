"""Samples during training: what the checkpoint of that step would write, and nothing that training notices."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat_pl.checkpoint import load_model
from nanochat_pl.engine import Engine, Request
from tests.integration.conftest import BASE, SFT, Train, compose, metrics
from tests.integration.test_processes import command, run

PROMPTS = ["Iron is", "The largest planet is"]
SAMPLED = [f"stage.sample_prompts=[{','.join(PROMPTS)}]", "stage.sample_tokens=12"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_training_is_the_same_bit_for_bit_with_and_without_samples(train: Train, tmp_path: Path):
    config = [*BASE, *SAMPLED, "stage.num_steps=7", "stage.val_every_steps=3"]
    train(*config, "stage.sample_every_steps=2", "run_name=with")
    train(*config, "stage.sample_every_steps=null", "run_name=without")
    sampled, plain = tmp_path / "base" / "with", tmp_path / "base" / "without"
    for name in ("train/loss", "train/grad_norm", "val/loss", "tokens"):
        assert metrics(sampled, name) == metrics(plain, name), name
    one, two = weights(sampled), weights(plain)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [line["step"] for line in lines(sampled)] == [2, 2, 4, 4, 6, 6, 7, 7]
    assert not (plain / "samples.jsonl").exists()


@pytest.mark.parametrize("stage", ["base", "sft_scienceqa"])
def test_a_sample_is_what_the_checkpoint_of_that_step_writes(train: Train, tmp_path: Path, stage: str):
    config = BASE
    if stage != "base":
        train(*BASE, "stage.num_steps=2", "stage.sample_every_steps=null")
        config = [*SFT, f"init_from={tmp_path / 'base' / 'tiny'}"]
    kept = ["stage.checkpoint_every_steps=4", "stage.sample_every_steps=4", "engine.dtype=float32"]
    train(*config, *SAMPLED, *kept, "stage.num_steps=8", "stage.val_every_steps=null")
    folder = tmp_path / stage / "tiny"
    written = {(line["step"], line["prompt"]): line for line in lines(folder)}
    assert sorted(written) == sorted((step, prompt) for step in (4, 8) for prompt in PROMPTS)
    for step in (4, 8):
        loaded = load_model(folder / "checkpoints" / f"step_{step:06d}.ckpt", compute_dtype=torch.float32)
        tokenizer = loaded.tokenizer
        stop_ids = {tokenizer.bos_id, tokenizer.special_id("<|assistant_end|>")}
        engine = Engine(loaded.model, stop_ids, tokenizer, "float32")
        for prompt in PROMPTS:
            ids = tokenizer.encode(prompt, prepend=tokenizer.bos_id)
            if stage != "base":
                around = [tokenizer.special_id(f"<|{name}|>") for name in ("user_start", "user_end", "assistant_start")]
                ids = [ids[0], around[0], *ids[1:], *around[1:]]
            # one at a time, not together
            [completion] = engine.run([Request(ids, 12)])
            found = written[step, prompt]
            assert found["output"] == tokenizer.decode(completion.tokens)
            assert found["tokens"] == len(completion.tokens) > 0
            assert found["stopped"] == (completion.stop_token is not None)


def test_a_resumed_run_has_the_samples_of_a_straight_one(train: Train, tmp_path: Path):
    config = [*BASE, *SAMPLED, "stage.num_steps=6", "stage.sample_every_steps=2"]
    train(*config, "run_name=straight")
    halves = tmp_path / "base" / "halves"
    for stop in (3, 1):  # in between, and on a step that samples
        train(
            *config,
            "run_name=halves",
            "resume=auto" if stop == 1 else "resume=null",
            f"trainer.stop_after_steps={stop}",
        )
        with (halves / "samples.jsonl").open(
            "a", encoding="utf-8"
        ) as file:  # what a killed run wrote beyond its checkpoint
            file.write(json.dumps({"step": 5, "prompt": "of a run that was killed"}) + '\n{"step": 5, "pro')
    train(*config, "run_name=halves", "resume=auto")
    assert lines(halves) == lines(tmp_path / "base" / "straight")


def test_samples_show_in_the_log_and_what_cannot_be_sampled_is_said(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    long = "many words " * 40
    train(*BASE, f"stage.sample_prompts=[Iron is,{long}]", "stage.num_steps=2")
    said = capfd.readouterr().err
    [line] = lines(tmp_path / "base" / "tiny")
    assert "step 00002/00002 | Iron is → " in said
    assert "leave no room in rows of stage.sequence_len=64" in said
    assert line["prompt"] == "Iron is"


def test_samples_of_no_prompt_are_refused_and_a_new_stage_has_none():
    with pytest.raises(ValueError, match=r"stage\.sample_every_steps=2000 needs prompts.*sample_every_steps=null"):
        compose([*BASE, "stage.sample_prompts=[]"])
    assert compose([*BASE, "stage=rl"]).stage.sample_every_steps is None


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_write_the_samples_once(world: Path, tmp_path: Path):
    config = [*BASE, *SAMPLED, "stage.num_steps=4", "stage.sample_every_steps=1", "data.logical_shards=2",
              "optim.ns_dtype=float32"]  # fmt: skip
    for devices in (1, 2):
        done = run(command(world, tmp_path, *config, f"run_name=n{devices}", f"trainer.devices={devices}"), tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (lines(tmp_path / "base" / name) for name in ("n1", "n2"))
    assert [(line["step"], line["prompt"]) for line in two] == [(line["step"], line["prompt"]) for line in one]
