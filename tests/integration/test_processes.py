"""Runs as users start them: killed, stopped by a signal, swept, on two processes, without a network."""

import contextlib
import os
import pty
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import REPO
from tests.integration.conftest import BASE, SFT, Train, metrics

pytestmark = pytest.mark.slow


def command(world: Path, outputs: Path, *overrides: str, script: str = "train.py") -> list[str]:
    data = [f"data.root={world / 'data'}", f"outputs={outputs}"]
    tokenizer = [f"tokenizer.path={world / 'tokenizer'}"] if "stage=base" in overrides else []
    return [sys.executable, str(REPO / script), *overrides, *data, *tokenizer]


def run(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=900, env=env)


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def wait_for_step(process: subprocess.Popen, log: Path, step: int, seconds: float = 120) -> None:
    deadline = time.time() + seconds
    while time.time() < deadline and process.poll() is None:
        if log.is_file() and f"step {step:05d}/" in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} never came: {log.read_text() if log.is_file() else 'no log'}")


LONG = [*BASE, "stage.num_steps=400", "stage.checkpoint_every_steps=5", "stage.val_every_steps=40"]


def test_a_killed_run_continues_to_the_same_weights(world: Path, tmp_path: Path):
    assert run(command(world, tmp_path, *LONG, "run_name=straight"), tmp_path).returncode == 0
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(world, tmp_path, *LONG, "run_name=killed"), cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_step(process, tmp_path / "base" / "killed" / "log.txt", 20)
        time.sleep(random.Random(os.getpid()).uniform(0, 1.5))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    half = torch.load(tmp_path / "base" / "killed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert 5 <= half["global_step"] < 400
    assert run(command(world, tmp_path, *LONG, "run_name=killed", "resume=auto"), tmp_path).returncode == 0
    straight, killed = tmp_path / "base" / "straight", tmp_path / "base" / "killed"
    assert metrics(killed, "train/loss") == metrics(straight, "train/loss")
    one, two = last_weights(straight), last_weights(killed)
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(world: Path, tmp_path: Path, number: signal.Signals):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(world, tmp_path, *LONG),
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(process, tmp_path / "base" / "tiny" / "log.txt", 7)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert f"by {number.name}" in out
    assert "resume=auto" in out
    assert "Traceback" not in err
    saved = torch.load(tmp_path / "base" / "tiny" / "checkpoints" / "last.ckpt", weights_only=True)
    assert 7 < saved["global_step"] < 400


@pytest.mark.dist
def test_two_machines_of_torchrun_train_as_one(world: Path, tmp_path: Path):
    config = [*BASE, "stage.num_steps=6", "stage.val_every_steps=3", "data.logical_shards=2", "optim.ns_dtype=float32"]
    assert run(command(world, tmp_path, *config, "run_name=one"), tmp_path).returncode == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=test", "--local-addr=127.0.0.1"]
    _, *rest = command(world, tmp_path, *config, "run_name=two", "trainer.num_nodes=2")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    machines = [subprocess.Popen([*torchrun, *meet, *rest], cwd=tmp_path, env=env, **pipes) for _ in range(2)]
    said = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "".join(said).count("done: ") == 1, said
    for name in ("train/loss", "val/loss"):
        one, two = ([float(v) for v in metrics(tmp_path / "base" / folder, name).values()] for folder in ("one", "two"))
        assert one == pytest.approx(two, abs=2e-4), name


@pytest.mark.dist
@pytest.mark.parametrize("stage", ["base", "sft_scienceqa"])
def test_two_processes_train_as_one(world: Path, tmp_path: Path, stage: str):
    config = [*BASE, "stage.num_steps=6", "data.logical_shards=2"]
    if stage == "sft_scienceqa":
        assert run(command(world, tmp_path, *BASE, "stage.num_steps=2"), tmp_path).returncode == 0
        config = [*SFT, "stage.num_steps=6", f"init_from={tmp_path / 'base' / 'tiny'}"]
    for devices in (1, 2):
        extra = [
            f"run_name=n{devices}",
            f"trainer.devices={devices}",
            "stage.val_every_steps=3",
            "optim.ns_dtype=float32",
        ]
        done = run(command(world, tmp_path, *config, *extra), tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / stage / "n1", tmp_path / stage / "n2"
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        first, second = ([float(v) for v in metrics(folder, name).values()] for folder in (one, two))
        assert first == pytest.approx(second, abs=2e-4), name
    a, b = last_weights(one), last_weights(two)
    assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-3
    # and what two ranks saved continues on one
    done = run(command(world, tmp_path, *config, "run_name=n2", "trainer.devices=1", "resume=auto"), tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.dist
@pytest.mark.parametrize("killed", ["first", "second"])
def test_a_process_that_dies_ends_the_run_on_all_and_it_resumes(world: Path, tmp_path: Path, killed: str):
    config = [*LONG, "stage.num_steps=150", "trainer.devices=2", "data.logical_shards=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "said.txt").open("w") as said:
        first = subprocess.Popen(command(world, tmp_path, *config), cwd=tmp_path, env=env, stdout=said, stderr=said)
    wait_for_step(first, tmp_path / "base" / "tiny" / "log.txt", 20)
    second = int(subprocess.check_output(["pgrep", "-P", str(first.pid), "-f", "train.py"], text=True).split()[0])
    os.kill(first.pid if killed == "first" else second, signal.SIGKILL)
    assert first.wait(timeout=20) == (-signal.SIGKILL if killed == "first" else 1)
    deadline = time.time() + 20
    while Path(f"/proc/{second}").exists() and time.time() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{second}").exists(), "it would hold its device for ever"
    text = (tmp_path / "said.txt").read_text()
    assert text.count("error: another process of the run has ended") == 1 and "Traceback" not in text, text
    done = run(command(world, tmp_path, *config, "resume=auto"), tmp_path)
    assert done.returncode == 0 and "resumed from" in done.stderr, done.stderr
    assert run(command(world, tmp_path, *config, "run_name=straight"), tmp_path).returncode == 0
    one, two = last_weights(tmp_path / "base" / "tiny"), last_weights(tmp_path / "base" / "straight")
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.dist
def test_a_sweep_on_two_processes_keeps_one_folder_a_job(world: Path, tmp_path: Path):
    arguments = command(world, tmp_path, *BASE, "stage.num_steps=3", "trainer.devices=2", "optim.matrix_lr=0.01,0.02")
    arguments.insert(2, "-m")
    done = run(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "multirun").rglob("summary.json"))) == 2
    assert len(list((tmp_path / "multirun").rglob("results.csv"))) == 1


def test_a_terminal_shows_a_bar_and_the_log_file_plain_lines(world: Path, tmp_path: Path):
    ours, theirs = pty.openpty()
    env = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        command(world, tmp_path, *BASE), cwd=tmp_path, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while chunk := os.read(ours, 65536):
            seen += chunk
    assert process.wait(timeout=60) == 0, seen.decode(errors="replace")
    assert "━".encode() in seen
    assert b"step 00019/00020" not in seen
    lines = (tmp_path / "base" / "tiny" / "log.txt").read_text()
    assert "step 00019/00020 (95.0%) | loss " in lines
    assert "\x1b" not in lines


def test_wandb_works_without_an_account(world: Path, tmp_path: Path):
    arguments = command(world, tmp_path, *BASE, "stage.num_steps=3", "logger=wandb")
    environment = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_SILENT": "true"}
    done = run(arguments, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert "wandb sync" in done.stderr
    assert len(metrics(tmp_path / "base" / "tiny", "train/loss")) == 3


def test_an_offline_run_opens_no_socket(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def deny(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", deny)
    monkeypatch.setattr(socket, "create_connection", deny)
    train(*BASE, "stage.num_steps=2", "offline=true")
    summary = train(*SFT, "stage.num_steps=2", "offline=true", f"init_from={tmp_path / 'base' / 'tiny'}")
    assert summary["status"] == "finished"
