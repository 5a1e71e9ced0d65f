"""How processes find each other under srun, and how the first one ends when another has."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from nanochat_pl.training import environment
from tests.unit.test_process_groups import STEP, TORCHRUN, TWO, alone, setenv  # noqa: F401  a fixture


def test_the_processes_of_a_step_are_those_that_srun_started(monkeypatch: pytest.MonkeyPatch):
    assert type(environment.cluster_environment()) is LightningEnvironment
    place = {"SLURM_STEP_NODELIST": "gpu[07-08,11]", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_NTASKS": "64"}
    setenv(monkeypatch, STEP | TWO | place | {"SLURM_JOB_NODELIST": "gpu[01-99]", "SLURM_JOB_NAME": "interactive"})
    step = environment.cluster_environment()
    assert (step.world_size(), step.global_rank(), step.local_rank(), step.node_rank()) == (2, 1, 1, 0)
    assert step.creates_processes_externally and step.main_address == "gpu07"
    port = step.main_port
    assert 15_000 <= port < 25_000
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert step.main_port != port, "two steps of a job are two runs"
    setenv(monkeypatch, {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"})
    assert (step.main_address, step.main_port) == ("10.0.0.7", 29500)
    setenv(monkeypatch, TORCHRUN)
    assert type(environment.cluster_environment()) is TorchElasticEnvironment


class Ended:
    """A process that has ended, or goes on."""

    pid = 1

    def __init__(self, code: int | None):
        self.returncode = code

    def poll(self) -> int | None:
        return self.returncode


@pytest.mark.parametrize(("codes", "waits"), [([None, -9], [10.0]), ([None, None], []), ([0, 0], [])])
def test_the_first_process_has_time_to_say_why_the_run_ends(
    monkeypatch: pytest.MonkeyPatch, codes: list[int | None], waits: list[float]
):
    happened: list[Any] = []
    monkeypatch.setattr(environment.time, "sleep", happened.append)
    observer = _ChildProcessObserver(0, [Ended(code) for code in codes])
    monkeypatch.setattr(observer, "_terminate_all", lambda: happened.append("killed"))
    monkeypatch.setattr(threading, "enumerate", lambda: [observer])
    environment.give_time_to_end()
    look: Callable[[], bool] = observer._run
    assert look() is (None not in codes or -9 in codes)
    assert happened == [*waits, *(["killed"] if waits else [])], "and only then it is killed"
