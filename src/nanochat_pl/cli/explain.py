"""`nanochat-pl explain <key>` and `--help`: all settings, with the sentences of their docstrings.

Nothing is written twice: `config/settings.py` reads keys, types, defaults and sentences from the dataclasses, the
choices of a config group from the files in its folder. No torch here, no composing.
"""

import argparse
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

from nanochat_pl.cli.arguments import Arguments, refuse
from nanochat_pl.config.settings import EXAMPLES, ROOTS, Setting, config_dir, expected, group_options, near, settings

__all__ = ["asked_for_help", "explain", "help_page"]


def help_page(script: str, width: int | None = None) -> str:
    """Return what `--help` of `train` or `evaluate` prints; without a width, that of the terminal is measured."""
    width = max(60, min(width or shutil.get_terminal_size((80, 24)).columns, 120))
    command = f"python {script}.py"
    lines = [f"usage: {command} [group=option] [key=value] ...", ""]
    for arguments, what in EXAMPLES[script]:
        lines += [f"  {command} {arguments}", f"      {what}"]
    known, groups = settings(ROOTS[script]), _groups_of(script)
    lines += ["", "groups: each option is a file of settings"]
    lines += [line for name, options in groups.items() for line in _hanging(f"  {name}=", sorted(options), width)]
    lines += ["", f"keys, as they are when nothing sets them; more: {command} --help <key>"]
    single = [s for s in known.values() if "." not in s.key and s.section is None]
    lines += ["", *_rows(single, width)]
    for section in (s for s in known.values() if s.section is not None):
        inner = [s for s in known.values() if s.key.startswith(f"{section.key}.")]
        lines += ["", _cut(f"{section.key}: {_sentence(section)}", width), *_rows(inner, width)]
    lines += [
        "",
        "-m key=1,2      one run for each value       --cfg job   print the whole config",
        "--config-dir D  further config files of D    --help key  explain one key",
    ]
    return "\n".join(lines)


def _groups_of(script: str) -> dict[str, dict[str, Path]]:
    """Return the groups in the defaults list of a script, which are those that users choose from."""
    text = (config_dir() / f"{script}.yaml").read_text(encoding="utf-8").split("\n\n")[0]
    named = re.findall(r"^  - (\w+): ", text, flags=re.MULTILINE) + re.findall(r"^  - optional (mixture): ", text, re.M)
    options = group_options([config_dir()])
    return {name: options[name] for name in named}


def _hanging(head: str, words: Sequence[str], width: int) -> list[str]:
    return textwrap.wrap(
        ", ".join(words), width, initial_indent=f"{head:<15}", subsequent_indent=" " * 15, break_on_hyphens=False
    )


def _rows(listed: Sequence[Setting], width: int) -> list[str]:
    """Return one line for each key: its name, its default and as much of its sentence as fits."""
    names = [f"  {s.key.rpartition('.')[2]}={_as_typed(s.default)}" for s in listed]
    names = [name if len(name) < 31 else f"{name.partition('=')[0]}=…" for name in names]
    column = max(map(len, names), default=0) + 2
    return [
        _cut(f"{name:<{column - 1}} {s.sentence or _sentence(s)}", width) for name, s in zip(names, listed, strict=True)
    ]


def _sentence(setting: Setting) -> str:
    """Return the sentence of a key; for a section without one, the first line of its dataclass's docstring."""
    return setting.sentence or (inspect.getdoc(setting.section) or "").partition("\n")[0]


def _as_typed(value: Any) -> str:
    """Return a default as it would be typed."""
    if value is None:
        return "null"
    if value == "???":
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        return "[]" if isinstance(value, list) else "{}"
    return str(value)


def _cut(line: str, width: int) -> str:
    """Shorten a line to the width, if possible at the end of a sentence or clause."""
    if len(line) <= width:
        return line
    end = max((found.end() for found in re.finditer(r"[.;](?= )|[^ ](?= \()", line[:width])), default=0)
    if end > width * 0.6:
        return line[:end].rstrip(";")
    return line[: line.rfind(" ", 0, width - 1)].rstrip(",;: (") + " …"


def explain(name: str) -> str:
    """Return all that is known about one key or config group of either script.

    Raises:
        ValueError: there is no such key or group; the message names the nearest ones.
    """
    name = name.lstrip("+~").partition("=")[0].rstrip(".")
    known = settings(ROOTS["evaluate"]) | settings(ROOTS["train"])
    groups = group_options([config_dir()])
    if name not in known and name not in groups:
        leaves = [key for key in known if key.rpartition(".")[2] == name]
        hint = leaves[:3] or near(name, {*known, *groups}, 3)
        raise ValueError(
            f"no setting is called {name}; "
            + (f"did you mean {' or '.join(hint)}?" if hint else "`python train.py --help` lists all")
        )
    parts = []
    if name in known:
        parts.append(_paragraphs(known[name], known))
    if groups.get(name):
        comments = {option: _first_comment(file) for option, file in sorted(groups[name].items())}
        parts.append("\n".join([f"{name}=<option>, each a file of settings:", *_table(comments)]))
    return "\n\n".join(parts)


def _paragraphs(setting: Setting, known: dict[str, Setting]) -> str:
    if setting.section is not None:
        inner = {key: s.sentence for key, s in known.items() if key.startswith(f"{setting.key}.")}
        return "\n".join([f"{setting.key}: {_sentence(setting)}", *_table(inner)])
    sets = list(_set_by(setting.key))
    lines = [f"{setting.key}={_as_typed(setting.default)}", *textwrap.wrap(setting.sentence, 78)]
    lines += [f"takes {expected(setting.kind)}"] if setting.kind is not Any else []
    lines += [f"set by {file}: {value}" for file, value in sets]
    return "\n  ".join(lines)


def _table(rows: dict[str, str]) -> list[str]:
    lines = []
    for head, text in rows.items():
        lines.append(f"  {head}")
        lines += textwrap.wrap(text, 78, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False)
    return lines


def _first_comment(file: Path) -> str:
    """Return the comment at the beginning of a config file."""
    lines = (line for line in file.read_text(encoding="utf-8").splitlines() if "@package" not in line)
    return " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))


def _set_by(key: str) -> Iterator[tuple[str, str]]:
    """Yield the config files that set a key, as `group=option`, with the value."""
    import yaml

    for group, options in group_options([config_dir()]).items():
        for option, file in options.items():
            text = file.read_text(encoding="utf-8")
            value: Any = yaml.safe_load(text)
            inside = key if "@package _global_" in text else key.removeprefix(f"{group}.")
            if inside == key and "@package _global_" not in text:
                continue
            for part in inside.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None and not isinstance(value, dict):
                yield f"{group}={option}", _as_typed(value) if not isinstance(value, list) else str(value)


def asked_for_help(script: str, arguments: Sequence[str]) -> int | None:
    """Answer `--help`, alone or with keys and groups, and `--version`; return None if neither is there."""
    if "--version" in arguments:
        print(f"nanochat_pl {version('nanochat_pl')}")
        return 0
    if not any(argument in ("--help", "-h") or argument.startswith("--help=") for argument in arguments):
        return None
    arguments = [argument.removeprefix("--help=") for argument in arguments]
    names = [argument for argument in arguments if not argument.startswith("-")]
    try:
        print("\n\n".join(map(explain, names)) if names else help_page(script))
    except ValueError as error:
        return refuse(error)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run `nanochat-pl explain` and return its exit code."""
    parser = Arguments(
        prog="nanochat-pl explain",
        description="Say what a key or config group of train.py and evaluate.py means.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("key", nargs="+", help="as it is typed: stage.num_steps, optim, experiment")
    try:
        names = parser.parse_args(argv).key
        print("\n\n".join(map(explain, names)))
    except ValueError as error:
        return refuse(error)
    return 0
