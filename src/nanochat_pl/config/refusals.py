"""Error messages for command lines that cannot be run: what was typed, what was expected, what to type instead.

Hydra and OmegaConf know where a value does not fit, but their messages speak of nodes and structs, and call a missing
option of a group a missing file. Here they become messages about the settings of `config/schema.py`.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from omegaconf import DictConfig
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, GrammarParseError, InterpolationResolutionError
from omegaconf.errors import OmegaConfBaseException as ConfigException
from yaml import MappingNode, MarkedYAMLError, ScalarNode, YAMLError

from nanochat_pl.config.settings import Setting, expected, is_enum, near

__all__ = [
    "did_you_mean",
    "for_shell",
    "missing_folder",
    "refuse_altered_text",
    "refuse_flags",
    "refuse_option",
    "refuse_unreadable",
    "reword_error",
]

OTHER_FILES = ("--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun")
"""Options by which Hydra would read another config than the one that is checked."""


def did_you_mean(name: str, names: Sequence[str] | set[str], value: str | None = None) -> str:
    """Return a question that names the known name nearest to a wrong one; empty if none is near."""
    found = near(name, names)
    return f"; did you mean {found[0]}{'' if value is None else f'={value}'}?" if found else ""


def refuse_flags(argv: Sequence[str], flags: Sequence[str], names: Sequence[str] | set[str]) -> str | None:
    """Return the message for the first argument that begins with a dash and is none of `flags`; else None."""
    for position, argument in enumerate(argv):
        head, equals, value = argument.partition("=")
        if head in OTHER_FILES:
            return (
                f"{head}: the config is always train.yaml or evaluate.yaml; give experiment=<name>, with --config-dir "
                "<folder> for one of your own"
            )
        if not argument.startswith("-") or head in flags:
            continue
        name = head.lstrip("-").replace("-", "_")
        if not equals and position + 1 < len(argv) and "=" not in argv[position + 1]:
            value = argv[position + 1]
        value = value or "…"
        if name in names:
            return f"{head}: settings are written without dashes: {shlex.quote(f'{name}={value}')}"
        hint = did_you_mean(name, names, value)
        return f"{head}: there is no such option, and settings are written key=value{hint or '; --help lists them'}"
    return None


def refuse_unreadable(argument: str, quoted: str, names: Sequence[str] | set[str], known: dict[str, Setting]) -> str:
    """Return the message for an argument that the grammar of overrides rejects; `quoted` has its value quoted."""
    key, equals, value = argument.partition("=")
    if key != key.strip() and key.strip() in names:
        return f"{argument}: settings are written without blanks: {key.strip()}={value}"
    if not equals or not key.strip():
        name = key.strip().lstrip("+~")
        hint = f", as {name}=…" if name in names else did_you_mean(name, names, "…")
        return f"{argument}: settings are written key=value{hint}"
    if not re.fullmatch(r"(\+\+|\+|~)?[A-Za-z_][\w@./:-]*", key, re.ASCII):
        return f"{argument}: {key} cannot be the name of a setting{did_you_mean(key, names, value)}"
    setting = known.get(key.lstrip("+~"))
    if setting is not None and setting.kind is not Any and str not in (setting.kind, *get_args(setting.kind)):
        return f"{argument}: {setting.key} takes {expected(setting.kind)}"
    if key.lstrip("+") == "sweep.variants":
        return f"{argument}: the value cannot be read; give each variant by itself: sweep.variants.mine=[model=modern]"
    if (brackets := f"{value[:1]}{value[-1:]}") in ("{}", "[]"):
        return (
            f"{argument}: the value cannot be read; inside {brackets} a text such as a=b needs quotes of its own: 'a=b'"
        )
    return f"{argument}: the value cannot be read; if it is meant as it stands, type {for_shell(quoted)}"


def for_shell(argument: str) -> str:
    """Quote an argument for a shell, with the kind of quotes that is easier to read."""
    return shlex.quote(argument) if re.search(r'[$`"\\!]', argument) or "'" not in argument else f'"{argument}"'


def refuse_option(override: Override, options: Sequence[str]) -> str | None:
    """Return the message for a config group to which something other than its options is assigned; else None."""
    group = override.key_or_group
    if override.is_delete():
        return None
    values = [*override.sweep_iterator()] if override.is_sweep_override() else [override.value()]
    for value in values:
        for option in value if isinstance(value, list) else [value]:
            if isinstance(option, dict) or option in options:
                continue
            shown = "null" if option is None else option
            listed = f"there are {', '.join(options)}" if options else "there are none"
            none = f"; for none, leave {group}= away" if option is None else ""
            return f"{group}={shown}: {group} has no such option; {listed}{none}{did_you_mean(str(option), options)}"
    return None


def refuse_altered_text(file: Path, group: str, texts: set[str]) -> str | None:
    """Return the message for an unquoted text that YAML reads as a number or truth value spelt otherwise; else None.

    Args:
        group: the config group of the file; its keys are below it, unless the file says `@package _global_`.
        texts: the keys whose values are texts.
    """
    content = file.read_text(encoding="utf-8")
    leaves = "|".join(sorted({re.escape(key.rpartition(".")[2]) for key in texts}))
    if not re.search(rf"\b(?:{leaves}):\s+[^\s'\"\[{{$A-Za-z/]|:\s+(?i:true|false|yes|no|on|off)\b", content):
        return None  # nearly all files, without parsing them
    root = re.search(r"^# *@package +(\S+)", content, re.MULTILINE)
    prefix = f"{group}." if root is None else "" if root[1] == "_global_" else f"{root[1]}."
    loader = get_yaml_loader()(content)
    try:
        below: list[tuple[str, Any]] = [(prefix.rstrip("."), loader.get_single_node())]
        while below:
            key, node = below.pop()
            if isinstance(node, MappingNode):
                below += [(f"{key}.{name.value}".lstrip("."), value) for name, value in node.value]
            elif isinstance(node, ScalarNode) and node.style is None and key in texts:
                read = loader.construct_object(node)
                if read is not None and not isinstance(read, str) and str(read) != node.value:
                    where = f"{file}, line {node.start_mark.line + 1}"
                    leaf = key.rpartition(".")[2]
                    return f"{where}: YAML reads {leaf}: {node.value} as {read}; write {leaf}: '{node.value}'"
    finally:
        loader.dispose()
    return None


def reword_error(error: BaseException, overrides: Sequence[Override], known: dict[str, Setting]) -> str:
    """Turn an error that Hydra, OmegaConf or the YAML parser raised into one line about the settings."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in reversed(causes):
        if isinstance(cause, YAMLError):
            return _unreadable_yaml(cause)
        if isinstance(cause, MissingConfigException):
            return _missing_option(cause, overrides)
        if isinstance(cause, ConfigException) and cause.full_key:
            name = str(cause.full_key)  # of a value in a mapping of lists it is the last part alone
            whole = [o.key_or_group for o in overrides if o.key_or_group.endswith(f".{name}")]
            return _wrong_value(cause, whole[-1] if name not in known and whole else name, overrides, known)
    text = str(error)
    for override in overrides:
        if override.is_delete() and "Could not delete" in text and override.key_or_group in text:
            return f"{override.input_line}: there is no such thing that could be left out"
    deleted = next((o for o in overrides if o.is_delete()), None)
    if deleted is not None:
        return f"{deleted.input_line}: the config needs {deleted.key_or_group}; choose an option instead"
    for override in overrides:
        group = override.key_or_group
        if "No match in the defaults list" in text and f"'{group}'" in text:
            return f"{override.input_line}: there is no group {group} here; --help lists all"
        options = override.value()
        if isinstance(options, list) and options and (group not in known or known[group].section is not None):
            return f"{override.input_line}: {group} takes one option, as {group}={options[0]}"
    file = re.match(r"In '([^']+)'", text)
    named = re.search(r"'([\w./@-]+)'", text[file.end() :] if file else text)
    key = re.search(r"full_key: (\S+)", text)
    if file and key:
        return _wrong_in_file(file[1], key[1], known)
    about = f" ({named[1]})" if named else ""
    if file and "/" in file[1]:
        return (
            f"{file[1]}.yaml: its list of defaults names what cannot be chosen there{about}; groups are overridden as "
            "`override /data: local`"
        )
    typed = " ".join(o.input_line or "" for o in overrides)
    return f"{typed}: these settings cannot be put together{about}; NANOCHAT_DEBUG=1 shows why"


def _unreadable_yaml(error: YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    where = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "a config file"
    return f"{where}: this is no YAML; settings are written `key: value`, those of a section indented below it"


def _missing_option(error: MissingConfigException, overrides: Sequence[Override]) -> str:
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    listed = sorted(error.options or [])
    there = f"there are {', '.join(listed)}" if listed else "there are none"
    typed = any(o.key_or_group == group for o in overrides)
    by = f"{group}={option}" if typed else f"{group}/{option}, which a config file names"
    return f"{by}: {group} has no such option; {there}{did_you_mean(option, listed)}"


def _wrong_value(error: ConfigException, key: str, overrides: Sequence[Override], known: dict[str, Setting]) -> str:
    lines = [o for o in overrides if o.key_or_group == key]
    file = next((o for o in overrides if o.key_or_group in ("experiment", "sweep")), None)
    shown = _typed(lines[-1], error.value) if lines else _shown(error.value)
    within = any(key.startswith((f"{o.key_or_group}.", f"{o.key_or_group}[")) for o in overrides)
    source = "" if lines or within else f" (set by {file.input_line})" if file else " (set by a config file)"
    head = f"{key}={shown}{source}"
    if isinstance(error, GrammarParseError | InterpolationResolutionError):
        names = re.findall(r"\$\{oc\.env:(\w+)\}", shown)
        if names:
            return f"{head}: the environment variable {names[0]} is not set"
        if lines or "$" in shown:
            return f"{head}: ${{…}} stands for another key, as ${{depth}}, or a variable, as ${{oc.env:USER}}; not this"
        return f"{key}: it is made from another setting or variable, ${{…}}, that is not there"
    setting = known.get(key)
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and setting is None:
        # No schema names what stands beside it, such as the tasks of a mixture.
        beside = error.parent_node if isinstance(error.parent_node, DictConfig) else ()
        there = {*known, *(f"{key.rpartition('.')[0]}.{name!s}" for name in beside)}
        return f"{head}: no setting is called {key}{did_you_mean(key, there)}"
    if setting is None:
        section, _, name = key.rpartition(".")
        kind = get_args(known[section].kind)[-1] if section in known and get_args(known[section].kind) else None
        takes = expected(kind) if kind not in (None, Any) else "another kind of value"
        return f"{head}: {name} takes {takes}" if section else f"{head}: this is no value for {key}"
    hint = ""
    for kind in (setting.kind, *get_args(setting.kind)):
        if is_enum(kind):
            hint = did_you_mean(str(shown), [str(member) for member in kind])
    return f"{head}: {key} takes {expected(setting.kind)}{hint}"


def _wrong_in_file(file: str, key: str, known: dict[str, Setting]) -> str:
    """Return the message for a wrong key of a config file; Hydra's error has neither its value nor its type."""
    if key == file.partition("/")[0]:
        return f"{file}.yaml: a config file is a mapping, `key: value`, not a list or a single value"
    if key in known:
        return f"{file}.yaml sets {key}, which takes {expected(known[key].kind)}"
    return f"{file}.yaml sets {key}, but no setting is called so{did_you_mean(key, {*known})}"


def _typed(override: Override, value: Any) -> str:
    return override.get_value_string() if override.value_type is not None else _shown(value)


def _shown(value: Any) -> str:
    return "null" if value is None else " ".join(str(value).split())[:80]


def missing_folder(folder: Path) -> str:
    return f"--config-dir {folder}: there is no such folder; give one that holds <group>/<option>.yaml"
