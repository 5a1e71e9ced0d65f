"""How the processes of a run find each other, and end together: what Lightning calls a cluster environment."""

import contextlib
import os
import threading
import time
import zlib
from typing import Any

from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from nanochat_pl.config.processes import this_group

__all__ = ["cluster_environment", "give_time_to_end"]

GRACE_SECONDS = 10.0
"""For the first process to end by itself, once another one has; where it hangs in a collective, it is killed then."""


class StepEnvironment(ClusterEnvironment):
    """The processes that one `srun` started, of which `this_group` knows how many there are.

    Lightning's own class goes by the job and its name, saves on SIGUSR1 what knows nothing of our cursor, and requeues.
    """

    creates_processes_externally = True

    @staticmethod
    def detect() -> bool:
        """Return whether this is a process of one."""
        return this_group().launcher == "srun"

    @property
    def main_address(self) -> str:
        """The step's first node, or MASTER_ADDR."""
        nodes = os.environ["SLURM_STEP_NODELIST"]
        return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)

    @property
    def main_port(self) -> int:
        """A port that neither two steps of a job nor two jobs of a node are likely to share, or MASTER_PORT."""
        step = f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
        return int(os.environ.get("MASTER_PORT") or 15_000 + zlib.crc32(step.encode()) % 10_000)

    def world_size(self) -> int:
        """The number of processes, over all nodes."""
        return this_group().size

    def global_rank(self) -> int:
        """The number of this process."""
        return int(os.environ["SLURM_PROCID"])

    def local_rank(self) -> int:
        """Its number on its node."""
        return int(os.environ["SLURM_LOCALID"])

    def node_rank(self) -> int:
        """The number of its node."""
        return int(os.environ["SLURM_NODEID"])

    def set_world_size(self, size: int) -> None:
        """Leave it as Slurm says."""

    def set_global_rank(self, rank: int) -> None:
        """Leave it as Slurm says."""


def cluster_environment() -> ClusterEnvironment:
    """Return how Lightning's processes find each other: those of torchrun, of srun, or those that it starts itself."""
    environments = {"torchrun": TorchElasticEnvironment, "srun": StepEnvironment}
    return environments.get(this_group().launcher, LightningEnvironment)()


def give_time_to_end() -> None:
    """Let the first process end by itself when one that Lightning has started for it has ended.

    Lightning looks every five seconds and kills the first one at once, which then could not say why the run ends.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            observer: Any = thread
            with contextlib.suppress(AttributeError):  # private names of Lightning: without them it is as it was
                look = observer._run

                def look_and_wait(observer: Any = observer, look: Any = look) -> bool:
                    if any(process.poll() for process in observer._child_processes):
                        time.sleep(GRACE_SECONDS)
                    return look()

                observer._run = look_and_wait
