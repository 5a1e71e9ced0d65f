"""What a generated text says: its letter, its explanation, and whether the two agree.

Small models answer in prose of every kind, so how a letter is read decides the score. There are two readers:
`strict_letter`, the default, which would rather read nothing than something not said; and `regex_letter`, the rule of
the student project whose numbers we reproduce, which takes the article "a" for an answer. Tasks grade by the first as
well, so it is defined with them (`tasks/answers.py`). All functions are pure.
"""

import re
from collections.abc import Collection, Sequence

from nanochat_pl.tasks.answers import normalize

__all__ = ["explanation_agrees", "explanation_of", "named_choices", "names_own_choice", "regex_letter", "rouge_l"]

# In the order tried. Their fourth pattern ("correct answer is") finds nothing that "answer is" does not.
_REGEX_LETTERS = [
    re.compile(pattern, re.IGNORECASE) for pattern in (r"\b([A-F])\.", r"answer is ([A-F])\b", r"\b([A-F])\b")
]


def regex_letter(text: str) -> str | None:
    """Read a letter A-F as the student project's `letter_regex` did: `X.` anywhere, else `answer is X`, else a lone X.

    Case does not matter and the question's own choices are not looked at: "a lion" reads as A.
    """
    for pattern in _REGEX_LETTERS:
        if match := pattern.search(text):
            return match.group(1).upper()
    return None


def explanation_of(text: str) -> str | None:
    """Return what follows `Explanation:` up to `Background:` or the end; None where there is nothing."""
    _, _, rest = text.partition("Explanation:")
    return re.split(r"^\s*Background:", rest, maxsplit=1, flags=re.MULTILINE)[0].strip() or None


def rouge_l(prediction: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words (Lin, 2004), in 0..1; lower-cased, not stemmed."""
    from torchmetrics.functional.text import rouge_score  # seconds to import, and only this needs it

    return float(rouge_score(prediction, reference, rouge_keys="rougeL")["rougeL_fmeasure"])


def names_own_choice(text: str, letter: str, choice: str) -> bool | None:
    """Return whether `X. ...` in a response goes on with the text of choice X; None where nothing follows X."""
    match = re.search(rf"\b{re.escape(letter)}[.):]+\s+(\S.*)", text, re.DOTALL)
    if match is None:
        return None
    return re.match(rf"{re.escape(normalize(choice))}(?!\w)", normalize(match.group(1))) is not None


def named_choices(text: str, choices: Collection[str]) -> set[str]:
    """Return the choices whose words a text contains; "salt" within "rock salt" counts only where it stands alone."""
    rest, named = normalize(text), set()
    for choice in sorted(choices, key=len, reverse=True):
        pattern = rf"(?<!\w){re.escape(normalize(choice))}(?!\w)"
        if normalize(choice) and re.search(pattern, rest):
            named.add(choice)
            rest = re.sub(pattern, " ", rest)
    return named


def explanation_agrees(explanation: str, chosen: str, others: Sequence[str]) -> bool | None:
    """Return whether an explanation names the chosen choice; False where only others are named, None where none is.

    This is a rough measure: it sees names, not reasons.
    """
    named = named_choices(explanation, {normalize(chosen), *map(normalize, others)})
    return normalize(chosen) in named if named else None
