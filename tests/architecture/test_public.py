"""The public surface is what it says: `nanochat_pl`'s names resolve, and every `__all__` is true."""

import importlib
import pkgutil

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
