"""What a served model may be asked for a beginning: questions of the world it was trained on, in the form it knows.

Only of the embedded world it is known what a model could have learned; of other data there are no suggestions.
"""

import random
from collections.abc import Mapping
from typing import Any

__all__ = ["suggestions"]

RELATIONS = ("element symbol", "young animal", "capital", "planet of a moon", "type of rock", "measuring instrument")
"""One question about each."""


def suggestions(stage: str, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what to suggest for a model: `topic`, `title` to be shown, `text` to be asked, and a `system` message.

    The facts were in the training data; the questions about them were not.

    Args:
        stage: that trained the model.
        config: of the run that trained it; empty where that is unknown.
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
    of_choices = kinds.get("ScienceQA") if "Recall" not in kinds else None
    held_out = [question for question in questions(seed) if question.split == "validation"]
    made = []
    for name in RELATIONS:
        question = next(question for question in held_out if question.relation.name == name)
        relation, text, system = question.relation, question.text, None
        if stage == "base":  # it continues text
            text = relation.statements[0].format(s=question.fact, o="\0").partition("\0")[0].rstrip()
        elif of_choices is not None:
            rng = random.Random(name)
            wrong = relation.distractors(question.fact)
            choices = [question.answer, *rng.sample(wrong, min(len(wrong), 3))]
            rng.shuffle(choices)
            persona = of_choices.get("persona", PERSONA)
            text, system = format_question(text, choices), persona if isinstance(persona, str) else None
        made.append({"topic": relation.category, "title": text.partition("\n")[0], "text": text, "system": system})
    return made


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a part of a stored config, whatever may stand there: a checkpoint may come from anywhere."""
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}
