"""What was typed: Hydra's options and overrides, and texts that mean what they say.

Hydra's grammar gives many texts another meaning, and its parser wants options and overrides in one piece each.
"""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from nanochat_pl.config import schema
from nanochat_pl.config.refusals import (
    did_you_mean,
    missing_folder,
    refuse_flags,
)
from nanochat_pl.config.settings import ROOTS, config_dir, group_options, settings
from nanochat_pl.config.shorthand import CONVERSATION_SUFFIXES

PATH_KEYS = (
    *("ckpt", "init_from", "resume", "data.root", "data.formatted_dir", "tokenizer.path", "outputs", "output"),
    *("eval.bundle", "eval.checks", "eval.include_path", "eval.bertscore"),
)
OPEN_KEYS = (
    *("mixture.tasks", "mixture.val_tasks", "callbacks", "logger", "chain_overrides", "eval.texts"),
    *("optim.role_weight_decay", "optim.role_betas", "sweep.variants"),
)
FREE_KEYS = ("chain_overrides", "eval.texts", "optim.role_weight_decay", "optim.role_betas", "sweep.variants")
"""Those in which a new key needs no +."""
NAMED_TEXTS = {"eval.texts": "plain", "sweep.variants": "list"}
"""Sections whose keys, of any name, hold texts (`text_keys`)."""


class ConfigError(ValueError):
    """A command line or config cannot be run; the message names the fault and the remedy."""


def quote_texts(argv: Sequence[str]) -> list[str]:
    """Quote the values of all settings that are text, so that they mean what was typed; mark keys that may be new.

    Hydra's grammar reads `5e10123` as infinity and `true` as a truth value, and fails on `it's` and `a=b`; a value that
    it would read as something else is quoted here. Not quoted are `null` where a setting may be null, `${…}`, what is
    quoted already, and with `-m` the commas between values. A leading `~` of a path becomes the home folder.
    """
    multirun = any(argument in ("-m", "--multirun") for argument in argv)
    kinds = text_keys()
    quoted = []
    for argument in argv:
        typed, equals, value = argument.partition("=")
        key = re.sub(r"^chain_overrides\.\w+\.", "", typed.lstrip("+"))
        is_path = takes_path(key, value)
        section = ".".join(key.split(".")[:2])
        kind = kinds.get(key) or NAMED_TEXTS.get(section if key != section else "", "optional" if is_path else None)
        if equals and kind is not None and not typed.startswith("-"):
            argument = f"{typed}={_literal(value, kind, is_path, multirun)}"
        quoted.append(free_key(argument))
    return quoted


def free_key(argument: str) -> str:
    """Mark keys of sections with any names, such as single stages or roles: users need not know which are there."""
    key = argument.partition("=")[0]
    return f"++{argument}" if key in FREE_KEYS or key.startswith(tuple(f"{name}." for name in FREE_KEYS)) else argument


def takes_path(key: str, value: str) -> bool:
    """Return whether a value is a path: because of its key, or as a file of conversations in place of a task."""
    is_task = key.startswith(("mixture.tasks.", "mixture.val_tasks."))
    names_file = key.endswith(".path") or value.endswith(CONVERSATION_SUFFIXES)
    return key in PATH_KEYS or key.startswith("eval.texts.") or (is_task and names_file)


@cache
def text_keys() -> dict[str, str]:
    """Map each key whose value is text to `plain`, `optional` (may be null) or `list`."""
    kinds = {"ckpt": "optional"}
    for root in ROOTS.values():
        for key, setting in settings(root).items():
            hint = setting.kind
            if hint in (str, str | None, list[str], list[str] | None):
                is_list = list[str] in (hint, *get_args(hint))
                kinds[key] = "list" if is_list else "plain" if hint is str else "optional"
    return kinds


def _literal(value: str, kind: str, is_path: bool, multirun: bool) -> str:
    """Return the value of a text setting as Hydra's grammar reads it; see `quote_texts`."""
    if value == "null" and kind != "plain":
        return value
    if multirun and re.fullmatch(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)", value):
        return value
    if multirun and len(several := split_values(value)) > 1:
        return ",".join(_literal(item, kind, is_path, False) for item in several)
    if value.startswith("[") and value.endswith("]") and kind != "plain":
        return f"[{','.join(_literal(item.strip(), 'plain', is_path, False) for item in split_values(value[1:-1]))}]"
    if is_path and value.startswith("~"):
        value = os.path.expanduser(value)  # Path would also drop a final slash
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
        if override.is_sweep_override():  # refused with what to type
            return value
        read = override.value()
        if isinstance(read, str) and (read == value or "\\" in value or re.fullmatch(r"'.*'|\".*\"", value)):
            return value
    except HydraException:
        pass
    return quote(value)


def split_values(text: str) -> list[str]:
    """Split at the commas outside quotes and brackets."""
    parts, depth, mark, begin = [], 0, "", 0
    for at, char in enumerate(text):
        if mark:
            mark = "" if char == mark and text[at - 1] != "\\" else mark
        elif char in "'\"" and not text[begin:at].strip():  # an apostrophe within a word is not a quote
            mark = char
        elif char in "[({":
            depth += 1
        elif char in "])}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
    return [*parts, text[begin:]] if text else []


def quote(value: str) -> str:
    """Quote a text for Hydra's grammar."""
    inside = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", value)
    end = len(inside) - len(inside.rstrip("\\"))
    return f"'{inside}{chr(92) * end}'"


def in_hydra(value: Any) -> str:
    """Write a plain value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(in_hydra, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{in_hydra(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        try:
            if OverridesParser.create().parse_override(f"key={value}").value() == value:
                return value
        except HydraException:
            pass
        return quote(value)
    return str(value)


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line of Hydra."""

    overrides: list[str]
    multirun: bool
    config_dir: Path
    shows_config: bool = False
    """Whether `--cfg` or `--info` is there: the config is checked and shown, and nothing runs."""

    @classmethod
    def parse(cls, argv: Sequence[str]) -> "CommandLine":
        """Split `argv` (without the program) into Hydra's flags and the overrides.

        Raises:
            ConfigError: an option does not exist or lacks its value.
        """
        parser = _hydra_parser(argv)
        names = {*settings(schema.TrainConfig), *settings(schema.EvaluateConfig), *group_options([config_dir()])}
        if message := refuse_flags(argv, [*parser._option_string_actions], names):
            raise ConfigError(message)
        parsed = parser.parse_args(list(argv))
        shown = [parsed.run, parsed.multirun, parsed.cfg, parsed.info]
        if sum(map(bool, shown)) > 1:
            raise ConfigError(f"{' '.join(argv)}: --cfg, --info, --run and -m exclude each other; leave one")
        if parsed.shell_completion:
            raise ConfigError("--shell-completion: say for which shell, as --shell-completion install=bash")
        if parsed.config_dir and not Path(parsed.config_dir).is_dir():
            raise ConfigError(missing_folder(Path(parsed.config_dir)))
        if parsed.package and not parsed.package.startswith(("hydra", "_")) and parsed.package not in names:
            raise ConfigError(
                f"--package {parsed.package}: there is no such section{did_you_mean(parsed.package, names)}"
            )
        folder = Path(parsed.config_dir) if parsed.config_dir else config_dir()
        return cls(parsed.overrides, parsed.multirun, folder, bool(parsed.cfg or parsed.info))


def _hydra_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return Hydra's parser, which raises ConfigError where it would end the process."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{' '.join(argv)}: an option lacks its value or has a wrong one; see --help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    return parser


def options_first(argv: Sequence[str]) -> list[str]:
    """Return `argv` with Hydra's options before the overrides, of which its parser takes one piece only.

    A command line that cannot be parsed is returned as it is, for `CommandLine.parse` to say why.
    """
    rest = list(argv)
    try:
        overrides = _hydra_parser(argv).parse_intermixed_args(rest).overrides
    except ConfigError:
        return rest
    for override in overrides:
        rest.remove(override)
    return [*rest, *overrides]


def about_hydra(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for no job at all, but for Hydra's own help or shell completion."""
    if {"--shell-completion", "-sc"} & {*arguments}:
        return any(re.fullmatch(r"(install|uninstall|query)=(bash|fish|zsh)", argument) for argument in arguments)
    return "--hydra-help" in arguments
