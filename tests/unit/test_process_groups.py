"""Which processes a run has, from what torchrun, srun and Lightning leave in the environment."""

import os

import pytest

from nanochat_pl.config.processes import (
    check_alone,
    check_processes,
    idle_gpus,
    is_first_process,
    leave_group,
    this_group,
)
from nanochat_pl.config.schema import TrainerConfig

STEP = {"SLURMD_NODENAME": "n1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}
TWO = {**STEP, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
SCRIPT = {"SLURMD_NODENAME": "n1", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that nothing but a shell started."""
    for name in [*os.environ]:
        if name.startswith("SLURM") or name in {*TORCHRUN, "NODE_RANK", "MASTER_ADDR"}:
            monkeypatch.delenv(name)


def setenv(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "launcher", "per_node", "first"),
    [
        ({}, "none", (1,), True),
        (SCRIPT | {"SLURM_NTASKS": "8"}, "none", (1,), True),  # the script of a job runs once
        (STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, "none", (1,), True),  # a shell in a job
        (TWO, "srun", (2,), False),
        (TWO | {"SLURM_PROCID": "0"}, "srun", (2,), True),
        (TWO | {"SLURM_JOB_NAME": "bash"}, "srun", (2,), False),
        (TWO | {"SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "3(x2),1"}, "srun", (3, 3, 1), False),
        (TWO | {"SLURM_STEP_TASKS_PER_NODE": ""}, "srun", (2,), False),
        (TORCHRUN, "torchrun", (2, 2), False),
        (TORCHRUN | TWO | {"RANK": "0"}, "torchrun", (2, 2), True),  # srun starts torchrun, once a node
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, "lightning", (2,), False),
        (SCRIPT | {"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "lightning", (2,), False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1", "WORLD_SIZE": "2"}, "lightning", (2,), False),
    ],
)
def test_a_process_knows_its_group(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], launcher: str, per_node: tuple[int, ...], first: bool
):
    setenv(monkeypatch, variables)
    group = this_group()
    assert (group.launcher, group.per_node, group.is_first) == (launcher, per_node, first)
    assert is_first_process() == first and group.size == sum(per_node)


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "said"),
    [
        ({}, 2, 1, None),  # Lightning starts the second
        (SCRIPT | {"SLURM_NTASKS": "2"}, 2, 1, None),
        (SCRIPT | {"SLURM_NTASKS": "1"}, 8, 1, None),
        (SCRIPT | {"SLURM_NTASKS": "8"}, 1, 1, r"the job has 8 tasks, .* set trainer\.devices=8 if .*ntasks=1`"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, 1, 1, None),
        (TWO, 2, 1, None),
        (TWO, 1, 1, r"srun started .* need 1 on one node; set trainer\.devices=2 trainer\.num_nodes=1, or start"),
        (TWO, 1, 2, "need 1 on each of 2 nodes; .*`srun --nodes=2 --ntasks-per-node=1`"),
        (TORCHRUN, 2, 2, None),
        (TORCHRUN, 4, 1, r"torchrun started processes, 2 on each of 2 .* or start with `torchrun --nnodes=1 --n"),
        ({}, 1, 2, "nothing starts those of the other nodes"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}, 1, 2, None),  # by hand, a command on each node
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 2, 1, None),
    ],
)  # fmt: skip
def test_a_run_has_the_processes_it_needs_or_says_what_to_change(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], devices: int, nodes: int, said: str | None
):
    setenv(monkeypatch, variables)
    trainer = TrainerConfig(devices=devices, num_nodes=nodes)
    if said is None:
        check_processes(trainer)
    else:
        with pytest.raises(ValueError, match=said):
            check_processes(trainer)


def test_what_several_would_do_alike_is_refused(monkeypatch: pytest.MonkeyPatch):
    check_alone("a chain is one")
    setenv(monkeypatch, TWO)
    with pytest.raises(ValueError, match="srun started 2 processes, and a chain is one; start it once, without srun"):
        check_alone("a chain is one")
    leave_group()
    check_alone("a chain is one")
    assert this_group().launcher == "none" and this_group().is_first


@pytest.mark.parametrize(("held", "devices", "idle"), [("8", 1, 7), ("8", 8, 0), ("", 1, 0), ("gpu:2", 1, 0)])
def test_gpus_that_a_job_pays_for_and_leaves_idle_are_counted(
    monkeypatch: pytest.MonkeyPatch, held: str, devices: int, idle: int
):
    assert idle_gpus(TrainerConfig(devices=devices)) == 0
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", held)
    assert idle_gpus(TrainerConfig(devices=devices)) == idle
    leave_group()  # the runs of a sweep share them
    assert idle_gpus(TrainerConfig(devices=devices)) == 0
