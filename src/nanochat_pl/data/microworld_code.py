"""Small programming problems in HumanEval's columns: beginning of a function, its rest, calls that must hold."""

_PROBLEMS: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = (
    ("double", "n", "Return twice the number n.", "return 2 * n", ("(4) == 8", "(0) == 0", "(-3) == -6")),
    (
        "larger",
        "a, b",
        "Return the larger of two numbers.",
        "return a if a > b else b",
        ("(2, 5) == 5", "(7, -1) == 7", "(3, 3) == 3"),
    ),
    (
        "is_even",
        "n",
        "Tell whether n can be divided by two.",
        "return n % 2 == 0",
        ("(4) == True", "(7) == False", "(0) == True"),
    ),
    (
        "last",
        "items",
        "Return the last item of a list that is not empty.",
        "return items[-1]",
        ("([1, 2, 3]) == 3", "(['a']) == 'a'"),
    ),
    (
        "total",
        "numbers",
        "Return the sum of a list of numbers; of no numbers it is 0.",
        "return sum(numbers)",
        ("([1, 2, 3]) == 6", "([]) == 0", "([5, -5, 2]) == 2"),
    ),
    (
        "backwards",
        "text",
        "Return the text from its end to its beginning.",
        "return text[::-1]",
        ("('abc') == 'cba'", "('') == ''", "('noon') == 'noon'"),
    ),
    (
        "count_letter",
        "word, letter",
        "Return how often a letter stands in a word.",
        "return word.count(letter)",
        ("('tree', 'e') == 2", "('cat', 'x') == 0"),
    ),
    (
        "shout",
        "text",
        "Return the text in capital letters with an exclamation mark.",
        "return text.upper() + '!'",
        ("('stop') == 'STOP!'", "('a b') == 'A B!'"),
    ),
    (
        "minutes",
        "hours",
        "Return how many minutes so many hours have.",
        "return 60 * hours",
        ("(2) == 120", "(0) == 0", "(24) == 1440"),
    ),
    (
        "first_letters",
        "words",
        "Return the first letters of a list of words as one text.",
        "return ''.join(word[0] for word in words)",
        ("(['red', 'ant']) == 'ra'", "([]) == ''", "(['sun', 'is', 'up']) == 'siu'"),
    ),
)


def programming_problems() -> list[dict[str, str]]:
    """Return the problems as rows: task_id, prompt, canonical_solution, test, entry_point."""
    rows = []
    for number, (name, arguments, told, body, calls) in enumerate(_PROBLEMS):
        call, _, value = calls[0].partition(" == ")
        checks = "".join(f"    assert candidate{held}\n" for held in calls)
        rows.append(
            {
                "task_id": f"Microworld/{number}",
                "prompt": f'def {name}({arguments}):\n    """{told}\n\n    >>> {name}{call}\n    {value}\n    """\n',
                "canonical_solution": f"    {body}\n",
                "test": f"def check(candidate):\n{checks}",
                "entry_point": name,
            }
        )
    return rows
