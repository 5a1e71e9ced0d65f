"""A sweep that was broken off goes on: what is finished is not done again, and its table is as if nothing had been."""

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import BASE
from tests.integration.test_processes import command, run, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # many processes, each of which loads torch

TABLE = """# @package _global_
hydra:
  mode: MULTIRUN
  sweeper: {params: {stage.num_steps: 30, stage.sample_every_steps: "null", seed: "1,2", variant: "*"}}
sweep:
  variants:
    plain: []
    fast: [optim.matrix_lr=0.04]
"""
JOBS = ["fast-seed=1", "fast-seed=2", "plain-seed=1", "plain-seed=2"]
CHANGING = ("wall_s", "total_training_time", "median_tok_per_sec", "git_commit", "git_changes")


@pytest.fixture
def sweep(world: Path, tmp_path: Path) -> list[str]:
    """The command of a sweep of four runs, into the folder `here`."""
    (tmp_path / "configs" / "sweep").mkdir(parents=True)
    (tmp_path / "configs" / "sweep" / "mine.yaml").write_text(TABLE)
    more = ["sweep=mine", "stage.checkpoint_every_steps=5", "hydra.sweep.dir=here", "stage.val_every_steps=20"]
    arguments = command(world, tmp_path, *[a for a in BASE if not a.startswith("stage.num_steps")], *more)
    return [*arguments[:2], "--config-dir", str(tmp_path / "configs"), *arguments[2:]]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return [{key: row[key] for key in row if key not in CHANGING} for row in csv.DictReader(file)]


def processes() -> Iterator[tuple[int, Path]]:
    """Yield all processes, each with the folder that it works in."""
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            yield int(path.parent.name), path.readlink()
        except OSError:
            continue


def test_a_killed_sweep_goes_on_to_the_table_of_one_in_one_piece(sweep: list[str], tmp_path: Path):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(sweep, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    second = tmp_path / "here" / "fast-seed=1"  # the runs go on in the order of the table: plain, fast
    try:
        wait_for_step(process, second / "log.txt", 8, 900)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    began = json.loads((tmp_path / "here" / "plain-seed=1" / "run.json").read_text())["started"]
    deadline = time.time() + 60
    while (left := [pid for pid, folder in processes() if folder == tmp_path]) and time.time() < deadline:
        time.sleep(0.2)
    assert not left, "the run of a killed sweep ends by itself"
    assert json.loads((second / "summary.json").read_text())["status"] == "stopped"

    done = run(sweep, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs in here, 1 of them finished before" in done.stdout
    assert "fast-seed=1: goes on" in done.stdout and "plain-seed=1:" not in done.stdout
    assert json.loads((tmp_path / "here" / "plain-seed=1" / "run.json").read_text())["started"] == began
    assert max(len(line) for line in done.stdout.splitlines() if line.startswith("[")) <= 80

    whole = [argument.replace("hydra.sweep.dir=here", "hydra.sweep.dir=whole") for argument in sweep]
    two = run([*whole, "sweep.jobs=2"], tmp_path, OMP_NUM_THREADS="1")
    assert two.returncode == 0, two.stdout + two.stderr
    assert "4 runs in whole, 2 at a time" in two.stdout
    table = rows(tmp_path / "here")
    assert table == rows(tmp_path / "whole")
    assert [row["job"] for row in table] == JOBS
    assert [(row["variant"], row["seed"], row["status"]) for row in table] == [
        (job.partition("-")[0], job[-1], "finished") for job in JOBS
    ]
    assert all(float(row["val/bpb"]) > 0 and row["tokens"] and row["command"].startswith("python ") for row in table)
    # a run by its own command, which is a process from its first import on, comes to the same
    assert run([*whole, "seed=2", "variant=fast", "hydra.sweep.dir=alone"], tmp_path).returncode == 0
    assert [row | {"command": "", "job": ""} for row in rows(tmp_path / "alone")] == [
        row | {"command": "", "job": ""} for row in table if row["job"] == "fast-seed=2"
    ]
    nothing = run(sweep, tmp_path)  # all is done
    assert nothing.returncode == 0 and "4 of them finished before" in nothing.stdout and "[1/4]" not in nothing.stdout


def test_a_signal_ends_all_runs_of_a_sweep_and_a_second_process_helps(sweep: list[str], tmp_path: Path):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    long = [argument.replace("hydra.sweep.dir=here", "hydra.sweep.dir=long") for argument in sweep]
    long += ["stage.num_steps=4000", "sweep.jobs=2"]
    process = subprocess.Popen(long, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folders = [tmp_path / "long" / f"{name}-seed=1" for name in ("plain", "fast")]
    for folder in folders:
        wait_for_step(process, folder / "log.txt", 3, 900)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT, out + err
    assert "to continue: the same command" in err and "Traceback" not in out + err
    for folder in folders:
        assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
        assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert not (tmp_path / "long" / "plain-seed=2").exists()

    sweep.append("variant=plain")
    one = subprocess.Popen(sweep, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    other = subprocess.Popen(sweep, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    said = [process.communicate(timeout=1200)[0] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), said
    for job in JOBS[2:]:
        assert sum(f"{job}: begins" in text for text in said) == 1, said
    assert [row["status"] for row in rows(tmp_path / "here")] == ["finished"] * 2


def test_a_run_that_failed_is_tried_again_and_the_others_are_not(world: Path, tmp_path: Path):
    shards = "data.val_shard=missing.parquet,shard_00002.parquet"
    arguments = command(world, tmp_path, *BASE, "stage.num_steps=3", shards, "hydra.sweep.dir=here")
    arguments.insert(2, "-m")
    first = run(arguments, tmp_path)
    assert first.returncode == 1, first.stdout
    assert "missing.parquet: begins" in first.stdout and "missing.parquet: failed" in first.stdout
    failed, good = rows(tmp_path / "here")
    assert (failed["status"], good["status"]) == ("failed", "finished")
    assert "missing.parquet" in failed["error"] and "missing.parquet" in first.stdout
    assert [(tmp_path / "here" / row["job"] / "config.yaml").is_file() for row in (failed, good)] == [False, True]
    again = run(arguments, tmp_path)
    assert again.returncode == 1
    assert "1 of them finished before" in again.stdout and "missing.parquet: begins" in again.stdout
    assert "shard_00002.parquet: " not in again.stdout
