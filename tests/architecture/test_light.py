"""Help and mistakes are answered at once: neither torch nor wandb is loaded before a command line is known to be right.

Python itself reports what a process imported (`-X importtime`), down to modules loaded by other libraries.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "lightning", "pytorch_lightning", "torchmetrics", "wandb", "datasets", "matplotlib"}


def run(folder: Path, *arguments: str) -> tuple[int, str, set[str]]:
    """Run a script of the root in `folder`; return exit code, what it said, and the modules it loaded."""
    command = [sys.executable, "-X", "importtime", str(REPO / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    pattern = re.compile(r"^import time:.*\| +(\S.*)\n", re.MULTILINE)
    return done.returncode, done.stdout + pattern.sub("", done.stderr), set(pattern.findall(done.stderr))


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_loads_nothing_heavy(tmp_path: Path, script: str):
    code, said, loaded = run(tmp_path, script, "--help")
    assert code == 0
    assert "trainer" in said
    assert "hydra" in loaded
    assert not HEAVY & loaded


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["train.py", "stage.devise_batch=4"], "stage.device_batch"),
        (["train.py", "stage.total_batch_tokens=1000"], "is not a multiple of"),
        (["train.py", "stage=sft_scienceqa"], "python train.py stage=base"),
        (["train.py", "+callbacks.mine._target_=os.system"], "plugins.allow"),
        (
            ["train.py", "+callbacks.mine._target_=lightning.pytorch.callbacks.os.system"],
            "there is no module lightning",
        ),
        (["evaluate.py", "ckpt=nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_loads_nothing_heavy(tmp_path: Path, arguments: list[str], remedy: str):
    code, said, loaded = run(tmp_path, *arguments)
    assert code in (1, 2)
    assert remedy in said
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert not HEAVY & loaded
    assert not any(tmp_path.iterdir()), "a refused command leaves nothing behind"


@pytest.mark.parametrize("command", ["train", "evaluate", "chat", "serve"])
def test_commands_that_compute_let_idle_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch, command: str):
    """OpenMP reads its variables when torch is loaded, so they must be set by then, and never over a user's choice."""
    from nanochat_pl.cli.main import module_of

    program = (
        "import os, sys\n"
        f"from {module_of(command)} import main\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('spins', os.environ.get('GOMP_SPINCOUNT'))"
    )
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value, expected in (("TERM", "dumb", "1000"), ("OMP_WAIT_POLICY", "ACTIVE", "None")):
        monkeypatch.setenv(name, value)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines()[-1:] == [f"spins {expected}"], done.stderr
