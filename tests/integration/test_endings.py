"""A run owns its folder, and ends when it is at its end."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat_pl.config.checks import preflight
from nanochat_pl.config.schema import EvaluateConfig
from nanochat_pl.training.callbacks.checkpoints import Checkpoints
from nanochat_pl.training.callbacks.conversations import ConversationCounts
from nanochat_pl.training.callbacks.evaluation import Evaluations
from nanochat_pl.training.callbacks.samples import PromptSamples
from nanochat_pl.training.callbacks.summary import Summary
from nanochat_pl.training.claim import FolderInUseError, claimed
from nanochat_pl.training.state import CheckpointFolder
from tests.integration.conftest import BASE, SFT, TINY, Train, compose, train_below

KINDS: dict[str, list[str]] = {
    "base": BASE,
    "resume": [*BASE, "resume=auto"],
    "force": [*BASE, "force=true"],
    "sft": SFT,
    "rl": [*TINY, "stage=rl", "stage.num_steps=2"],
    "tokenizer": ["stage=tokenizer", "run_name=tiny", "force=true"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_in_use_is_refused_to_every_kind_of_run_and_left_as_it_is(train: Train, tmp_path: Path, kind: str):
    stage = next(word for word in KINDS[kind] if word.startswith("stage=")).partition("=")[2]
    folder = tmp_path / stage / "tiny"
    with claimed(folder):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"of the first")
        before = sorted(folder.rglob("*"))
        with pytest.raises(FolderInUseError, match="in use by process"):
            train(*KINDS[kind])
        assert sorted(folder.rglob("*")) == before


def test_results_that_another_process_writes_are_refused_before_anything_is_asked(train: Train, tmp_path: Path):
    from nanochat_pl.eval.runner import evaluate

    train(*BASE, "stage.num_steps=1")
    cfg: Any = EvaluateConfig()
    cfg.trainer.accelerator, cfg.eval.name = "cpu", "bpb"
    results = tmp_path / "base" / "tiny" / "eval" / "bpb" / "best"
    with claimed(results), pytest.raises(FolderInUseError, match="in use by process"):
        evaluate(cfg, [str(tmp_path / "base" / "tiny")], {}, None)
    assert not list(results.glob("*.json*"))
    assert json.loads((tmp_path / "base" / "tiny" / "summary.json").read_text())["status"] == "finished"


def test_an_evaluation_that_is_refused_leaves_no_folder(train: Train, tmp_path: Path):
    from nanochat_pl.eval.runner import evaluate

    train(*BASE, "stage.num_steps=1")
    run = tmp_path / "base" / "tiny"
    cfg: Any = EvaluateConfig()
    cfg.trainer.accelerator, cfg.eval.name, cfg.outputs = "cpu", "chat", str(tmp_path)
    cfg.eval.tasks = ["nosuch"]
    before = sorted(run.rglob("*"))
    for paths in ([run], [run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt"]):
        with pytest.raises(ValueError, match="nosuch"):
            evaluate(cfg, [str(path) for path in paths], {}, None)
        assert sorted(run.rglob("*")) == before


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run may handle it."""


def before(owner: type, name: str, at_step: int = 6) -> Any:
    """Make what kills a run when it gets to a method at a step."""

    def arm(patch: pytest.MonkeyPatch) -> None:
        whole = getattr(owner, name)

        def dies(self: Any, trainer: Any, *rest: Any, **options: Any) -> Any:
            if trainer.global_step == at_step:
                raise Killed
            return whole(self, trainer, *rest, **options)

        patch.setattr(owner, name, dies)

    return arm


CRASHES = {
    "before the step is saved": before(CheckpointFolder, "save"),
    "before the best is kept": before(CheckpointFolder, "keep_if_best"),
    "before the samples": before(PromptSamples, "_sample"),
    "before the evaluation": before(Evaluations, "_evaluate"),
    "after the evaluation": before(ConversationCounts, "on_train_end"),
    "before the summary": before(Summary, "on_train_end"),
}
LAST_STEPS = [
    *BASE,
    "stage.num_steps=6",
    "stage.checkpoint_every_steps=2",
    "stage.sample_every_steps=4",
    "stage.sample_prompts=[Iron]",
    "stage.sample_tokens=4",
    "stage.eval_every_steps=4",
    "eval=bpb",
    "eval.val_tokens=512",
]
OF_TIME = {
    "wall_s",
    "updated",
    "train/dt",
    "train/tok_per_sec",
    "total_training_time",
    "median_tok_per_sec",
    "run_name",
}
OF_TIME |= {"folder", "peak_memory_bytes", "health/data_wait_frac", "health/peak_memory_gib"}


def left_by(folder: Path) -> dict[str, Any]:
    """Read all that a run leaves and that does not depend on the clock."""
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v and k not in OF_TIME} for row in csv.DictReader(file)]
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    return {
        "summary": {key: value for key, value in summary.items() if key not in OF_TIME},
        "metrics": sorted(rows, key=lambda row: (int(row["step"]), sorted(row))),
        "samples": (folder / "samples.jsonl").read_text(),
        "picture": (folder / "loss.png").read_bytes(),
        "best": (best["global_step"], {key: float(value.double().sum()) for key, value in best["state_dict"].items()}),
        "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
    }


@pytest.fixture(scope="module")
def straight(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("straight")
    train_below(outputs, world, *LAST_STEPS)
    return outputs / "base" / "tiny"


@pytest.mark.slow
@pytest.mark.parametrize("crash", CRASHES)
def test_a_run_killed_after_its_last_step_is_finished_by_resume_as_if_it_had_not_been(
    straight: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str
):
    with monkeypatch.context() as patch:
        for owner in (Summary, Checkpoints):
            patch.setattr(owner, "on_exception", lambda *a: None)
        CRASHES[crash](patch)
        with pytest.raises(Killed):
            train(*LAST_STEPS)
    folder = tmp_path / "base" / "tiny"
    assert json.loads((folder / "summary.json").read_text())["status"] == "running"
    assert train(*LAST_STEPS, "resume=auto")["status"] == "finished"
    for what, value in left_by(straight).items():
        assert left_by(folder)[what] == value, what


def test_a_finished_run_that_is_resumed_stays_finished(straight: Path, train: Train, tmp_path: Path):
    shutil.copytree(straight, tmp_path / "base" / "tiny")
    before = left_by(straight)
    assert train(*LAST_STEPS, "resume=auto")["status"] == "finished"
    assert left_by(tmp_path / "base" / "tiny") == before


def test_num_steps_below_what_is_done_is_said_and_trains_nothing(
    straight: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(straight, tmp_path / "base" / "tiny")
    result = train(*LAST_STEPS, "resume=auto", "stage.num_steps=4")
    assert (result["status"], result["step"]) == ("finished", 6)
    assert "6 are done, and stage.num_steps is 4" in capsys.readouterr().err


def test_a_refused_resume_leaves_a_finished_run_as_it_is(straight: Path, train: Train, tmp_path: Path):
    folder = tmp_path / "base" / "tiny"
    shutil.copytree(straight, folder)
    before = {name: (folder / name).read_bytes() for name in ("summary.json", "config.yaml", "run.json")}
    with pytest.raises(ValueError, match=r"eval\.max_new_tokens=9999"):
        train(*LAST_STEPS, "resume=auto", "stage.num_steps=8", "eval=recall", "eval.max_new_tokens=9999")
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_another_optimizer_is_refused_before_the_checkpoint_is_opened(straight: Path, world: Path, tmp_path: Path):
    folder = tmp_path / "base" / "tiny"
    shutil.copytree(straight, folder)
    places = [f"data.root={world / 'data'}", f"outputs={tmp_path}", f"tokenizer.path={world / 'tokenizer'}"]
    preflight(compose([*LAST_STEPS, *places, "resume=auto"]))
    with pytest.raises(ValueError, match=r"last\.ckpt was trained with optim\.matrix_optimizer=muon"):
        preflight(compose([*LAST_STEPS, *places, "resume=auto", "optim=adamw"]))


def test_the_start_weights_are_named_after_a_resume_too(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2", "run_name=first")
    begun = [*BASE, f"init_from={tmp_path / 'base' / 'first'}"]
    assert "first" in train(*begun, "trainer.stop_after_steps=2")["init_from"]
    assert "first" in train(*begun, "resume=auto", "stage.num_steps=4")["init_from"]
