"""The pretraining documents of the microworld, and the invented stories that some of them tell.

Two kinds of document teach two different things. *Profiles* and *topics* state facts, to be remembered. *Word lists*,
*fact lists* and *passages* bind words to letters or to names at random, so that the next word can only be predicted by
looking back into the text; their sentences are short and many, and each is one lesson in looking up. No document asks a
question.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from nanochat_pl.world.facts import relations, sentence, table, vocabulary

DOCUMENTS = {"profile": 4500, "topic": 4500, "word_list": 6000, "fact_list": 8000, "passage": 3000, "guide": 400}
"""The number of documents of each kind."""


@dataclass(frozen=True)
class Story:
    """An invented passage: who has what, or what is where, and the questions it answers."""

    text: str
    answers: list[str]
    phrases: list[str]
    questions: list[str]


def documents(seed: int = 0) -> Iterator[str]:
    """Yield the pretraining documents in a fixed random order. Questions never occur in them."""
    rng = random.Random(f"{seed}/documents")
    makers = {
        "profile": _profile,
        "topic": _topic,
        "word_list": _word_list,
        "fact_list": _fact_list,
        "passage": _passage,
        "guide": _guide,
    }
    kinds = [kind for kind, count in DOCUMENTS.items() for _ in range(count)]
    rng.shuffle(kinds)
    for kind in kinds:
        yield makers[kind](rng)


def story(rng: random.Random, count: int | None = None) -> Story:
    """Draw `count` random pairs, or 2 to 5; only the passage says which word goes with which."""
    kind = rng.choice(table("documents")["stories"])
    count = rng.randint(2, 5) if count is None else count
    keys, values = (rng.sample(table("facts")[kind[side]], count) for side in ("keys", "values"))
    return Story(
        text=" ".join(kind["sentence"].format(k=key, v=value) for key, value in zip(keys, values)),
        answers=values,
        phrases=[kind["phrase"].format(k=key) for key in keys],
        questions=[kind["question"].format(k=key) for key in keys],
    )


def labelled(choices: list[str]) -> str:
    """List choices, one on each line, after the letters A, B, C and so on."""
    return "\n".join(f"{chr(65 + i)}. {choice}" for i, choice in enumerate(choices))


def fact_references(rng: random.Random, most_subjects: int) -> tuple[list[str], list[str]]:
    """Draw 2 to 5 objects of one relation, and refer to each by its letter for up to `most_subjects` subjects."""
    relation = _any_relation(rng)
    by_object: dict[str, list[str]] = {}
    for subject, value in relation.facts.items():
        by_object.setdefault(value, []).append(subject)
    while True:
        choices = rng.sample(sorted(by_object), min(len(by_object), rng.randint(2, 5)))
        references = [
            (subject, i)
            for i, value in enumerate(choices)
            for subject in rng.sample(by_object[value], min(len(by_object[value]), most_subjects))
            # Another listed object that is also right for the subject would make the letter ambiguous.
            if not set(relation.also_true.get(subject, ())) & set(choices)
        ]
        if references:
            break
    rng.shuffle(references)
    lines = [f"{_capital(relation.phrase.format(s=s))} is {chr(65 + i)}. {choices[i]}" for s, i in references[:5]]
    return choices, lines


def _any_relation(rng: random.Random):
    return rng.choices(relations(), weights=[len(relation.facts) for relation in relations()])[0]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _profile(rng: random.Random) -> str:
    """State all that is known of one subject, each fact in two or three sentences."""
    first = rng.choice(relations())
    subject = rng.choice(list(first.facts))
    lines = []
    for relation in relations():
        if subject in relation.facts:
            count = min(len(relation.statements), rng.randint(2, 3))
            picks = rng.sample(range(len(relation.statements)), count)
            lines += [sentence(relation, subject, template) for template in picks]
    rng.shuffle(lines)
    return " ".join(lines)


def _topic(rng: random.Random) -> str:
    """State one kind of fact for several subjects."""
    relation = _any_relation(rng)
    subjects = rng.sample(list(relation.facts), min(len(relation.facts), rng.randint(4, 7)))
    lines = [sentence(relation, s, rng.randrange(len(relation.statements))) for s in subjects]
    return " ".join([relation.lecture, *lines])


def _word_list(rng: random.Random) -> str:
    """Label a list of words and refer to them often, by letter and by word: the cheapest lesson in looking up."""
    choices = rng.sample(vocabulary(), rng.randint(2, 5))
    style = rng.choice(
        ("Find {w}: {l}. {w}", "The word {w} stands at {l}.", "The letter of {w} is {l}.", "At {l} stands {w}.")
    )
    picks = [i for _ in range(2) for i in rng.sample(range(len(choices)), len(choices))]
    lines = [style.format(w=choices[i], l=chr(65 + i)) for i in picks]
    return labelled(choices) + "\n\n" + "\n".join(lines)


def _fact_list(rng: random.Random) -> str:
    """Label a list of objects and name each by its letter: recall a fact, then look it up."""
    choices, lines = fact_references(rng, most_subjects=1)
    return labelled(choices) + "\n\n" + "\n".join(lines)


def _passage(rng: random.Random) -> str:
    passage = story(rng)
    order = rng.sample(range(len(passage.answers)), len(passage.answers))
    choices = [passage.answers[i] for i in order]
    picks = rng.sample(range(len(choices)), len(choices))
    plain = [f"{passage.phrases[order[i]]} is {choices[i]}." for i in picks]
    lettered = [f"{passage.phrases[order[i]]} is {chr(65 + i)}. {choices[i]}" for i in picks]
    if rng.random() < 0.3:
        return passage.text + "\n" + "\n".join(plain)
    return passage.text + "\n" + labelled(choices) + "\n\n" + "\n".join(lettered)


def _guide(rng: random.Random) -> str:
    """Describe how quizzes are worded, so that the vocabulary has the words of questions; without facts or answers."""
    return " ".join(rng.sample(table("documents")["guide"], 5)).replace("?", ".")
