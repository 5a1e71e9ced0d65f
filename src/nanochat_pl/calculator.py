"""The calculator that a model calls in the middle of its answer: arithmetic and counting letters, never `eval`.

The input was written by a model, so any text is possible: it is split into tokens of a few known kinds, parsed by
`ast`, and evaluated node by node. There are no names, no calls but `.count` of one text in another, no power, and thus
nothing that can run away: no value along the way has more digits than the expression has characters. No signals, no
state: any number of threads may calculate.

Numbers are computed exactly and printed as in GSM8K's annotations: 10/2 is 5, not 5.0, and 0.1+0.2 is 0.3. The
annotations hold no value of more than three decimals; results are rounded to six, as on a pocket calculator (below 1,
to six significant digits). Where the annotations have 12.50 or .5, results are 12.5 and 0.5.

Differs from nanochat (2025-11): 10/2 prints 5, not 5.0; 05+1 is 6; one can count in words that contain `dir` or `file`
('indirect'); commas must group thousands, and those of texts stay; `%` is the remainder; counts can be added up.
"""

import ast
import operator
import re
from fractions import Fraction

__all__ = ["MAX_EXPRESSION_CHARS", "MAX_NESTING", "MAX_RESULT_CHARS", "calculate"]

MAX_EXPRESSION_CHARS = 400
"""Longer expressions are refused; GSM8K's longest has 30 characters."""
MAX_NESTING = 32
"""Parentheses within parentheses."""
MAX_RESULT_CHARS = 32
"""Results that take more to print are refused: they would fill the context with digits."""
_DECIMALS = 6

_TOKEN = re.compile(
    r"""(?P<text>'[^'\\\r\n\0]*'|"[^"\\\r\n\0]*")
    |(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?(?![0-9,.])|\.[0-9]+(?![0-9,.]))
    |(?P<sign>\.\ *count\b|[-+*/%()\ ])""",
    re.VERBOSE,
)
_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def calculate(expression: str) -> str | None:
    """Return the value of an expression as the model will read it; None = refused.

    Args:
        expression: numbers (`7`, `1,000`, `.5`, `05`) with `+ - * / // %`, parentheses and signs, and counts of one
            quoted text in another (`'strawberry'.count('r')`). Anything else is refused without an error: other syntax,
            division by zero, or an expression or result beyond the limits of this module.
    """
    source = _tokens(expression.strip()) if len(expression) <= MAX_EXPRESSION_CHARS else None
    if source is None:
        return None
    try:
        value = _value(ast.parse(source, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    printed = _print(value)
    return printed if len(printed) <= MAX_RESULT_CHARS else None


def _tokens(expression: str) -> str | None:
    """Rewrite an expression so that `ast` reads its numbers as people do; None if a character is not allowed."""
    parts: list[str] = []
    position = depth = 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            return None
        position, part = match.end(), match.group()
        if match.lastgroup == "number":  # as a fraction of integers: no float comes in between
            whole, _, decimals = part.replace(",", "").partition(".")
            part = f"({int(whole + decimals)}/1{'0' * len(decimals)})" if decimals else str(int(whole))
        depth += (part == "(") - (part == ")")
        if depth > MAX_NESTING:
            return None
        parts.append(part)
    return "".join(parts)


def _value(node: ast.expr) -> Fraction:
    """Evaluate a node, or raise ValueError if it is no arithmetic."""
    match node:
        case ast.Constant(value=int(value)):
            return Fraction(value)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return Fraction(_OPERATORS[type(op)](_value(left), _value(right)))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(text)), attr="count"),
            args=[ast.Constant(value=str(part))],
            keywords=[],
        ):
            return Fraction(text.count(part))
    raise ValueError(f"{type(node).__name__} is no arithmetic")


def _print(value: Fraction) -> str:
    decimals = _DECIMALS
    while value and abs(value) * 10 ** (decimals - _DECIMALS + 1) < 1:
        decimals += 1  # one for each zero after the point
    scaled = abs(round(value * 10**decimals))
    whole, rest = divmod(scaled, 10**decimals)
    fraction = f"{rest:0{decimals}}".rstrip("0")
    sign = "-" if value < 0 and scaled else ""
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"
