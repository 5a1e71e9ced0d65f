"""Laws of the calculator: exact, printed as the data are, and no text whatever harms it."""

import math
import operator
import random
import re
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest

from nanochat_pl.calculator import MAX_EXPRESSION_CHARS, MAX_NESTING, MAX_RESULT_CHARS, calculate

OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12*7", "84"),
        ("10/2", "5"),
        ("10//3", "3"),
        ("10%3", "1"),
        ("-7//2", "-4"),
        ("-7%3", "2"),
        ("0.1+0.2", "0.3"),
        ("2*20*.01", "0.4"),
        ("12.50*2", "25"),
        ("5.", "5"),
        ("05+1", "6"),
        ("007.50", "7.5"),
        ("1,000+1", "1001"),
        ("1,234,567.5*2", "2469135"),
        ("3*+6", "18"),
        ("+30+46", "76"),
        ("--5", "5"),
        ("  (1 + 2)*3 ", "9"),
        ("-0.0", "0"),
        ("123456789123456789*10+.5", "1234567891234567890.5"),
    ],
)
def test_arithmetic_is_exact_and_without_needless_digits(expression, result):
    assert calculate(expression) == result


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("10/3", "3.333333"),
        ("-2/3", "-0.666667"),
        ("200/3", "66.666667"),
        ("1/300", "0.00333333"),
        ("1/1000000000", "0.000000001"),
        ("0.9999999", "1"),
    ],
)
def test_what_does_not_end_is_rounded(expression, result):
    assert calculate(expression) == result


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("'strawberry'.count('r')", "3"),
        ('"banana".count("an")', "2"),
        ("\"don't\".count('t')", "1"),
        ("'indirect'.count('i')", "2"),
        ("'profile'.count('z')", "0"),
        ("'1,000'.count(',')", "1"),
        ("'naïve'.count('ï')", "1"),
        ("'import os'.count('o')", "2"),
        ("'abc' . count ( 'b' )", "1"),
        ("'ab'.count('a') + 'ab'.count('b')", "2"),
    ],
)
def test_letters_and_parts_of_a_text_are_counted(expression, result):
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "", " ", "()", "abc", "2**10", "2^10", "1/0", "1//0", "1%0", "1/(2-2)", "50%", "$5", "1=1", "1 2",
        "1.5.5", "1..2", ".", "5(3)", "(1)(2)", "1,00", "1,0000", "1,,000", "1,2", "0x10", "1e5", "1_000", "1j",
        "1+1;2", "1<2", "1 if 1 else 2", "~1", "1@2", "1<<9", "１+1", "'a'", "'a'*3", "'a'+'b'", "'a'.count",
        "'a'.count()", "'a'.count('a', 1)", "'a'.count(1)", "'a'.upper()", "'a'.count('a'.upper())",
        "1.count('a')", "len('abc')", "f'a'.count('a')", "b'a'.count(b'a')", "'a\\n'.count('a')",
        "'a.count('a')", "__import__('os')", "import os", "().__class__", "lambda: 1", "[1]", "1\n+\n1",
        "'\0'.count('a')", "1#2",
    ],
)  # fmt: skip
def test_everything_else_is_refused(expression):
    assert calculate(expression) is None


def test_limits_of_length_nesting_and_result_hold():
    assert calculate("1" + "+1" * ((MAX_EXPRESSION_CHARS - 1) // 2)) == "200"
    assert calculate("1" + "+1" * (MAX_EXPRESSION_CHARS // 2)) is None
    assert calculate("-" * (MAX_EXPRESSION_CHARS - 1) + "1") == "-1"
    assert calculate("(" * MAX_NESTING + "1" + ")" * MAX_NESTING) == "1"
    assert calculate("(" * (MAX_NESTING + 1) + "1" + ")" * (MAX_NESTING + 1)) is None
    assert calculate("9" * MAX_RESULT_CHARS) == "9" * MAX_RESULT_CHARS
    assert calculate("9" * MAX_RESULT_CHARS + "+1") is None
    assert calculate("1/1" + "0" * MAX_RESULT_CHARS) is None
    assert calculate("/".join(["9" * 90 + "*" + "9" * 90] + ["9" * 90] * 2)) == "1"
    assert calculate("9/" * 199 + "7") is None


def expression(rng, depth):
    """Return a random expression, fully in parentheses, and its exact value (None = division by zero)."""
    if depth == 0 or rng.random() < 0.2:
        text = rng.choice(["7", "12", "1,000", "05", ".5", "0.25", "3.10", "0", "99999", str(rng.randrange(10**6))])
        return text, Fraction(text.replace(",", ""))
    if rng.random() < 0.2:
        text, value = expression(rng, depth - 1)
        return f"(-{text})", None if value is None else -value
    (left, a), (right, b), sign = (
        expression(rng, depth - 1),
        expression(rng, depth - 1),
        rng.choice(list(OPERATORS)),
    )
    try:
        value = None if a is None or b is None else Fraction(OPERATORS[sign](a, b))
    except ZeroDivisionError:
        value = None
    return f"({left}{rng.choice(['', ' '])}{sign}{rng.choice(['', ' '])}{right})", value


def test_random_expressions_have_the_value_that_fractions_have():
    rng, compared, refused = random.Random(0), 0, 0
    for _ in range(3000):
        text, value = expression(rng, rng.randrange(1, 5))
        if len(text) > MAX_EXPRESSION_CHARS:
            continue
        result = calculate(text)
        if value is None:
            assert result is None, text
            refused += 1
        elif result is None:
            assert abs(value) >= 10**20 or 0 < abs(value) < Fraction(1, 10**20), text
        else:
            assert re.fullmatch(r"-?(0|[1-9]\d*)(\.\d*[1-9])?", result) and result != "-0", text
            error = abs(Fraction(result) - value)
            assert error <= Fraction(1, 2 * 10**6) * min(1, abs(value) * 10), (text, result)
            compared += 1
    assert compared > 1500 and refused > 100


def test_without_parentheses_python_s_own_precedence_holds():
    rng = random.Random(1)
    for _ in range(1000):
        text = str(rng.randrange(1, 50))
        for _ in range(rng.randrange(1, 8)):
            text += rng.choice(["+", "-", "*", "//", "%"]) + rng.choice(["", "-"]) + str(rng.randrange(1, 50))
        assert calculate(text) == str(eval(text))


def test_garbage_is_refused_and_never_raises():
    rng = random.Random(2)
    pieces = [*"0123456789+-*/%().,'\" \\\n\t\0_=#$[]{}:;@~^&|<>!?`éÿ１²\ud800", ".count(", "count", "'a'", "1,000"]
    pieces += ["__import__", "lambda", "import", "**", "//", "0x", "1e9", "'strawberry'.count('r')", "(((", "None"]
    answered = 0
    for _ in range(20_000):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 12)))
        result = calculate(text)
        assert result is None or math.isfinite(float(result)), text
        answered += result is not None
    assert answered > 100
    for piece in pieces:
        for length in (MAX_EXPRESSION_CHARS, 100_000):
            calculate((piece * length)[:length])


def test_threads_calculate_independently():
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(calculate, (f"{i}*{i}/2" for i in range(2000))))
    assert [Fraction(result) for result in results] == [Fraction(i * i, 2) for i in range(2000)]
