"""What to type after a run: commands that work as they are printed, in the same folder and shell.

Each repeats those settings of the run that are not its defaults: data, outputs, shapes, devices. It is quoted for the
shell, and a command that trains is offered only if it passes the checks that it has to pass when typed.
"""

import dataclasses
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from nanochat_pl.config.checks import preflight
from nanochat_pl.config.command_line import CommandLine, in_hydra, quote, quote_texts
from nanochat_pl.config.compose import compose_jobs, config_dir
from nanochat_pl.config.evaluations import EvalName
from nanochat_pl.config.inputs import start_weights
from nanochat_pl.config.schema import DataSource, EvaluateConfig, TrainConfig
from nanochat_pl.config.stages import STAGES, StageName
from nanochat_pl.config.targets import may_write
from nanochat_pl.paths import run_dir

SECTIONS = ("data", "model", "trainer", "plugins")
"""Sections that are repeated for a later stage."""
NOT_CARRIED = ("data.formatted_dir", "trainer.stop_after_steps", "trainer.log_every_steps")
SINGLE = ("depth", "seed", "offline", "stage.sequence_len")
BATCH = ("stage.device_batch", "stage.total_batch_tokens")
"""Settings of the batch, repeated where they also suit the later stage."""


def next_steps(cfg: TrainConfig, folder: Path, flags: list[str] | None = None) -> list[str]:
    """Return the commands that may follow a finished run, quoted for a shell; they repeat Hydra's flags of the run."""
    flags = flags or []
    commands = []
    for later in StageName:
        starts = (StageName.tokenizer,) if later == StageName.base else STAGES[later].starts_from[:2]
        if cfg.stage.name in starts and (found := stage_after(cfg, folder, later, flags)) is not None:
            commands.append([*program("train"), *flags, *found])
    if cfg.stage.name != StageName.tokenizer:
        commands.append([*program("evaluate"), *flags, *evaluation(cfg, cfg.stage.name, folder)])
        commands += model_commands(cfg.stage.name, folder)
    return [shlex.join(command) for command in commands]


def listed(commands: list[str]) -> str:
    """Format commands one below the other, none broken over lines, so that each can be copied."""
    return "\n".join(f"{'' if number else 'next:':<5} {command}" for number, command in enumerate(commands))


def model_commands(stage: str, folder: Path) -> list[list[str]]:
    """Return the commands that use the model of a run: chat, serve, report."""
    path = os.path.join(".", folder) if str(folder).startswith("-") else str(folder)
    completes = ["--complete"] if stage == StageName.base else []  # it continues texts and answers nothing
    return [[*program("chat"), path, *completes], [*program("serve"), path], [*program("report"), path]]


def stage_after(cfg: TrainConfig, folder: Path, later: StageName, flags: list[str]) -> list[str] | None:
    """Return the arguments that train `later` from the run in `folder`; None if it would be refused."""
    first = [f"stage={later}", typed("run_name", cfg.run_name)]
    if cfg.data.source != DataSource.microworld:
        first.append(f"data={cfg.data.source}")
    if cfg.data.source == DataSource.local:
        first.append(typed("data.root", cfg.data.root))
    if cfg.outputs != "outputs":
        first.append(typed("outputs", cfg.outputs))
    level = logging.getLogger("nanochat_pl").level
    logging.getLogger("nanochat_pl").setLevel(logging.CRITICAL)  # what it would log is logged when the command is typed
    try:
        if cfg.stage.name == StageName.tokenizer:
            usual: str | Path | None = run_dir(StageName.tokenizer, cfg.run_name, cfg.outputs)
        else:
            usual = start_weights(later, cfg.run_name, None, cfg.outputs)
        if usual is None or Path(usual).resolve() != folder.resolve():
            first.append(typed("tokenizer.path" if cfg.stage.name == StageName.tokenizer else "init_from", str(folder)))
        first += model_choice(cfg)
        bare = checked(first, flags)
        shape, batch = [*differing(cfg, bare)], [*differing_batch(cfg, bare)]
        # such as device_batch=12, which does not divide the batch of the later stage, or compile=true for stage=rl
        shorter = [argument for argument in shape if not argument.startswith("trainer.compile")]
        answers = [f"rl.max_new_tokens={cfg.stage.sequence_len // 2}"] if later == StageName.rl else []
        for arguments in ([*shape, *batch], shape, shorter, [*shorter, *answers]):
            arguments = [*first, *arguments]
            try:
                preflight(checked(arguments, flags))
            except (ValueError, OSError):
                continue
            return arguments
    except (ValueError, OSError):
        return None
    finally:
        logging.getLogger("nanochat_pl").setLevel(level)
    return None


def model_choice(cfg: TrainConfig) -> list[str]:
    """Return the choice of `model=` whose file the model of a run agrees with; none where only defaults agree."""
    for file in sorted((config_dir() / "model").glob("*.yaml")):
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        if settings and all(value_of(cfg, f"model.{name}") == value for name, value in settings.items()):
            return [f"model={file.stem}"]
    return []


def data_root_override(cfg: TrainConfig, folder: Path) -> list[str]:
    """Return an override of `data.root` where the config of a checkpoint alone may not say where to write."""
    made = cfg.data.source != DataSource.local
    if made and cfg.data.root and not may_write(cfg.data.root, folder / "checkpoints", cfg.outputs):
        return [typed("data.root", cfg.data.root)]
    return []


def evaluation(cfg: TrainConfig, stage: str, folder: Path) -> list[str]:
    """Return the arguments that evaluate the run of a stage in `folder` on the data of its config."""
    arguments = [typed("ckpt", str(folder))]
    asks = STAGES[StageName(stage)].default_eval == EvalName.scienceqa
    if asks and cfg.data.source == DataSource.local and not (Path(cfg.data.root or "") / cfg.data.scienceqa).is_dir():
        arguments.append("eval=checks")  # eval=auto would ask questions that are not there
    if cfg.outputs != "outputs":
        arguments.append(typed("outputs", cfg.outputs))
    arguments += data_root_override(cfg, folder)
    usual = EvaluateConfig()
    for key in ("offline", "trainer.accelerator", "trainer.compute_dtype", "plugins.allow"):
        if value_of(cfg, key) != value_of(usual, key):
            arguments.append(typed(key, value_of(cfg, key)))
    return arguments


def checked(arguments: list[str], flags: list[str]) -> TrainConfig:
    """Compose and check a command line of `train.py` as it would be typed.

    Raises:
        ValueError: it would be refused.
    """
    return compose_jobs("train", CommandLine.parse([*flags, *quote_texts(arguments)]))[0].checked


def differing(cfg: TrainConfig, other: TrainConfig) -> Iterator[str]:
    """Yield the overrides that give a later run the data, shapes and devices of this one."""
    keys = [f"{name}.{field.name}" for name in SECTIONS for field in dataclasses.fields(getattr(cfg, name))]
    own = ["tokenizer.vocab_size"] * (cfg.stage.name == StageName.tokenizer)  # a checkpoint brings its tokenizer along
    for key in (*SINGLE, *own, *keys):
        if key not in NOT_CARRIED and value_of(cfg, key) != value_of(other, key):
            yield typed(key, value_of(cfg, key))


def differing_batch(cfg: TrainConfig, other: TrainConfig) -> Iterator[str]:
    """Yield the overrides of the batch that a later stage can share if it counts the batch in the same unit."""
    for key in BATCH if cfg.stage.counts_tokens and other.stage.counts_tokens else BATCH[:1]:
        if value_of(cfg, key) != value_of(other, key) and cfg.stage.name != StageName.tokenizer:
            yield typed(key, value_of(cfg, key))


def value_of(cfg: Any, key: str) -> Any:
    """Read a setting by its dotted key."""
    for part in key.split("."):
        cfg = getattr(cfg, part)
    return cfg


def typed(key: str, value: Any) -> str:
    """Write a setting as plainly as the same value can be read back, before the shell's quotes."""
    if not isinstance(value, str):
        return f"{key}={in_hydra(value)}"
    value = str(value)
    # A comma would be several values, and what begins with a bracket, a quote or ~ is read as more than a text.
    plain = value and not re.search(r"[,\\]|\$\{|^[\[{(~'\"\s]|\s$", value) and value != "null"
    return f"{key}={value if plain else quote(value)}"


def program(command: str) -> list[str]:
    """Return how a command is called here: as a script if this one was, else as the installed program, if any."""
    script = Path(sys.argv[0])
    bin_folder = Path(sys.executable).parent
    python = "python" if _leads_to("python", bin_folder) else _short(Path(sys.executable))
    sibling = script.with_name(f"{command}.py")
    own = Path(__file__).resolve().parent
    if script.name in ("train.py", "evaluate.py") and sibling.is_file() and script.resolve().parent != own:
        return [python, str(sibling)]
    if _leads_to("nanochat-pl", bin_folder):
        return ["nanochat-pl", command]
    if (installed := bin_folder / "nanochat-pl").is_file():
        return [_short(installed), command]
    return [python, "-m", "nanochat_pl.cli.main", command]


def _leads_to(name: str, folder: Path) -> bool:
    """Return whether the shell finds a program in this folder."""
    found = shutil.which(name)
    return found is not None and Path(found).parent.resolve() == folder.resolve()


def _short(path: Path) -> str:
    """Return a path relative to the working folder if it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def config_flags(folder: Path | None) -> list[str]:
    """Return the flag that repeats `--config-dir`."""
    return [] if folder is None or folder == config_dir() else ["--config-dir", str(folder)]
