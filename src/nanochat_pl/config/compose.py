"""From a command line to a checked config, in a fraction of a second and without torch.

Hydra composes; this module adds what users miss in it: the message for a misspelt key names the nearest one, `+key`
cannot add settings that nothing reads, the message for several values without `-m` says what to type, `_target_` stays
below an allow-list, and all values are checked before a run begins.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nanochat_pl.config import schema
from nanochat_pl.config.checks import auto_batch
from nanochat_pl.config.command_line import OPEN_KEYS, PATH_KEYS, CommandLine, ConfigError, free_key, quote, text_keys
from nanochat_pl.config.refusals import (
    did_you_mean,
    refuse_altered_text,
    refuse_option,
    refuse_unreadable,
    reword_error,
)
from nanochat_pl.config.settings import ROOTS, config_dir, group_options, leaves, settings
from nanochat_pl.config.stages import StageName
from nanochat_pl.config.sweep import VARIANT, Sweep, SweptRun, first_values, plan_sweep
from nanochat_pl.config.targets import arguments_of, defined_names, is_module

TARGET_PREFIXES = ("nanochat_pl.", "lightning.")


@dataclass(frozen=True)
class Job:
    """One job that a command line asks for."""

    config: DictConfig
    checked: Any
    """The same as a `TrainConfig` or `EvaluateConfig`."""
    choices: dict[str, str]
    """The option chosen of each config group."""
    folder: Path
    """Where a job of `train` writes."""
    run: SweptRun
    """What to type for it alone, and its name within the sweep."""
    sweep: Sweep | None
    """The sweep that it belongs to, by `-m` or by a config such as `sweep=matrix_lr`; else None."""


def compose_checked(name: str, line: CommandLine) -> list[DictConfig]:
    """Return the configs of `compose_jobs`."""
    return [job.config for job in compose_jobs(name, line)]


def compose_jobs(name: str, line: CommandLine) -> list[Job]:
    """Compose and check one job of `train` or `evaluate`, or all jobs of a sweep.

    Raises:
        ConfigError: for anything that a user can correct, with the remedy in the message.
    """
    schema.register()
    root = ROOTS[name]
    names = known_names(root, line.config_dir)
    groups = group_options([*dict.fromkeys([line.config_dir, config_dir()])])

    def read(argument: str, several: bool) -> Override:
        override = parse_override(argument, names)
        check_override(override, names, several)
        options = None if searched else groups.get(override.key_or_group)
        if options is not None and (message := refuse_option(override, sorted(options))):
            raise ConfigError(message)
        return override

    searched = any(argument.startswith("hydra.searchpath") for argument in line.overrides)
    several = line.multirun or any(argument.startswith("sweep=") for argument in line.overrides)
    overrides = [read(argument, several) for argument in line.overrides]
    hydras_own = [o.input_line or "" for o in overrides if o.get_key_element().startswith("hydra")]
    typed = [o for o in overrides if not o.get_key_element().startswith("hydra")]
    composer = _Composer(name, hydras_own, line.config_dir, set() if searched else {*groups})
    try:
        first = composer.compose(first_values(typed))
        if line.multirun or first.hydra.mode == RunMode.MULTIRUN:
            file = groups.get("sweep", {}).get(str(first.hydra.runtime.choices.get("sweep")))
            try:
                sweep, runs = plan_sweep(first, typed, file, read)
            except ValueError as error:  # our own words
                raise ConfigError(str(error)) from error
        else:
            refuse_sweep(typed, names)
            sweep, runs = None, [SweptRun("", {}, [o.input_line or "" for o in typed], None)]
        configs = [composer.compose(run.overrides) for run in runs]
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        told = isinstance(error, ConfigError)
        raise ConfigError(str(error) if told else reword_error(error, overrides, settings(root))) from error
    texts = {key for key, kind in text_keys().items() if kind != "list"}
    found, seen = [], set[tuple[str, str]]()
    for run, cfg in zip(runs, configs):
        whole = copy.deepcopy(cfg) if sweep is None else cfg
        choices = {key: str(option) for key, option in cfg.hydra.runtime.choices.items() if option is not None}
        with open_dict(cfg):
            del cfg.hydra
        for group, option in choices.items() - seen:
            file = groups.get(group, {}).get(option)
            if file is not None and (message := refuse_altered_text(file, group, texts)):
                raise ConfigError(message)
        seen |= choices.items()
        try:
            checked = check(cfg, root)
            # The folder is made from other settings: what is wrong with these has been said by now.
            folder = Path(str(whole.hydra.run.dir)) if sweep is None else sweep.folder
        except OmegaConfBaseException as error:
            raise ConfigError(reword_error(error, overrides, settings(root))) from error
        except ValueError as error:
            raise ConfigError(str(error)) from error
        found.append(Job(cfg, checked, choices, folder / run.name, run, sweep))
    return found


class _Composer:
    """Compose configs, with the same groups once: values are put on top, as Hydra does. It is for hundreds of runs."""

    def __init__(self, name: str, hydras_own: list[str], folder: Path, groups: set[str]) -> None:
        self.name, self.hydras_own, self.folder, self.groups = name, hydras_own, folder, groups
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the config, including Hydra's own section."""
        parsed = OverridesParser.create().parse_overrides([*overrides])
        late = [o for o in parsed if self._is_value(o)]
        early = tuple(o.input_line or "" for o in parsed if o not in late)
        if early not in self.composed:
            self.composed[early] = compose_one(self.name, [*early, *self.hydras_own], self.folder)
        cfg = copy.deepcopy(self.composed[early])
        ConfigLoaderImpl._apply_overrides_to_config(late, cfg)
        return cfg

    def _is_value(self, override: Override) -> bool:
        key = override.key_or_group  # no groups: they may lie elsewhere, too
        return bool(self.groups) and "/" not in key and (key not in self.groups or isinstance(override.value(), dict))


def refuse_sweep(typed: Sequence[Override], names: Mapping[str, bool]) -> None:
    """Raise `ConfigError` for what means something in a sweep only."""
    for override in typed:
        check_override(override, names, False)
        if override.key_or_group in (VARIANT, "sweep.jobs"):
            raise ConfigError(f"{override.input_line}: this is no sweep; give sweep=<name>, or several values and -m")


def parse_override(argument: str, names: Mapping[str, bool]) -> Override:
    """Read one override.

    Raises:
        ConfigError: with how it should have been written.
    """
    try:
        return OverridesParser.create().parse_overrides([free_key(argument)])[0]
    except HydraException as error:
        if free_key(bare := argument.removeprefix("++")) == argument:
            argument = bare  # these two signs are ours
        key, _, value = argument.partition("=")
        known = settings(schema.EvaluateConfig) | settings(schema.TrainConfig)
        raise ConfigError(refuse_unreadable(argument, f"{key}={quote(value)}", {*names}, known)) from error


def compose_one(name: str, overrides: list[str], folder: Path) -> DictConfig:
    """Let Hydra compose one config, including its own section, from our folder and the one of `--config-dir`."""
    GlobalHydra.instance().clear()
    search = [f"hydra.searchpath=[file://{folder.resolve()}]"] if folder != config_dir() else []
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is missing on a search path is reported when it is used
        return compose(name, overrides + search, return_hydra_config=True)


def known_names(root: type, folder: Path) -> dict[str, bool]:
    """Map every key and config group that a command line may name to whether it takes any key below it."""
    names = dict.fromkeys(settings(root), False)
    names |= dict.fromkeys(OPEN_KEYS, True) | ({VARIANT: False} if root is schema.TrainConfig else {})
    for base in {folder, config_dir()}:
        names |= {path.name: names.get(path.name, False) for path in base.iterdir() if path.is_dir()}
    return names


def check_override(override: Override, names: Mapping[str, bool], multirun: bool) -> None:
    """Refuse an override whose key no setting has, and several values where only one is allowed.

    Raises:
        ConfigError: with the nearest known key, or what to type instead.
    """
    key = override.key_or_group
    if key.startswith("hydra"):
        return
    if not key:
        raise ConfigError(f"{override.input_line}: settings are written key=value")
    is_open = any(key == name or key.startswith(name + ".") for name, opened in names.items() if opened)
    if override.package is not None:
        raise ConfigError(f"{override.input_line}: groups have their fixed places; leave out @{override.package}")
    if key not in names and not is_open:
        hint = did_you_mean(key, {*names}) or "; --help lists all"
        if override.is_add():
            hint += f" (+ adds keys below {', '.join(OPEN_KEYS)} only)"
        raise ConfigError(f"{override.input_line}: no setting is called {key}{hint}")
    # Dictionaries and lists are merged into what is there, or replace what `~key` removed.
    if override.is_add() and key in names and not isinstance(override.value(), (dict, list)):
        raise ConfigError(f"{override.input_line}: {key} is there already; leave out the +")
    single = (settings(schema.EvaluateConfig) | settings(schema.TrainConfig)).get(key)
    if override.is_delete() and single is not None and single.section is None and not is_open:
        raise ConfigError(f"{override.input_line}: a setting cannot be left out; give {key}=<value>")
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise ConfigError(f"{override.input_line}: name the values one by one, with commas between them")
    if override.is_sweep_override() and not multirun:
        plain = f" or '{key}=[{override.get_value_string()}]' for a list" if key == "ckpt" else ""
        if key in text_keys() and key != "ckpt":
            plain = f""" or "{key}='{override.get_value_string()}'" for one with commas in it"""
        raise ConfigError(f"{override.input_line}: several values need -m (one run each){plain}")


def check(cfg: DictConfig, root: type) -> Any:
    """Check a composed config and return it as dataclasses; in both, the number takes the place of a batch of `auto`.

    Raises:
        ConfigError: a key is outside the schema, a `_target_` is outside the allow-list, or a value is missing.
        ValueError: a check of one of the sections failed.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]} is not set; give {missing[0]}=… (for data=local: data.root=<folder>)")
    plain = to_plain(cfg)
    known = settings(root)
    for key in leaves(plain):
        if key not in known and not key.startswith(OPEN_KEYS):
            raise ConfigError(f"{key} is set by a config file, but no setting is called so")
    for key in PATH_KEYS:
        paths = OmegaConf.select(cfg, key) if key in known else None
        for path in paths if isinstance(paths, ListConfig) else [paths]:
            if path == "":
                raise ConfigError(f"{key}= is empty, as where a variable is not set; give a path, or . for this folder")
            if isinstance(path, str) and path.startswith("~"):
                raise ConfigError(f"{key}={path}: the ~ stands for no home folder here; write the whole path")
    check_targets(plain, tuple(plain["plugins"]["allow"]))
    for section in ("callbacks", "logger"):
        for name, spec in plain.get(section, {}).items():
            if spec is not None and not (isinstance(spec, Mapping) and spec.get("_target_")):
                raise ConfigError(f"{section}.{name}={spec}: give {{_target_: <module>.<class>, …}}, or null for none")
    for group in ("tasks", "val_tasks"):
        for name, spec in plain["mixture"][group].items():
            if isinstance(spec, Mapping) and not spec.get("_target_"):
                raise ConfigError(f"mixture.{group}.{name} has no _target_; give one, as nanochat_pl.tasks.jsonl.JSONL")
    checked: Any = OmegaConf.to_object(cfg)
    stage = checked.stage if isinstance(checked, schema.TrainConfig) else None
    if stage is not None and stage.total_batch_tokens == "auto" and stage.name != StageName.tokenizer:
        cfg.stage.total_batch_tokens = stage.total_batch_tokens = auto_batch(checked)
    return checked


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain containers, resolved and with enums as texts."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return plain


def check_definition(target: str, arguments: set[str], key: str) -> None:
    """Refuse a `_target_` that its module does not define, and arguments that it does not take, if the source tells.

    Raises:
        ConfigError: with the nearest name.
    """
    module, _, name = target.rpartition(".")
    defined = defined_names(module)
    if defined is not None and name not in defined:
        raise ConfigError(f"{key}._target_={target}: {module} has no {name}{did_you_mean(name, defined)}")
    takes = arguments_of(target)
    for argument in sorted(arguments):
        if takes is not None and argument not in takes and not argument.startswith("_"):
            raise ConfigError(f"{key}.{argument}: {target} takes no such argument{did_you_mean(argument, takes)}")


def check_targets(tree: Any, allow: tuple[str, ...], key: str = "") -> None:
    """Refuse a `_target_` outside this package, Lightning and the allowed packages; nothing is imported.

    Raises:
        ConfigError: with the package to allow, or the module that does not exist.
    """
    if isinstance(tree, Mapping):
        target = tree.get("_target_")
        prefixes = (*TARGET_PREFIXES, *(f"{name.rstrip('.')}." for name in allow))
        if target is not None and not str(target).startswith(prefixes):
            package = str(target).partition(".")[0]
            raise ConfigError(
                f"{key}._target_={target} is outside {', '.join(prefixes)}; if you trust it: plugins.allow=[{package}]"
            )
        if target is not None and not is_module(module := str(target).rpartition(".")[0]):
            raise ConfigError(f"{key}._target_={target}: there is no module {module}; give <module>.<callable>")
        if target is not None:
            check_definition(str(target), {*map(str, tree)}, key)
        for name, value in tree.items():
            check_targets(value, allow, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            check_targets(value, allow, f"{key}[{index}]")
