"""Whole runs of reinforcement learning: it learns, resumes exactly at any step, and does not depend on the ranks."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat_pl.checkpoint import load_model
from nanochat_pl.report.history import run_picture
from nanochat_pl.tasks.base import Conversation, Task
from nanochat_pl.training.rl_module import PolicyModel
from tests.conftest import REPO
from tests.integration.conftest import BASE, TINY, Train, metrics
from tests.integration.test_processes import command, last_weights, run

RL = [
    *TINY,
    "stage=rl",
    "mixture=arithmetic",
    "plugins.allow=[tests.]",
    *(f"mixture.{part}.arithmetic._target_=tests.integration.test_rl.SayE" for part in ("tasks", "val_tasks")),
    *(f"mixture.{part}.arithmetic.size=24" for part in ("tasks", "val_tasks")),
    "stage.device_batch=12",
    "stage.num_steps=10",
    "stage.val_every_steps=5",
    "rl.prompts_per_step=4",
    "rl.num_samples=4",
    "rl.max_new_tokens=5",
    "rl.val_questions=12",
    "rl.val_samples=3",
    "optim.init_lr_frac=0.5",
    "optim.ns_dtype=float32",
]


class SayE(Task):
    """Questions of different lengths; an answer is right if it holds the letter e."""

    graded = True

    def __init__(self, split: str = "train", *, size: int):
        self._size = size
        super().__init__()

    @property
    def num_rows(self) -> int:
        return self._size

    def conversation(self, row: int, epoch: int) -> Conversation:
        question = "Iron is a metal. " * (row % 3 + 1) + str(row)
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "e"}]}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        return "e" in completion


class Ungraded(SayE):
    graded = False


class NeverRight(SayE):
    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        return False


@pytest.fixture
def start(train: Train, tmp_path: Path) -> str:
    """Initial weights: a base model that has seen next to nothing."""
    train(*BASE, "stage.num_steps=2", "stage.val_every_steps=null")
    return f"init_from={tmp_path / 'base' / 'tiny'}"


@pytest.mark.parametrize(
    "algorithm", ["reinforce", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rloo", "grpo", "dapo"))]
)
def test_training_makes_rewarded_answers_the_rule(train: Train, start: str, tmp_path: Path, algorithm: str):
    summary = train(*RL, start, f"rl.algorithm={algorithm}", "stage.num_steps=25", "stage.val_every_steps=25",
                    "rl.num_samples=8")  # fmt: skip
    before = float(metrics(tmp_path / "rl" / "tiny", "pass@1")[0])
    assert before < 0.6
    assert summary["pass@1"] > 0.9
    assert summary["pass@1_greedy"] > 0.9
    assert summary["best"] == summary["pass@1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["rl.algorithm=reinforce"],
        ["rl.algorithm=grpo", "rl.steps_per_rollout=2", "rl.kl_coef=0.1"],
        ["rl.algorithm=dapo", "rl.steps_per_rollout=2"],
    ],
    ids=lambda settings: settings[0].partition("=")[2],
)
def test_resume_equals_a_straight_run_bit_for_bit(train: Train, start: str, tmp_path: Path, settings: list[str]):
    train(*RL, start, *settings, "run_name=straight")
    interrupted = train(*RL, start, *settings, "run_name=halves", "trainer.stop_after_steps=5")
    assert (interrupted["status"], interrupted["step"]) == ("stopped", 5)
    train(*RL, start, *settings, "run_name=halves", "resume=auto")
    straight, halves = tmp_path / "rl" / "straight", tmp_path / "rl" / "halves"
    names = ["train/loss", "train/grad_norm", "reward", "sequence_length", "rl/entropy", "pass@1", "pass@3", "tokens"]
    names += ["rl/kl"] if "rl.kl_coef=0.1" in settings else []
    for name in names:
        assert metrics(straight, name), name
        assert metrics(halves, name) == metrics(straight, name), name
    assert (halves / "loss.png").read_bytes() == run_picture(straight, "rl", "halves")
    assert (halves / "samples.jsonl").read_text() == (straight / "samples.jsonl").read_text()
    one, two = last_weights(straight), last_weights(halves)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_that_dies_as_soon_as_it_resumed_can_resume_again(
    train: Train, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = [*RL, start, "rl.algorithm=grpo", "rl.steps_per_rollout=2", "rl.kl_coef=0.1"]
    train(*config, "run_name=straight")
    train(*config, "run_name=dying", "trainer.stop_after_steps=5")

    def die(*args: Any) -> None:
        raise OSError("the power is off")

    with monkeypatch.context() as patch:
        patch.setattr(PolicyModel, "prepare", die)
        with pytest.raises(OSError, match="the power is off"):
            train(*config, "run_name=dying", "resume=auto")
    train(*config, "run_name=dying", "resume=auto")
    one, two = last_weights(tmp_path / "rl" / "straight"), last_weights(tmp_path / "rl" / "dying")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_rollout_is_split_among_steps_per_rollout(train: Train, start: str, tmp_path: Path):
    train(*RL, start, "rl.algorithm=grpo", "rl.steps_per_rollout=2", "stage.num_steps=6", "optim.init_lr_frac=2")
    folder = tmp_path / "rl" / "tiny"
    rewards = list(metrics(folder, "reward").values())
    assert rewards[0::2] == rewards[1::2]
    clipped = [float(value) for value in metrics(folder, "rl/clip_frac").values()]
    assert clipped[0::2] == [0.0] * 3, "the first step of a rollout is on-policy"
    assert max(clipped[1::2]) > 0
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert all(len(line["answers"]) == 4 for line in lines)


@pytest.mark.parametrize("algorithm", ["reinforce", "dapo"])
def test_equal_rewards_leave_the_weights_unchanged(train: Train, start: str, tmp_path: Path, algorithm: str):
    task = "mixture.tasks.arithmetic._target_=tests.integration.test_rl.NeverRight"
    summary = train(*RL, start, f"rl.algorithm={algorithm}", task, "stage.num_steps=2")
    assert (summary["reward"], summary["rl/no_signal_frac"], summary["train/grad_norm"]) == (0, 1, 0)
    before = torch.load(tmp_path / "base" / "tiny" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    after = last_weights(tmp_path / "rl" / "tiny")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_checkpoint_is_enough_to_open_the_model(train: Train, start: str, tmp_path: Path):
    train(*RL, start, "stage.num_steps=2", "rl.kl_coef=0.1")
    loaded = load_model(tmp_path / "rl" / "tiny", compute_dtype=torch.float32)
    assert (loaded.stage, loaded.step) == ("rl", 2)


def test_the_divergence_is_measured_from_the_start_weights(train: Train, start: str, tmp_path: Path):
    train(*RL, start, "rl.kl_coef=0.01")
    divergence = [float(value) for value in metrics(tmp_path / "rl" / "tiny", "rl/kl").values()]
    assert divergence[0] == 0
    assert min(divergence[1:]) > 0


def test_an_epoch_is_every_question_once(train: Train, start: str):
    summary = train(*RL, start, "stage.num_steps=null", "stage.num_epochs=1", "rl.steps_per_rollout=2",
                    "rl.algorithm=grpo", "rl.val_questions=2")  # fmt: skip
    assert summary["num_steps"] == 24 // 4 * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["stage.total_batch_rows=8"], r"rl\.prompts_per_step.*stage\.total_batch_rows=null"),
        (["stage.val_rows=8"], r"stage\.val_rows.*rl\.val_questions"),
        (["stage.packed=false"], r"stage\.packed=false.*no effect on stage=rl"),
        (["trainer.compile=true"], r"trainer\.compile=true would compile anew.*leave it auto"),
        (["rl.steps_per_rollout=3"], r"rl\.prompts_per_step=4 is not a multiple.*= 3; set rl\.prompts_per_step=3"),
        (["rl.max_new_tokens=64"], r"leaves no room for a question in stage\.sequence_len=64"),
        (["rl.max_new_tokens=60"], r"every one of the 24 questions is longer than the 4 tokens"),
        (["rl.prompts_per_step=32"], r"more than the 24 questions there are; set rl\.prompts_per_step=24"),
        (["stage.num_steps=null", "stage.tokens_per_param=1"], r"give stage\.num_epochs or stage\.num_steps"),
        (["mixture.val_tasks.arithmetic._target_=tests.integration.test_rl.Ungraded"], r"task arithmetic \(Ungraded\)"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_remedy(train: Train, start: str, settings: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        train(*RL, start, *settings)


def test_a_kl_term_cannot_be_added_to_a_run_that_kept_no_start_weights(train: Train, start: str):
    train(*RL, start, "trainer.stop_after_steps=2")
    with pytest.raises(ValueError, match=r"rl\.kl_coef=0\.1 needs the initial weights"):
        train(*RL, start, "rl.kl_coef=0.1", "resume=auto")


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_train_as_one_and_what_they_leave_of_a_rollout_continues_on_one(
    world: Path, start: str, tmp_path: Path
):
    # one rollout: after an update, a difference in rounding may sample other tokens
    config = [*RL, start, "rl.algorithm=grpo", "rl.steps_per_rollout=2", "rl.kl_coef=0.1", "stage.num_steps=2"]
    for extra in (
        ["run_name=n1"],
        ["run_name=n2", "trainer.devices=2", "trainer.stop_after_steps=1"],
        ["run_name=n2", "resume=auto"],
    ):
        done = run(command(world, tmp_path, *config, *extra), tmp_path, PYTHONPATH=str(REPO))
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "rl" / "n1", tmp_path / "rl" / "n2"
    for name in ("train/loss", "train/grad_norm", "reward", "rl/entropy", "rl/kl", "sequence_length"):
        first, second = ([float(v) for v in metrics(folder, name).values()] for folder in (one, two))
        assert len(first) == 2
        assert first == pytest.approx(second, abs=2e-4), name
    assert float(metrics(one, "pass@1")[0]) == pytest.approx(float(metrics(two, "pass@1")[0]))
    a, b = last_weights(one), last_weights(two)
    assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-3


def test_the_summary_says_what_kept_generated_code_in(train: Train, start: str, world: Path):
    task = f"_target_:nanochat_pl.tasks.humaneval.HumanEval,path:{world / 'data' / 'humaneval'},sandbox:weak,at_most:2"
    summary = train(*RL, start, f"+mixture.val_tasks.code={{{task}}}", "stage.num_steps=1", "stage.sequence_len=512")
    assert summary["sandbox"] == {"code": "weak"}
    with pytest.raises(ValueError, match="sandbox=none is unknown"):
        train(*RL, start, f"+mixture.val_tasks.code={{{task.replace('weak', 'none')}}}", "run_name=other")
