"""What an answer commits to, read from free text (a letter, a number, a short phrase), and how right answers count.

Grading and evaluation read and count alike: tasks reward what `eval/` counts. Where an answer is unclear, a reader
returns None rather than something that was not said. The tables of docs/evaluation.md say what counts for each task,
and the tests read them. All functions are pure.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence, Sized
from fractions import Fraction
from functools import cache

__all__ = [
    "STRICT",
    "check_strict",
    "choice_letters",
    "final_answer",
    "normalize",
    "original_final_answer",
    "pass_at_k",
    "recalled_answer",
    "right_number",
    "same_number",
    "strict_letter",
    "without_tools",
]

STRICT = ("stated", "original")
"""How a task reads answers: by what an answer states, or by nanochat's rule (2025-11)."""


def check_strict(strict: str) -> str:
    """Return `strict`.

    Raises:
        ValueError: It is none of `STRICT`.
    """
    if strict not in STRICT:
        raise ValueError(
            f"strict={strict} is unknown; choose stated (what an answer states counts) or original (nanochat's rule)"
        )
    return strict


_TOOL_SPANS = re.compile(
    r"<\|python_start\|>.*?(?:<\|python_end\|>|\Z)|<\|output_start\|>.*?(?:<\|output_end\|>|\Z)", re.DOTALL
)


def without_tools(text: str) -> str:
    """Return an answer without its tool calls and their outputs."""
    return _TOOL_SPANS.sub(" ", text)


# -- letters ------------------------------------------------------------------------------------------------------


def choice_letters(choices: Sized) -> list[str]:
    """Return the letters of a question's choices: A, B, C and so on."""
    return [chr(65 + index) for index in range(len(choices))]


# Marks that may surround a letter: brackets, quotes, Markdown, LaTeX.
_COMMAND = r"\\(?:boxed|fbox|text|textbf|mathbf|mathrm)\s*\{"
_OPENS = rf"(?:[\s(\[{{*_`\"'“‘$]|{_COMMAND}|\\[(\[]){{0,12}}"
# Where a letter ends: punctuation (but not in "D.C.", "C-14" or "3,000"), a dash or bracket after a space, the end of
# the line.
_ENDS = (
    r"""[)\]}"”’$;!`<…。，；！）]|[*_]{1,3}(?![\w*])|'(?!\w)|\\[)\]]|[,:](?!\d)|\.(?!\w)|\s+[-–—](?!\s*\d)"""
    r"|\s+\(|[ \t]*(?:\n|$)"
)
_BECAUSE = r"\s+(?i:because|since|as|(?:and\s+|but\s+)?not|rather than|instead of)\b"
_ITS_RIGHT = (
    r"[)\]*_\"'”’`]*\s+(?i:is|would be|must be)\s+(?:(?i:the\s+)?(?i:correct|right|best)"
    r"(?:\s+(?i:answer|choice|option|one)\b(?!\s*\?)|(?=[.!,;:*]|\s*(?:\n|$)|" + _BECAUSE + "))"
    r"|(?i:the|my)\s+(?i:answer)\b(?!\s*\?))"
)
# "The wrong answer is B" and "the first option is A" do not say which answer is right.
_OTHERS = (
    "incorrect wrong false worst opposite other another alternative one possible first second third fourth last next"
)
_OF_ANOTHER = "".join(rf"(?<!\b{word} )" for word in (*_OTHERS.split(), "least likely", "second best"))
_SURELY = (
    "(?:therefore|thus|clearly|then|indeed|of course|definitely|certainly|surely|obviously"
    r"|(?:most\s+)?(?:likely|probably)(?:\s+to\s+be)?)"
)
_TO_THIS = r"\s+(?:here|to\s+this|(?:to|for|of)\s+(?:this|the|your)\s+(?:question|problem))"
_PHRASE = (
    rf"\b{_OF_ANOTHER}(?:answer|choice|option|letter|solution)(?:{_TO_THIS})?[*_\"']{{0,4}}\s*"
    rf"(?:(?:is|would be|should be|must be|will be)\b(?:\s+{_SURELY}\b)?[*_]{{0,3}}\s*[:：=]?"
    r"|[:：=–—-]|[-=]>|→)[*_]{0,3}(?:\s*(?:the\s+)?(?:option|choice|letter|answer)\b\s*:?)?"
)
_CHOOSE = (
    r"\b(?:I|we)(?:['’](?:d|ll)|\s+would|\s+will)?\s+(?:choose|pick|select|go with|say"
    r"|(?:think|believe|say|guess)(?:\s+that)?\s+(?:it is|it['’]s|it must be))"
    r"(?:\s+(?:the\s+)?(?:option|choice|letter|answer)\b)?"
)
# A sentence that is nothing but the conclusion, or ends with it: "So, B.", "so it must be B".
_SO = r"(?:(?:^|(?<=[.!?:\n]))\s*(?:so|therefore|thus|hence)|\bso\s+it\s+must\s+be)(?=[\s,:])[,:]?"
_COMMITS = rf"(?i:{_PHRASE}|{_CHOOSE}|{_SO}|\\boxed\s*\{{|<answer>)"
# What takes a commitment back, or only supposes it, in the same clause: "I don't think", "if", "it is false that".
_DENIED = re.compile(
    r"(?:\b(?i:not|never|doubt|if|whether|unless|false that|some say|some think)|n['’]t)\b"
    r"(?:(?!\b(?i:but|so|then|because|therefore|and)\b)[^.!?,;:\n]){0,24}$"
)
# Words before a letter that is then called right; after any other word it is part of a name ("vitamin C").
_ANNOUNCES = (
    "option|choice|answer|letter|so|therefore|thus|hence|then|that|because|since|as|but|think|believe|say|is|only"
)
# What joins letters to a list: "A, B", "A or B", "(A) and (B)", one letter a line.
_JOINS = (
    rf"(?:[\s,;/&+–—()\[\]*_\"'”’`}}$|→>-]|{_COMMAND}|\.(?=\s+(?:and|or)\b)"
    r"|\b(?:and|or|also|maybe|perhaps|possibly)\b|\b(?i:answer|option|choice)\b:?)*"
)
# Wide letters, digits and brackets, as some keyboards write them.
_NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}
_CLOSES = r"[)\]}*_.,:;!\"'”’`$\s]*"


_BLANKS, _BLANK_LINES, _RUNS = re.compile(r"[^\S\n]+"), re.compile(r" ?\n\s*"), re.compile(r"([^\w\s])\1{3,}")


@cache
def _letter_patterns(letters: tuple[str, ...]) -> dict[str, re.Pattern[str]]:
    one = f"(?:{'|'.join(map(re.escape, letters))})"
    return {
        "anchored": re.compile(rf"{_COMMITS}{_OPENS}({one})(?={_ENDS}|{_BECAUSE}|{_ITS_RIGHT})"),
        "praised": re.compile(rf"(?<![\w'’.-])({one}){_ITS_RIGHT}"),
        "named": re.compile(rf"[\w'’-]*[\w'’](?<!\b{one})[ \t]+[\[(*_\"'“‘`]*$"),
        "announced": re.compile(rf"\b(?i:{_ANNOUNCES})[ \t]+[\[(*_\"'“‘`]*$"),
        "leading": re.compile(
            rf"(?:[-#>]+\s+)?(?i:(?:option|choice|answer|letter)\b)?{_OPENS}({one})(?={_ENDS}|{_BECAUSE})"
        ),
        # Another letter follows at once; "A lion" is no letter.
        "listed": re.compile(rf"{_JOINS}(?<!\w)({one})(?!\w)(?!\s+(?!(?:and|or|are)\b)[a-z])"),
        "run": re.compile(rf"\.\s*{one}\s*[.,]\s*{one}(?!\w)"),
        "joined": re.compile(
            rf"(?:(?<!\w){one}[)\]*_\"'”’`]*\s*[,/&+]|[/&+]|\b(?i:and|or|nor|not|neither|either|doubt|if|whether)\b)"
            r"[\s(\[*_\"'“‘`]*$"
        ),
        "lines": re.compile(rf"^[ \t]*{_OPENS}({one})(?:[.):]|[ \t]*$)", re.MULTILINE),
        "last": re.compile(rf"\n{_OPENS}({one}){_CLOSES}\Z"),
    }


def strict_letter(text: str, letters: Sequence[str]) -> str | None:
    """Read the letter that a response commits to, or None.

    A phrase that commits counts first, wherever it is (`answer is B`, `Answer: (B)`, `choice is: B because`,
    `\\boxed{B}`, `B is correct`), then a response that begins with a letter (`B`, `B. lion`, `(B) lion`), then one
    whose last line is nothing but a letter. Only the question's own letters in upper case count. A letter followed by a
    further word ("A lion", "either A or B") is prose; several letters ("A, B, C") or a list of all choices commit to
    none.
    """
    # Long runs of white space or of one mark say no more than short ones, and would make the patterns slow.
    text = _RUNS.sub(
        r"\1\1\1", _BLANK_LINES.sub("\n", _BLANKS.sub(" ", without_tools(text).translate(_NARROW)))
    ).strip()
    patterns = _letter_patterns(tuple(letters))
    committed, taken = sorted([*patterns["anchored"].finditer(text), *_praised(text, patterns)], key=re.Match.start), 0
    for match in committed:
        is_denied = _DENIED.search(text[max(0, match.start() - 40) : match.start()])
        if match.end(1) <= taken or is_denied:
            continue
        taken = _list_end(text, match, patterns)
        if not taken:
            return match.group(1)
    listed = {line.group(1) for line in patterns["lines"].finditer(text)}
    first = patterns["leading"].match(text) or patterns["last"].search(text)
    if first is None or _list_end(text, first, patterns) or _offers(text, first, letters):
        return None
    return first.group(1) if listed <= {first.group(1)} else None


def _offers(text: str, match: re.Match[str], letters: Sequence[str]) -> bool:
    """Return whether the choices are repeated in one line: "A) rock B) lion", "A. rock B. lion C. salt D. ice"."""
    mark = re.match(r"\.|\s*[-–—:)]", text[match.end(1) :])
    if mark is None or match.group(1) != letters[0]:
        return False
    marked = [re.search(rf"(?<![\w(]){re.escape(letter + mark[0])}\s", text[match.end() :]) for letter in letters[1:]]
    return all(marked) if mark[0] == "." else marked[0] is not None


def _praised(text: str, patterns: dict[str, re.Pattern[str]]) -> Iterator[re.Match[str]]:
    """Yield the matches that call one letter right: "B is the correct answer", but not "A or B is correct"."""
    for match in patterns["praised"].finditer(text):
        before = text[max(0, match.start() - 40) : match.start()]
        is_name = patterns["named"].search(before) and not patterns["announced"].search(before)
        if not is_name and patterns["joined"].search(before) is None:
            yield match


def _list_end(text: str, match: re.Match[str], patterns: dict[str, re.Pattern[str]]) -> int:
    """Return the end of the list that a letter begins, 0 if it begins none: the same letter again is no list."""
    if run := patterns["run"].match(text, match.end(1)):
        return run.end()
    end = 0
    following = patterns["listed"].match(text, match.end(1))
    while following is not None:
        end = following.end(1) if end or following.group(1) != match.group(1) else 0
        following = patterns["listed"].match(text, following.end(1))
    return end


# -- numbers ------------------------------------------------------------------------------------------------------

_ORIGINAL_ANSWER = re.compile(r"#### (-?[0-9.,]+)")
_MARKED = re.compile(r"####+(?P<line>(?:(?!####)[^\n])*)")
_SHORT_OPENS = r"(?:[ \t*_`\"'“‘(\[$]|\\[(\[$]|\\(?:boxed|fbox|text|textbf|mathbf|mathrm)\s*\{){0,12}"
_NUMBER = re.compile(
    rf"{_SHORT_OPENS}(?:(?i:(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is\b\s*[:=]?|[*_]{{0,3}}\s*[:=]))|[:=])?{_SHORT_OPENS}"
    r"(?P<sign>[-+]?)\s?(?:US\$|USD\s?|Rs\.?\s?|[€£¥₹₩¢]\s?|\\?\$\s?)?(?P<sign2>-?)"
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?P<rest>.*)"
)
# Spellings that are unified: dashes, groups of digits, fractions.
_DASHES = re.compile(r"[−–‐‑－﹣](?=[$€£¥₹₩\d.])")
_GROUPS = re.compile(r"(?<=\d)(?:\{,\}|\\[,;:! ]|['’_\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{(\d+)\}\s*\{(\d+)\}|(\d)(\d))")
_ONE_SIGN_FRACTION = re.compile(r"[¼-¾⅐-⅞]")
# What makes it another number: more digits, a fraction, a sum, a power, a time, a range, a letter right after it, a
# word for a large number, a second amount.
_GOES_ON = re.compile(
    r"[,.:'’_]?\d|\s*[-−+*/×÷·∙^!=~:–—;]{1,2}\s*[\d($.]|(?:,?\s+|\s*[,(]?\s*(?:and|or|to)\s+)[$€£¥₹]?\d|\s*[xX]\s*\d"
    r"|\.[A-Za-z]|\s*/(?!\s*[A-Za-z]{2})|\s*[+×÷^]|(?:[kKmMbB]|bn|mn|tn)(?![A-Za-z])|(?:th|st|nd|rd)\b|[eExX](?![A-Za-z])"
    r"|\s*[²³¹⁰-⁹⁻π√∞½]|\s*\\(?:pi|sqrt|times|cdot|div|frac)\b|\s*\{,\}"
    r"|\s*(?i:hundred|thousand|million|billion|trillion|dozen|lakh|crore|squared|cubed)\b"
    r"|\s*(?!(?i:in|on|at|per|of|for|from|after|by|with|over|each|every|to)\b)[A-Za-z]{1,12}\.?,?(?:\s+and)?\s+\d"
)
# A model that repeats itself writes more digits than Python converts to a number.
_MAX_DIGITS = 100
_FRACTION = re.compile(r"(?:\s+(?P<top>\d+))?\s?/\s?(?P<bottom>\d+)(?![\d/]|\.\d|\s*[-+*/×÷^=])")


def original_final_answer(text: str) -> str | None:
    """Return the number after the first `#### ` as nanochat (2025-11) reads it: as written, without commas, or None."""
    match = _ORIGINAL_ANSWER.search(text)
    return match.group(1).strip().replace(",", "") if match else None


def final_answer(text: str) -> str | None:
    """Return the number after `####`, None where there is none.

    Thousands commas, a currency sign, marks of Markdown and LaTeX, a full stop and a unit after it are left out; a
    fraction stays one (`3/4`). The first mark followed by a number counts, and only if that is the whole number: a sum,
    a range, a power, or digits in another grouping are none.
    """
    for marked in _MARKED.finditer(without_tools(text)):
        if match := _NUMBER.match(_one_spelling(marked["line"])):
            return _value(match)
    return None


def _one_spelling(line: str) -> str:
    """Unify dashes, groups of digits and fractions of a number: `-1,800`, `1 3/4`."""
    line = _GROUPS.sub(",", _DASHES.sub("-", line))
    line = _ONE_SIGN_FRACTION.sub(lambda sign: " " + unicodedata.normalize("NFKC", sign[0]), line).replace("⁄", "/")
    return _LATEX_FRACTION.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]}", line)


def _value(match: re.Match[str]) -> str | None:
    """Return the number that a line begins with, None where it goes on as another number."""
    if match["sign"] and match["sign2"]:
        return None
    if re.search(rf"\d{{{_MAX_DIGITS + 1}}}", match["number"] + match["rest"]):
        return None
    minus = "-" if "-" in match["sign"] + match["sign2"] else ""
    number, rest = match["number"].replace(",", ""), match["rest"]
    if fraction := _FRACTION.match(rest):
        top, bottom = int(fraction["top"] or 0), int(fraction["bottom"])
        if "." in number or not bottom:
            return None
        top = int(number) * bottom + top if fraction["top"] else int(number)
        return None if _GOES_ON.match(rest, fraction.end()) else f"{minus}{top}/{bottom}"
    return None if _GOES_ON.match(rest) else f"{minus}{number}"


def same_number(answer: str | None, expected: str) -> bool:
    """Return whether two numbers as `final_answer` returns them are equal: `18.00` is 18."""
    try:
        return answer is not None and Fraction(answer) == Fraction(expected)
    except (ValueError, ZeroDivisionError):
        return False


def right_number(completion: str, expected: str, strict: str = "stated") -> bool:
    """Return whether an answer's number after `####` is the expected one, read by a rule of `STRICT`.

    With `original` the texts must be equal. An answer without such a number is never right.
    """
    if strict == "original":
        return original_final_answer(completion) == expected
    return same_number(final_answer(completion), expected)


# -- phrases and counts -------------------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """Return `text` with compatibility forms and case folded, spaces merged, outer punctuation dropped."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip(" .,:;!?\"'“”‘’*")


def recalled_answer(text: str) -> str:
    """Return the normalised short answer of a response asked without choices.

    It is the first line that is not empty, without a leading `The (correct) answer is` or `Answer:` and without a
    leading article.
    """
    line = normalize(text.strip().split("\n", 1)[0])
    line = re.sub(r"^(?:(?:the )?(?:correct )?answer(?: is\b|:)\s*)", "", line)
    return normalize(re.sub(r"^(?:the|an?) ", "", line))


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Return an unbiased estimate of the chance that one of k samples is right: 1 - C(n-c, k) / C(n, k).

    (Chen et al., 2021.) nanochat (2025-11) asks whether one of the first k is right, which is the same in expectation,
    with more noise.

    Raises:
        ValueError: k is not from 1 to `num_samples`: so few samples say nothing about it.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} cannot be told from {num_samples} samples; draw at least k of them")
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)
