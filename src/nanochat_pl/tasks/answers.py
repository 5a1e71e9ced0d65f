"""What an answer commits to, read from free text (the letter of a choice, or a short phrase), and how right ones count.

Grading and evaluation read and count alike: tasks reward by what `eval/` counts. A reader would rather read nothing
than something not said. All functions are pure.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache

__all__ = ["normalize", "pass_at_k", "recalled_answer", "strict_letter"]

# Where a letter ends: punctuation (but not in "D.C." or "C-14"), a dash or bracket after a space, the end of the line.
_LETTER_ENDS = r"""[)\]*"”,:;!]|\.(?!\w)|\s+[-–—(]|[ \t]*(?:\n|$)"""
_LETTER_OPENS = r"""[\s(\[*"“]*"""


@cache
def _strict_patterns(letters: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    letter = f"{_LETTER_OPENS}({'|'.join(map(re.escape, letters))})"
    phrase = r"\b(?i:(?:answer|choice|option)(?:\s+is\b|\s*:)(?:\s+(?:option|choice)\b)?)"
    return (
        re.compile(rf"{phrase}{letter}(?={_LETTER_ENDS}|\s+(?i:because|since|as)\b)"),
        re.compile(rf"{letter}(?={_LETTER_ENDS})"),
    )


def strict_letter(text: str, letters: Sequence[str]) -> str | None:
    """Read the letter that a response commits to, or None.

    First an anchored phrase anywhere (`answer is B`, `Answer: (B)`, `choice is B because`), then a response that
    begins with a letter (`B`, `B. lion`, `(B) lion`). Only upper case and only the question's own letters; a letter
    followed by a further word ("A lion", "either A or B") is prose.

    Args:
        text: The response.
        letters: The letters of this question's choices.
    """
    anchored, leading = _strict_patterns(tuple(letters))
    match = anchored.search(text) or leading.match(text)
    return match.group(1) if match else None


def normalize(text: str) -> str:
    """Return `text` with compatibility forms and case folded, spaces joined, outer punctuation dropped."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.strip(" .,:;!?\"'“”‘’*")


def recalled_answer(text: str) -> str:
    """Return the normalised short answer of a response asked without choices.

    It is the first line that is not empty, without a leading `The (correct) answer is` or `Answer:`, without a
    leading article.
    """
    line = normalize(text.strip().split("\n", 1)[0])
    line = re.sub(r"^(?:(?:the )?(?:correct )?answer(?: is\b|:)\s*)", "", line)
    return normalize(re.sub(r"^(?:the|an?) ", "", line))


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Estimate without bias the chance that one of k samples is right (Chen et al. 2021): 1 - C(n-c, k) / C(n, k).

    nanochat (2025-11) asks whether one of the first k is right: the same in expectation, with more noise.

    Raises:
        ValueError: k is not from 1 to `num_samples`: so few samples say nothing about it.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} cannot be told from {num_samples} samples; draw at least k of them")
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)
