"""What every test may use: where real data and reference files lie, skips that say what is missing, the benchmarks."""

import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

# The same examples in every run, so that a change is what turns a test red; `make explore` draws new ones.
settings.register_profile("same", derandomize=True, database=None)
settings.register_profile("explore", derandomize=False, database=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

REPO = Path(__file__).resolve().parents[1]


def load_benchmark(name: str) -> ModuleType:
    """Import a script of `benchmarks/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, REPO / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses ask for the module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """Take back what a command that ran inside a test did to the log, so that the next one can read it."""
    log = logging.getLogger("nanochat_pl")
    level, propagate, handlers = log.level, log.propagate, list(log.handlers)
    yield
    log.setLevel(level)
    log.propagate = propagate
    for handler in set(log.handlers) - set(handlers):
        log.removeHandler(handler)
        handler.close()


@pytest.fixture
def hangup() -> Iterator[None]:
    """Let SIGHUP end processes also where the tests themselves run under nohup, which makes it ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def _folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable) or REPO.parent / "shared" / default)
    if not path.is_dir():
        pytest.skip(f"{variable} is not set to a folder (looked at {path})")
    return path


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with real data sets (text shards, ScienceQA ...); the test is skipped where there is none."""
    return _folder("NANOCHAT_DATA", "data")


@pytest.fixture(scope="session")
def reference_root() -> Path:
    """Folder with recorded inputs and outputs of the original nanochat; skipped where there is none."""
    return _folder("NANOCHAT_REFERENCE", "reference")
