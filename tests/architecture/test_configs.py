"""Every YAML file composes, alone and with the others, and none repeats what holds without it.

A file added to a config group is tested here the day it is written: these tests run over what lies in the folders.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanochat_pl.cli.chain import plan_chain
from nanochat_pl.config.command_line import CommandLine
from nanochat_pl.config.compose import check, compose_checked, compose_jobs, config_dir
from nanochat_pl.config.schema import EvaluateConfig, TrainConfig
from nanochat_pl.config.settings import leaves

CONFIGS = config_dir()
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted(CONFIGS.iterdir())
    if folder.is_dir() and folder.name != "local"
}
COMBINED = ("stage", "data", "trainer", "logger")
FILES = [f"{group}/{name}" for group, names in GROUPS.items() for name in names]


def choose(**choices: str) -> list[str]:
    """Give the overrides that take an option of each group; data=local needs a folder's name beside it."""
    overrides = [f"{group}={name}" for group, name in choices.items()]
    return overrides + (["data.root=some/folder"] if choices.get("data") == "local" else [])


def compose(overrides: list[str], script: str = "train") -> Any:
    [cfg] = compose_checked(script, CommandLine(overrides, False, CONFIGS))
    return cfg


def test_the_folder_is_the_one_of_this_checkout():
    assert Path(__file__).resolve().parents[2] / "configs" == CONFIGS
    assert {"stage", "data", "model", "optim", "mixture", "trainer", "logger", "callbacks", "eval"} <= set(GROUPS)


@pytest.mark.slow
@pytest.mark.parametrize("file", [file for file in FILES if not file.startswith("sizes/")])
def test_every_option_composes_with_the_defaults(file: str):
    group, name = file.split("/")
    if group == "sweep":
        jobs = compose_jobs("train", CommandLine(choose(sweep=name), False, CONFIGS))
        assert len(jobs) > 1 and all(job.sweep is not None and job.sweep.is_fixed for job in jobs)
        return
    config = check(compose(choose(**{group: name})), TrainConfig)
    if config.chain:
        assert len(plan_chain(config, choose(**{group: name}))) >= len(config.chain)


@pytest.mark.parametrize("group", ["data", "mixture", "trainer", "eval"])
def test_every_option_of_an_evaluation_composes(group: str):
    for name in set(GROUPS[group]) - {"ddp"}:  # one process evaluates
        check(compose(choose(**{group: name}), "evaluate"), EvaluateConfig)


@pytest.mark.parametrize("stage", GROUPS["stage"])
def test_every_stage_composes_with_every_data_source(stage: str):
    trainers, loggers = itertools.cycle(GROUPS["trainer"]), itertools.cycle(GROUPS["logger"])
    for data in GROUPS["data"]:
        config = compose(choose(stage=stage, data=data, trainer=next(trainers), logger=next(loggers)))
        assert (config.stage.name, config.data.source) == (stage, data)


@pytest.mark.slow
@pytest.mark.parametrize("stage", GROUPS["stage"])
def test_every_combination_composes(stage: str):
    for names in itertools.product(*(GROUPS[group] for group in COMBINED[1:])):
        compose(choose(stage=stage, **dict(zip(COMBINED[1:], names))))


@pytest.mark.parametrize("name", GROUPS["sizes"])
def test_sizes_are_named_after_the_stage_and_data_they_fit(name: str):
    assert name in {f"{stage}_{data}" for stage in GROUPS["stage"] for data in GROUPS["data"]}


def own_lines(file: str) -> dict[str, Any]:
    """Give what a YAML file of a group sets: dotted key of the whole config -> value as written."""
    path = CONFIGS / f"{file}.yaml"
    text = path.read_text(encoding="utf-8")
    content = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(content, dict)
    for key in ("defaults", "hydra"):
        content.pop(key, None)
    package = "" if "@package _global_" in text or "/" not in file else file.split("/")[0] + "."
    return {package + key: value_at(content, key) for key in leaves(content)}


def value_at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def without(file: str) -> Any:
    """Give the config as it is without a file: the schema's defaults, or what the file is laid over."""
    group, _, name = file.rpartition("/")
    if group == "sizes":
        stage, data = next(
            (stage, data) for stage in GROUPS["stage"] for data in GROUPS["data"] if name == f"{stage}_{data}"
        )
        return compose([*choose(stage=stage, data=data), "~sizes"])
    if group == "experiment":
        listed = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{file}.yaml")).get("defaults", [])  # type: ignore[union-attr]
        chosen = {
            key.removeprefix("override ").strip("/ "): option
            for entry in listed
            if isinstance(entry, dict)
            for key, option in entry.items()
        }
        return compose(choose(**chosen))
    return OmegaConf.structured(EvaluateConfig if file == "evaluate" else TrainConfig)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["train", "evaluate", *FILES])
def test_no_file_says_what_holds_without_it(file: str):
    before = without(file)
    repeated = []
    for key, value in own_lines(file).items():
        names_itself = value == file.rpartition("/")[2]  # `name: base` in stage/base.yaml says which one this is
        try:
            default = value_at(before, key)
        except (OmegaConfBaseException, KeyError, TypeError):
            continue  # a task, callback or logger, or a value that must be given: there is no default to repeat
        if not names_itself and default == value:
            repeated.append(f"{key}={value}")
    assert not repeated, f"configs/{file}.yaml repeats {', '.join(repeated)}: delete these lines"
