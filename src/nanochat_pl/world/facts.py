"""What is true in the microworld, and how the world's tables of facts and sentences are read.

The tables are the YAML files next to this module. `facts.yaml` holds about 700 facts of elementary science: a
`Relation` is one kind of fact ("chemical symbol of"), a table of subject -> object, and two sets of templates. Only
pretraining documents use its *statements*, and only questions use its *forms*. This module knows nothing of splits or
of chance.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nanochat_pl.rows import read_yaml


@dataclass(frozen=True)
class Relation:
    """One kind of fact, with every way this world has of stating it and of asking for it.

    Templates hold `{s}` for the subject and `{o}` for the object. The subject never opens a sentence, so that a
    word has the same spelling, and the same token, everywhere. In YAML, `groups` (object: its subjects) may replace
    `facts` (subject: object).
    """

    name: str
    topic: str
    category: str
    grade: int
    facts: dict[str, str]
    """Subject -> object. The object is what a question asks for."""
    statements: tuple[str, ...]
    """Sentences of the pretraining documents. The subject comes first, so that the object is *predicted* from it."""
    phrase: str
    """A noun phrase for the object ("the symbol of {s}"), used where a sentence must end in a choice letter."""
    forms: tuple[str, ...]
    """Questions without choices; each reads naturally both with and without a list of choices beneath it."""
    lecture: str
    subject: str = "natural science"
    also_true: dict[str, list[str]] = field(default_factory=dict)
    """Objects that are also right for a subject, or nearly so; they are never offered as wrong choices."""

    def distractors(self, subject: str) -> list[str]:
        """Return the objects of this relation that are wrong for `subject`, sorted, without repeats."""
        right = {self.facts[subject], *self.also_true.get(subject, ())}
        return sorted(set(self.facts.values()) - right)


@cache
def table(name: str) -> dict[str, Any]:
    """Return one of the YAML files next to this module, read once when it is first needed; every scalar is text."""
    return read_yaml(Path(__file__).with_name(f"{name}.yaml"))


@cache
def relations() -> tuple[Relation, ...]:
    """Return the relations of the world in their order."""
    return tuple(_relation(dict(entry)) for entry in table("facts")["relations"])


def _relation(entry: dict[str, Any]) -> Relation:
    if "groups" in entry:
        groups = entry.pop("groups")
        entry["facts"] = {subject: value for value, subjects in groups.items() for subject in subjects}
    entry |= {"grade": int(entry["grade"]), "statements": tuple(entry["statements"]), "forms": tuple(entry["forms"])}
    return Relation(**entry)


@cache
def vocabulary() -> list[str]:
    """Return the words of the world: names, things, colors, places, subjects and objects of facts, sorted."""
    words = {word for kind in ("names", "things", "colors", "places") for word in table("facts")[kind]}
    for relation in relations():
        words |= {*relation.facts, *relation.facts.values()}
    return sorted(words)


def sentence(relation: Relation, fact: str, template: int) -> str:
    """State a fact in one of its relation's sentences."""
    return relation.statements[template].format(s=fact, o=relation.facts[fact])
