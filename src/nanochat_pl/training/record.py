"""The record of a run: config, command line, commit, machine and log."""

import json
import logging
import logging.handlers
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from nanochat_pl.paths import read_record, write_atomically, writing

__all__ = ["describe_machine", "describe_run", "earlier_seconds", "is_terminal", "write_log"]


def describe_run(folder: Path, plain: dict[str, Any], arguments: list[str]) -> None:
    """Save what is needed to repeat a run, and where it ran: config.yaml, run.json, uncommitted changes as a patch."""
    with writing(folder / "config.yaml"):
        OmegaConf.save(OmegaConf.create(plain), folder / "config.yaml")

    checkout = Path(__file__).resolve().parents[3]
    where = checkout if (checkout / ".git").exists() else None  # installed: the user's own repository, if in one

    def git(*words: str) -> bytes:
        try:
            return subprocess.run(["git", *words], cwd=where, capture_output=True, timeout=5, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return b""

    commit, branch = [*git("rev-parse", "HEAD", "--abbrev-ref", "HEAD").decode(errors="replace").split(), "", ""][:2]
    packages = ("torch", "lightning", "hydra-core", "omegaconf", "tiktoken", "rustbpe", "numpy", "pyarrow")
    record = {
        "argv": arguments,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": commit or None,
        "git_branch": None if branch in ("", "HEAD") else branch,  # HEAD: a commit checked out without a branch
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **describe_machine(),
        "versions": {name: version(name) for name in packages},
    }
    write_atomically(folder / "run.json", json.dumps(record, indent=2) + "\n")
    patch = folder / "git_diff.patch"
    if difference := git("diff", "HEAD"):
        write_atomically(patch, difference)
    else:
        patch.unlink(missing_ok=True)  # left by an earlier session, whose changes have been committed since


def describe_machine() -> dict[str, Any]:
    """Return what this process may use: `cpu`, `cpu_count`, `memory_bytes`, `gpus` (name and memory), `cuda`.

    What cannot be found out is None. If a run has several machines, this one is described.
    """
    if hasattr(os, "sched_getaffinity"):  # a container or a scheduler may have given it a part of the cores only
        cpu_count: int | None = len(os.sched_getaffinity(0))
    else:
        cpu_count = os.cpu_count()
    try:
        memory_bytes: int | None = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        memory_bytes = None
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_model(),
        "cpu_count": cpu_count,
        "memory_bytes": memory_bytes,
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "cuda": torch.version.cuda if gpus else None,
    }


def _cpu_model() -> str | None:
    """Return the name of the processor as Linux has it, else as Python does, which may be just its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or None


def earlier_seconds(summary: Path) -> float:
    """Return the `wall_s` of the summary.json that an earlier session of a run left; 0 if there is none."""
    try:
        return float((read_record(summary) or {})["wall_s"])
    except (ValueError, KeyError, TypeError):
        return 0.0


def write_log(path: Path | None, first: bool, hold: bool = False) -> None:
    """Send the project's log to standard error and, on the first process, to `path` as plain lines.

    Args:
        path: the log file; None = standard error only.
        first: whether this is the first process; the others log warnings only.
        hold: buffer the lines for the file of a later call: a run that is refused has no folder to write them to.
    """
    logging.getLogger("rustbpe").setLevel(logging.WARNING)
    logger = logging.getLogger("nanochat_pl")
    records: list[logging.LogRecord] = []
    for handler in list(logger.handlers):
        if isinstance(handler, _Buffer):
            records, handler.buffer = handler.buffer, []
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO if first else logging.WARNING)
    logger.propagate = False
    console = _StandardError()
    if is_terminal():  # the progress bar shows what these lines would say
        console.addFilter(lambda record: not getattr(record, "in_bar", False))
    handlers: list[logging.Handler] = [console]
    if first and path is not None:
        with writing(path):
            handlers.append(_LogFile(path, encoding="utf-8"))
    if first and hold:
        handlers.append(_Buffer(capacity=10_000, flushLevel=logging.CRITICAL + 1))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        if isinstance(handler, _LogFile):
            for record in records:
                handler.handle(record)


class _Buffer(logging.handlers.MemoryHandler):
    """Keep the lines of a run until it has a folder."""


class _LogFile(logging.FileHandler):
    """Raise as the other files of a run do if the disk is full: logging would print a traceback for every line."""

    def handleError(self, record: logging.LogRecord) -> None:
        with writing(self.baseFilename):
            raise


class _StandardError(logging.StreamHandler):
    """Write to the current `sys.stderr`, which a progress bar replaces while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


def is_terminal() -> bool:
    """Return whether standard error is a terminal."""
    return sys.stderr.isatty()
