"""Problems of the microworld: arithmetic in GSM8K's form, small functions in HumanEval's, and words to spell."""

import random

from nanochat_pl.world.facts import table, vocabulary

WORDS_TO_SPELL = 3_000
_ONSETS = tuple("bcdfghjklmnprstvwyz") + ("bl", "br", "ch", "cl", "dr", "fl", "gr", "pl", "qu", "sh", "st", "str", "tr")
_VOWELS = tuple("aaeeeiioou") + ("ai", "ea", "ee", "oo", "ou")
_CODAS = ("", "", "", *"lmnrstx", "ck", "ll", "mp", "nd", "ng", "nt", "ss", "st")


def word_problem(rng: random.Random) -> dict:
    """Return one arithmetic word problem in the GSM8K form: `<<a*b=c>>` in each step, `#### c` at the end."""
    name, other = rng.sample(table("facts")["names"], 2)
    thing = rng.choice(table("facts")["things"])
    a, b, c = rng.randint(2, 12), rng.randint(2, 12), rng.randint(2, 20)
    match rng.randrange(6):
        case 0:
            question = f"{name} has {a} boxes with {b} tickets each. How many tickets does {name} have?"
            steps, last = [f"{name} has {a} * {b} = <<{a}*{b}={a * b}>>{a * b} tickets."], a * b
        case 1:
            question = f"{name} has {a} coins and {other} has {b} coins more. How many coins do they have together?"
            steps = [f"{other} has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} coins."]
            steps += [f"Together they have {a} + {a + b} = <<{a}+{a + b}={2 * a + b}>>{2 * a + b} coins."]
            last = 2 * a + b
        case 2:
            question = f"A {thing} costs {a} dollars. {name} buys {b} of them and pays with {a * b + c} dollars. "
            question += "How much is left?"
            steps = [f"The price is {a} * {b} = <<{a}*{b}={a * b}>>{a * b} dollars."]
            steps += [f"What is left is {a * b + c} - {a * b} = <<{a * b + c}-{a * b}={c}>>{c} dollars."]
            last = c
        case 3:
            question = f"{name} shares {a * b} cakes among {a} children. How many cakes does each child get?"
            steps, last = [f"Each child gets {a * b} / {a} = <<{a * b}/{a}={b}>>{b} cakes."], b
        case 4:
            question = f"{name} walks {a} miles a day for {b} days and then {c} miles more. How many miles is that?"
            steps = [f"In {b} days {name} walks {a} * {b} = <<{a}*{b}={a * b}>>{a * b} miles."]
            steps += [f"In all that is {a * b} + {c} = <<{a * b}+{c}={a * b + c}>>{a * b + c} miles."]
            last = a * b + c
        case _:
            question = f"{name} had {a + b} candles and gave {a} to {other}. How many candles does {name} have now?"
            steps, last = [f"{name} has {a + b} - {a} = <<{a + b}-{a}={b}>>{b} candles."], b
    return {"question": question, "answer": "\n".join([*steps, f"#### {last}"])}


def calculation(rng: random.Random) -> dict:
    """Return one sum, difference or product of numbers up to 99 for the calculator, in the GSM8K form."""
    if rng.random() < 0.7:
        op = rng.choice("++-*")
        question = rng.choice(table("problems")["sums"][op])
    else:
        box = rng.choice(table("problems")["boxes"])
        question, op = box["question"], box["op"]
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    if op == "-":
        a, b = max(a, b), min(a, b)
    result = {"+": a + b, "-": a - b, "*": a * b}[op]
    return {
        "question": question.format(a=a, b=b),
        "answer": f"{a} {op} {b} = <<{a}{op}{b}={result}>>{result}.\n#### {result}",
    }


def programming_problems() -> list[dict[str, str]]:
    """Return functions to write as rows of task_id, prompt, canonical_solution, test and entry_point."""
    rows = []
    for number, program in enumerate(table("problems")["programs"]):
        name = program["name"]
        call, _, value = program["calls"][0].partition(" == ")
        signature = f"def {name}({program['arguments']}):"
        checks = "".join(f"    assert candidate{check}\n" for check in program["calls"])
        rows.append(
            {
                "task_id": f"Microworld/{number}",
                "prompt": f'{signature}\n    """{program["docstring"]}\n\n    >>> {name}{call}\n    {value}\n    """\n',
                "canonical_solution": f"    {program['body']}\n",
                "test": f"def check(candidate):\n{checks}",
                "entry_point": name,
            }
        )
    return rows


def words_to_spell(seed: int = 0) -> list[str]:
    """Return words of this world and others made from syllables: lower case, a to z, sorted."""
    rng = random.Random(f"{seed}/words")
    known = {part for word in vocabulary() for part in word.lower().split()}
    words = {word for word in known if len(word) > 1 and word.isascii() and word.isalpha()}
    while len(words) < WORDS_TO_SPELL:
        syllables = rng.choices((2, 3, 4), weights=(3, 4, 1))[0]
        words.add("".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)))
    return sorted(words)
