"""Suggested first questions for a served model, about the world it was trained on and in the form it was trained on.

Only for the embedded world is it known what a model could have learned; for other data there are no suggestions.
"""

import random
from collections.abc import Mapping
from typing import Any

__all__ = ["suggestions"]

RELATIONS = ("element symbol", "young animal", "capital", "planet of a moon", "type of rock", "measuring instrument")
"""The relations of the facts that are asked for, one question for each."""


def suggestions(stage: str, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the suggestions for a model: each has `topic`, `title` to show, `text` to ask and a `system` message.

    The facts were in the training data; the questions about them were not. `config` is that of the run that trained the
    model, empty if it is unknown.
    """
    from nanochat_pl.tasks.scienceqa import PERSONA, format_question
    from nanochat_pl.world.questions import questions

    data = _mapping(config, "data")
    seed = data.get("seed", 0)
    if data.get("source") != "microworld" or not isinstance(seed, int):
        return []
    tasks = _mapping(_mapping(config, "mixture"), "tasks")
    settings = [_mapping(tasks, name) for name in tasks]
    kinds = {str(task.get("_target_", "")).rpartition(".")[2]: task for task in settings}
    choice_task = kinds.get("ScienceQA") if "Recall" not in kinds else None
    held_out = [question for question in questions(seed) if question.split == "validation"]
    made = []
    for name in RELATIONS:
        question = next(question for question in held_out if question.relation.name == name)
        relation, text, system = question.relation, question.text, None
        if stage == "base":  # it continues text
            text = relation.statements[0].format(s=question.fact, o="\0").partition("\0")[0].rstrip()
        elif choice_task is not None:
            rng = random.Random(name)
            wrong = relation.distractors(question.fact)
            choices = [question.answer, *rng.sample(wrong, min(len(wrong), 3))]
            rng.shuffle(choices)
            persona = choice_task.get("persona", PERSONA)
            text, system = format_question(text, choices), persona if isinstance(persona, str) else None
        made.append({"topic": relation.category, "title": text.partition("\n")[0], "text": text, "system": system})
    return made


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a section of a stored config; empty if it is none, since a checkpoint may come from anywhere."""
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}
