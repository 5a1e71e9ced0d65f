"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

REPO = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def recipe(title: str) -> list[tuple[str, str]]:
    """Return language and text of the blocks below a heading."""
    sections = re.split(r"^## ", (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = [section for section in sections if section.startswith(f"{title}\n")]
    return FENCE.findall(section)


def edited(text: str, change: str) -> str:
    """Make the hunks of a diff block; each consists of whole lines that must be found in exactly one place."""
    for hunk in re.split(r"^@@\n", change, flags=re.MULTILINE):
        lines = hunk.removesuffix("\n").split("\n")
        before, after = (
            "\n".join(["", *(line[1:] for line in lines if line[:1] in ("", " ", sign)), ""]) for sign in "-+"
        )
        places = sum(f"\n{text}".startswith(before, start) for start in range(len(text)))
        assert places == 1, f"{places} places for\n{hunk}"
        text = f"\n{text}".replace(before, after)[1:]
    return text


def follow(title: str, root: Path) -> None:
    """Copy the project to `root` and make what the recipe says."""
    for folder in ("src", "configs"):
        shutil.copytree(REPO / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ("train.py", "evaluate.py"):
        shutil.copy(REPO / script, root)
    blocks = recipe(title)
    assert blocks
    for language, text in blocks:
        first, _, rest = text.partition("\n")
        file = root / first.split()[-1]
        if language == "diff":
            file.write_text(edited(file.read_text(encoding="utf-8"), rest), encoding="utf-8")
        else:
            assert not file.exists() and file.parent.is_dir(), f"{first}: a new file in a folder that is there"
            file.write_text(rest, encoding="utf-8")


def run(root: Path, *arguments: str, code: int = 0) -> str:
    """Run a script of the copy, which must end with this exit code; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == code, f"{' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


TINY = (
    *("depth=1", "model.n_embd=64", "tokenizer.vocab_size=300", "run_name=tiny", "trainer.accelerator=cpu"),
    *("trainer.compute_dtype=float32", "stage.num_steps=2", "stage.sequence_len=64", "stage.device_batch=2"),
)
BASE = ("train.py", "stage=base", *TINY, "stage.total_batch_tokens=128", "stage.val_tokens=256")
SFT = (*TINY, "stage.total_batch_rows=2", "stage.val_rows=2")


def summary(root: Path, stage: str) -> dict:
    return json.loads((root / "outputs" / stage / "tiny" / "summary.json").read_text())


@pytest.mark.slow
def test_a_task_is_trained_on_and_rewarded(tmp_path: Path):
    follow("Add a task", tmp_path)
    riddles = tmp_path / "questions" / "riddles"
    riddles.mkdir(parents=True)
    for split, count in (("train", 8), ("validation", 4)):
        lines = [json.dumps({"question": f"What is {n}?", "answer": f"{n}."}) for n in range(count)]
        (riddles / f"{split}.jsonl").write_text("\n".join(lines))
    run(tmp_path, *BASE)
    own = ("mixture=riddles", "data=local", f"data.root={tmp_path / 'questions'}")
    run(tmp_path, "train.py", "stage=sft", *SFT, *own)
    assert summary(tmp_path, "sft")["val/loss"] > 0
    rl = ("rl.prompts_per_step=2", "rl.num_samples=2", "rl.max_new_tokens=4", "rl.val_questions=2", "rl.val_samples=1")
    run(tmp_path, "train.py", "stage=rl", *TINY, *own, *rl)
    assert "pass@1" in summary(tmp_path, "rl")


@pytest.mark.slow
def test_a_stage_is_found_by_what_lists_stages(tmp_path: Path):
    follow("Add a stage", tmp_path)
    run(tmp_path, *BASE)
    said = run(tmp_path, "train.py", "stage=sft_history", *SFT)
    assert summary(tmp_path, "sft_history")["init_from"].startswith("outputs/base/tiny/")
    assert "python evaluate.py ckpt=outputs/sft_history/tiny" in said
    assert "eval: recall (eval=auto, for stage sft_history)" in run(
        tmp_path, "evaluate.py", "ckpt=outputs/sft_history/tiny", "eval.max_questions=2", "eval.max_new_tokens=4"
    )
    run(tmp_path, "-m", "nanochat_pl.cli.main", "report", "outputs/sft_history/tiny", "--out", "page")
    assert "sft_history" in (tmp_path / "page" / "report.md").read_text()


@pytest.mark.slow
def test_an_optimizer_is_a_choice_and_its_state_is_resumed(tmp_path: Path):
    follow("Add an optimizer", tmp_path)
    run(tmp_path, *BASE, "optim=lion")
    straight = torch_states(tmp_path)
    run(tmp_path, *BASE, "optim=lion", "force=true", "trainer.stop_after_steps=1")
    run(tmp_path, *BASE, "optim=lion", "resume=auto")
    assert torch_states(tmp_path) == straight
    assert "momentum" in straight


def torch_states(root: Path) -> str:
    """Return weights and optimizer states of the last checkpoint as text that is equal where all bits are."""
    torch.set_printoptions(threshold=10**9, precision=9)
    loaded = torch.load(root / "outputs" / "base" / "tiny" / "checkpoints" / "last.ckpt", weights_only=True)
    return f"{loaded['state_dict']}{loaded['optimizer_states']}"


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["false", "true"])
def test_a_trick_trains_and_is_evaluated(tmp_path: Path, switch: str):
    follow("Add an architecture trick", tmp_path)
    run(tmp_path, *BASE, f"model.block_gain={switch}")
    gains = 64 if switch == "true" else 0
    assert summary(tmp_path, "base")["num_parameters"] == 2 * 300 * 64 + 12 * 64**2 + gains
    run(tmp_path, "evaluate.py", "ckpt=outputs/base/tiny", "eval=bpb", "eval.val_tokens=256")


@pytest.mark.slow
def test_an_evaluation_is_run_and_compared(tmp_path: Path):
    follow("Add an evaluation", tmp_path)
    run(tmp_path, *BASE)
    said = run(
        tmp_path,
        "evaluate.py",
        "ckpt=outputs/base/tiny",
        "eval=brevity",
        "eval.max_questions=3",
        "eval.max_new_tokens=4",
    )
    assert re.search(r"ended .*\d%", said), said
    document = json.loads(next((tmp_path / "outputs").rglob("eval/brevity/*/results.json")).read_text())
    assert [(row["metric"], row["n"]) for row in document["metrics"]] == [("ended", 3)]


@pytest.mark.slow
def test_a_checkpoint_format_is_exported_opened_and_trained_on(tmp_path: Path):
    follow("Add a checkpoint format", tmp_path)
    command = ("-m", "nanochat_pl.cli.main")
    export = (*command, "export", "outputs/base/tiny", "--format", "numpy", "--out")
    run(tmp_path, *BASE)
    assert "(numpy, 3 files" in run(tmp_path, *export, "np")
    run(tmp_path, *command, "import", "np", "outputs/base/again")
    assert weights(tmp_path / "outputs/base/again") == weights(tmp_path / "outputs/base/tiny")
    read = run(tmp_path, "evaluate.py", "ckpt=np", "eval=bpb", "eval.val_tokens=256", "data=microworld")
    own = run(tmp_path, "evaluate.py", "ckpt=outputs/base/tiny", "eval=bpb", "eval.val_tokens=256")
    assert re.findall(r"\d\.\d{4}", read) == re.findall(r"\d\.\d{4}", own) != []
    run(tmp_path, "train.py", "stage=sft_scienceqa", *SFT, "stage.sequence_len=512", "init_from=np")
    assert summary(tmp_path, "sft_scienceqa")["init_from"].startswith("np/model_numpy.npz")

    crafted, canary = tmp_path / "np" / "model_numpy.npz", tmp_path / "canary"
    np.savez(crafted, **{"transformer.wte.weight": np.array([Wakes(str(canary))], dtype=object)})
    refused = run(tmp_path, "evaluate.py", "ckpt=np", "eval=bpb", "data=microworld", code=1)
    assert f"error: {crafted.relative_to(tmp_path)} is damaged" in refused and not canary.exists()
    run(tmp_path, *BASE, "force=true", "model.softcap=9.0")
    lost = run(tmp_path, *export, "new", code=2)
    assert "lost would be: model.softcap=9.0 (classic: 15.0)" in lost and not (tmp_path / "new").exists()


class Wakes:
    """A value whose unpickling leaves a file."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return open, (self.canary, "w")


def weights(run: Path) -> dict[str, list]:
    loaded = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {name: tensor.tolist() for name, tensor in loaded["state_dict"].items()}


def test_a_hunk_that_fits_nowhere_or_twice_is_an_error():
    assert edited("a\nb\nc\n", " a\n-b\n+d\n") == "a\nd\nc\n"
    for text in ("a\nc\n", "a\nb\na\nb\n", "aa\nb\n"):
        with pytest.raises(AssertionError, match="places for"):
            edited(text, " a\n-b\n+d\n")
