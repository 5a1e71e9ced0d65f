"""The public surface is what it says: `nanochat_pl`'s names resolve, and every `__all__` is true."""

import ast
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import nanochat_pl

MODULES = sorted(module.name for module in pkgutil.walk_packages(nanochat_pl.__path__, "nanochat_pl."))


@pytest.mark.parametrize("name", nanochat_pl.__all__)
def test_a_public_name_resolves(name: str):
    value = getattr(nanochat_pl, name)
    assert value.__module__.startswith("nanochat_pl.")
    assert value.__doc__


def test_an_unknown_name_is_refused_with_what_there_is():
    with pytest.raises(AttributeError, match="GPT"):
        nanochat_pl.GTP  # noqa: B018


@pytest.mark.parametrize("module", MODULES)
def test_a_modules_all_is_true(module: str):
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", ())
    assert len(set(names)) == len(names)
    missing = [name for name in names if not hasattr(loaded, name)]
    assert not missing, f"{module}.__all__ names {', '.join(missing)}, which it does not define"


def test_what_other_modules_import_is_in_a_modules_all():
    used: dict[str, set[str]] = {}
    for module in MODULES:
        file = importlib.util.find_spec(module)
        assert file is not None and file.origin is not None
        for node in ast.walk(ast.parse(Path(file.origin).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in MODULES:
                names = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in MODULES}
                used.setdefault(node.module, set()).update(names)
    hidden = {
        module: sorted(missing)
        for module, names in used.items()
        if (listed := getattr(importlib.import_module(module), "__all__", None)) is not None
        and (missing := names - {*listed})
    }
    assert not hidden
