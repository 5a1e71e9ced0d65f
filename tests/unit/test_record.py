"""A run says where it ran and how long it took, with or without git, in one session or several."""

import json
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanochat_pl.training import record
from nanochat_pl.training.callbacks import summary as callbacks
from nanochat_pl.training.callbacks.summary import Summary
from nanochat_pl.training.record import describe_machine, describe_run, earlier_seconds
from nanochat_pl.training.state import CheckpointFolder, RunState


def repository(folder: Path) -> Path:
    """Make a repository with one commit on the branch `work`; return a file in it."""
    file = folder / "notes.txt"
    file.write_text("one\n")
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["checkout", "-q", "-b", "work"], ["add", "."], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return file


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the package seem to lie outside of any repository, and the working folder be an empty one."""
    monkeypatch.setattr(record, "__file__", str(tmp_path / "a" / "b" / "c" / "record.py"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return folder


def described(folder: Path) -> dict[str, Any]:
    describe_run(folder, {"seed": 1}, ["train.py"])
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def test_a_run_names_its_commit_its_branch_and_what_is_not_committed(installed: Path, tmp_path: Path):
    file = repository(installed)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    facts = described(tmp_path)
    assert (facts["git_commit"], facts["git_branch"]) == (commit, "work")
    assert not (tmp_path / "git_diff.patch").exists()
    file.write_bytes("naïve\n".encode("latin-1"))  # a change need not be UTF-8
    described(tmp_path)
    assert "naïve".encode("latin-1") in (tmp_path / "git_diff.patch").read_bytes()


def test_a_commit_without_a_branch_has_none(installed: Path, tmp_path: Path):
    repository(installed)
    subprocess.run(["git", "checkout", "-q", "--detach"], check=True, capture_output=True)
    facts = described(tmp_path)
    assert facts["git_commit"]
    assert facts["git_branch"] is None


def test_changes_committed_since_an_earlier_session_are_not_kept(installed: Path, tmp_path: Path):
    repository(installed)
    (tmp_path / "git_diff.patch").write_text("of the first session")
    described(tmp_path)
    assert not (tmp_path / "git_diff.patch").exists()


@pytest.mark.parametrize("has_git", [True, False])
def test_a_run_outside_of_a_repository_is_described_without_one(
    installed: Path, tmp_path: Path, has_git: bool, monkeypatch: pytest.MonkeyPatch
):
    if not has_git:
        monkeypatch.setenv("PATH", str(installed))
    facts = described(tmp_path)
    assert facts["git_commit"] is None
    assert facts["git_branch"] is None
    assert facts["versions"]["torch"]
    assert facts["python"]


def test_the_machine_is_described_by_what_the_process_may_use():
    facts = describe_machine()
    assert facts["cpu"]
    assert facts["cpu_count"] >= 1
    assert facts["memory_bytes"] > 2**28
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert (facts["cuda"] is None) == (not facts["gpus"])


def test_every_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name=f"card {index}", total_memory=2**34)
    )
    assert describe_machine()["gpus"] == [{"name": f"card {index}", "memory_bytes": 2**34} for index in (0, 1)]


# --- time over sessions ---


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: self.now, strftime=time.strftime))


class Session:
    """The summary of one session of a run, and the trainer it sees."""

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        run = RunState(path.parent, CheckpointFolder(path.parent / "checkpoints"), {"stage": "base"})
        self.summary = Summary(run)
        self.trainer: Any = SimpleNamespace(global_step=step, max_steps=100, is_global_zero=True)
        self.module: Any = None

    def start(self) -> None:
        self.summary.on_fit_start(self.trainer, self.module)
        self.summary.on_train_start(self.trainer, self.module)

    def step(self) -> None:
        self.trainer.global_step += 1
        self.summary.on_train_batch_end(self.trainer, self.module, None, None, 0)

    @property
    def seconds(self) -> float:
        return earlier_seconds(self.path)


def test_wall_time_counts_every_session_of_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock, path = Clock(monkeypatch), tmp_path / "summary.json"
    for number in range(3):
        session = Session(path, step=10 * number)
        session.start()
        clock.now += 30
        session.summary.on_train_end(session.trainer, session.module)
        assert session.seconds == 30 * (number + 1)
        clock.now += 5000  # between two sessions


def test_of_a_killed_session_only_what_came_after_its_last_write_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock, path = Clock(monkeypatch), tmp_path / "summary.json"
    killed = Session(path)
    killed.start()
    for _ in range(50):
        clock.now += 7
        killed.step()
    assert 350 - callbacks.WRITE_EVERY_S <= killed.seconds <= 350
    resumed = Session(path, step=50)
    resumed.start()
    assert resumed.seconds == killed.seconds > 0


def test_a_running_run_is_written_anew_every_minute_and_not_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock, path = Clock(monkeypatch), tmp_path / "summary.json"
    session = Session(path)
    session.start()
    steps = set()
    for _ in range(100):
        clock.now += 5
        session.step()
        steps.add(json.loads(path.read_text())["step"])
    assert 6 <= len(steps) <= 9


def test_a_run_begun_anew_does_not_count_an_attempt_that_left_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Clock(monkeypatch)
    (tmp_path / "summary.json").write_text('{"wall_s": 500.0}')
    session = Session(tmp_path / "summary.json")
    session.start()
    assert session.seconds == 0.0


def test_a_failure_before_training_starts_keeps_the_time_of_earlier_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Clock(monkeypatch)
    (tmp_path / "summary.json").write_text('{"wall_s": 500.0}')
    session = Session(tmp_path / "summary.json")
    session.summary.on_exception(session.trainer, session.module, MemoryError())
    assert session.seconds == 500.0


@pytest.mark.parametrize("content", ["", "[]", '{"wall_s": null}', "{}"])
def test_a_summary_without_a_time_counts_as_none(tmp_path: Path, content: str):
    (tmp_path / "summary.json").write_text(content)
    assert earlier_seconds(tmp_path / "summary.json") == 0.0
    assert earlier_seconds(tmp_path / "nothing.json") == 0.0
