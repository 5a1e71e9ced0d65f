"""Jobs of a real Slurm: requeued ones go on where they were, and the tasks of a job share a sweep."""

import csv
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.integration.conftest import metrics
from tests.slurm.conftest import Slurm, settings

pytestmark = [pytest.mark.slow, pytest.mark.dist]


def test_a_job_that_is_requeued_twice_ends_as_a_straight_run(slurm: Slurm, world: Path, tmp_path: Path):
    long = ["stage.num_steps=120", "data.logical_shards=2", "stage.val_every_steps=40", "trainer.devices=2"]
    straight = slurm.submit(srun(world, tmp_path, *long, "run_name=straight"), "--ntasks=2", "--nodes=1")
    assert slurm.wait(straight).state == "COMPLETED"
    again = "if [ $? -eq 138 ]; then scontrol requeue $SLURM_JOB_ID; fi"
    line = f"{srun(world, tmp_path, *long, 'run_name=requeued', 'resume=auto')}\n{again}"
    job = slurm.submit(line, "--ntasks=2", "--nodes=1", "--requeue")
    for step in (20, 60):
        wait_for(lambda step=step: f"step {step:05d}/" in slurm.output(job), slurm, job)
        slurm.call("scancel", "--signal=USR1", job)  # to the tasks, as before a time limit (--signal=USR1@60)
        wait_for(lambda: slurm.state(job) == "PENDING", slurm, job)
        time.sleep(3)  # until the node is rid of it; Slurm would wait two minutes
        slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")
    ended = slurm.wait(job)
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.output
    assert ended.output.count("by SIGUSR1") == 2 and "Traceback" not in ended.output, ended.output
    one, two = tmp_path / "base" / "straight", tmp_path / "base" / "requeued"
    assert metrics(one, "train/loss") == metrics(two, "train/loss")
    a, b = (torch.load(each / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for each in (one, two))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_written_batch_file_runs_saves_and_goes_on(slurm: Slurm, world: Path, tmp_path: Path):
    long = ["stage.num_steps=120", "data.logical_shards=2", "trainer.devices=2", "run_name=written"]
    options = ["--cpus", "2", "--mail", "student@school", "--time", "1:00:00", "--setup", "echo set up"]
    command = Path(sys.executable).with_name("nanochat-pl")
    wrote = slurm.call(str(command), "sbatch", *settings(world, tmp_path, *long), *options)
    job = slurm.call("sbatch", "--parsable", wrote.splitlines()[0].removeprefix("wrote "))
    log = tmp_path / "logs" / f"base-written-{job}.out"
    assert "MailUser=student@school" in slurm.call("scontrol", "show", "job", job)
    wait_for(lambda: log.is_file() and "step 00020/" in log.read_text(), slurm, job)
    slurm.call("scancel", "--signal=USR1", job)
    wait_for(lambda: slurm.state(job) == "PENDING", slurm, job)
    time.sleep(3)
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")
    ended, text = slurm.wait(job), log.read_text()
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), text
    assert text.count("set up") == 2 and text.count("stopped at step") == 1 and "step 00120/00120" in text, text
    assert "resumed from" in text and "Traceback" not in text, text


def test_the_tasks_of_a_job_share_the_runs_of_a_sweep(slurm: Slurm, world: Path, tmp_path: Path):
    runs = ["seed=1,2,3,4", "stage.num_steps=3", "hydra.sweep.dir=sweep", "-m"]
    ended = slurm.wait(slurm.submit(srun(world, tmp_path, *runs), "--ntasks=2", "--nodes=1"))
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0), ended.output
    with (tmp_path / "sweep" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and {row["status"] for row in rows} == {"finished"}
    assert sum(ended.output.count(f"[{n}/4]") > 0 for n in range(1, 5)) == 4, ended.output


def srun(world: Path, folder: Path, *overrides: str) -> str:
    """Return the line of a batch script that starts a small run in each task."""
    return " ".join(["srun {python} {file}", *settings(world, folder, *overrides)])


def wait_for(condition, slurm: Slurm, job: str, seconds: float = 120) -> None:
    """Wait until something has happened to a job."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{slurm.state(job)}: {slurm.output(job)}"
        time.sleep(0.1)
