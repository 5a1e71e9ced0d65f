"""The runs of a sweep, each a process of its own: finished ones are left alone, broken and failed ones go on.

A run is taken by a claim on its folder, so that several processes, also on other machines, share the runs of one sweep
where all of them see its folder. Whatever ends the process that started a run ends the run, too, which saves first.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from nanochat_pl.cli.chain import command_line, environment, typed_command
from nanochat_pl.cli.fork import Fork
from nanochat_pl.cli.sweep_table import LOG_FILE, figure_of, show, write_table
from nanochat_pl.config.checks import preflight
from nanochat_pl.config.command_line import ConfigError, quote
from nanochat_pl.config.compose import Job
from nanochat_pl.config.processes import leave_group
from nanochat_pl.config.run_folder import unfinished
from nanochat_pl.config.schema import Accelerator
from nanochat_pl.config.stages import UNTRAINED
from nanochat_pl.config.sweep import key_of
from nanochat_pl.paths import JOB_FILE, read_record, runs_of_sweep, write_atomically
from nanochat_pl.training import signals
from nanochat_pl.training.claim import FolderInUseError, check_free, claimed

__all__ = ["check_sweep", "run_sweep"]

CLAIM = ".sweep"
"""The folder inside that of a run which is claimed by who starts it; the run itself claims its own."""
FREE_KEYS = (*UNTRAINED, "sweep.variant")
"""What may be another when a sweep goes on."""
LOOK_EVERY_S = 2.0
"""Seconds between two looks at runs that other processes do."""
MAX_SHOWN = 24
"""Sweeps of more runs show the path of their table only."""
_WIDTH = 80


@dataclass
class Running:
    """A run that this process has started."""

    job: Job
    process: subprocess.Popen[bytes] | Fork
    claim: contextlib.ExitStack
    place: dict[str, str]
    began: float = field(default_factory=time.monotonic)


def check_sweep(jobs: Sequence[Job]) -> None:
    """Check every run that is not finished, and that the folder holds none of other settings under its name.

    Raises:
        ConfigError: it does; the message says which setting differs.
        ValueError, FileNotFoundError: as `preflight`.
    """
    for job in jobs:
        cfg, record = job.checked, read_record(job.folder / JOB_FILE)
        if cfg.resume not in (None, "auto"):
            raise ConfigError(f"resume={cfg.resume}: each run of a sweep goes on from its own folder; leave it out")
        if record is None and (job.folder / "config.yaml").is_file() and not cfg.force:
            raise ConfigError(f"{job.folder} holds a run that no sweep made; give hydra.sweep.dir=<another folder>")
        before, now = settled((record or {}).get("overrides", [])), settled(job.run.overrides)
        if record is not None and not cfg.force and (other := sorted({*before.items()} ^ {*now.items()})):
            key = other[0][0]
            raise ConfigError(
                f"{job.folder} holds a run with {before.get(key, f'no {key}')}, and now it would have "
                f"{now.get(key, f'no {key}')}; give hydra.sweep.dir=<another folder>, or force=true to throw it away"
            )
        if cfg.force or not is_finished(job):
            preflight(cfg if cfg.force else dataclasses.replace(cfg, resume="auto"), job.folder)


def settled(overrides: Sequence[str]) -> dict[str, str]:
    """Return overrides by their keys, without those that may change."""
    own = {key_of(line): line for line in overrides}
    return {key: line for key, line in own.items() if not any(f"{key}.".startswith(f"{free}.") for free in FREE_KEYS)}


def run_sweep(jobs: Sequence[Job], config_folder: Path | None) -> int:
    """Do all runs of a sweep that are not finished; return the exit code: 0, 1 = one failed, 128 + n after signal n.

    Args:
        jobs: the checked runs, in order.
        config_folder: the folder of `--config-dir`.

    Raises:
        ConfigError: more runs at a time than there are devices; or as `check_sweep`.
        ValueError, FileNotFoundError: as `check_sweep`.
    """
    sweep = jobs[0].sweep
    assert sweep is not None
    leave_group()  # several tasks each do runs of their own
    check_sweep(jobs)
    places = find_places(jobs, sweep.jobs)
    board = Board(jobs, config_folder, places, may_fork(jobs))
    code = board.work()
    if (sweep.folder / "results.csv").is_file():
        table = sweep.folder / "results.csv"
        print(f"table: {table}") if len(runs_of_sweep(sweep.folder)) > MAX_SHOWN else show(table)
    if code > 128:
        again = "the same command" + ("" if sweep.is_fixed else f" with hydra.sweep.dir={sweep.folder}")
        signals.say(f"stopped by signal {code - 128}; to continue: {again}")
    return code


class Board:
    """The runs of a sweep: which wait, which this process does, which have ended.

    Args:
        jobs: all runs, in order.
        config_folder: the folder of `--config-dir`.
        places: variables of the environment for each run that goes on at the same time.
        forks: runs are copies of this process.
    """

    def __init__(
        self, jobs: Sequence[Job], config_folder: Path | None, places: Sequence[dict[str, str]], forks: bool
    ) -> None:
        self.config_folder = config_folder
        self.forks = forks
        self.numbers = {job.run.name: number for number, job in enumerate(jobs, 1)}
        self.failed_before = {job.run.name: failure(job.folder) for job in jobs}
        self.waiting = [job for job in jobs if job.checked.force or not is_finished(job)]
        self.free = list(places)
        self.running: list[Running] = []
        self.signal = 0
        self.failed = False
        assert jobs[0].sweep is not None
        self.folder = jobs[0].sweep.folder
        self.alone = len(jobs) == 1
        runs = f"{len(jobs)} run{'s' * (len(jobs) > 1)}"
        done = len(jobs) - len(self.waiting)
        at_once = f", {len(places)} at a time" if len(places) > 1 else ""
        threads = places[0].get("OMP_NUM_THREADS")
        share = f" with {threads} thread{'s' * (threads != '1')} each" if threads else ""
        before = f", {done} of them finished before" if done else ""
        print(f"{runs} in {self.folder}{at_once}{share}{before}", flush=True)

    def work(self) -> int:
        """Do all runs, and wait for those that other processes do; return the exit code."""
        before = signals.install(self.pass_on)
        told, look_at = False, 0.0
        try:
            while self.running or (self.waiting and not self.signal):
                self.reap()
                if self.free and self.waiting and not self.signal and time.monotonic() >= look_at:
                    self.start_next()
                    look_at = time.monotonic() + LOOK_EVERY_S if self.free else 0.0
                    if self.waiting and not self.running and not told:
                        told = True
                        print(f"waiting for {len(self.waiting)} that other processes do", flush=True)
                time.sleep(0.05)
        finally:
            signals.install(None, before)
            for one in self.running:  # only after an error of this program
                one.process.terminate()
                one.process.wait()
                one.claim.close()
        write_table(self.folder)
        return 128 + self.signal if self.signal else int(self.failed)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Hand a signal to all runs, which save, and begin no other."""
        self.signal = number
        for one in self.running:
            with contextlib.suppress(OSError):
                one.process.send_signal(number)

    def start_next(self) -> None:
        """Start runs that nobody does, as many as there are places; forget those that others have ended."""
        for job in list(self.waiting):
            if not self.free or self.signal:
                return
            claim = take(job)
            if claim is None:
                continue
            self.waiting.remove(job)
            if is_finished(job) and not job.checked.force:
                claim.close()
            elif (failure(job.folder) or 0.0) > (self.failed_before[job.run.name] or 0.0):  # elsewhere, meanwhile
                self.failed = True
                claim.close()
            else:
                self.start(job, claim)

    def start(self, job: Job, claim: contextlib.ExitStack) -> None:
        """Start a run."""
        place = self.free.pop(0)
        command = typed_command(str(job.checked.stage.name), job.run.overrides, self.config_folder)
        goes_on = (job.folder / "checkpoints").is_dir() and not job.checked.force
        (job.folder / "error.txt").unlink(missing_ok=True)
        order = getattr(job.checked.data, "order_seed", None)
        record = {
            "variant": job.run.variant,
            "values": dict(job.run.values),
            "seed": job.checked.seed,
            "data.order_seed": order,
            "overrides": job.run.overrides,
            "command": command,
        }
        write_atomically(job.folder / JOB_FILE, json.dumps(record, indent=2) + "\n")
        self.say(job, "goes on" if goes_on else "begins")
        process = self.begin(job, command, environment() | place)
        self.running.append(Running(job, process, claim, place))
        if self.signal:  # it came while the run was started
            process.send_signal(self.signal)

    def begin(self, job: Job, typed: str, env: dict[str, str]) -> subprocess.Popen[bytes] | Fork:
        """Begin the process of a run, which writes its log, or to the terminal if it is the only one."""
        command, log = own_command(job, self.config_folder), job.folder / LOG_FILE
        if not self.alone:
            command.append("chain=[]")  # as for a stage of a chain, what could be typed next is not worked out
        with contextlib.ExitStack() as opened:
            output = None if self.alone else opened.enter_context(log.open("a", encoding="utf-8"))
            print(typed, file=output, flush=True)
            if self.forks:
                with contextlib.suppress(OSError):
                    return Fork(command, env, log)
                # no socket can be made in the folder for temporary files, whose name may be too long
                self.forks = False
            env |= {signals.PARENT: str(os.getpid())}
            return subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
            )

    def reap(self) -> None:
        """Take note of runs that have ended."""
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            self.free.append(one.place)
            code, folder = one.process.returncode, one.job.folder
            code = code if code >= 0 else 128 - code
            took = f"after {time.monotonic() - one.began:.0f} s"
            if code == 0:
                how = "finished" if (state := unfinished(folder)) is None else state
                self.say(one.job, f"{how} {took}{figure_of(folder)}")
            elif self.signal and code > 128:
                self.say(one.job, f"stopped {took}")
            else:
                self.failed = True
                why = reason_of(folder, code, self.alone)
                write_atomically(folder / "error.txt", why + "\n")
                self.say(one.job, f"failed {took}")
                print(f"  {why}", flush=True)
            one.claim.close()
            write_table(self.folder)

    def say(self, job: Job, what: str) -> None:
        """Print one line about a run, its name shortened where the line would be too long."""
        total = len(self.numbers)
        head, tail = f"[{self.numbers[job.run.name]:{len(str(total))}}/{total}] ", f": {what}"
        room = _WIDTH - len(head) - len(tail)
        name = job.run.name
        print(head + (name if len(name) <= room else f"{name[: room - 1]}…") + tail, flush=True)


def own_command(job: Job, config_folder: Path | None) -> list[str]:
    """Return the command that does one run in its folder."""
    own = [line for line in job.run.overrides if key_of(line) not in ("resume", "force")]
    how = "force=true" if job.checked.force else "resume=auto"
    place = f"hydra.run.dir={quote(str(job.folder))}"
    return command_line(str(job.checked.stage.name), [*own, how, place, "hydra.mode=RUN"], config_folder)


def is_finished(job: Job) -> bool:
    """Return whether a run has been done, by whomever."""
    return (job.folder / "summary.json").is_file() and unfinished(job.folder) is None and failure(job.folder) is None


def failure(folder: Path) -> float | None:
    """Return when the last try of a run failed; None if it did not."""
    try:
        return (folder / "error.txt").stat().st_mtime
    except OSError:
        return None


def take(job: Job) -> contextlib.ExitStack | None:
    """Claim a run; return None if another process does it, or what was left of a killed one has not ended yet."""
    claim = contextlib.ExitStack()
    try:
        claim.enter_context(claimed(job.folder / CLAIM))
        check_free(job.folder)
    except FolderInUseError:
        claim.close()
        return None
    return claim


def reason_of(folder: Path, code: int, alone: bool) -> str:
    """Return in one line why a run failed."""
    lines = [] if alone else (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    said += [line for line in lines[1:] if line.strip()][-1:] if not said and code < 128 else []
    killed = f"it was ended by signal {code - 128}" if code > 128 else f"exit code {code}"
    return " ".join((said[-1] if said else killed).split())[:500]


def find_places(jobs: Sequence[Job], at_once: int) -> list[dict[str, str]]:
    """Return for each of the runs that may go on at the same time its variables of the environment.

    On a CPU the cores are shared out, on GPUs the devices. One run at a time gets all there is.

    Raises:
        ConfigError: there are fewer devices than the runs would need.
    """
    if at_once == 1:
        return [{}]
    places: list[dict[str, str]] = [{} for _ in range(at_once)]
    needs = max(job.checked.trainer.devices for job in jobs)
    devices = count_devices() if any(job.checked.trainer.accelerator != Accelerator.cpu for job in jobs) else []
    if devices:
        if at_once * needs > len(devices):
            fit = len(devices) // needs
            raise ConfigError(
                f"sweep.jobs={at_once}: each run takes {needs} of the {len(devices)} devices here; give sweep.jobs="
                f"{max(1, fit)}, or trainer.accelerator=cpu"
            )
        for index, place in enumerate(places):
            place["CUDA_VISIBLE_DEVICES"] = ",".join(devices[index * needs : (index + 1) * needs])
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for place in places:
            place["OMP_NUM_THREADS"] = str(max(1, cores // (at_once * needs)))
    return places


def may_fork(jobs: Sequence[Job]) -> bool:
    """Return whether runs may be copies of this process: only on Linux, and where each is one process on a CPU.

    macOS' own libraries do not survive a copy, an open GPU neither, and runs on several devices start processes of
    their own from their command.
    """
    if len(jobs) == 1 or sys.platform != "linux" or any(job.checked.trainer.devices > 1 for job in jobs):
        return False
    return all(job.checked.trainer.accelerator == Accelerator.cpu for job in jobs) or not count_devices()


def count_devices() -> list[str]:
    """Return the names of the devices that runs would use, empty on a CPU; torch is asked in a process of its own."""
    ask = "import torch; print(torch.cuda.device_count() or int(torch.backends.mps.is_available()))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, env=environment(), check=False)
    count = int(done.stdout.strip() or 0) if done.returncode == 0 else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if len(named) >= count else [str(index) for index in range(count)]
