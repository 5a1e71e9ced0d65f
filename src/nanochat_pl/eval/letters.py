"""Which letter the model finds most likely: multiple choice without parsing.

The model is asked as in chat, its answer is begun for it, and what is likeliest next decides among the question's own
letters. What counts are the tokens that the training text has in this place, one each in most vocabularies: after "The
correct answer is " that is mostly " B" with its space, which is not the "B" of the question's list of choices.
`letter_tokens` therefore encodes whole sentences and takes the place where they differ.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["ANSWER_STEM", "LetterTokens", "letter_tokens", "score_letters"]

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


def letter_tokens(tokenizer: Any, letters: Iterable[str], stem: str = ANSWER_STEM) -> LetterTokens:
    """Find the tokens of each letter in the sentence `<stem><letter>.` as the tokenizer splits it.

    In most vocabularies a letter is one token there. In others, which is logged, the likelihood of a letter is that of
    all its tokens, with the full stop where that is part of them.

    Args:
        tokenizer: Has `encode(text) -> list[int]`.
        letters: Two or more letters.
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
    # Without the full stop, if none of the letters needs it to be told from another.
    cut = {letter: ids[: -len(full_stop)] for letter, ids in whole.items() if ids[-len(full_stop) :] == (*full_stop,)}
    told = len(cut) == len(whole) and not any(
        one != other and cut[other][: len(cut[one])] == cut[one] for one in cut for other in cut
    )
    return LetterTokens(first, {}, longer=cut if told else whole)


@torch.no_grad()
def score_letters(
    model: Any,
    prompts: Sequence[Sequence[int]],
    letters: Sequence[Sequence[str]],
    tokens: LetterTokens,
    max_batch_tokens: int | None = None,
) -> list[dict[str, float]]:
    """Return log p(letter | prompt, stem) in nats for each question's own letters, over the whole vocabulary.

    Of a letter of several tokens it is the sum over them.

    Prompts of similar length share a batch, padded on the right, where causal attention cannot see; only the hidden
    state of the last token is turned into logits. So memory is bounded by `max_batch_tokens` x (C + 4C) activations
    whatever the number of questions, and the scores are those of one question at a time, up to the rounding of the
    compute dtype.

    Args:
        model: A GPT (`hidden`, `logits`, `device`).
        prompts: Token ids up to and including `<|assistant_start|>`.
        letters: The letters of each question.
        tokens: Result of `letter_tokens`.
        max_batch_tokens: Most rows x longest row of a batch; a longer prompt is a batch of its own. None = 2,048 on a
            CPU, which gains nothing from more and then pads less, 16,384 elsewhere.

    Raises:
        ValueError: A score that is not finite: the weights are broken.
    """
    if max_batch_tokens is None:
        max_batch_tokens = 2_048 if model.device.type == "cpu" else 16_384
    begun = [[*prompt, *tokens.stem] for prompt in prompts]
    scores: list[dict[str, float]] = [{} for _ in begun]
    if not tokens.longer:
        for number, row in _log_probs(model, begun, [1] * len(begun), max_batch_tokens):
            scores[number] = {letter: float(row[0, tokens.ids[letter]]) for letter in letters[number]}
        return scores
    asked = [(number, letter) for number, own in enumerate(letters) for letter in own]
    rows = [begun[number] + list(tokens.longer[letter][:-1]) for number, letter in asked]
    counts = [len(tokens.longer[letter]) for _, letter in asked]
    for place, row in _log_probs(model, rows, counts, max_batch_tokens):
        number, letter = asked[place]
        scores[number][letter] = sum(float(row[i, token]) for i, token in enumerate(tokens.longer[letter]))
    return [{letter: found[letter] for letter in own} for own, found in zip(letters, scores, strict=True)]


def _log_probs(
    model: Any, rows: Sequence[Sequence[int]], counts: Sequence[int], max_batch_tokens: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the number of each row and the log-probabilities after its last `counts` tokens, (count, V) on the CPU."""
    for indices in _batches_by_length([len(row) for row in rows], max_batch_tokens):
        lengths = [len(rows[index]) for index in indices]
        ids = torch.zeros(len(indices), max(lengths), dtype=torch.int64)
        for row, index in enumerate(indices):
            ids[row, : len(rows[index])] = torch.tensor(rows[index])
        hidden = model.hidden(ids.to(model.device))
        places = [
            (row, place)
            for row, index in enumerate(indices)
            for place in range(lengths[row] - counts[index], lengths[row])
        ]
        of, at = (torch.tensor(numbers, device=hidden.device) for numbers in zip(*places))
        log_probs = model.logits(hidden[of, at]).float().log_softmax(dim=-1).cpu()
        if not log_probs.isfinite().all():
            raise ValueError(
                "the model's scores are not finite: its weights are broken; evaluate an earlier checkpoint"
            )
        yield from zip(indices, log_probs.split([counts[index] for index in indices]), strict=True)


def _batches_by_length(lengths: Sequence[int], max_batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices from the longest row to the shortest, as many as fit beneath `max_batch_tokens` at once."""
    batch: list[int] = []
    # Longest first: if memory does not suffice, it shows at once and not after an hour.
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
