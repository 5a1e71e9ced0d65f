"""Which letter the model finds most likely: multiple choice without parsing.

The model is asked as in chat, its answer is begun for it, and the likeliest of the question's own letters as the next
token is its choice. What counts are the tokens that the training text has in this position, one each in most
vocabularies: after "The correct answer is " that is mostly " B" with its space, which is not the "B" of the question's
list of choices. `letter_tokens` therefore encodes whole sentences and finds where they differ.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from nanochat_pl.eval.core_scoring import Row, score_items
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["ANSWER_STEM", "LetterTokens", "letter_baseline", "letter_tokens", "majority_letter", "score_letters"]

log = logging.getLogger(__name__)

ANSWER_STEM = "The correct answer is "


@dataclass(frozen=True)
class LetterTokens:
    """Token ids that begin an answer up to its letter, and those of each letter."""

    stem: tuple[int, ...]
    ids: dict[str, int]
    """The one id of each letter; empty where some letter has several."""
    longer: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The ids of each letter, where some letter has several."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the longest letter."""
        return max((len(ids) for ids in self.longer.values()), default=1)


def letter_tokens(tokenizer: Tokenizer, letters: Iterable[str], stem: str = ANSWER_STEM) -> LetterTokens:
    """Find the tokens of each letter in the sentence `<stem><letter>.` as the tokenizer splits it.

    In most vocabularies a letter is one token there. Where it is several, which is logged, its likelihood is that of
    all of them, with the full stop where that is part of a token.

    Args:
        stem: What precedes the letter, with its space; empty where the answer is the bare letter.

    Raises:
        ValueError: Fewer than two letters.
    """
    wanted = sorted(set(letters))
    if len(wanted) < 2:
        raise ValueError(f"a choice needs at least two letters, got {wanted}; check the task's `letters`")
    sentences = {letter: list(tokenizer.encode(f"{stem}{letter}.")) for letter in wanted}
    shared = 0
    while len({tuple(ids[: shared + 1]) for ids in sentences.values()}) == 1:
        shared += 1
    first = tuple(next(iter(sentences.values()))[:shared])
    full_stop = list(tokenizer.encode("."))
    long = [letter for letter, ids in sentences.items() if ids[shared + 1 :] != full_stop]
    if not long:
        return LetterTokens(first, {letter: ids[shared] for letter, ids in sentences.items()})
    log.warning(
        "letter%s %s after %r: not one token in this vocabulary; its likelihood is that of all its tokens",
        "s" if len(long) > 1 else "",
        ", ".join(long),
        stem,
    )
    whole = {letter: tuple(ids[shared:]) for letter, ids in sentences.items()}
    # The full stop is left out unless a letter cannot be distinguished from another without it.
    cut = {letter: ids[: -len(full_stop)] for letter, ids in whole.items() if ids[-len(full_stop) :] == (*full_stop,)}
    distinct = len(cut) == len(whole) and not any(
        one != other and cut[other][: len(cut[one])] == cut[one] for one in cut for other in cut
    )
    return LetterTokens(first, {}, longer=cut if distinct else whole)


def score_letters(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    letters: Sequence[Sequence[str]],
    tokens: LetterTokens,
    max_batch_tokens: int | None = None,
) -> list[dict[str, float]]:
    """Return log p(letter | prompt, stem) in nats for each question's own letters, over the whole vocabulary.

    Letters of one token are alternatives in the last position of one row; the log-probability of a letter of several
    tokens is the sum over them, computed in a row of its own.

    Args:
        prompts: Token ids up to and including `<|assistant_start|>`.
        max_batch_tokens: Most tokens of a forward, padding included; a longer prompt is read alone. None = 2,048 on a
            CPU, which gains nothing from more and then pads less, 16,384 elsewhere.

    Raises:
        ValueError: A score is not finite: the weights are broken.
    """
    if max_batch_tokens is None:
        max_batch_tokens = 2_048 if model.device.type == "cpu" else 16_384
    begun = [(*prompt, *tokens.stem) for prompt in prompts]
    if not tokens.longer:
        ids = [tuple(tokens.ids[letter] for letter in own) for own in letters]
        items = [[Row((*row, own[0]), len(row), own)] for row, own in zip(begun, ids, strict=True)]
        losses = [score.alternatives for (score,) in score_items(model, items, max_batch_tokens)]
    else:
        items = [
            [Row((*row, *tokens.longer[letter]), len(row))]
            for row, own in zip(begun, letters, strict=True)
            for letter in own
        ]
        sums = iter([sum(score.losses) for (score,) in score_items(model, items, max_batch_tokens)])
        losses = [list(islice(sums, len(own))) for own in letters]
    return [{letter: -loss for letter, loss in zip(own, found)} for own, found in zip(letters, losses, strict=True)]


def majority_letter(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the letter that is expected most often; of equals the smaller one."""
    return min(Counter(r["expected"] for r in records).items(), key=lambda item: (-item[1], item[0]))[0]


def letter_baseline(records: Sequence[Mapping[str, Any]], majority: str) -> dict[str, float | str]:
    """Return what guessing scores, and what giving the majority letter to every question scores."""
    return {
        "chance": sum(1 / len(r["letters"]) for r in records) / len(records),
        "majority": sum(r["expected"] == majority for r in records) / len(records),
        "majority_letter": majority,
    }
