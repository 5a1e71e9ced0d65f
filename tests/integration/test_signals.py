"""What a signal does to a run: it is saved and ends with exit code 128 + the number, or ends at once; never half."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat_pl.cli import train as train_command
from nanochat_pl.training import signals
from nanochat_pl.training.callbacks.summary import Summary
from nanochat_pl.training.callbacks.validation import Validation
from nanochat_pl.training.signals import SIGNALS, Stopped
from tests.integration.conftest import BASE, Train, metrics
from tests.integration.test_processes import LONG, command, wait_for_step
from tests.integration.test_training import under_slurm


def saved_step(folder: Path) -> int:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


def send_after_step(monkeypatch: pytest.MonkeyPatch, step: int, *numbers: int) -> None:
    """Let this process get signals at the end of a training step, when the callbacks that could save are through."""
    original = Summary.on_train_batch_end

    def hook(self: Summary, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if trainer.global_step == step:
            for number in numbers:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(Summary, "on_train_batch_end", hook)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [n for n in SIGNALS if n not in (signal.SIGINT, signal.SIGTERM)])
def test_every_signal_that_ends_processes_saves_first(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    before = {n: signal.getsignal(n) for n in SIGNALS}
    if number == signal.SIGUSR1:  # at which Lightning would save, and requeue the job, by itself
        under_slurm(monkeypatch)
    send_after_step(monkeypatch, 2, number)
    result = train(*BASE, "stage.num_steps=6")
    assert (result["status"], result["signal"], result["step"]) == ("stopped", number, 3)
    assert saved_step(tmp_path / "base" / "tiny") == 3
    assert not list(tmp_path.rglob("hpc_ckpt_*"))
    assert {n: signal.getsignal(n) for n in SIGNALS} == before


def test_a_second_signal_ends_a_run_at_once(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any):
    send_after_step(monkeypatch, 4, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(Stopped, match="stopped by SIGINT") as stopped:
        train(*BASE, "stage.num_steps=8", "stage.checkpoint_every_steps=3")
    assert stopped.value.exit_code == 130
    folder = tmp_path / "base" / "tiny"
    assert saved_step(folder) == 3
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    said = capfd.readouterr().err
    assert "SIGTERM: the run ends when this step is finished and saved; a second signal ends it at once" in said
    assert "SIGINT: a second signal, so the run ends at once; the last checkpoint is that of step 3" in said


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 4])
def test_a_signal_while_nothing_is_unsaved_ends_a_run_at_once(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, step: int
):
    original = Validation._measure

    def hook(self: Validation, trainer: Any, module: Any) -> None:
        measure = self.measure

        def interrupted(module: Any) -> dict[str, float]:
            if trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGINT)
            return measure(module)

        monkeypatch.setattr(self, "measure", interrupted)
        original(self, trainer, module)

    config = [*BASE, "stage.num_steps=8", "stage.val_every_steps=4"]
    train(*config, "run_name=straight")
    with monkeypatch.context() as patched:
        patched.setattr(Validation, "_measure", hook)
        result = train(*config)
    assert (result["status"], result["signal"], result["step"]) == ("stopped", signal.SIGINT, step)
    folder = tmp_path / "base" / "tiny"
    assert ("step 4 is saved" if step else "no step has been finished") in capfd.readouterr().err
    if step:  # else there is not a row yet
        assert step not in metrics(folder, "val/loss"), "the validation was not waited for"
    train(*config, "resume=auto")
    assert metrics(folder, "val/loss") == metrics(tmp_path / "base" / "straight", "val/loss")


def test_a_failure_after_a_signal_is_no_error_of_the_run(train: Train, monkeypatch: pytest.MonkeyPatch):
    original = Summary.on_train_batch_end

    def hook(self: Summary, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("the compiler was killed by the same Ctrl-C")

    monkeypatch.setattr(Summary, "on_train_batch_end", hook)
    with pytest.raises(Stopped, match="stopped by SIGINT"):
        train(*BASE, "stage.num_steps=6")


def test_ctrl_c_while_composing_is_one_line(monkeypatch: pytest.MonkeyPatch, capfd: Any):
    monkeypatch.setattr(train_command, "compose_jobs", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    assert train_command.main(["depth=1"]) == 130
    assert capfd.readouterr().err == "stopped by SIGINT\n"


def test_a_hangup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        found = signals.install(lambda *_: None)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signals.install(None, found)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_is_saved(world: Path, tmp_path: Path):
    child, master = pty.fork()
    if child == 0:
        os.execvp(sys.executable, command(world, tmp_path, *LONG))
    log = tmp_path / "base" / "tiny" / "log.txt"
    os.set_blocking(master, False)
    deadline = time.time() + 120
    while time.time() < deadline and not (log.is_file() and "step 00007/" in log.read_text()):
        try:
            os.read(master, 65536)
        except BlockingIOError:
            time.sleep(0.02)
    os.close(master)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert json.loads((tmp_path / "base" / "tiny" / "summary.json").read_text())["status"] == "stopped"
    assert saved_step(tmp_path / "base" / "tiny") >= 7


@pytest.mark.slow
@pytest.mark.dist
def test_a_signal_to_one_of_two_processes_saves_and_ends_both(world: Path, tmp_path: Path):
    config = [*LONG, "trainer.devices=2", "data.logical_shards=2"]
    process = subprocess.Popen(
        command(world, tmp_path, *config), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_step(process, tmp_path / "base" / "tiny" / "log.txt", 7)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    second = next(pid for pid in children if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes())
    os.kill(int(second), signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "by SIGTERM" in out and "Traceback" not in err
    assert 7 < saved_step(tmp_path / "base" / "tiny") < 400
