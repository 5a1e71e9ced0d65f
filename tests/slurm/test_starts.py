"""Every way to start a run under Slurm is either right or refused within seconds."""

import re
import time
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.integration.conftest import BASE, metrics
from tests.slurm.conftest import Slurm

pytestmark = [pytest.mark.slow, pytest.mark.dist]

TRAIN = str(REPO / "train.py")
RUN = [*BASE, "stage.num_steps=6", "data.logical_shards=2", "stage.val_every_steps=3", "optim.ns_dtype=float32"]


def train(world: Path, folder: Path, *overrides: str) -> str:
    """Return the command of a run below `folder`."""
    data = [f"data.root={world / 'data'}", f"tokenizer.path={world / 'tokenizer'}", f"outputs={folder}"]
    return " ".join(["{train}", *RUN, *data, *overrides])


RIGHT = {
    "script": ("{run} trainer.devices=2", ["--ntasks=1"]),
    "script_of_two": ("{run} trainer.devices=2", ["--ntasks-per-node=2"]),
    "srun": ("srun {run} trainer.devices=2", ["--ntasks-per-node=2"]),
    "srun_tasks": ("srun {run} trainer.devices=2", ["--ntasks=2", "--nodes=1"]),
    "srun_named_bash": ("srun {run} trainer.devices=2", ["--ntasks=2", "--nodes=1", "--job-name=bash"]),
    "srun_of_a_part": ("srun --ntasks=2 --nodes=1 {run} trainer.devices=2", ["--ntasks-per-node=4"]),
    "srun_of_one": ("srun --ntasks=1 {run} trainer.devices=2", ["--ntasks-per-node=2"]),
    "two_nodes": ("srun {run} trainer.num_nodes=2", ["--nodes=2", "--ntasks-per-node=1"]),
    "torchrun": ("{python} -m torch.distributed.run --nproc-per-node=2 {file} trainer.devices=2", ["--ntasks=1"]),
}  # fmt: skip


def test_what_starts_two_processes_trains_as_one_does(slurm: Slurm, world: Path, tmp_path: Path):
    jobs = {"one": slurm.submit(train(world, tmp_path, "run_name=one"), "--ntasks=1")}
    for name, (line, options) in RIGHT.items():
        run = train(world, tmp_path, f"run_name={name}")
        jobs[name] = slurm.submit(line.replace("{run}", run).replace("{file}", run.replace("{train}", TRAIN)), *options)
    ended = {name: slurm.wait(job) for name, job in jobs.items()}
    for name, job in ended.items():
        assert (job.state, job.exit_code) == ("COMPLETED", 0), f"{name}: {job.output}"
        assert "srun` command" not in job.output and "Warning" not in job.output, f"{name}: {job.output}"
        assert job.output.count("done: ") == 1, f"{name}: one process writes\n{job.output}"
        for metric in ("train/loss", "train/grad_norm", "val/loss"):
            alone, together = (
                [float(value) for value in metrics(tmp_path / "base" / run, metric).values()] for run in ("one", name)
            )
            assert alone == pytest.approx(together, abs=2e-4), f"{name}: {metric}"


REFUSED = {
    "srun -n2 for one": (
        "srun {run}", ["--ntasks=2", "--nodes=1"],
        "srun started processes, 2 on one node, and trainer.devices=1 and trainer.num_nodes=1 need 1 on one node; set "
        "trainer.devices=2 trainer.num_nodes=1, or start with `srun --nodes=1 --ntasks-per-node=1`",
    ),
    "srun -n2 for four": (
        "srun {run} trainer.devices=4", ["--ntasks=2", "--nodes=1"],
        "srun started processes, 2 on one node, and trainer.devices=4 and trainer.num_nodes=1 need 4 on one node;",
    ),
    "two nodes for one": (
        "srun {run} trainer.devices=2", ["--nodes=2", "--ntasks-per-node=1"],
        "srun started processes, 1 on each of 2 nodes, and trainer.devices=2 and trainer.num_nodes=1 need 2 on",
    ),
    "uneven": (
        "srun {run} trainer.devices=3", ["--nodes=2", "--ntasks=3"],
        "srun started processes, 2, 1 on 2 nodes, and trainer.devices=3 and trainer.num_nodes=1 need 3 on one node; "
        "start with `srun --nodes=1 --ntasks-per-node=3`",
    ),
    "no srun, one device": (
        "{run}", ["--ntasks-per-node=2"],
        "the job has 2 tasks, but trainer.devices=1 and trainer.num_nodes=1 need 1, and without srun",
    ),
    "no srun, two nodes": (
        "{run} trainer.num_nodes=2", ["--nodes=2", "--ntasks-per-node=1"],
        "trainer.num_nodes=2 needs processes, 1 on each of 2 nodes, and nothing starts those of the other nodes; start "
        "the command with `srun --nodes=2 --ntasks-per-node=1` or with torchrun",
    ),
    "a chain": ("srun {run} chain=[base,mid]", ["--ntasks=2", "--nodes=1"], "start it once, without srun"),
    "torchrun": (
        "{python} -m torch.distributed.run --nproc-per-node=2 {file}", ["--ntasks=1"],
        "torchrun started processes, 2 on one node, and trainer.devices=1 and trainer.num_nodes=1 need 1 on one node",
    ),
}  # fmt: skip


def test_what_starts_others_is_refused_within_seconds(slurm: Slurm, world: Path, tmp_path: Path):
    for name, (line, options, said) in REFUSED.items():
        run = f"{train(world, tmp_path)} run_name=refused"
        script = line.replace("{run}", run).replace("{file}", run.replace("{train}", TRAIN))
        begun = time.monotonic()
        job = slurm.wait(slurm.submit(script, *options))
        assert job.state == "FAILED" and said in re.sub(r"\s+", " ", job.output), f"{name}: {job.output}"
        assert time.monotonic() - begun < 15, f"{name}: on an idle machine 5 s"
        assert not (tmp_path / "base").exists(), name
