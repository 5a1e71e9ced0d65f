"""A real Slurm of two nodes on this machine: Debian's packages slurm-wlm and munge, started and stopped here."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.integration.conftest import (
    BASE,
    world,  # noqa: F401  a fixture
)

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=5
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Job:
    """A job that has ended."""

    state: str
    exit_code: int
    output: str


class Slurm:
    """A running cluster; jobs run in `folder` with this Python, one thread each."""

    def __init__(self, own: Path, folder: Path):
        self.own, self.folder = own, folder

    def call(self, *arguments: str) -> str:
        """Run one of Slurm's programs; return what it prints."""
        env = {**os.environ, **self.environment()}
        done = subprocess.run(arguments, env=env, cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout.strip()

    def environment(self) -> dict[str, str]:
        """The variables of jobs: where Slurm is, and node names that are no host names."""
        return {"SLURM_CONF": str(self.own / "slurm.conf"), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}

    def submit(self, script: str, *options: str) -> str:
        """Submit a batch script ({python} and {file}: this Python and train.py); return the job's number."""
        text = script.replace("{python}", sys.executable).replace("{file}", str(REPO / "train.py"))
        file = Path(tempfile.mkstemp(suffix=".sh", dir=self.folder)[1])
        file.write_text(f"#!/bin/bash\n{text}\n")
        return self.call("sbatch", "--parsable", "--output=%j.out", "--open-mode=append", *options, str(file))

    def state(self, job: str) -> str:
        """The state of a job, such as PENDING, RUNNING, COMPLETED, FAILED."""
        return self._field(job, "JobState")

    def wait(self, job: str, seconds: float = 240) -> Job:
        """Wait for the end of a job."""
        deadline = time.monotonic() + seconds
        while self.state(job) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED"):
            assert time.monotonic() < deadline, f"job {job} is {self.state(job)}: {self.output(job)}"
            time.sleep(0.2)
        return Job(self.state(job), int(self._field(job, "ExitCode").split(":")[0]), self.output(job))

    def output(self, job: str) -> str:
        """What a job has printed so far."""
        file = self.folder / f"{job}.out"
        return file.read_text() if file.exists() else ""

    def _field(self, job: str, name: str) -> str:
        shown = self.call("scontrol", "show", "job", job)
        return next(part.partition("=")[2] for part in shown.split() if part.startswith(f"{name}="))


def settings(world: Path, folder: Path, *overrides: str) -> list[str]:  # noqa: F811
    """Return the overrides of a small run below `folder`."""
    data = [f"data.root={world / 'data'}", f"tokenizer.path={world / 'tokenizer'}", f"outputs={folder}"]
    return [*BASE, *data, *overrides]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """Start the daemons; yield the folder of their files."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own is started as root")
    own = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # sockets want short paths
    first, port = _free_ports(3)[0], _free_ports(1)[0]
    host = socket.gethostname().partition(".")[0]
    (own / "slurm.conf").write_text(CONFIG.format(folder=own, host=host, port=port, first=first, last=first + 1))
    (own / "munge.key").write_bytes(os.urandom(1024))
    (own / "munge.key").chmod(0o400)
    for name in ("state", "n1", "n2"):
        (own / name).mkdir()
    munge = [f"--{key}={own / value}" for key, value in _MUNGE.items()]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D", "-N", "n1"],
            ["slurmd", "-D", "-N", "n2"],
        ):
            env = {**os.environ, "SLURM_CONF": str(own / "slurm.conf")}
            with (own / f"{command[0]}.out").open("ab") as out:
                started.append(subprocess.Popen(command, env=env, stdout=out, stderr=out))
            time.sleep(0.5)
        env = {**os.environ, **Slurm(own, own).environment()}
        deadline, nodes = time.monotonic() + 30, ["sinfo", "--noheader", "--format=%T %D"]
        while subprocess.run(nodes, env=env, capture_output=True, text=True).stdout.strip() != "idle 2":
            if time.monotonic() > deadline:  # no cgroups, no name of the host: what is tested here is not Slurm
                errors = [line for log in own.glob("*.log") for line in log.read_text().splitlines() if "rror" in line]
                pytest.skip(f"Slurm does not start on this machine: {'; '.join(errors[-3:])}")
            time.sleep(0.2)
        yield own
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            process.wait(timeout=30)
        shutil.rmtree(own, ignore_errors=True)


@pytest.fixture
def slurm(cluster: Path, tmp_path: Path) -> Slurm:
    """The cluster, its jobs in tmp_path."""
    return Slurm(cluster, tmp_path)


_MUNGE = {
    "key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log",
    "seed-file": "munge.seed",
}  # fmt: skip


def _free_ports(count: int) -> list[int]:
    """Return free ports that follow each other, as far as can be known."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        with_next = [socket.socket() for _ in range(count)]
        try:
            for offset, one in enumerate(with_next):
                one.bind(("127.0.0.1", first + offset))
        except OSError:
            continue
        finally:
            for one in with_next:
                one.close()
        return [first + offset for offset in range(count)]
