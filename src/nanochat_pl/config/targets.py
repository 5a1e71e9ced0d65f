"""Which classes a config may have instantiated, decided before any of them is imported.

A checkpoint's own config comes from whoever made the file: it may name tasks of this project and plain values, but
nothing that the libraries which read configs would look up, compute or call. It says what to read, and never where to
write: what has to be made or fetched goes where the command line says. A command line may name more; there too a
`_target_` names something that its module defines, never something that the module happens to import. No torch here.
"""

import ast
import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from nanochat_pl.config.stages import StageName
from nanochat_pl.tasks.base import Task

__all__ = ["arguments_of", "defined_names", "is_module", "make", "may_write", "trusted_data", "trusted_tasks"]

log = logging.getLogger(__name__)


def is_module(name: str) -> bool:
    """Return whether a module of this dotted name could be imported; nothing is imported, not even its packages."""
    return _spec(name) is not None


def _spec(name: str) -> ModuleSpec | None:
    first, *others = name.split(".")
    if not all(part.isidentifier() for part in (first, *others)):
        return None
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # a loaded module without a spec
        return None
    for part in others:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec


def _source(module: str) -> ast.Module | None:
    """Parse the source of a module without running it; None where it cannot be read."""
    spec = _spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return _parsed(spec.origin, os.stat(spec.origin).st_mtime_ns)
    except (OSError, ValueError, SyntaxError):
        return None


@lru_cache(maxsize=64)  # a sweep and a chain compose many times
def _parsed(path: str, changed_ns: int) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def defined_names(module: str) -> set[str] | None:
    """Return the names that a module defines or imports; None where only running it could tell."""
    tree = _source(module)
    return None if tree is None else _names(tree)


@lru_cache(maxsize=64)
def _names(tree: ast.Module) -> set[str] | None:
    names: set[str] = set()
    for node in ast.walk(tree):  # also below `if` and `try`; a name too many does no harm here
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return None if {"*", "__getattr__"} & names else names


def arguments_of(target: str) -> set[str] | None:
    """Return the names of the arguments of a function or class; None where its source alone does not tell."""
    module, _, name = target.rpartition(".")
    tree = _source(module)
    if tree is None or defined_names(module) is None:
        return None
    found: Any = next((node for node in tree.body if getattr(node, "name", None) == name), None)
    if isinstance(found, ast.ClassDef):
        found = next((node for node in found.body if getattr(node, "name", None) == "__init__"), None)
    if not isinstance(found, ast.FunctionDef):
        return None
    more = set() if found.args.kwarg is None else _unpacked(tree, found.args.kwarg.annotation)
    if more is None:
        return None
    return {argument.arg for argument in [*found.args.args, *found.args.kwonlyargs]} - {"self"} | more


def _unpacked(tree: ast.Module, annotation: ast.expr | None) -> set[str] | None:
    """Return the keys of `**arguments: Unpack[Name]` where the module imports that typed dict; None = any argument."""
    if not (isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Name)):
        return None
    name = annotation.slice.id
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level)
    module = next((node.module for node in imports if name in [alias.name for alias in node.names]), None)
    source = _source(module) if module else None
    if source is None:
        return None
    found = next((node for node in source.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if found is None or any(not isinstance(base, ast.Name) or base.id != "TypedDict" for base in found.bases):
        return None
    return {n.target.id for n in found.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


def make(spec: Any, **arguments: Any) -> Any:
    """Instantiate what a `_target_` names; errors that it raises itself come through unwrapped."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(spec, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise error.__cause__ from None
        raise ValueError(str(error)) from error


def trusted_data(
    data: Mapping[str, Any], path: Path, outputs: str | Path = "outputs", typed: Collection[str] = ()
) -> dict[str, Any]:
    """Check that the data section of a config of unknown origin is plain, and return the part of it that is safe.

    Data that are made or fetched keep their folder if it lies below `<outputs>/data` of this command, or of the outputs
    folder that holds the checkpoint. In any other folder they are only read, and what is missing is made or fetched
    below `<outputs>/data`.

    Args:
        data: the section.
        path: the checkpoint that it comes from.
        outputs: the folder for results of this command.
        typed: the keys that the command line sets anyway.

    Raises:
        ValueError: a value is not plain, or leads out of the data's folder; nothing was run.
    """
    for key, value in data.items():
        if not isinstance(value, str | int | float | None) or _interpolated(value):
            raise ValueError(f"data.{key} of {path} is no plain value but {value!r}; nothing was run. Give data=")
    kept = {key: value for key, value in data.items() if key != "formatted_dir" and key not in typed}
    root, source = kept.get("root"), kept.get("source")
    if not kept.get("fetch") and source not in ("microworld", "hub"):
        return kept
    for key in ("text", "scienceqa", "val_shard"):
        if not _stays_below(kept.get(key) or "."):
            raise ValueError(
                f"data.{key}={kept[key]!r} of {path} leads out of data.root; give data= on the command line"
            )
    if "root" in typed or (root is not None and may_write(str(root), path, outputs)):
        return kept
    if source != "microworld" and root is not None and Path(str(root)).is_dir():
        return kept | {"source": "local", "fetch": False, "hub_scienceqa": None}
    if source not in ("microworld", "hub"):
        return kept | {"fetch": False}
    seed = kept.get("seed", 0)
    if source == "microworld" and type(seed) is not int:
        raise ValueError(f"data.seed={seed!r} of {path} is no whole number; give data= on the command line")
    place = Path(outputs) / "data" / (f"microworld-{seed}" if source == "microworld" else "hub")
    log.warning("data.root=%s of %s is not written to: a file chooses no place; used is %s", root, path, place)
    return kept | {"root": str(place)}


def may_write(place: str, checkpoint: Path, outputs: str | Path) -> bool:
    """Return whether a folder that a checkpoint's config names is one where runs keep their data anyway.

    Args:
        place: the folder.
        checkpoint: the file; in a run folder `<X>/<stage>/<run>/checkpoints`, runs keep their data in `<X>/data`.
        outputs: the folder for results of this command; its `data` is such a place.
    """
    allowed = [Path(outputs) / "data"]
    folders = checkpoint.absolute().parents
    if len(folders) > 3 and folders[0].name == "checkpoints" and folders[2].name in list(StageName):
        allowed.append(folders[3] / "data")
    try:
        return any(Path(place).resolve().is_relative_to(folder.resolve()) for folder in allowed)
    except (OSError, ValueError):  # no name of a file at all
        return False


def _stays_below(name: Any) -> bool:
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


def trusted_tasks(
    tasks: Mapping[str, Any], allow: Sequence[str], path: Path, outputs: str | Path = "outputs"
) -> dict[str, Any]:
    """Return the tasks of this project in a mixture of unknown origin: opening a checkpoint must not run other code.

    Other tasks are left out with a warning: no evaluation asks them by itself. Those that are kept write only
    to the folders that `trusted_data` allows.

    Args:
        allow: further packages whose own classes and functions may be named.
        path: the checkpoint that the tasks come from.
        outputs: the folder for results of this command.

    Raises:
        ValueError: a task would instantiate or look up something else.
    """
    kept: dict[str, Any] = {}
    for name, spec in tasks.items():
        if wrong := next(filter(_interpolated, _texts(spec)), None):
            raise ValueError(
                f"mixture.tasks.{name} of {path} is not plain: it holds {wrong[:60]!r}; nothing was run. Give mixture= "
                "to ask other tasks"
            )
        first, *inner = [*_targets(spec)] or [""]
        if first and not _is_task(first, allow):
            remedy = f"plugins.allow=[{first.partition('.')[0]}]"
            text = "mixture.tasks.%s of %s is %s, no task of this project, and is left out; if you trust it: %s"
            log.warning(text, name, path, first, remedy)
            continue
        if wrong := next((target for target in inner if not _is_task(target, allow)), None):
            raise ValueError(
                f"mixture.tasks.{name} of {path} would make {wrong}, which is no task; nothing was run. Give "
                "mixture= to ask other tasks"
            )
        kept[name] = _reading(spec, path, outputs)
    return kept


def _reading(spec: Any, path: Path, outputs: str | Path) -> Any:
    """Return the settings of a task without those by which it would write to a folder that its file chooses."""
    if isinstance(spec, Mapping):
        kept = {key: _reading(value, path, outputs) for key, value in spec.items() if key != "formatted_dir"}
        if (kept.get("fetch") or kept.get("hub")) and not may_write(str(kept.get("path")), path, outputs):
            kept |= {key: value for key, value in (("fetch", False), ("hub", None)) if key in kept}
        return kept
    return [_reading(value, path, outputs) for value in spec] if isinstance(spec, list) else spec


def _interpolated(value: Any) -> bool:
    """Return whether OmegaConf would resolve a value; what it resolves may be a `_target_` (`oc.create`)."""
    return isinstance(value, str) and "${" in value


def _texts(spec: Any) -> Iterator[str]:
    """Yield all strings in the settings of a task, keys included."""
    if isinstance(spec, str):
        yield spec
    elif isinstance(spec, Mapping):
        yield from _texts([*spec, *spec.values()])
    elif isinstance(spec, Sequence):
        for value in spec:
            yield from _texts(value)


def _targets(spec: Any) -> Iterator[str]:
    """Yield every `_target_` in the settings of a task, its own first."""
    if isinstance(spec, Mapping):
        if spec.get("_target_") is not None:
            yield str(spec["_target_"])
        spec = list(spec.values())
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        for value in spec:
            yield from _targets(value)


def _is_task(target: str, allow: Sequence[str]) -> bool:
    module, _, name = target.rpartition(".")
    allowed = tuple(f"{package.rstrip('.')}." for package in allow)
    is_allowed = target.startswith(allowed)
    if not (is_allowed or re.fullmatch(r"nanochat_pl\.tasks\.\w+", module)) or not is_module(module):
        return False
    found = vars(importlib.import_module(module)).get(name)  # its own names only: through modules all else is in reach
    if is_allowed:  # nor what it imported from elsewhere
        return f"{getattr(found, '__module__', '')}.".startswith(allowed)
    return isinstance(found, type) and issubclass(found, Task)
