"""All settings: keys, types and defaults from the dataclasses, meanings from the docstrings below their fields.

Nothing is written twice: the options of a config group come from the files in its folder.
"""

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import SequenceMatcher
from enum import StrEnum
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from nanochat_pl.config import schema

__all__ = [
    "EXAMPLES",
    "ROOTS",
    "Setting",
    "config_dir",
    "expected",
    "group_options",
    "is_enum",
    "leaves",
    "near",
    "settings",
]

ROOTS: dict[str, type] = {"train": schema.TrainConfig, "evaluate": schema.EvaluateConfig}
"""The root of the config of each script."""

EXAMPLES = {
    "train": (
        ("experiment=quickstart", "all stages once, on data that come with the package"),
        ("stage=base depth=2 stage.num_steps=200", "a small model for a first look"),
        ("stage=mid run_name=d2", "the next stage, from that model's weights"),
    ),
    "evaluate": (
        ("ckpt=outputs/base/d2", "what fits the stage"),
        ("ckpt=outputs/sft/d2 eval=recall", "one evaluation"),
        ("'ckpt=[outputs/base/d2,outputs/sft/d2]'", "several models, the same questions"),
    ),
}


@dataclass(frozen=True)
class Setting:
    """One key of the command line: its type, its default and its meaning."""

    key: str
    kind: Any
    default: Any
    sentence: str

    @property
    def section(self) -> type | None:
        """The dataclass with its own keys if it is a section, else None."""
        return next((k for k in (self.kind, *get_args(self.kind)) if is_dataclass(k) and isinstance(k, type)), None)


def config_dir() -> Path:
    """Return the folder of the YAML files: the checkout's `configs/`, else the copy inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "configs"
    return checkout if (checkout / "train.yaml").is_file() else package / "configs"


@cache
def settings(root: type, prefix: str = "") -> dict[str, Setting]:
    """Map all dotted keys below a dataclass to their settings; a section comes before its keys."""
    hints, sentences = get_type_hints(root), _docstrings(root)
    found: dict[str, Setting] = {}
    for item in fields(root):
        factory = item.default_factory
        default = item.default if factory is MISSING else None if is_dataclass(factory) else factory()
        kind = hints[item.name]
        sentence = sentences.get(item.name) or (inspect.getdoc(kind) or "" if is_enum(kind) else "")
        setting = Setting(prefix + item.name, kind, default, " ".join(sentence.split()))
        found[setting.key] = setting
        if setting.section is not None and get_origin(setting.kind) is not dict:
            found |= settings(setting.section, f"{setting.key}.")
    return found


def _docstrings(root: type) -> dict[str, str]:
    """Read the docstrings of the fields of a dataclass and of its base classes."""
    found: dict[str, str] = {}
    for part in reversed(root.__mro__):
        if is_dataclass(part):
            body = _classes(inspect.getsourcefile(part) or "")[part.__name__].body
            for field, below in pairwise(body):
                match field, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                        found[name] = " ".join(str(text).split())
    return found


@cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, StrEnum)


def expected(kind: Any) -> str:
    """Describe in words which values a type takes."""
    parts = [part for part in get_args(kind) if part is not NoneType]
    if NoneType in get_args(kind):
        return f"{expected(parts[0])}, or null"
    if is_enum(kind):
        return f"one of {', '.join(kind)}"
    if kind is bool:
        return "true or false"
    words = {int: "a whole number", float: "a number", str: "a text"}
    if get_origin(kind) is list:
        items = {str: "texts", int: "whole numbers", float: "numbers"}.get(parts[0], "values")
        return f"a list of {items}, as [a,b]"
    if get_origin(kind) is dict or is_dataclass(kind):
        return "a mapping, as {name: value}"
    return words.get(kind, "a value")


def group_options(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Map each config group to its options and their files; an option in a sub-folder is `folder/name`."""
    found: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for group in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            files = sorted(group.rglob("*.yaml"))
            own = {file.relative_to(group).with_suffix("").as_posix(): file for file in files}
            found[group.name] = own | found.get(group.name, {})
    return found


def near(name: str, names: Sequence[str] | set[str], count: int = 1) -> list[str]:
    """Return the known names most similar to a wrong one, the nearest first; it may lack its sections."""

    def likeness(known: str) -> float:
        whole = SequenceMatcher(None, name, known).ratio()
        leaf, own = known.rpartition(".")[2], name.rpartition(".")[2]
        begins = 0.6 if len(own) > 1 and leaf.startswith(own) else 0.0
        return max(whole, SequenceMatcher(None, own, leaf).ratio() - 0.01, begins)

    scores = {known: likeness(known) for known in sorted(names)}
    return [known for known in sorted(scores, key=lambda k: -scores[k]) if scores[known] >= 0.6][:count]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values of a nested mapping that are not mappings themselves."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif not isinstance(value, Mapping):
            yield f"{prefix}{key}"
