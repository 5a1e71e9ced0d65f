"""A run owns its folder, and ends when it is at its end."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanochat_pl.lit.claim import FolderInUseError, claimed
from nanochat_pl.lit.schema import EvaluateConfig
from tests.integration.conftest import BASE, SFT, TINY, Train

KINDS: dict[str, list[str]] = {
    "base": BASE,
    "resume": [*BASE, "resume=auto"],
    "force": [*BASE, "force=true"],
    "sft": SFT,
    "rl": [*TINY, "stage=rl", "stage.num_steps=2"],
    "tokenizer": ["stage=tokenizer", "run_name=tiny", "force=true"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_in_use_is_refused_to_every_kind_of_run_and_left_as_it_is(train: Train, tmp_path: Path, kind: str):
    stage = next(word for word in KINDS[kind] if word.startswith("stage=")).partition("=")[2]
    folder = tmp_path / stage / "tiny"
    with claimed(folder):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"of the first")
        before = sorted(folder.rglob("*"))
        with pytest.raises(FolderInUseError, match="in use by process"):
            train(*KINDS[kind])
        assert sorted(folder.rglob("*")) == before


def test_results_that_another_process_writes_are_refused_before_anything_is_asked(train: Train, tmp_path: Path):
    from nanochat_pl.lit.evaluation import evaluate

    train(*BASE, "stage.num_steps=1")
    cfg: Any = EvaluateConfig()
    cfg.trainer.accelerator, cfg.eval.name = "cpu", "bpb"
    results = tmp_path / "base" / "tiny" / "eval" / "bpb" / "best"
    with claimed(results), pytest.raises(FolderInUseError, match="in use by process"):
        evaluate(cfg, [str(tmp_path / "base" / "tiny")], {}, None)
    assert not list(results.glob("*.json*"))
    assert json.loads((tmp_path / "base" / "tiny" / "summary.json").read_text())["status"] == "finished"
