"""`nanochat-pl sbatch`: a batch file of Slurm for a run, a chain or a sweep, checked before it waits in the queue.

On one node the file starts the command once, and that starts the processes of the other devices; on several, Slurm
starts one for each device. Before its time limit the job saves, leaves, and is put into the queue again.
"""

import argparse
import dataclasses
import logging
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from nanochat_pl.cli.arguments import Arguments, refuse
from nanochat_pl.cli.chain import checked_chain
from nanochat_pl.cli.sweep import check_sweep
from nanochat_pl.config.checks import check_job
from nanochat_pl.config.command_line import CommandLine, ConfigError, quote_texts
from nanochat_pl.config.compose import Job, compose_jobs, config_dir
from nanochat_pl.config.schema import Accelerator, register
from nanochat_pl.paths import write_atomically

__all__ = ["main"]

SETTINGS = "local/slurm.yaml"
"""Below the config folder: options that are always the same, such as the account."""
SAVED = 138
"""What a command returns that SIGUSR1 has ended: state saved."""
LEAD_SECONDS = 120
LOGS = Path("logs")


def main(arguments: list[str]) -> int:
    """Write the file, and submit it if asked to; return 0, 1 = refused by Slurm, 2 = wrong."""
    parser = build_parser()
    try:
        options = parser.parse_intermixed_args([*_from_file(parser), *arguments])
        register()
        own = ["--config-dir", options.config_dir] if options.config_dir else []
        line = CommandLine.parse([*own, *quote_texts(["-m"] * options.multirun + options.overrides)])
        job = checked(line)
        file = options.out or LOGS / f"{name_of(job)}.sbatch"
        write_atomically(file, batch_file(job, line, options))
        LOGS.mkdir(exist_ok=True)  # Slurm would not make it, and the job would end without a word
    except (ValueError, OSError) as error:
        return refuse(error)
    print(f"wrote {file}")
    if not options.submit:
        print(f"next: sbatch {shlex.quote(str(file))}")
        return 0
    if shutil.which("sbatch") is None:
        return refuse(
            FileNotFoundError("--submit: there is no sbatch on this machine; submit the file where there is"), 1
        )
    return subprocess.run(["sbatch", str(file)]).returncode


def build_parser() -> Arguments:
    """Return the parser of the options that are Slurm's; all else are overrides of `train`."""
    parser = Arguments(
        prog="nanochat-pl sbatch",
        description="Write a batch file of Slurm for what `nanochat-pl train` would do with the same overrides, after "
        f"the same checks. Options that are always the same may stand in configs/{SETTINGS}, as in `account: physics`.",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train")
    parser.add_argument("-m", "--multirun", action="store_true", help="a sweep, as for train")
    parser.add_argument("--config-dir", metavar="FOLDER", help="as for train")
    parser.add_argument("--account", metavar="NAME")
    parser.add_argument("--partition", metavar="NAME")
    parser.add_argument("--qos", metavar="NAME")
    parser.add_argument("--time", type=_time, metavar="H:MM:SS", help="limit, after which the job is queued again")
    parser.add_argument("--cpus", type=_count, metavar="N", help="cores of a node (default 4 for each device)")
    parser.add_argument("--memory", metavar="SIZE", help="of a node, such as 200G")
    parser.add_argument("--gpus", type=_count, metavar="N", help="of a node (default trainer.devices, where GPUs are)")
    parser.add_argument("--mail", metavar="ADDRESS", help="gets a message when the job begins, ends and fails")
    parser.add_argument(
        "--lead",
        type=_count,
        default=LEAD_SECONDS,
        metavar="SECONDS",
        help=f"to save in, before the limit ({LEAD_SECONDS})",
    )
    parser.add_argument("--setup", action="append", default=[], metavar="LINE", help="shell line before the command")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the file (default {LOGS}/<run>.sbatch)")
    parser.add_argument("--submit", action="store_true", help="give it to sbatch")
    return parser


def _from_file(parser: argparse.ArgumentParser) -> list[str]:
    """Return the options of configs/local/slurm.yaml as they would be typed.

    Raises:
        ConfigError: it is no mapping, or holds what is no option.
    """
    file = config_dir() / SETTINGS
    if not file.is_file():
        return []
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError:
        raise ConfigError(f"{file} is no YAML; write one option a line, as in `account: physics`") from None
    known = {action.dest for action in parser._actions} - {
        "help",
        "overrides",
        "multirun",
        "config_dir",
        "out",
        "submit",
    }
    if not isinstance(found, dict) or (other := [key for key in found if key not in known]):
        what = f"has {', '.join(map(str, other))}" if isinstance(found, dict) else "is no mapping"
        raise ConfigError(f"{file} {what}; it may have {', '.join(sorted(known))}")
    each = ((key, value if isinstance(value, list) else [value]) for key, value in found.items())
    return [f"--{key}={value}" for key, values in each for value in values]


def checked(line: CommandLine) -> Job:
    """Return the job of a command line, or the first of a sweep, checked as `train` would.

    Raises:
        ValueError, OSError: it would be refused.
    """
    logging.getLogger("nanochat_pl").setLevel(logging.WARNING)  # the run itself logs its choices
    jobs = compose_jobs("train", line)
    job, cfg = jobs[0], jobs[0].checked
    if cfg.force:
        raise ConfigError("force=true would throw the run away whenever its job is queued again; leave it out")
    if (job.sweep is not None or cfg.chain) and cfg.trainer.num_nodes > 1:
        raise ConfigError("a sweep or a chain has one node; give trainer.num_nodes=1")
    if job.sweep is not None:
        if not job.sweep.is_fixed:
            raise ConfigError("the sweep of a job that is queued again needs its folder: hydra.sweep.dir=<folder>")
        check_sweep(jobs)
    elif cfg.chain:
        checked_chain(cfg, line.overrides, line.config_dir)
    else:
        check_job(cfg if cfg.resume else dataclasses.replace(cfg, resume="auto"), job.folder)
    return job


def name_of(job: Job) -> str:
    """Return the name of the job: stage and run, chain and run, or the folder of the sweep."""
    cfg = job.checked
    parts = [job.sweep.folder.name] if job.sweep else ["chain" if cfg.chain else str(cfg.stage.name), cfg.run_name]
    return re.sub(r"[^\w.=-]", "_", "-".join(map(str, parts)))


def batch_file(job: Job, line: CommandLine, options: argparse.Namespace) -> str:
    """Return the batch file."""
    trainer = job.checked.trainer
    together = trainer.num_nodes > 1
    tasks = trainer.devices if together else 1
    cpus = options.cpus or 4 * trainer.devices
    if cpus % tasks:
        raise ConfigError(f"--cpus={cpus} cannot be shared by {tasks} processes; give a multiple of {tasks}")
    has_gpus = trainer.accelerator not in (Accelerator.cpu, Accelerator.mps)
    gpus = options.gpus or (trainer.devices if has_gpus else None)
    settings: dict[str, Any] = {
        "job-name": name_of(job),
        "account": options.account,
        "partition": options.partition,
        "qos": options.qos,
        "nodes": trainer.num_nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": cpus // tasks,
        "gpus-per-node": gpus,
        "mem": options.memory,
        "time": options.time,
        "mail-user": options.mail,
        "mail-type": "BEGIN,END,FAIL" if options.mail else None,
        "output": f"{LOGS}/%x-%j.out",
        "open-mode": "append",
        "signal": f"USR1@{options.lead}",
        "requeue": True,
    }
    lines = ["#!/bin/bash", "# made by nanochat-pl sbatch; it may be changed"]
    for key, value in settings.items():
        if value is not None:
            lines.append(f"#SBATCH --{key}" if value is True else f"#SBATCH --{key}={shlex.quote(str(value))}")
    typed = [text for text in (*_flags(line), *line.overrides) if not text.startswith("resume=")]
    resume = f"resume={job.checked.resume or 'auto'}"
    program = Path(sys.executable).parent / "nanochat-pl"
    start = [str(program)] if program.is_file() else [sys.executable, "-m", "nanochat_pl.cli.main"]
    why = "one process for each device" if together else "one process, which starts those of the other devices"
    return "\n".join(
        [
            *lines,
            "",
            f"cd {shlex.quote(str(Path.cwd()))}",
            *options.setup,
            "",
            f"# {why}; started by srun, the signal before the limit reaches it",
            f"srun --cpus-per-task={cpus // tasks} {shlex.join([*start, 'train', *typed, resume])}",
            "code=$?",
            f"# {SAVED}: stopped by that signal, state saved; queued again, the job goes on from there",
            f'if [ $code -eq {SAVED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            "exit $code",
            "",
        ]
    )


def _flags(line: CommandLine) -> list[str]:
    """Return Hydra's options as they were typed: -m, and a config folder of one's own."""
    own = [] if line.config_dir == config_dir() else ["--config-dir", str(line.config_dir)]
    return [*own, *(["-m"] if line.multirun else [])]


def _time(text: str) -> str:
    if re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; give hours, as in 8:00:00, or days, as in 2-00:00:00")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1 on")
    return int(text)
