"""The calculator a model may call: arithmetic and `str.count`, read with `ast` and never run as Python.

Numbers are exact fractions, so that 0.1 + 0.2 is 0.3, and are printed as GSM8K's own annotations print them: `10`, not
`10.0`. Everything is bounded (length, depth, digits), there is no clock and no signal, so any thread may call it.
"""

import ast
import re
from fractions import Fraction

__all__ = ["calculate"]

MAX_CHARACTERS = 256
MAX_DEPTH = 32
MAX_DIGITS = 60
"""Of any number met on the way, before or after the decimal point."""
DECIMALS = 6
"""Decimals of a result that is not a whole number; zeros at the end are left out."""

_ARITHMETIC = re.compile(r"[0-9.,+\-*/%() ]+")
_LITERAL = re.compile(r"""(['"])[^'"\\\n]*\1""")
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
_LIMIT = 10**MAX_DIGITS
Value = Fraction | str


def calculate(expression: str) -> str | None:
    """Return the value of an expression as text; None where it is refused or has no value.

    Understood are numbers (with commas between thousands, leading zeros, a bare `.5`), `+ - * / // %` (% between two
    numbers is the remainder), signs, parentheses, and `'text'.count('t')`. Powers, names, other calls and anything
    beyond the limits are refused. (nanochat, 2025-11)
    Differs: there 10/2 is "5.0", 05+1 and a word that contains the name of a built-in function are refused, powers
    of a second are let run, and outside the main thread every call fails.
    """
    text = expression.strip()
    if not text or len(text) > MAX_CHARACTERS:
        return None
    # Checked before parsing: Python's parser warns about odd literals, and a warning cannot be silenced in one thread.
    if not _ARITHMETIC.fullmatch(_LITERAL.sub("0", text).replace(".count", "")):
        return None
    if _ARITHMETIC.fullmatch(text):
        text = _LEADING_ZEROS.sub("", text.replace(",", ""))
    try:
        value = _value(ast.parse(text, mode="eval").body, MAX_DEPTH)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return _text(value) if isinstance(value, Fraction) else None


def _value(node: ast.expr, depth: int) -> Value:
    """Work out one node of the syntax tree; ValueError for whatever is not in the language."""
    if depth == 0:
        raise ValueError("too deep")
    match node:
        case ast.Constant(value=bool()):
            raise ValueError("a truth value")
        case ast.Constant(value=int() | float() as number):
            # as it is written: 0.1 means one tenth, not the float nearest to it (decimals keep 17 digits)
            return _bounded(Fraction(repr(number)))
        case ast.Constant(value=str() as text):
            return text
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _number(operand, depth)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=operator, right=right):
            return _bounded(_combine(_number(left, depth), operator, _number(right, depth)))
        case ast.Call(func=ast.Attribute(value=owner, attr="count"), args=[argument], keywords=[]):
            text, part = _value(owner, depth - 1), _value(argument, depth - 1)
            if isinstance(text, str) and isinstance(part, str):
                return Fraction(text.count(part))
    raise ValueError(f"{type(node).__name__} is not in the calculator's language")


def _number(node: ast.expr, depth: int) -> Fraction:
    value = _value(node, depth - 1)
    if isinstance(value, str):
        raise ValueError("text where a number is needed")
    return value


def _combine(left: Fraction, operator: ast.operator, right: Fraction) -> Fraction:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return Fraction(left // right)
        case ast.Mod():
            return left % right
    raise ValueError(f"{type(operator).__name__} is not in the calculator's language")


def _bounded(value: Fraction) -> Fraction:
    if abs(value.numerator) >= _LIMIT or value.denominator >= _LIMIT:
        raise ValueError(f"more than {MAX_DIGITS} digits")
    return value


def _text(value: Fraction) -> str:
    """Print a number as people write it: no decimals where it is whole, else rounded half to even, no zeros behind."""
    scaled = round(value * 10**DECIMALS)
    whole, decimals = divmod(abs(scaled), 10**DECIMALS)
    tail = f".{decimals:0{DECIMALS}d}".rstrip("0").rstrip(".")
    return f"{'-' if scaled < 0 else ''}{whole}{tail}"
