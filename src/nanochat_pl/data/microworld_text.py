"""The texts of the microworld that are no questions: pretraining documents, invented stories, chats, word problems.

Two kinds of document teach two different things. *Profiles* and *topics* state facts, to be remembered. *Word lists*,
*fact lists* and *passages* bind words to letters or to names at random, so that only looking back into the text
predicts the next word; their sentences are short and many: each is one lesson in looking up. No document asks a
question.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from nanochat_pl.data.microworld_facts import COLORS, NAMES, PLACES, RELATIONS, THINGS, Relation

DOCUMENTS = {"profile": 4500, "topic": 4500, "word_list": 6000, "fact_list": 8000, "passage": 3000, "guide": 400}
"""How many documents of each kind there are."""


def sentence(relation: Relation, fact: str, template: int) -> str:
    return relation.statements[template].format(s=fact, o=relation.facts[fact])


def labelled(choices: list[str]) -> str:
    return "\n".join(f"{chr(65 + i)}. {choice}" for i, choice in enumerate(choices))


def _profile(rng: random.Random) -> str:
    """All that is known of one subject, each fact said two or three ways."""
    first = rng.choice(RELATIONS)
    subject = rng.choice(list(first.facts))
    lines = []
    for relation in RELATIONS:
        if subject in relation.facts:
            count = min(len(relation.statements), rng.randint(2, 3))
            picks = rng.sample(range(len(relation.statements)), count)
            lines += [sentence(relation, subject, template) for template in picks]
    rng.shuffle(lines)
    return " ".join(lines)


def _topic(rng: random.Random) -> str:
    """One kind of fact for several subjects."""
    relation = rng.choices(RELATIONS, weights=[len(r.facts) for r in RELATIONS])[0]
    subjects = rng.sample(list(relation.facts), min(len(relation.facts), rng.randint(4, 7)))
    lines = [sentence(relation, s, rng.randrange(len(relation.statements))) for s in subjects]
    return " ".join([relation.lecture, *lines])


def vocabulary() -> list[str]:
    words = {*NAMES, *THINGS, *COLORS, *PLACES}
    for relation in RELATIONS:
        words |= {*relation.facts, *relation.facts.values()}
    return sorted(words)


WORDS_TO_SPELL = 3_000
_ONSETS = tuple("bcdfghjklmnprstvwyz") + ("bl", "br", "ch", "cl", "dr", "fl", "gr", "pl", "qu", "sh", "st", "str", "tr")
_VOWELS = tuple("aaeeeiioou") + ("ai", "ea", "ee", "oo", "ou")
_CODAS = ("", "", "", *"lmnrstx", "ck", "ll", "mp", "nd", "ng", "nt", "ss", "st")


def words_to_spell(seed: int = 0) -> list[str]:
    """Return words of this world, and others made of syllables: lower case, a to z, sorted."""
    rng = random.Random(f"{seed}/words")
    known = {part for word in vocabulary() for part in word.lower().split()}
    words = {word for word in known if len(word) > 1 and word.isascii() and word.isalpha()}
    while len(words) < WORDS_TO_SPELL:
        syllables = rng.choices((2, 3, 4), weights=(3, 4, 1))[0]
        words.add("".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)))
    return sorted(words)


def _word_list(rng: random.Random, words: list[str]) -> str:
    """A labelled list of words and many references to it, by letter and by word: the cheapest lesson in looking up."""
    choices = rng.sample(words, rng.randint(2, 5))
    style = rng.choice(
        ("Find {w}: {l}. {w}", "The word {w} stands at {l}.", "The letter of {w} is {l}.", "At {l} stands {w}.")
    )
    picks = [i for _ in range(2) for i in rng.sample(range(len(choices)), len(choices))]
    lines = [style.format(w=choices[i], l=chr(65 + i)) for i in picks]
    return labelled(choices) + "\n\n" + "\n".join(lines)


def _fact_list(rng: random.Random) -> str:
    """A labelled list of objects and sentences that name each by its letter: recall, then look up."""
    choices, lines = _fact_references(rng, most_subjects=1)
    return labelled(choices) + "\n\n" + "\n".join(lines)


def _fact_references(rng: random.Random, most_subjects: int) -> tuple[list[str], list[str]]:
    """Draw 2 to 5 objects of one relation and refer to each by its letter, for up to `most_subjects` subjects of it."""
    relation = rng.choices(RELATIONS, weights=[len(r.facts) for r in RELATIONS])[0]
    by_object: dict[str, list[str]] = {}
    for subject, value in relation.facts.items():
        by_object.setdefault(value, []).append(subject)
    while True:
        choices = rng.sample(sorted(by_object), min(len(by_object), rng.randint(2, 5)))
        asked = [
            (subject, i)
            for i, value in enumerate(choices)
            for subject in rng.sample(by_object[value], min(len(by_object[value]), most_subjects))
            # Another listed object that is right for the subject too would make the letter ambiguous.
            if not set(relation.also_true.get(subject, ())) & set(choices)
        ]
        if asked:
            break
    rng.shuffle(asked)
    lines = [f"{_capital(relation.phrase.format(s=s))} is {chr(65 + i)}. {choices[i]}" for s, i in asked[:5]]
    return choices, lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@dataclass(frozen=True)
class Story:
    """An invented passage: who has what, or what lies where, and the questions it answers."""

    text: str
    answers: list[str]
    phrases: list[str]
    asked: list[str]


def story(rng: random.Random, count: int | None = None) -> Story:
    """Draw `count` random pairs, or 2 to 5; nothing outside of the passage tells which word goes with which."""
    sentence, phrase, question, keys, values = rng.choice(_STORIES)
    count = rng.randint(2, 5) if count is None else count
    left, right = rng.sample(keys, count), rng.sample(values, count)
    return Story(
        " ".join(sentence.format(k=k, v=v) for k, v in zip(left, right)),
        list(right),
        [phrase.format(k=k) for k in left],
        [question.format(k=k) for k in left],
    )


_STORIES: tuple[tuple[str, str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("{k} has the {v}.", "The thing of {k}", "What does {k} have?", NAMES, THINGS),
    ("The {k} belongs to {v}.", "The owner of the {k}", "To whom does the {k} belong?", THINGS, NAMES),
    ("The {k} is {v}.", "The color of the {k}", "What color is the {k}?", THINGS, COLORS),
    ("The {k} lies in the {v}.", "The place of the {k}", "Where does the {k} lie?", THINGS, PLACES),
    ("{k} is in the {v}.", "The place of {k}", "Where is {k}?", NAMES, PLACES),
    ("{k} paints with {v}.", "The paint of {k}", "With which color does {k} paint?", NAMES, COLORS),
)


def _passage(rng: random.Random) -> str:
    told = story(rng)
    order = rng.sample(range(len(told.answers)), len(told.answers))
    choices = [told.answers[i] for i in order]
    picks = rng.sample(range(len(choices)), len(choices))
    plain = [f"{told.phrases[order[i]]} is {choices[i]}." for i in picks]
    lettered = [f"{told.phrases[order[i]]} is {chr(65 + i)}. {choices[i]}" for i in picks]
    if rng.random() < 0.3:
        return told.text + "\n" + "\n".join(plain)
    return told.text + "\n" + labelled(choices) + "\n\n" + "\n".join(lettered)


_GUIDE = (
    "A good quiz asks what, which, how, where, when or why.",
    "What you know, you can tell. Which of these is right, you can find.",
    "How to learn: read, think, and name the correct answer.",
    "Name what you see. Find what you need. Tell what you know.",
    "To answer well, read the question and every choice of the list.",
    "The correct answer stands in the list, and each choice has its letter.",
    "As you read, ask: Is this correct? Does it say what I need? Do I know why?",
    "In the list each choice says one thing. Of these, one is the answer.",
    "An explanation says why the answer is right; the background says more.",
)


def _guide(rng: random.Random) -> str:
    """How quizzes speak: the words of questions, so that the vocabulary has them whole; no fact, no lettered answer."""
    return " ".join(rng.sample(_GUIDE, 5)).replace("?", ".")


def documents(seed: int = 0) -> Iterator[str]:
    """Yield the pretraining documents in a fixed random order. Questions never occur in them."""
    rng = random.Random(f"{seed}/documents")
    words = vocabulary()
    kinds = [kind for kind, count in DOCUMENTS.items() for _ in range(count)]
    rng.shuffle(kinds)
    for kind in kinds:
        match kind:
            case "profile":
                yield _profile(rng)
            case "topic":
                yield _topic(rng)
            case "word_list":
                yield _word_list(rng, words)
            case "fact_list":
                yield _fact_list(rng)
            case "passage":
                yield _passage(rng)
            case _:
                yield _guide(rng)


# ---- lessons in letters --------------------------------------------------------------------------------


def matching(rng: random.Random, words: list[str]) -> dict:
    """Return a chat that gives the letter of each word of a list: the first lesson of fine-tuning, learned by itself.

    Answering multiple choice takes three steps that are useless one by one: carry each letter to its text, compare
    texts, read off the letter. A small model finds them within some hundred steps where nearly every target depends on
    them, as here, and not at all (in millions of tokens) where a question has one letter among much else to learn.
    """
    choices = rng.sample(words, rng.randint(3, 5))
    order = rng.sample(range(len(choices)), len(choices))
    asked = "Give the letter of each word.\n\n" + labelled(choices)
    return as_chat([asked, "Letters: " + ", ".join(f"{choices[i]} {chr(65 + i)}" for i in order)])


def fact_matching(rng: random.Random) -> dict:
    """Return a chat that gives the letter of several facts: the second lesson, recall before comparing."""
    choices, lines = _fact_references(rng, most_subjects=2)
    return as_chat(["Give the letter for each.\n\n" + labelled(choices), "\n".join(lines)])


def as_chat(turns: list[str]) -> dict:
    """Return a row with `messages`: turns of user and assistant, the user's first."""
    return {"messages": [{"content": text, "role": ("user", "assistant")[i % 2]} for i, text in enumerate(turns)]}


# ---- for later stages ----------------------------------------------------------------------------------------------

_GREETINGS = ("Hello!", "Hi there!", "Good morning!", "Good evening!", "Hey!", "Hello, tutor!")
_REQUESTS = (
    "Tell me something about {s}.",
    "What do you know about {s}?",
    "Can you explain {s} to me?",
    "Please describe {s}.",
)
_THANKS = ("Thank you!", "Thanks, that helps.", "Great, thank you.", "That is clear now.")
_CLOSINGS = ("You are welcome!", "Glad to help.", "Any time. Ask me more!", "My pleasure.")


def chat(rng: random.Random) -> dict:
    """Return one short chat about a subject, as a row with `messages`."""
    relation = rng.choice(RELATIONS)
    subject = rng.choice(list(relation.facts))
    turns = []
    if rng.random() < 0.5:
        turns += [rng.choice(_GREETINGS), "Hello! I am a small science tutor. What would you like to know?"]
    turns += [rng.choice(_REQUESTS).format(s=subject), f"{sentence(relation, subject, 0)} {relation.lecture}"]
    if rng.random() < 0.5:
        turns += [rng.choice(_THANKS), rng.choice(_CLOSINGS)]
    return as_chat(turns)


def word_problem(rng: random.Random) -> dict:
    """Return one arithmetic word problem in the GSM8K form: `<<a*b=c>>` beside each step, `#### c` at the end."""
    name, other = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    a, b, c = rng.randint(2, 12), rng.randint(2, 12), rng.randint(2, 20)
    match rng.randrange(6):
        case 0:
            asked = f"{name} has {a} boxes with {b} tickets each. How many tickets does {name} have?"
            steps, last = [f"{name} has {a} * {b} = <<{a}*{b}={a * b}>>{a * b} tickets."], a * b
        case 1:
            asked = f"{name} has {a} coins and {other} has {b} coins more. How many coins do they have together?"
            steps = [f"{other} has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} coins."]
            steps += [f"Together they have {a} + {a + b} = <<{a}+{a + b}={2 * a + b}>>{2 * a + b} coins."]
            last = 2 * a + b
        case 2:
            asked = f"A {thing} costs {a} dollars. {name} buys {b} of them and pays with {a * b + c} dollars. "
            asked += "How much is left?"
            steps = [f"The price is {a} * {b} = <<{a}*{b}={a * b}>>{a * b} dollars."]
            steps += [f"What is left is {a * b + c} - {a * b} = <<{a * b + c}-{a * b}={c}>>{c} dollars."]
            last = c
        case 3:
            asked = f"{name} shares {a * b} cakes among {a} children. How many cakes does each child get?"
            steps, last = [f"Each child gets {a * b} / {a} = <<{a * b}/{a}={b}>>{b} cakes."], b
        case 4:
            asked = f"{name} walks {a} miles a day for {b} days and then {c} miles more. How many miles is that?"
            steps = [f"In {b} days {name} walks {a} * {b} = <<{a}*{b}={a * b}>>{a * b} miles."]
            steps += [f"In all that is {a * b} + {c} = <<{a * b}+{c}={a * b + c}>>{a * b + c} miles."]
            last = a * b + c
        case _:
            asked = f"{name} had {a + b} candles and gave {a} to {other}. How many candles does {name} have now?"
            steps, last = [f"{name} has {a + b} - {a} = <<{a + b}-{a}={b}>>{b} candles."], b
    return {"question": asked, "answer": "\n".join([*steps, f"#### {last}"])}
