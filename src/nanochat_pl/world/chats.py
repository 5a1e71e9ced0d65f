"""The conversations of the microworld: small talk, what the assistant says about itself, lessons in letters.

*Manners* are what a first model must handle when people talk to it: greetings and thanks, answers in a requested form
(one word, a numbered list, yes or no), questions that refer to an earlier turn, words that are no question at all.
Facts are asked in forms that belong to training. The assistant is called Minnow; what it says about itself is true of
every model trained on this world.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nanochat_pl.world.documents import labelled
from nanochat_pl.world.facts import relations, sentence, table
from nanochat_pl.world.questions import Question

IDENTITY_CONVERSATIONS = 200
TUTOR = "The correct answer is {letter}. {text}"
"""What a tutor says (`tasks.scienceqa`)."""


def as_chat(turns: list[str]) -> dict:
    """Return turns of user and assistant, the user's first, as a row with `messages`."""
    return {"messages": [{"content": text, "role": ("user", "assistant")[i % 2]} for i, text in enumerate(turns)]}


def wordings() -> list[str]:
    """Return the answer of a tutor as it grows: the letter alone, with more and more words before it, the whole."""
    before = TUTOR.partition(" {letter}")[0].split()
    growing = [f"{' '.join(before[k:])} {{letter}}" for k in range(len(before), -1, -1)]
    return ["{letter}", *growing, TUTOR]


def matching(rng: random.Random, words: list[str], answers: Sequence[str], behind: bool = True) -> dict:
    """Return a chat that asks for the letters of words of one list, and is answered in one of `answers`.

    Five words are asked for `behind` the list, or one before it. Answering multiple choice takes three steps, each
    useless without the others: find the asked text again, compare, read off the letter. A small model finds them where
    the asked word is the last thing before the letter, and each later lesson may differ by a little only: a word more
    between question and letter, the list between them, a fact to be recalled in place of a word (docs/lookup.md).
    """
    choices, answer = rng.sample(words, rng.randint(2, 5)), rng.choice(answers)
    asked = [rng.randrange(len(choices)) for _ in range(5 if behind else 1)]
    turns = [text for i in asked for text in (f"Find {choices[i]}", lettered(answer, choices, i))]
    listed = labelled(choices)
    turns[0] = f"Letters of words.\n\n{listed}\n\n{turns[0]}" if behind else f"{turns[0]}\n\n{listed}"
    return as_chat(turns)


def fact_matching(rng: random.Random, by_relation: Mapping[str, list[Question]]) -> dict:
    """Return a chat that asks one question before a list of answers to questions of its relation, as a tutor is asked.

    Asked behind their list, facts are found sooner, by looking directly before the answer, where no tutor's question
    stands; a model that has learned that no longer finds what is asked before a list (LOG.md).
    """
    names = list(by_relation)
    while True:
        [name] = rng.choices(names, [len(by_relation[name]) for name in names])
        objects = sorted({question.answer for question in by_relation[name]})
        choices = rng.sample(objects, min(len(objects), rng.randint(2, 5)))
        # Another listed object that is also right would make the letter ambiguous.
        fitting = [
            question
            for question in by_relation[name]
            if question.answer in choices and not {*question.relation.also_true.get(question.fact, ())} & {*choices}
        ]
        if fitting and len(choices) > 1:
            break
    question = rng.choice(fitting)
    answer = lettered(TUTOR, choices, choices.index(question.answer))
    return as_chat([f"{question.text}\n\n{labelled(choices)}", answer])


def lettered(answer: str, choices: list[str], i: int) -> str:
    """Return `answer` with the letter and the text of a choice."""
    return answer.format(letter=chr(65 + i), text=choices[i])


def chat(rng: random.Random) -> dict:
    """Return one short chat about a subject, as a row with `messages`."""
    relation = rng.choice(relations())
    subject = rng.choice(list(relation.facts))
    turns = []
    if rng.random() < 0.5:
        turns += [_pick(rng, "request_greetings"), "Hello! I am a small science tutor. What would you like to know?"]
    turns += [_pick(rng, "requests", s=subject), f"{sentence(relation, subject, 0)} {relation.lecture}"]
    if rng.random() < 0.5:
        turns += [_pick(rng, "request_thanks"), _pick(rng, "closings")]
    return as_chat(turns)


def identity_conversations(seed: int = 0) -> list[list[dict[str, str]]]:
    """Return conversations about the assistant as lists of messages; no two begin alike."""
    rng = random.Random(f"{seed}/identity")
    openings, topics, thanks = (table("identity")[name] for name in ("openings", "topics", "thanks"))
    beginnings = [(opening, topic, q) for opening in openings for topic in topics for q in topic["questions"]]
    conversations = []
    for opening, topic, question in rng.sample(beginnings, IDENTITY_CONVERSATIONS):
        turns = [opening + question, rng.choice(topic["answers"])]
        if rng.random() < 0.4:
            other = rng.choice([t for t in topics if t is not topic])
            turns += [rng.choice(other["questions"]), rng.choice(other["answers"])]
        if rng.random() < 0.3:
            turns += rng.choice(thanks).values()
        roles = ("user", "assistant") * (len(turns) // 2)
        conversations.append([{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)])
    return conversations


def manners(rng: random.Random, trained: list[Question]) -> dict:
    """Return one conversation of small talk, as a row with `messages`.

    Args:
        trained: questions about facts that belong to training.
    """
    lesson = rng.choices(list(_LESSONS), weights=list(_LESSONS.values()))[0]
    return as_chat(lesson(rng, trained))


def _pick(rng: random.Random, name: str, **fields: Any) -> str:
    """Draw one of the sentences of that name and fill in its fields."""
    return rng.choice(table("chats")[name]).format(**fields)


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def _greeting(rng: random.Random, trained: list[Question]) -> list[str]:
    hello = _pick(rng, "hellos") + _pick(rng, "called")
    kind = rng.random()
    if kind < 0.5:
        return [hello + rng.choice("!!!.,"), _pick(rng, "welcomes")]
    how = _pick(rng, "how")
    return [f"{hello}! {how}" if kind < 0.8 else how, _pick(rng, "well")]


def _who(rng: random.Random, trained: list[Question]) -> list[str]:
    question, answer = _pick(rng, "who"), _pick(rng, "introductions")
    if rng.random() < 0.5:
        return [question, answer]
    return [_pick(rng, "hellos") + "!", _pick(rng, "welcomes"), f"And {_lower_first(question)}", answer]


def _ending(rng: random.Random, trained: list[Question]) -> list[str]:
    question = rng.choice(trained)
    names = ("thanks", "closings") if rng.random() < 0.7 else ("byes", "farewells")
    ending = [_pick(rng, name) for name in names]
    before = [question.text, question.answer] if rng.random() < 0.7 else []
    return [*before, *ending]


def _one_word(rng: random.Random, trained: list[Question]) -> list[str]:
    if rng.random() < 0.5:
        thing, color = rng.choice(list(table("chats")["colored"].items()))
        question, answer = _pick(rng, "color", thing=f"the {thing}"), color
        if rng.random() < 0.3:
            return [question, f"The {thing} is {color}."]
    else:
        chosen = rng.choice([question for question in trained if " " not in question.answer])
        question, answer = chosen.text, chosen.answer
    order = _pick(rng, "one_word")
    return [f"{order} {question}" if rng.random() < 0.7 else f"{question} {order}", answer]


def _list(rng: random.Random, trained: list[Question]) -> list[str]:
    kinds, numbers = table("chats")["kinds"], table("chats")["numbers"]
    kind = rng.choice(list(kinds))
    count = rng.randrange(len(numbers))
    members = rng.sample(kinds[kind], count + 2)
    fields = {"n": numbers[count], "kinds": "countries" if kind == "country" else f"{kind}s"}
    if kind == "fruit" or rng.random() < 0.3:  # fruits are named in a sentence only
        return [_pick(rng, "named", **fields), f"{', '.join(members[:-1])} and {members[-1]}."]
    return [_pick(rng, "listed", **fields), "\n".join(f"{i}. {member}" for i, member in enumerate(members, 1))]


def _yes_or_no(rng: random.Random, trained: list[Question]) -> list[str]:
    if rng.random() < 0.5:
        kinds = table("chats")["kinds"]
        kind, other = rng.sample(list(kinds), 2)
        right = rng.random() < 0.5
        member = rng.choice(kinds[kind if right else other])
        question = f"Is {member} a {kind}?"
    else:
        known = rng.choice(table("chats")["properties"])
        right = rng.random() < 0.5
        question = f"Is {rng.choice(known['yes' if right else 'no'])} {known['word']}?"
    if rng.random() < 0.7:
        question += rng.choice((" Answer with yes or no.", " Yes or no?", " Say yes or no."))
    return [question, "Yes." if right else "No."]


def _opposite(rng: random.Random, trained: list[Question]) -> list[str]:
    words = rng.choice(list(table("chats")["opposites"].items()))
    word, other = words if rng.random() < 0.5 else words[::-1]
    questions = table("chats")["opposite"]
    question = rng.choice(questions[1:] if word == "hot" else questions).format(w=word)
    return [question, f"The opposite of {word} is {other}."]


def _thing(rng: random.Random, trained: list[Question]) -> list[str]:
    chats = table("chats")
    thing, sentences = rng.choice(list(chats["subjects"].items()))
    questions = chats["about"] if thing == "the moon" else chats["about"] + chats["something"]
    return [rng.choice(questions).format(thing=thing), sentences]


def _odd(rng: random.Random, trained: list[Question]) -> list[str]:
    if rng.random() < 0.5:
        return [_pick(rng, "nothing"), _pick(rng, "unclear")]
    words = rng.sample(table("chats")["foreign"], rng.randint(1, 3))
    return [" ".join(words), _pick(rng, "english")]


def _long(rng: random.Random, trained: list[Question]) -> list[str]:
    sentences = rng.choice(list(table("chats")["subjects"].values()))
    return [" ".join([sentences] * rng.randint(4, 10)), _pick(rng, "unclear")]


def _say(rng: random.Random, trained: list[Question]) -> list[str]:
    words = _pick(rng, "said")
    noise = "".join(rng.choices(table("chats")["noise"], k=rng.randint(1, 4)))
    request = f"{_pick(rng, 'ignored', noise=noise)}say {words}."
    return [request[0].upper() + request[1:], f"{words.split(' to ')[0].capitalize()}!"]


def _name(rng: random.Random, trained: list[Question]) -> list[str]:
    name = rng.choice(table("facts")["names"])
    turns = [_pick(rng, "presented", n=name), _pick(rng, "found", n=name)]
    return [*turns, _pick(rng, "asked_name"), f"Your name is {name}."] if rng.random() < 0.8 else turns


def _follow_up(rng: random.Random, trained: list[Question]) -> list[str]:
    relation = rng.choice(relations())
    one, other = rng.sample([question for question in trained if question.relation is relation], 2)
    return [one.text, one.answer, f"And {_lower_first(other.text)}", other.answer]


_LESSONS: dict[Callable[[random.Random, list[Question]], list[str]], int] = {
    _greeting: 5, _who: 5, _ending: 3, _one_word: 5, _list: 3, _yes_or_no: 3, _opposite: 5, _thing: 3, _odd: 3,
    _long: 1, _say: 3, _name: 3, _follow_up: 6,
}  # fmt: skip
"""The lessons, and how often each is drawn relative to the rest."""
