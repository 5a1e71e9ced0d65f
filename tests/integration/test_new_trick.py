"""An architecture trick with parameters is a field, an `if`, a role and a count: nothing else knows the weights.

The edits below are the recipe of CONTRIBUTING.md, made in a copy of the project: gains per channel at the root, in a
block and in attention, off by default. Were there a second list of weights or roles anywhere, the copy would break.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
EDITS = {
    "model/config.py": [
        (
            '    def __post_init__(self) -> None:\n        for name in ("rope_base"',
            '    toy_gains: bool = False\n    """Scale three places by learned gains."""\n\n',
        ),
    ],
    "model/gpt.py": [
        (
            "        self.mlp = MLP(config)\n",
            "        self.toy_block = nn.Parameter(torch.empty(config.n_embd)) if config.toy_gains else None\n",
        ),
        (
            "        return x + self.mlp(self.norm(x))\n",
            "        if self.toy_block is not None:\n            x = x * self.toy_block.to(x.dtype)\n",
        ),
        (
            "        cos, sin = rotary_tables(config, compute_dtype)\n",
            "        self.toy_root = nn.Parameter(torch.empty(config.n_embd)) if config.toy_gains else None\n",
        ),
        (
            "        self.cos, self.sin = rotary_tables(self.config, self.compute_dtype, self.device)\n",
            "        for name, p in self.named_parameters():\n"
            '            if "toy_" in name:\n                p.fill_(1.0)\n',
        ),
        (
            "        self.c_proj = Linear(config.n_embd, config.n_embd)\n",
            "        self.toy_heads = nn.Parameter(torch.empty(self.n_head)) if config.toy_gains else None\n",
        ),
        (
            "        if kv_cache is None:\n",
            "        if self.toy_heads is not None:\n            q = q * self.toy_heads.to(q.dtype)[:, None]\n",
        ),
        (
            '            "embedding": [self.transformer.wte.weight],\n',
            '            "gain": [p for name, p in self.named_parameters() if "toy_" in name],\n',
        ),
        (
            "        for layer, block in enumerate(self.transformer.h):\n",
            "        if self.toy_root is not None:\n            x = x * self.toy_root.to(x.dtype)\n",
        ),
    ],
    "model/accounting.py": [
        (
            '        "short_conv": config',
            '        "gain": (config.n_layer * (width + config.n_head) + width) * config.toy_gains,\n',
        ),
    ],
    "optim/config.py": [
        (
            '    "embedding": Role(',
            '    "gain": Role(lambda cfg: "adamw", lambda cfg: 0.01),\n',
        ),
    ],
}
"""File -> (a line, what is put before it)."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trick")
    for folder in ("src", "configs", "tests/integration"):
        shutil.copytree(REPO / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "tests" / "__init__.py").touch()
    for name, edits in EDITS.items():
        file = root / "src" / "nanochat_pl" / name
        text = file.read_text()
        for line, added in edits:
            assert text.count(line) >= 1, f"{name} has no {line!r}"
            head, found, tail = text.rpartition(line)
            text = head + added + found + tail
        file.write_text(text)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("trick", ["off", "on"])
def test_a_trick_with_parameters_trains_resumes_opens_decodes_and_is_refused_by_exports_that_cannot_hold_it(
    copy, trick
):
    done = subprocess.run(
        [sys.executable, str(copy / "tests" / "integration" / "trick_run.py"), str(copy / "work"), trick],
        env={**os.environ, "PYTHONPATH": f"{copy / 'src'}:{copy}"},
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
