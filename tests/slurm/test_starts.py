"""Every way to start a run under Slurm is either right or refused within seconds."""

import re
from pathlib import Path

import pytest

from tests.integration.conftest import metrics
from tests.slurm.conftest import Slurm, settings

pytestmark = [pytest.mark.slow, pytest.mark.dist]

SIX_STEPS = ["stage.num_steps=6", "data.logical_shards=2", "stage.val_every_steps=3", "optim.ns_dtype=float32"]
TRAIN = "{python} {file} {run}"
TORCHRUN = "{python} -m torch.distributed.run --nproc-per-node=2 {file} {run}"

RIGHT = {
    "script": (f"{TRAIN} trainer.devices=2", ["--ntasks=1"]),
    "script_of_two": (f"{TRAIN} trainer.devices=2", ["--ntasks-per-node=2"]),
    "srun": (f"srun {TRAIN} trainer.devices=2", ["--ntasks-per-node=2"]),
    "srun_tasks": (f"srun {TRAIN} trainer.devices=2", ["--ntasks=2", "--nodes=1"]),
    "srun_named_bash": (f"srun {TRAIN} trainer.devices=2", ["--ntasks=2", "--nodes=1", "--job-name=bash"]),
    "srun_of_a_part": (f"srun --ntasks=2 --nodes=1 {TRAIN} trainer.devices=2", ["--ntasks-per-node=4"]),
    "srun_of_one": (f"srun --ntasks=1 {TRAIN} trainer.devices=2", ["--ntasks-per-node=2"]),
    "two_nodes": (f"srun {TRAIN} trainer.num_nodes=2", ["--nodes=2", "--ntasks-per-node=1"]),
    "torchrun": (f"{TORCHRUN} trainer.devices=2", ["--ntasks=1"]),
}  # fmt: skip


def test_what_starts_two_processes_trains_as_one_does(slurm: Slurm, world: Path, tmp_path: Path):
    jobs = {}
    for name, (line, options) in {"one": (TRAIN, ["--ntasks=1"]), **RIGHT}.items():
        run = " ".join(settings(world, tmp_path, *SIX_STEPS, f"run_name={name}"))
        jobs[name] = slurm.submit(line.replace("{run}", run), *options)
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
        f"srun {TRAIN}", ["--ntasks=2", "--nodes=1"],
        "srun started processes, 2 on one node, and trainer.devices=1 and trainer.num_nodes=1 need 1 on one node; set "
        "trainer.devices=2 trainer.num_nodes=1, or start with `srun --nodes=1 --ntasks-per-node=1`",
    ),
    "srun -n2 for four": (
        f"srun {TRAIN} trainer.devices=4", ["--ntasks=2", "--nodes=1"],
        "srun started processes, 2 on one node, and trainer.devices=4 and trainer.num_nodes=1 need 4 on one node;",
    ),
    "two nodes for one": (
        f"srun {TRAIN} trainer.devices=2", ["--nodes=2", "--ntasks-per-node=1"],
        "srun started processes, 1 on each of 2 nodes, and trainer.devices=2 and trainer.num_nodes=1 need 2 on",
    ),
    "uneven": (
        f"srun {TRAIN} trainer.devices=3", ["--nodes=2", "--ntasks=3"],
        "srun started processes, 2, 1 on 2 nodes, and trainer.devices=3 and trainer.num_nodes=1 need 3 on one node; "
        "start with `srun --nodes=1 --ntasks-per-node=3`",
    ),
    "no srun, one device": (
        TRAIN, ["--ntasks-per-node=2"],
        "the job has 2 tasks, but trainer.devices=1 and trainer.num_nodes=1 need 1, and without srun",
    ),
    "no srun, two nodes": (
        f"{TRAIN} trainer.num_nodes=2", ["--nodes=2", "--ntasks-per-node=1"],
        "trainer.num_nodes=2 needs processes, 1 on each of 2 nodes, and nothing starts those of the other nodes; start "
        "the command with `srun --nodes=2 --ntasks-per-node=1` or with torchrun",
    ),
    "a chain": (f"srun {TRAIN} chain=[base,mid]", ["--ntasks=2", "--nodes=1"], "start it once, without srun"),
    "a chain by torchrun": (
        f"{TORCHRUN} trainer.devices=2 chain=[base,mid]", ["--ntasks=1"], "start it once, without torchrun",
    ),
    "torchrun": (
        TORCHRUN, ["--ntasks=1"],
        "torchrun started processes, 2 on one node, and trainer.devices=1 and trainer.num_nodes=1 need 1 on one node",
    ),
}  # fmt: skip


def test_what_starts_others_is_refused_within_seconds(slurm: Slurm, world: Path, tmp_path: Path):
    for name, (line, options, said) in REFUSED.items():
        run = " ".join(settings(world, tmp_path, *SIX_STEPS, "run_name=refused"))
        job = slurm.wait(slurm.submit(line.replace("{run}", run), *options), seconds=60)  # on an idle machine 5
        assert job.state == "FAILED" and said in re.sub(r"\s+", " ", job.output), f"{name}: {job.output}"
        assert not (tmp_path / "base").exists(), name
