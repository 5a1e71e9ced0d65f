"""`python evaluate.py ckpt=…`: measure one checkpoint or several on the same questions, and print the results.

Data and task options come from the config of the checkpoint unless the command line sets them; a model of another
program has none, so that `data=` is needed. Results go to `eval/<name>/<checkpoint>/` in the checkpoint's run,
those of other models to a folder below `outputs/eval`; an interrupted evaluation continues from its examples.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat_pl.training.signals import guarded, loading

with loading():
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from nanochat_pl.checkpoint import check_model
    from nanochat_pl.checkpoint.formats import ModelFiles
    from nanochat_pl.cli.arguments import share_cores
    from nanochat_pl.cli.explain import asked_for_help
    from nanochat_pl.cli.train import fail, run_hydra
    from nanochat_pl.config import schema
    from nanochat_pl.config.checks import check_measure, hub_folder, names_no_data, no_data_error
    from nanochat_pl.config.command_line import CommandLine, ConfigError, about_hydra, options_first, quote_texts
    from nanochat_pl.config.compose import check, compose_jobs, to_plain
    from nanochat_pl.config.evaluations import EVALUATIONS
    from nanochat_pl.config.inputs import prepare_root
    from nanochat_pl.config.processes import check_alone
    from nanochat_pl.config.run_folder import run_config
    from nanochat_pl.paths import runs_of_sweep


def main(argv: list[str] | None = None) -> int:
    """Run `evaluate.py`; return its exit code: 0, 1 = failed, 2 = bad command line, 128+n = stopped by signal n."""
    return guarded(lambda: measure(sys.argv[1:] if argv is None else argv))


def measure(argv: list[str]) -> int:
    """Check a command line, then evaluate what it names; return the exit code as `main` does."""
    share_cores()
    arguments = quote_texts(argv)
    if (code := asked_for_help("evaluate", arguments)) is not None:
        return code
    if not about_hydra(arguments):
        arguments = options_first(arguments)
    sys.argv[1:] = arguments
    schema.register()
    if not about_hydra(arguments):
        try:
            check_alone("an evaluation is the work of one")
            line = CommandLine.parse(arguments)
            jobs = compose_jobs("evaluate", line)
            for each in [] if line.shows_config else jobs:
                check_job(each.checked, arguments)
        except (ValueError, OSError) as error:
            return fail(error)
    return run_hydra(job, "evaluate")


def data_root(cfg: schema.EvaluateConfig, sources: list[ModelFiles | None], arguments: list[str]) -> str | None:
    """Return the folder of the data sets, from the command line or else the last run; None if it is not known yet."""
    if any(argument.startswith(("data=", "data.source=", "data.root=")) for argument in arguments):
        return cfg.data.root
    runs = [source.file for source in sources if source is not None and source.format == "lightning"]
    data = run_config(runs[-1], default={}).get("data") if runs else None
    root = data.get("root") if isinstance(data, dict) else None
    # A root that is not there may be made or fetched elsewhere, see `trusted_data`.
    return root if isinstance(root, str) and Path(root).is_dir() else None


def checkpoint_list(ckpt: Any) -> list[str]:
    """Return `ckpt` as a list of paths; the folder of a sweep stands for all its runs.

    Raises:
        ConfigError: it is not set.
    """
    paths = [str(p) for p in ckpt] if isinstance(ckpt, list) else [str(ckpt)] if ckpt else []
    if not paths:
        raise ConfigError(
            "ckpt is not set; give ckpt=<checkpoint file, run folder, other folder with a model, or hf://owner/repo>, "
            "or 'ckpt=[a,b]' for several"
        )
    return [str(run) for path in paths for run in runs_of_sweep(path) or [path]]


def check_job(cfg: schema.EvaluateConfig, overrides: Sequence[str]) -> None:
    """Check what can be known about one job before a model is opened: its checkpoints, its data, its questions.

    Raises:
        ValueError, FileNotFoundError: with the remedy.
    """
    sources = [check_model(path, hub_folder(cfg), cfg.offline) for path in checkpoint_list(cfg.ckpt)]
    names_data = any(override.startswith(("data=", "data.source=")) for override in overrides)
    bare = [source for source in sources if source is not None and names_no_data(source)]
    if len(bare) == len(sources) and not names_data and EVALUATIONS[cfg.eval.name].reads_data:
        raise no_data_error(bare[-1].file, bare[-1].format, cfg.eval.name)
    check_measure(cfg.eval.name, cfg.eval, data_root(cfg, sources, overrides))
    if cfg.data.source == schema.DataSource.local:
        prepare_root(cfg.data)  # makes nothing: a folder that is not there is refused


def run_job(
    cfg: schema.EvaluateConfig, plain: Mapping[str, Any], choices: Mapping[str, Any], overrides: Sequence[str]
) -> list[Path]:
    """Evaluate every checkpoint of one job; return the folder of results of each.

    Args:
        plain: the config, resolved, as plain containers.
        choices: the option chosen of each config group.
        overrides: the command line; single keys of `data` go on top of the checkpoint's own.
    """
    from nanochat_pl.eval.runner import evaluate

    data = dict(plain["data"])
    if choices.get("data") is None:
        typed = {o.lstrip("+").partition("=")[0] for o in overrides}
        data = {key: value for key, value in data.items() if f"data.{key}" in typed}
    mixture = None if choices.get("mixture") is None else {"tasks": cfg.mixture.tasks}
    return evaluate(cfg, checkpoint_list(cfg.ckpt), data, mixture)


def job(cfg: DictConfig) -> int:
    """Evaluate the checkpoints of one job that Hydra started."""
    hydra = HydraConfig.get()
    run_job(check(cfg, schema.EvaluateConfig), to_plain(cfg), hydra.runtime.choices, list(hydra.overrides.task))
    return 0


if __name__ == "__main__":
    sys.exit(main())
