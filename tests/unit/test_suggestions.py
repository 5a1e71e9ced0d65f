"""Laws of suggestions: a model is offered what its own world says, in the form it was trained on, or nothing."""

import pytest

from nanochat_pl.config.suggestions import suggestions
from nanochat_pl.tasks.scienceqa import PERSONA
from nanochat_pl.world.questions import questions

WORLD = {"source": "microworld", "seed": 3}


def mixture(*kinds: str, **settings: object) -> dict:
    tasks = {kind: {"_target_": f"nanochat_pl.tasks.x.{kind}", **settings} for kind in kinds}
    return {"tasks": tasks | {"left_out": None}}


@pytest.mark.parametrize(
    ("stage", "tasks"),
    [("sft", mixture("ScienceQA", "Recall")), ("rl", mixture("Arithmetic")), ("sft_scienceqa", mixture("ScienceQA"))],
)
def test_what_is_suggested_is_a_held_out_question_about_a_fact_of_the_world(stage, tasks):
    found = suggestions(stage, {"data": WORLD, "mixture": tasks})
    held_out = {question.text: question for question in questions(3) if question.split == "validation"}
    assert len({one["title"] for one in found}) == 6
    for one in found:
        question = held_out[one["title"]]
        assert one["topic"] == question.relation.category
        if stage == "sft_scienceqa":
            assert one["system"] == PERSONA and f". {question.answer}" in one["text"]
        else:
            assert one["system"] is None and one["text"] == question.text


def test_a_base_model_is_given_the_beginning_of_a_statement():
    statements = {s for q in questions(3) for s in [q.relation.statements[0].format(s=q.fact, o=q.answer)]}
    for one in suggestions("base", {"data": WORLD}):
        assert any(statement.startswith(one["text"] + " ") for statement in statements)


def test_a_persona_that_was_switched_off_stays_off():
    config = {"data": WORLD, "mixture": mixture("ScienceQA", persona=None)}
    assert all(one["system"] is None and "\n\nA. " in one["text"] for one in suggestions("sft", config))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mixture": None},
        {"mixture": {"tasks": None}},
        {"mixture": {"tasks": {"a": "a.jsonl", "b": 3}}},
        {"mixture": []},
    ],
)
def test_a_config_of_any_form_does_no_harm(wrong):
    assert len(suggestions("sft", {"data": WORLD} | wrong)) == 6
    odd = {"data": WORLD, "mixture": mixture("ScienceQA", persona=["x"])}
    assert all(one["system"] is None for one in suggestions("sft", odd))


@pytest.mark.parametrize(
    "config",
    [{}, {"data": {"source": "local"}}, {"data": None}, {"data": {"source": "hub"}}, {"data": WORLD | {"seed": "x"}}],
)
def test_of_another_world_nothing_is_suggested(config):
    assert suggestions("sft", config) == []
