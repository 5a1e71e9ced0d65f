"""Values as users' files have them, converted to the type that a task declares for their column.

A value is repaired only where that loses nothing and the value can mean only one thing, and every kind of repair is
counted: a list written as a string, a number where text is declared, an answer given as a letter. All else is `Unfit`.
"""

import ast
import io
import json
import logging
import math
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

from nanochat_pl.rows import parse_json

__all__ = [
    "Unfit",
    "answer_labels",
    "answer_numbers",
    "as_number",
    "check_counting",
    "fit",
    "fit_text",
    "shown",
    "written",
]

log = logging.getLogger(__name__)

_MOST_CHARS = 1_000_000
"""Longer strings are not parsed as written lists."""
_ADJACENT = re.compile(r"""['"}\]]\s+[rbuRBU]{0,2}['"{\[]""")
_MOST_BITS = 1024
"""Whole numbers with more bits are damage, not something that anyone wrote."""
_BY_CHANCE = 1e-3
"""A column without a 0 is suspicious where random answers would lack one less often than this."""
_MOST_DIGITS = 300
"""Decimal numbers with more digits are damage, not something that anyone wrote."""
_SKIPPED = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
_SHORTENED = "where `...` stands for items that were left out when it was printed; write them all"
_ESCAPE = re.compile(r"(\$)?\\([A-Za-z]+|.)", re.DOTALL)
"""A backslash and what it begins, perhaps at the start of a formula."""
_RAW = re.compile(r"""\b[rR][uUbB]?['"]""")
_COMMANDS = re.compile(
    "a(lpha|pprox|ngle|rccos|rcsin|rctan|st)|b(egin|eta|ar|ig|inom|mod|oldsymbol|oxed|ullet|ot|ecause)"
    "|f(orall|rac|lat)|n(abla|eq|ot|mid|otin|earrow)|r(angle|ho|ight|ightarrow|ceil|floor|vert|oot)"
    "|t(au|heta|ext|herefore|imes|frac|extbf|extit|extrm|binom|ilde|riangle)|u(nderline|parrow|psilon)"
    "|v(arphi|arepsilon|artheta|ec|ee|dots|ert)|xi|[abfv][a-z]+"
)
"""LaTeX commands that begin like an escape. Such a rest never follows a line break or tab, and programs that write
lists write the other control characters by number."""
_WORDS = ("ne", "ni", "nu", "rm", "tan", "to", "top")
"""Commands whose rest may be a word after a line break or a tab; they count as commands only in formulas."""
_ESCAPES = ("\\", "'", '"', "/", "\n")
"""What may follow a backslash in written lists, apart from letters and digits."""


class Unfit(ValueError):
    """A value cannot be read as its column's type; the message names what was found and what is needed."""


def fit(value: Any, feature: Any, repairs: Counter[str], *, optional: bool = False) -> Any:
    """Convert a value to a declared type.

    Args:
        feature: `datasets.Value` of a string or an integer, `datasets.List`, or a dict of features.
        optional: a missing value (null, NaN) is an empty text.

    Raises:
        Unfit: if it cannot be read as one without loss.
    """
    if isinstance(feature, Mapping):
        return _fit_fields(value, feature, repairs)
    if hasattr(feature, "feature"):
        return _fit_list(value, feature.feature, repairs)
    if str(feature.dtype).startswith("int"):
        return _fit_integer(value, repairs)
    if type(value) is str:
        return value
    return fit_text(value, repairs, optional)


def fit_text(value: Any, repairs: Counter[str], optional: bool = False) -> str:
    """Convert a value to text: a number, bytes that are UTF-8, or a missing value if `optional`.

    Raises:
        Unfit: if it is none of these.
    """
    if optional and (value is None or (isinstance(value, float | Decimal) and math.isnan(value))):
        repairs["missing values read as empty"] += 1
        return ""
    if isinstance(value, bytes):
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Unfit("bytes that are not UTF-8 where text is needed") from error
        repairs["bytes read as text"] += 1
        return text
    if (number := _number_text(value)) is not None:
        repairs["numbers made text"] += 1
        return number
    raise Unfit(f"{shown(value)} where text is needed")


def _number_text(value: Any) -> str | None:
    """Return a number as people would write it; None if it is no number, or not finite."""
    if type(value) is int and value.bit_length() <= _MOST_BITS:
        return str(value)
    if isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < _MOST_DIGITS:
        return str(int(value)) if value == int(value) else format(value, "f")
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value == int(value) and abs(value) < 2**53 else str(value)
    return None


def _fit_integer(value: Any, repairs: Counter[str]) -> int:
    if type(value) is int and value.bit_length() < 64:
        return value
    if isinstance(value, float | Decimal) and abs(float(value)) < 2**53 and value == int(value):
        repairs["whole numbers written as fractions"] += 1
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}(\.0+)?\s*", value):
        repairs["numbers written as text"] += 1
        return int(value.strip().partition(".")[0])
    raise Unfit(f"{shown(value)} where a whole number is needed")


def _fit_list(value: Any, feature: Any, repairs: Counter[str]) -> list[Any]:
    if isinstance(value, str):
        value = written(value)
        repairs["lists written as text"] += 1
    if not isinstance(value, list | tuple):
        raise Unfit(f"{shown(value)} where a list is needed")
    fitted = []
    for index, item in enumerate(value, 1):
        try:
            fitted.append(fit(item, feature, repairs))
        except Unfit as error:
            raise Unfit(f"item {index} is {error}") from error
    return fitted


def _fit_fields(value: Any, features: Mapping[str, Any], repairs: Counter[str]) -> dict[str, Any]:
    if isinstance(value, str):
        value = written(value)
        repairs["objects written as text"] += 1
    if not isinstance(value, Mapping):
        raise Unfit(f"{shown(value)} where an object with {', '.join(features)} is needed")
    if missing := [name for name in features if name not in value]:
        raise Unfit(f"an object without {', '.join(missing)} (it has: {', '.join(map(str, value)) or 'nothing'})")
    fitted = {}
    for name, feature in features.items():
        try:
            fitted[name] = fit(value[name], feature, repairs)
        except Unfit as error:
            raise Unfit(f"{name}: {error}") from error
    return fitted


def written(text: str) -> Any:
    """Parse a list or an object written as JSON, in Python, or as NumPy and pandas print one.

    Raises:
        Unfit: if the string is none.
    """
    if len(text) > _MOST_CHARS or not text.strip().startswith(("[", "(", "{", "array(")):
        raise Unfit(f"the text {shown(text)} where a list or an object is needed")
    source = _escaped(text)
    try:
        return parse_json(source.encode())
    except ValueError:
        pass
    try:
        if _ADJACENT.search(source):
            source = _with_commas(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a backslash that begins no escape, which stays as it is
            tree = _WithoutArrays().visit(ast.parse(source.strip(), mode="eval"))
        value = ast.literal_eval(tree)
        if "\\" in source:
            json.dumps(value, ensure_ascii=False, default=str).encode()  # half a surrogate pair is no text
        return value
    except Unfit as error:
        raise Unfit(f"the text {shown(text)}, {error}") from error
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise Unfit(f"the text {shown(text)} where a list or an object is needed") from error


def _escaped(text: str) -> str:
    """Double the backslashes that begin LaTeX commands in a hand-written list; Unfit if others begin escapes."""
    # A program that writes lists in Python or JSON writes `\\theta`, since in `\theta` it would have meant a tab.
    found = list(_ESCAPE.finditer(text))
    if not found or _RAW.search(text):
        return text
    sure = [m[2] for m in found if _COMMANDS.fullmatch(m[2])]
    words = [m[2] for m in found if m[2] in _WORDS and (m[1] or text.count("$", 0, m.start()) % 2)]
    if not sure and not words:
        return text
    others = [m[2] for m in found if m[2] in _ESCAPES or m[2][0] in "01234567abfnrtvxuUN"]
    if sure and all(other in (*sure, *words) for other in others):
        return text.replace("\\", "\\\\")
    raise Unfit(
        f"the text {shown(text)}, in which \\{[*sure, *words][0]} may be a command of LaTeX or a control character; "
        "write each backslash twice, or the list as a list"
    )


def _with_commas(text: str) -> str:
    """Add the commas to lists printed by NumPy (`['a' 'b']`, `[{} {}]`), which Python would join to one string."""
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text.strip()).readline) if t.type not in _SKIPPED]
    if any(token.string == "..." for token in tokens):
        raise Unfit(_SHORTENED)
    parts: list[str] = []
    seen: list[set[str]] = [set()]  # for each open bracket, how its strings are separated
    for before, token in zip([None, *tokens], tokens):
        if before is not None and (
            before.type == token.type == tokenize.STRING or before.string + token.string in ("}{", "][")
        ):
            parts.append(",")
            seen[-1].add("space")
        elif token.string == ",":
            seen[-1].add("comma")
        if token.string in ("[", "(", "{"):
            seen.append(set())
        elif token.string in ("]", ")", "}") and len(seen) > 1 and len(seen.pop()) > 1:
            raise ValueError("commas between some strings of a list only")
        parts.append(token.string)
    return " ".join(parts)


class _WithoutArrays(ast.NodeTransformer):
    """Replaces `array([...], dtype=object)`, as pandas writes arrays, by the list inside."""

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        keys = [ast.dump(key) for key in node.keys if key is not None]
        if len(set(keys)) < len(keys):
            raise ValueError("a key stands twice")
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if node.value is Ellipsis:
            raise Unfit(_SHORTENED)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "array" and len(node.args) == 1:
            return self.visit(node.args[0])
        return node


def answer_numbers(
    answers: Sequence[Any], choices: Sequence[Sequence[str]], labels: Mapping[int, Sequence[str]], repairs: Counter[str]
) -> list[int | Unfit]:
    """Read the answers of a column as indexes into their rows' choices, from 0.

    An answer may be the index, as a number or written as text, the letter of a choice (A is the first), its label where
    the file labels its choices, or its text. Where an answer could be two of these, the column decides: a form
    counts in which every answer can be read. Where several such forms differ, nothing is guessed.

    Args:
        choices: texts of each row's choices.
        labels: row -> labels of its choices, where the file gives them.

    Returns:
        For each row the index (which may be beyond the choices, for a number), or what is wrong with the answer.
    """
    read = [_readings(answer, choices[row], labels.get(row)) for row, answer in enumerate(answers)]
    spoken = [forms for answer, forms in zip(answers, read) if isinstance(answer, str)]
    common = set.intersection(*map(set, spoken)) if spoken else set()
    found: list[int | Unfit] = []
    for row, (answer, forms) in enumerate(zip(answers, read)):
        if forms.keys() == {"numbers"}:
            found.append(forms["numbers"])
            continue
        usable = {form: index for form, index in forms.items() if form in common} if isinstance(answer, str) else {}
        usable = usable or forms
        indices = set(usable.values())
        if len(indices) == 1:
            repairs[f"answers given as {next(iter(usable))}"] += 1
            found.append(indices.pop())
        elif indices:
            meanings = " or ".join(f"choice {index} (by {form})" for form, index in usable.items())
            found.append(Unfit(f"{shown(answer)} may be {meanings}, counted from 0; give the number"))
        else:
            found.append(
                Unfit(
                    f"{shown(answer)} where the number of a choice is needed, 0 to {len(choices[row]) - 1}, or its "
                    "letter or text"
                )
            )
    return found


def _readings(answer: Any, choices: Sequence[str], labels: Sequence[str] | None) -> dict[str, int]:
    """Return each form in which an answer can be read, with the index that it names."""
    number: dict[str, int] = {}
    if type(answer) is int and answer.bit_length() < 64:
        number = {"numbers": answer}
    elif isinstance(answer, float | Decimal) and abs(float(answer)) < 2**53 and answer == int(answer):
        number = {"whole fractions": int(answer)}
    if number and labels is not None:  # where choices are labelled 1, 2, 3, a number may be a label
        index = next(iter(number.values()))
        if str(index) in labels and labels.index(str(index)) != index:
            number["labels"] = labels.index(str(index))
    if number or not isinstance(answer, str):
        return number
    text = answer.strip()
    forms: dict[str, int] = {}
    if labels is not None and labels.count(text) == 1:
        return {"labels": labels.index(text)}
    if re.fullmatch(r"\d{1,2}(\.0+)?", text) and int(text.partition(".")[0]) < len(choices):
        forms["numbers in text"] = int(text.partition(".")[0])
    letter = re.fullmatch(r"\(?([A-Za-z])[).:]?", text)
    if letter and ord(letter[1].upper()) - 65 < len(choices):
        forms["letters"] = ord(letter[1].upper()) - 65
    stripped = [choice.strip() for choice in choices]
    if stripped.count(text) == 1:
        forms["texts of choices"] = stripped.index(text)
    return forms


def as_number(value: Any, answer: int | Unfit) -> int | None:
    """Return the number that an answer is in the file; None if it was read by label, letter or text, or is no number.

    Args:
        value: the answer as the file has it.
        answer: the result of `answer_numbers` for it.
    """
    if isinstance(value, str):
        number = int(value.strip().partition(".")[0]) if re.fullmatch(r"\s*\d{1,9}(\.0+)?\s*", value) else None
    elif type(value) is int or (isinstance(value, float | Decimal) and abs(float(value)) < 2**53 and value % 1 == 0):
        number = int(value)
    else:
        number = None
    return number if isinstance(answer, Unfit) or answer == number else None


def check_counting(where: str, name: str, answers: Sequence[int | None], sizes: Sequence[int]) -> None:
    """Refuse a column of answers that counts the choices from 1, which would teach a wrong answer to every question.

    Args:
        answers: the number of each row's answer, as written; None = it is given in another form.

    Raises:
        ValueError: no answer is 0, and one is the number of its choices.
    """
    if not answers or any(answer is None or answer < 1 or answer > size for answer, size in zip(answers, sizes)):
        return
    none = f"none of its {len(answers):,} answers is 0"
    last = [row for row, (answer, size) in enumerate(zip(answers, sizes)) if answer == size]
    if last:
        raise ValueError(
            f"{where}, row {last[0]} (counted from 0), column {name}: answer={answers[last[0]]} of {sizes[last[0]]} "
            f"choices, which are counted from 0 ({len(last):,} such rows); {none}: subtract 1 from all where the file "
            "counts from 1, else mend or drop the row"
        )
    if math.prod(1 - 1 / size for size in sizes) < _BY_CHANCE:
        log.warning(
            "%s, column %s: %s, though choices are counted from 0; where the file counts from 1, every question is "
            "taught a wrong answer: subtract 1 from all",
            where,
            name,
            none,
        )


def answer_labels(answer: Any, choices: Sequence[str], labels: Sequence[str], repairs: Counter[str]) -> str | Unfit:
    """Read an answer as one of its row's labels; the text of a choice names its label.

    Returns:
        The label, the answer's text where it names none, or what is wrong with it.
    """
    if isinstance(answer, str) and answer in labels:
        return answer
    try:
        text = (answer if isinstance(answer, str) else fit_text(answer, repairs, optional=False)).strip()
    except Unfit as error:
        return error
    indices = {
        *(index for index, label in enumerate(labels) if label == text),
        *(index for index, choice in enumerate(choices) if choice.strip() == text),
    }
    if len(indices) == 1:
        repairs["answers given as texts of choices" if text not in labels else "answers with spaces"] += 1
        return labels[indices.pop()]
    if indices:
        return Unfit(f"{shown(answer)} may be a label or the text of another choice; give the label")
    return text


def shown(value: Any) -> str:
    """Return a value as text that fits into a line of a message."""
    if isinstance(value, date | time | timedelta):
        return f"the time {value}"
    if isinstance(value, Decimal):
        return str(value)[:60]
    if value is None:
        return "null"
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a number of {value.bit_length():,} bits"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
