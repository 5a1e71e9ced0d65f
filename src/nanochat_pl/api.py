"""Training and evaluation as functions, for notebooks and scripts: `nanochat_pl.train`, `nanochat_pl.evaluate`.

They take the settings that `train.py` and `evaluate.py` take on their command lines, run in this process, and raise
the errors that those would print: `ConfigError` or another `ValueError` for settings, `FileNotFoundError` for missing
files.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanochat_pl.config.compose import Job
    from nanochat_pl.config.schema import TrainConfig

__all__ = ["RunResult", "evaluate", "train"]


@dataclass(frozen=True)
class RunResult:
    """The folder that a run or an evaluation wrote, and its results."""

    folder: Path
    """The run folder, or the folder of one evaluation of one checkpoint."""
    summary: dict[str, Any] = field(repr=False)
    """The content of its summary.json or results.json."""


def train(*overrides: str, **settings: Any) -> RunResult:
    """Train one stage, as `python train.py` with the same settings does.

    Args:
        *overrides: as on the command line: `"stage=base"`, `"optim.matrix_lr=0.01"`.
        **settings: the same as keywords: `stage="base", depth=2, optim={"matrix_lr": 0.01}`.

    Returns:
        The run folder and its summary.

    Raises:
        ValueError, FileNotFoundError: what `train.py` would print; or the settings describe a sweep, a chain or several
            devices, which need processes of their own.
        KeyboardInterrupt: a signal stopped the run; what it did is saved, and `resume="auto"` goes on.

    Example:
        >>> import nanochat_pl
        >>> base = nanochat_pl.train(stage="base", depth=2, run_name="first", **{"stage.num_steps": 200})
        >>> base.summary["val/bpb"]
    """
    from nanochat_pl.config.checks import preflight
    from nanochat_pl.config.command_line import ConfigError
    from nanochat_pl.config.compose import to_plain
    from nanochat_pl.paths import run_dir

    arguments, job = _one_job("train", overrides, settings)
    cfg: TrainConfig = job.checked
    if cfg.chain:
        raise ConfigError("a chain runs its stages one after another, each as python train.py; train them one by one")
    if (devices := cfg.trainer.world_size) > 1:
        raise ConfigError(f"{devices} devices take {devices} processes; start them with python train.py")
    preflight(cfg)

    from nanochat_pl.training.run import run

    folder = run_dir(cfg.stage.name, cfg.run_name, cfg.outputs)
    summary = _interruptible(lambda: run(cfg, to_plain(job.config), folder, ["train.py", *arguments]))
    if "signal" in summary:
        raise KeyboardInterrupt(f"the run was stopped at step {summary['step']} and saved; resume='auto' goes on")
    return RunResult(folder, summary)


def evaluate(*overrides: str, **settings: Any) -> list[RunResult]:
    """Evaluate checkpoints on the same questions, as `python evaluate.py` with the same settings does.

    Args:
        *overrides, **settings: see `train`; `ckpt` names the checkpoints, one or a list.

    Returns:
        One result for each checkpoint, in their order.

    Raises:
        ValueError, FileNotFoundError: what `evaluate.py` would print.

    Example:
        >>> [recall] = nanochat_pl.evaluate(ckpt=base.folder, eval="recall")
        >>> recall.summary["metrics"]
    """
    from nanochat_pl.cli.evaluate import check_job, run_job
    from nanochat_pl.config.compose import to_plain

    arguments, job = _one_job("evaluate", overrides, settings)
    check_job(job.checked, arguments)
    folders = _interruptible(lambda: run_job(job.checked, to_plain(job.config), job.choices, arguments))
    return [RunResult(folder, json.loads((folder / "results.json").read_text(encoding="utf-8"))) for folder in folders]


def _one_job(name: str, overrides: tuple[str, ...], settings: Mapping[str, Any]) -> tuple[list[str], "Job"]:
    """Compose and check the one job that strings and keywords describe; return them as a command line as well."""
    from nanochat_pl.config.command_line import CommandLine, ConfigError, in_hydra, quote_texts
    from nanochat_pl.config.compose import compose_jobs

    arguments = quote_texts([*overrides, *(f"{key}={in_hydra(value)}" for key, value in _flat(settings))])
    line = CommandLine.parse(arguments)
    jobs = compose_jobs(name, line)
    if jobs[0].sweep is not None:
        raise ConfigError(f"a sweep runs many jobs; start it with python {name}.py -m, or call {name} once for each")
    return arguments, jobs[0]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings by their dotted keys; paths become texts."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value) if isinstance(value, Path) else value


def _interruptible(work: Callable[[], Any]) -> Any:
    """Let a signal that stops a run interrupt the caller as Ctrl-C does in any other library."""
    from nanochat_pl.training.signals import Stopped

    try:
        return work()
    except Stopped as stopped:
        raise KeyboardInterrupt(str(stopped)) from None
