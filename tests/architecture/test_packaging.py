"""The wheel is whole: built, installed beside nothing and started from another folder, it finds its own configs."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def run(*arguments: str, folder: Path, **environment: str) -> str:
    """Run a command in `folder`; return what it said, or fail with it."""
    env = os.environ | environment
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, f"{' '.join(arguments)} gave {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without an environment of its own (no network)."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), folder=REPO)
    [file] = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_holds_every_module_table_and_config_and_nothing_private(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(REPO / "src")) for path in (REPO / "src").rglob("*.py")}
    modules |= {str(path.relative_to(REPO / "src")) for path in (REPO / "src").rglob("*.yaml")}
    configs = {f"nanochat_pl/{path.relative_to(REPO)}" for path in (REPO / "configs").rglob("*.yaml")}
    private = {name for name in configs if name.startswith("nanochat_pl/configs/local/")}
    assert modules <= names
    assert configs - private <= names
    assert not private & names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_installed_command_composes_from_any_folder(wheel: Path, tmp_path: Path):
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    run(*pip, "--target", str(target), str(wheel), folder=tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # With the search path in front the installed copy is used, not this checkout's editable one.
    start = [sys.executable, str(target / "bin" / "nanochat-pl")]
    said = run(*start, "train", "stage=sft_scienceqa", "--cfg", "job", folder=elsewhere, PYTHONPATH=str(target))
    assert "name: sft_scienceqa" in said
    assert "vocab_size" in said
    searched = run(*start, "train", "--info", "searchpath", folder=elsewhere, PYTHONPATH=str(target))
    assert str(target / "nanochat_pl" / "configs") in searched
    assert not any(elsewhere.iterdir())


def test_what_the_lock_pins_is_what_the_project_allows():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (REPO / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(r.name): r for line in lines if line and line[0] != "#" for r in [Requirement(line)]}
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(text)
        pinned = pins[canonicalize_name(wanted.name)]
        [pin] = pinned.specifier
        assert pin.operator == "==", f"{pinned} is not an exact version"
        assert wanted.specifier.contains(pin.version), f"requirements.lock pins {pinned}, pyproject.toml wants {wanted}"
