"""Who started this process, and as which of how many: torchrun, srun, Lightning, or a user.

Whatever depends on it asks here: which process writes the files of a run, and whether there are as many as it needs.
"""

import os
import re
from dataclasses import dataclass

from nanochat_pl.config.schema import TrainerConfig

__all__ = ["Processes", "check_alone", "check_processes", "idle_gpus", "is_first_process", "leave_group", "this_group"]

_GROUP = (
    "NTASKS", "NPROCS", "NTASKS_PER_NODE", "NNODES", "NODEID", "PROCID", "LOCALID", "STEP_ID", "STEP_NUM_TASKS",
    "GPUS_ON_NODE",
)  # fmt: skip


@dataclass(frozen=True)
class Processes:
    """The processes that were started together with this one.

    Args:
        launcher: `torchrun`, `srun`, `lightning` (which starts all but the first itself), or `none`.
        is_first: this one writes the files of the run.
        per_node: how many there are on each node.
    """

    launcher: str
    is_first: bool
    per_node: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many there are on all nodes."""
        return sum(self.per_node)

    def __str__(self) -> str:
        return _in_words(self.per_node)


def this_group() -> Processes:
    """Return the processes that this one belongs to, as its environment describes them.

    A job of Slurm is no group by itself: its script runs once, and only `srun` starts a process for each task. In the
    script, and in a shell that `srun --pty` opened, Lightning starts the further processes of a node.
    """
    env = os.environ
    if "RANK" in env:
        size = _number("WORLD_SIZE")
        local = min(_number("LOCAL_WORLD_SIZE", size), size)
        return Processes("torchrun", env["RANK"] == "0", (local,) * (size // local))
    if "LOCAL_RANK" in env:
        first = env["LOCAL_RANK"] == "0" and env.get("NODE_RANK", "0") == "0"
        return Processes("lightning", first, (_number("WORLD_SIZE"),))
    if "SLURM_STEP_ID" in env and _number("SLURM_STEP_NUM_TASKS") > 1:
        return Processes("srun", env.get("SLURM_PROCID", "0") == "0", _tasks_per_node())
    return Processes("none", True, (1,))


def is_first_process() -> bool:
    """Return whether this process writes the files of the run, whatever launched it and on any number of machines."""
    return this_group().is_first


def leave_group() -> None:
    """Make this process one of its own, for work that several tasks of Slurm share without being ranks of one run."""
    for name in _GROUP:
        os.environ.pop(f"SLURM_{name}", None)


def check_alone(what: str) -> None:
    """Check that a command was started once.

    Raises:
        ValueError: torchrun or srun started several; they would do the same work and write the same files.
    """
    group = this_group()
    if group.launcher in ("srun", "torchrun") and group.size > 1:
        raise ValueError(
            f"{group.launcher} started {group.size} processes, and {what}; "
            f"start it once, without {group.launcher}"
        )  # fmt: skip


def check_processes(trainer: TrainerConfig) -> None:
    """Check that there are the processes which a run needs, or none yet, so that Lightning starts them.

    Raises:
        ValueError: there are others; the message says what to change.
    """
    group, devices, nodes = this_group(), trainer.devices, trainer.num_nodes
    needed = (devices,) * nodes
    srun = f"srun --nodes={nodes} --ntasks-per-node={devices}"
    own = f"trainer.devices={devices} and trainer.num_nodes={nodes}"
    if group.launcher in ("srun", "torchrun"):
        if group.per_node == needed:
            return
        one, count = group.per_node[0], len(group.per_node)
        even = group.per_node == (one,) * count
        remedy = f"set trainer.devices={one} trainer.num_nodes={count}, or " if even else ""
        start = srun if group.launcher == "srun" else f"torchrun --nnodes={nodes} --nproc-per-node={devices}"
        raise ValueError(
            f"{group.launcher} started processes, {group}, and {own} need {_in_words(needed)}; {remedy}start with "
            f"`{start}`"
        )
    if group.launcher == "lightning":
        return
    if nodes > 1 and not {"NODE_RANK", "MASTER_ADDR"} <= {*os.environ}:
        raise ValueError(
            f"trainer.num_nodes={nodes} needs processes, {_in_words(needed)}, and nothing starts those of the other "
            f"nodes; start the command with `{srun}` or with torchrun"
        )
    tasks = os.environ.get("SLURM_NTASKS", "1")
    in_script = "SLURMD_NODENAME" in os.environ and "SLURM_STEP_ID" not in os.environ
    if in_script and tasks.isdecimal() and int(tasks) not in (1, sum(needed)):
        raise ValueError(
            f"the job has {tasks} tasks, but {own} need {sum(needed)}, and without srun this one process starts them; "
            f"set trainer.devices={tasks} if they are of one node, or `#SBATCH --ntasks=1`"
        )


def idle_gpus(trainer: TrainerConfig) -> int:
    """Return how many GPUs of its node a job of Slurm holds that the run leaves idle."""
    held = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return max(0, int(held) - trainer.devices) if held.isdecimal() else 0


def _in_words(per_node: tuple[int, ...]) -> str:
    """Word how many processes there are on each node."""
    one, nodes = per_node[0], len(per_node)
    if nodes == 1:
        return f"{one} on one node"
    if per_node == (one,) * nodes:
        return f"{one} on each of {nodes} nodes"
    return f"{', '.join(map(str, per_node))} on {nodes} nodes"


def _number(name: str, default: int = 1) -> int:
    """Return a count of the environment; what is no count is one, as Slurm and torchrun always set them."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() and int(value) > 0 else default


def _tasks_per_node() -> tuple[int, ...]:
    """Return what `SLURM_STEP_TASKS_PER_NODE` lists: `2(x3),1` is 2, 2, 2, 1."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    total = _number("SLURM_STEP_NUM_TASKS")
    return tuple(counts) if sum(counts) == total else (total,)
