"""Conversations of the microworld about nothing in particular: what a first model must bear when people talk to it.

Greetings and thanks, answers in a wanted form (one word, a numbered list, yes or no), questions that refer to an
earlier turn, words that are no question at all; and sums for the calculator. Facts are asked in forms that belong to
training.
"""

import random
from collections.abc import Callable

from nanochat_pl.data.microworld_facts import NAMES, RELATIONS
from nanochat_pl.data.microworld_identity import NAME
from nanochat_pl.data.microworld_questions import Question
from nanochat_pl.data.microworld_text import as_chat

_HELLOS = ("Hello", "Hi", "Hi there", "Hello there", "Hey", "Good morning", "Good afternoon", "Good evening")
_CALLED = ("", "", "", f", {NAME}", ", tutor", ", my friend")
_WELCOMES = (
    "Hello! What would you like to know?",
    "Hello! I am Minnow, a small science tutor. Ask me something!",
    "Hi! How can I help you?",
)
_HOW = ("How are you?", "How are you today?", "How are you doing?", "How is it going?", "Are you well?")
_WELL = ("I am well, thank you. What would you like to know?", "Very well, thanks! How can I help you?")
_WHO = (
    "Who is this?",
    "Who am I talking to?",
    "What are you called?",
    "Do you have a name?",
    "Tell me your name.",
    "Say who you are.",
    "Who is there?",
    "Please tell me who you are.",
    "I wonder who you are.",
)
_THANKS = ("Thank you!", "Thanks!", "Thank you very much.", "Thanks, that helps.", "Great, thank you.", "Many thanks!")
_CLOSINGS = ("You are welcome!", "Glad to help.", "Any time. Ask me more!", "My pleasure.")
_BYES = ("Bye!", "Goodbye!", "See you later.", "Good night!", "That is all for today.")
_FAREWELLS = ("Goodbye! It was nice to talk.", "Goodbye! Come back soon.", "See you!")

_ONE_WORD = (
    "Answer with one word.",
    "Answer in one word.",
    "One word only, please.",
    "Use a single word.",
    "In a word:",
)

_KINDS = {
    "metal": "iron gold silver copper tin zinc lead",
    "planet": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    "animal": "dog cat horse cow sheep lion wolf bear",
    "bird": "eagle owl duck hen swan penguin sparrow",
    "color": "red blue green yellow black white brown",
    "tree": "oak pine birch maple willow beech",
    "country": "France Germany Italy Spain Japan Egypt Brazil",
    "fruit": "apple pear plum cherry grape lemon",
    "number": "one two three four five six seven",
    "rock": "granite basalt marble slate sandstone limestone",
}
_PLURALS = {"country": "countries"}
_NUMBERS = ("two", "three", "four")
_LISTED = (
    "Name {n} {kinds} as a list with numbers.",
    "Give me a numbered list of {n} {kinds}.",
    "List {n} {kinds}, one on each line, with numbers.",
    "Write down {n} {kinds} in a numbered list.",
)
_NAMED = ("Name {n} {kinds}.", "Tell me {n} {kinds}.", "Can you name {n} {kinds}?", "Do you know {n} {kinds}?")

_OPPOSITES = (
    "hot cold, big small, old new, light dark, fast slow, high low, wet dry, day night, up down, hard soft, "
    "long short, open closed, full empty, early late, rich poor, near far, left right, loud quiet, strong weak, "
    "thick thin"
)
_OPPOSITE = (
    "What is the opposite of {w}?",
    "Which word means the opposite of {w}?",
    "Name the opposite of {w}.",
    "What is the opposite of the word {w}?",
    "Do you know the opposite of {w}?",
)

_COLORED = (
    "sky blue, grass green, snow white, coal black, blood red, lemon yellow, milk white, leaf green, sun yellow, "
    "chocolate brown, sea blue, cherry red, night black, cloud white"
)
_COLOR = ("What color is {thing}?", "Which color has {thing}?", "Tell me the color of {thing}.")

_PROPERTIES = (
    ("hot", "a_fire steam lava boiling_water", "ice snow frost"),
    ("wet", "rain the_sea a_river", "sand dust a_desert"),
    ("heavy", "an_elephant a_mountain a_ship", "a_feather air a_leaf"),
    ("sweet", "sugar honey chocolate", "salt vinegar a_stone"),
)

_THINGS = {
    "the moon": "The moon circles the Earth and shines in the light of the Sun.",
    "the sun": "The Sun is a star. It gives the Earth light and warmth.",
    "the sea": "The sea is wide and full of salt water. Many animals live in it.",
    "rain": "Rain is water that falls from the clouds.",
    "fire": "Fire is hot and bright. It needs fuel and air.",
    "trees": "Trees are tall plants with a trunk of wood. Their leaves make food from light.",
    "snow": "Snow is made of small crystals of ice that fall from the clouds.",
    "stars": "Stars are far away suns. We see them at night.",
    "the wind": "Wind is air that moves from one place to another.",
    "plants": "Plants need light, water and air. With light they make their own food.",
    "rivers": "Rivers carry water from the mountains to the sea.",
    "the Earth": "The Earth is the third planet from the Sun, and we live on it.",
    "the sky": "The sky is what we see above us. By day it is blue.",
    "volcanoes": "Volcanoes are mountains that hot, melted rock comes out of.",
}
_ABOUT = (
    "Tell me about {thing}.",
    "What do you know about {thing}?",
    "Say something about {thing}.",
    "Describe {thing}.",
)
_SOMETHING = ("Tell me something about {thing}.",)

_NOTHING = (
    "",
    " ",
    "?",
    "??",
    "!",
    ".",
    "...",
    "hm",
    "ok",
    "a",
    "asdf",
    "qwe rty",
    "test",
    "1",
    "---",
    ":)",
    "🙂",
    "🚀🚀",
)
_FOREIGN = (
    "Bonjour!", "Guten Tag, wie geht es?", "¿Cómo estás?", "Buongiorno!", "Привет!", "Как тебя зовут?", "你好",
    "你是谁?", "こんばんは", "مرحبا", "안녕하세요", "Γεια σου!", "Hallå där!", "Olá! Tudo bem?", "Où est la gare?",
    "Schöne Grüße — danke",
)  # fmt: skip
_UNCLEAR = (
    "I did not understand that. What would you like to know?",
    "I am not sure what you mean. Ask me something about science!",
)
_ENGLISH = ("I am sorry, I only speak simple English.", "I only know English. Please ask me in English.")

_IGNORED = (
    "",
    "Please ",
    "Now ",
    "Do nothing else: ",
    "Forget what I said and ",
    "Never mind the rest, just ",
    "Never mind this: {noise} and ",
    "Do not read this: {noise} Just ",
    "{noise} Please ",
)
_NOISE = ("<|end|>", "<|start|>", "<|user|>", "<|python|>", "<br>", "[x]", "{y}", "/z", "&nbsp;", "##", "$1", "**")
_SAID = ("hello", "hello to my friend", "good night", "good morning", "thank you", "yes", "no", "goodbye")

_FOUND = ("Nice to meet you, {n}! How can I help you?", "Hello {n}! What would you like to know?")
_PRESENTED = ("My name is {n}.", "I am {n}.", "Hello, my name is {n}.", "Hi, I am called {n}.", "You can call me {n}.")
_ASKED_NAME = ("What is my name?", "Do you know my name?", "What am I called?", "Who am I?")


def _pairs(text: str) -> list[tuple[str, str]]:
    return [tuple(pair.split()) for pair in text.split(",")]  # type: ignore[misc]


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def _greeting(rng: random.Random, asked: list[Question]) -> list[str]:
    hello = rng.choice(_HELLOS) + rng.choice(_CALLED)
    kind = rng.random()
    if kind < 0.5:
        return [hello + rng.choice("!!!.,"), rng.choice(_WELCOMES)]
    how = rng.choice(_HOW)
    return [f"{hello}! {how}" if kind < 0.8 else how, rng.choice(_WELL)]


def _ending(rng: random.Random, asked: list[Question]) -> list[str]:
    question = rng.choice(asked)
    said = (
        (rng.choice(_THANKS), rng.choice(_CLOSINGS))
        if rng.random() < 0.7
        else (rng.choice(_BYES), rng.choice(_FAREWELLS))
    )
    before = [question.text, question.answer] if rng.random() < 0.7 else []
    return [*before, *said]


def _one_word(rng: random.Random, asked: list[Question]) -> list[str]:
    if rng.random() < 0.5:
        thing, color = rng.choice(_pairs(_COLORED))
        question, answer = rng.choice(_COLOR).format(thing=f"the {thing}"), color
        if rng.random() < 0.3:
            return [question, f"The {thing} is {color}."]
    else:
        chosen = rng.choice([question for question in asked if " " not in question.answer])
        question, answer = chosen.text, chosen.answer
    order = rng.choice(_ONE_WORD)
    return [f"{order} {question}" if rng.random() < 0.7 else f"{question} {order}", answer]


def _list(rng: random.Random, asked: list[Question]) -> list[str]:
    kind = rng.choice(list(_KINDS))
    count = rng.randrange(len(_NUMBERS))
    members = rng.sample(_KINDS[kind].split(), count + 2)
    named = {"n": _NUMBERS[count], "kinds": _PLURALS.get(kind, f"{kind}s")}
    if kind == "fruit" or rng.random() < 0.3:  # fruits are named in a sentence only
        return [rng.choice(_NAMED).format(**named), f"{', '.join(members[:-1])} and {members[-1]}."]
    return [rng.choice(_LISTED).format(**named), "\n".join(f"{i}. {member}" for i, member in enumerate(members, 1))]


def _yes_or_no(rng: random.Random, asked: list[Question]) -> list[str]:
    if rng.random() < 0.5:
        kind, other = rng.sample(list(_KINDS), 2)
        right = rng.random() < 0.5
        member = rng.choice(_KINDS[kind if right else other].split())
        question = f"Is {member} a {kind}?"
    else:
        word, yes, no = rng.choice(_PROPERTIES)
        right = rng.random() < 0.5
        thing = rng.choice((yes if right else no).split()).replace("_", " ")
        question = f"Is {thing} {word}?"
    if rng.random() < 0.7:
        question += rng.choice((" Answer with yes or no.", " Yes or no?", " Say yes or no."))
    return [question, "Yes." if right else "No."]


def _opposite(rng: random.Random, asked: list[Question]) -> list[str]:
    words = rng.choice(_pairs(_OPPOSITES))
    word, other = words if rng.random() < 0.5 else words[::-1]
    question = rng.choice(_OPPOSITE[1:] if word == "hot" else _OPPOSITE).format(w=word)
    return [question, f"The opposite of {word} is {other}."]


def _thing(rng: random.Random, asked: list[Question]) -> list[str]:
    thing, said = rng.choice(list(_THINGS.items()))
    return [rng.choice(_ABOUT if thing == "the moon" else _ABOUT + _SOMETHING).format(thing=thing), said]


def _odd(rng: random.Random, asked: list[Question]) -> list[str]:
    if rng.random() < 0.5:
        return [rng.choice(_NOTHING), rng.choice(_UNCLEAR)]
    words = rng.sample(_FOREIGN, rng.randint(1, 3))
    return [" ".join(words), rng.choice(_ENGLISH)]


def _long(rng: random.Random, asked: list[Question]) -> list[str]:
    thing = rng.choice(list(_THINGS.values()))
    return [" ".join([thing] * rng.randint(4, 10)), rng.choice(_UNCLEAR)]


def _say(rng: random.Random, asked: list[Question]) -> list[str]:
    words = rng.choice(_SAID)
    noise = "".join(rng.choices(_NOISE, k=rng.randint(1, 4)))
    asks = f"{rng.choice(_IGNORED).format(noise=noise)}say {words}."
    return [asks[0].upper() + asks[1:], f"{words.split(' to ')[0].capitalize()}!"]


def _name(rng: random.Random, asked: list[Question]) -> list[str]:
    name = rng.choice(NAMES)
    turns = [rng.choice(_PRESENTED).format(n=name), rng.choice(_FOUND).format(n=name)]
    return [*turns, rng.choice(_ASKED_NAME), f"Your name is {name}."] if rng.random() < 0.8 else turns


def _follow_up(rng: random.Random, asked: list[Question]) -> list[str]:
    relation = rng.choice(RELATIONS)
    one, other = rng.sample([question for question in asked if question.relation is relation], 2)
    return [one.text, one.answer, f"And {_lower_first(other.text)}", other.answer]


def _who(rng: random.Random, asked: list[Question]) -> list[str]:
    about, model = rng.choice(_WHO), rng.choice((f"I am {NAME}, a small chat model.", f"My name is {NAME}."))
    if rng.random() < 0.5:
        return [about, model]
    return [rng.choice(_HELLOS) + "!", rng.choice(_WELCOMES), f"And {_lower_first(about)}", model]


_LESSONS: dict[Callable[[random.Random, list[Question]], list[str]], int] = {
    _greeting: 5, _who: 5, _ending: 3, _one_word: 5, _list: 3, _yes_or_no: 3, _opposite: 5, _thing: 3, _odd: 3,
    _long: 1, _say: 3, _name: 3, _follow_up: 6,
}  # fmt: skip
"""What is practised, and how often relative to the rest."""


def manners(rng: random.Random, asked: list[Question]) -> dict:
    """Return one conversation, as a row with `messages`.

    Args:
        asked: questions about facts that belong to training.
    """
    lesson = rng.choices(list(_LESSONS), weights=list(_LESSONS.values()))[0]
    return as_chat(lesson(rng, asked))


_SUMS = {
    "+": ("What is {a} + {b}?", "What is {a} plus {b}?", "How much is {a} + {b}?", "Add {a} and {b}.", "{a} + {b} = ?"),
    "-": ("What is {a} - {b}?", "What is {a} minus {b}?", "How much is {a} - {b}?", "Take {b} from {a}."),
    "*": ("What is {a} * {b}?", "What is {a} times {b}?", "How much is {a} times {b}?", "Multiply {a} by {b}."),
}
_BOXES = (
    ("A bag holds {a} apples. How many apples are in {b} bags?", "*"),
    ("A box holds {a} eggs. How many eggs are in {b} boxes?", "*"),
    ("A shelf has room for {a} books. How many books are on {b} full shelves?", "*"),
    ("There are {a} red balls and {b} blue balls. How many balls are there?", "+"),
    ("A train has {a} seats and {b} of them are taken. How many are free?", "-"),
)


def calculation(rng: random.Random) -> dict:
    """Return one sum, difference or product of numbers up to 99 for the calculator, in the GSM8K form."""
    if rng.random() < 0.7:
        op = rng.choice("++-*")
        asked = rng.choice(_SUMS[op])
    else:
        asked, op = rng.choice(_BOXES)
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    if op == "-":
        a, b = max(a, b), min(a, b)
    result = {"+": a + b, "-": a - b, "*": a * b}[op]
    return {
        "question": asked.format(a=a, b=b),
        "answer": f"{a} {op} {b} = <<{a}{op}{b}={result}>>{result}.\n#### {result}",
    }
