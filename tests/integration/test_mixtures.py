"""From a mixture's config to its conversations: tasks left out, and questions that training and validation share."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_pl.tasks.base import overlap
from nanochat_pl.training.data import build_mixtures, build_tasks
from tests.integration.conftest import SFT, compose

TASK = "{_target_: nanochat_pl.tasks.recall.Recall, path: '${data.root}', split: %s}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten questions to train on, of which validation asks two again."""
    for split, questions in (
        ("train", [f"What is {i}?" for i in range(10)]),
        ("validation", ["what  is 3?", "What is 7?"]),
    ):
        rows = [{"question": question, "answer": "a number"} for question in questions]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    return tmp_path


def mixture(folder: Path, *overrides: str) -> Any:
    tasks = [
        f"+mixture.{kind}.recall={TASK % split}" for kind, split in (("tasks", "train"), ("val_tasks", "validation"))
    ]
    cfg = compose([*SFT, "data=local", f"data.root={folder}", "~mixture", *tasks, *overrides])
    return build_mixtures(cfg)


def questions(conversations: Any) -> set[str]:
    return {conversation["question"] for conversation in conversations}


def test_questions_that_validation_asks_too_are_counted_and_kept(folder: Path, caplog: pytest.LogCaptureFixture):
    rows, val_rows = mixture(folder)
    assert (len(rows), len(val_rows)) == (10, 2)
    assert "2 of 10 training conversations ask what validation asks (recall: 2) and are kept" in caplog.text


def test_they_are_left_out_if_asked_to(folder: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    rows, val_rows = mixture(folder, "mixture.drop_train_duplicates=true")
    assert questions(rows) == {f"What is {i}?" for i in range(10)} - {"What is 3?", "What is 7?"}
    assert len(val_rows) == 2 and "and are left out" in caplog.text


def test_training_on_the_validation_set_leaves_nothing_and_says_so(folder: Path):
    with pytest.raises(ValueError, match=r"all 2 training conversations .* another split"):
        mixture(folder, "mixture.drop_train_duplicates=true", "mixture.tasks.recall.split=validation")


def test_sets_without_a_common_question_are_said_to_have_none(folder: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    rows, _ = mixture(folder, "+mixture.tasks.recall.stop=3")
    assert len(rows) == 3 and "none of the 3 training conversations" in caplog.text


@pytest.mark.parametrize("chosen", ["stage=sft", "stage=mid", "stage=mid mixture=microworld_mid"])
def test_no_shipped_mixture_trains_on_what_it_validates_with(world: Path, chosen: str):
    cfg = compose([*chosen.split(), "run_name=r", f"data.root={world / 'data'}"])
    rows, val_rows = (build_tasks(tasks, cfg, cfg.seed) for tasks in (cfg.mixture.tasks, cfg.mixture.val_tasks))
    assert len(rows) > 1000 and len(val_rows) >= 100 and overlap(rows, val_rows) == []


def test_a_task_set_to_null_is_left_out(folder: Path):
    both = [f"+mixture.tasks.{name}={TASK % 'train'}" for name in ("again", "more")]
    assert len(mixture(folder, *both)[0]) == 30
    rows, _ = mixture(folder, *both, "mixture.tasks.recall=null")
    assert {conversation["task"] for conversation in rows} == {"again", "more"}
    with pytest.raises(ValueError, match="at least one task"):
        mixture(folder, "mixture.tasks.recall=null")
