"""CORE's prompts, tokens, spans, losses and picks equal nanochat's, recorded on small tasks of each type."""

import json

import pytest

from nanochat_pl.eval.core import evaluate_core, make_rows
from nanochat_pl.eval.core_scoring import LineEncoder, score_items
from nanochat_pl.eval.core_tasks import CoreTask, load_bundle, make_prompts
from nanochat_pl.tokenizer import Tokenizer
from tests.parity.reference import load, main_weights

TASKS = [
    "multiple_choice",
    "multiple_choice_zeroshot",
    "schema",
    "language_modeling",
    "language_modeling_answer",
    "language_modeling_found",
]


@pytest.fixture(scope="module")
def tokenizer(reference_root):
    return Tokenizer.load(reference_root / "base" / "tokenizer")


@pytest.fixture(scope="module")
def model(reference_root):
    return load(main_weights(reference_root))


@pytest.fixture(params=TASKS)
def recorded(request, reference_root):
    return json.loads((reference_root / "core.json").read_text())[request.param]


def as_task(recorded) -> CoreTask:
    meta = recorded["meta"]
    return CoreTask(
        label="recorded",
        type=meta["task_type"],
        num_fewshot=meta["num_fewshot"],
        baseline=0.0,
        examples=recorded["data"],
        delimiter=meta["continuation_delimiter"],
    )


def test_every_recorded_task_is_compared(reference_root):
    assert sorted(json.loads((reference_root / "core.json").read_text())) == sorted(TASKS)


def test_prompts_tokens_and_spans_are_those_recorded(recorded, tokenizer):
    task, encoder = as_task(recorded), LineEncoder(tokenizer)
    for index, item in enumerate(recorded["items"]):
        prompts = make_prompts(task, recorded["data"], index)  # recorded after the shuffle
        assert prompts.texts == item["prompts"]
        rows = make_rows(task.type, encoder.encode(prompts.texts))
        assert [list(row.ids) for row in rows] == item["tokens"]
        assert [row.start for row in rows] == item["start"]
        assert [len(row.ids) for row in rows] == item["end"]


def test_mean_losses_are_those_recorded(recorded, tokenizer, model):
    task = as_task(recorded)
    items = [
        make_rows(task.type, LineEncoder(tokenizer).encode(make_prompts(task, recorded["data"], index).texts))
        for index in range(len(recorded["items"]))
    ]
    for scores, item in zip(score_items(model, items), recorded["items"], strict=True):
        assert [score.mean_loss for score in scores] == pytest.approx(item["mean_losses"], abs=1e-4)


def test_answers_and_accuracy_are_those_recorded(recorded, tokenizer, model, monkeypatch):
    monkeypatch.setattr(CoreTask, "sample", lambda task, _: list(task.examples))  # recorded after the shuffle
    evaluation = evaluate_core(model, tokenizer, [as_task(recorded)])
    assert [record["correct"] for record in evaluation.records] == [item["correct"] for item in recorded["items"]]
    assert evaluation.rows[0].value == pytest.approx(recorded["accuracy"], abs=1e-6)


def test_a_whole_bundle_is_read_and_its_lines_are_encoded_exactly(data_root, tokenizer):
    tasks = load_bundle(data_root / "eval_bundle")
    assert len(tasks) == 22
    for task in tasks:
        sample, encoder = task.sample(12), LineEncoder(tokenizer)
        texts = [text for index in range(len(sample)) for text in make_prompts(task, sample, index).texts]
        assert encoder.encode(texts) == tokenizer.encode(texts, prepend=tokenizer.bos_id)
