"""`python evaluate.py ckpt=…`: measure one checkpoint or several on the same questions, and say what was measured.

Data and task options come from the checkpoint's own config unless the command line gives others; a model of another
program has none, and `data=` must say what to ask. Results go to `eval/<name>/<checkpoint>/` in the checkpoint's run,
those of other models to a folder below `outputs/eval`; an interrupted evaluation continues from its examples.
"""

import sys
from pathlib import Path
from typing import Any

from nanochat_pl.training.signals import guarded, loading

with loading():
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    from nanochat_pl.checkpoint import check_model
    from nanochat_pl.checkpoint.formats import ModelFiles
    from nanochat_pl.cli.arguments import share_cores
    from nanochat_pl.cli.explain import asked_for_help
    from nanochat_pl.cli.train import fail, run_hydra
    from nanochat_pl.config import schema
    from nanochat_pl.config.checks import check_measure, hub_folder, names_no_data, no_data, run_config
    from nanochat_pl.config.compose import (
        CommandLine,
        ConfigError,
        about_hydra,
        check,
        compose_checked,
        is_sweep,
        quote_texts,
    )
    from nanochat_pl.config.evaluations import EVALUATIONS
    from nanochat_pl.config.inputs import prepare_root


def main(argv: list[str] | None = None) -> int:
    """Run `evaluate.py`; return its exit code: 0, 1 = failed, 2 = bad command line, 128+n = stopped by signal n."""
    return guarded(lambda: measure(sys.argv[1:] if argv is None else argv))


def measure(argv: list[str]) -> int:
    """Check a command line, then evaluate what it names; returns as `main`."""
    share_cores()
    arguments = quote_texts(argv)
    if (code := asked_for_help("evaluate", arguments)) is not None:
        return code
    sys.argv[1:] = arguments
    schema.register()
    if not about_hydra(arguments):
        try:
            line = CommandLine.parse(arguments)
            configs = compose_checked("evaluate", line)
            is_sweep("evaluate", line)
            for cfg in [] if line.shows_config else configs:
                config = check(cfg, schema.EvaluateConfig)
                sources = [check_model(p, hub_folder(config), config.offline) for p in checkpoint_list(config.ckpt)]
                given = any(argument.startswith(("data=", "data.source=")) for argument in arguments)
                bare = [s for s in sources if s is not None and names_no_data(s)]
                if len(bare) == len(sources) and not given and EVALUATIONS[config.eval.name].reads_data:
                    raise no_data(bare[-1].file, bare[-1].format, config.eval.name)
                check_measure(config.eval.name, config.eval, data_root(config, sources, arguments))
                if config.data.source == schema.DataSource.local:
                    prepare_root(config.data)  # makes nothing: a folder that is not there is refused
        except (ValueError, OSError) as error:
            return fail(error)
    return run_hydra(job, "evaluate")


def data_root(cfg: schema.EvaluateConfig, sources: list[ModelFiles | None], arguments: list[str]) -> str | None:
    """Give the folder with the data sets: the command line's, else that of the last run; None = not known yet."""
    if any(argument.startswith(("data=", "data.source=", "data.root=")) for argument in arguments):
        return cfg.data.root
    runs = [source.file for source in sources if source is not None and source.format == "lightning"]
    data = run_config(runs[-1], default={}).get("data") if runs else None
    root = data.get("root") if isinstance(data, dict) else None
    # A root that is not there may be made or fetched elsewhere, see `trusted_data`.
    return root if isinstance(root, str) and Path(root).is_dir() else None


def checkpoint_list(ckpt: Any) -> list[str]:
    """Give `ckpt` as a list of paths.

    Raises:
        ConfigError: none is given.
    """
    paths = [str(p) for p in ckpt] if isinstance(ckpt, list) else [str(ckpt)] if ckpt else []
    if not paths:
        raise ConfigError(
            "ckpt is not set; give ckpt=<checkpoint file, run folder, other folder with a model, or hf://owner/repo>, "
            "or 'ckpt=[a,b]' for several"
        )
    return paths


def job(cfg: DictConfig) -> int:
    """Evaluate every checkpoint of one command."""
    config = check(cfg, schema.EvaluateConfig)
    hydra_config = HydraConfig.get()
    data: dict[str, Any] = {}
    if hydra_config.runtime.choices.get("data") is not None:
        data = OmegaConf.to_container(cfg.data, resolve=True, enum_to_str=True)  # type: ignore[assignment]
    else:  # single keys on top of the checkpoint's own data
        given = [o for o in hydra_config.overrides.task if o.lstrip("+").startswith("data.")]
        for override in given:
            key = override.partition("=")[0].lstrip("+").removeprefix("data.")
            data[key] = OmegaConf.to_container(cfg.data, resolve=True, enum_to_str=True)[key]  # type: ignore[index, call-overload]
    mixture = None
    if hydra_config.runtime.choices.get("mixture") is not None:
        mixture = {"tasks": config.mixture.tasks}
    from nanochat_pl.eval.runner import evaluate

    return evaluate(config, checkpoint_list(config.ckpt), data, mixture)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
