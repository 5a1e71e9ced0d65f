"""Which letter the model finds most likely: multiple choice without parsing.

The model is asked as in chat, its answer is begun for it, and the next token decides among the question's own
letters. What counts is the token that the training text has in this place: after "The correct answer is " that is "
B" with its space in most vocabularies, which is not the "B" of the question's list of choices. `letter_tokens`
therefore encodes whole sentences and takes the place where they differ.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["ANSWER_STEM", "LetterTokens", "letter_tokens", "score_letters"]

ANSWER_STEM = "The correct answer is "


@dataclass(frozen=True)
class LetterTokens:
    """Token ids that begin an answer up to its letter, and the one id of each letter."""

    stem: tuple[int, ...]
    ids: dict[str, int]


def letter_tokens(tokenizer: Any, letters: Iterable[str], stem: str = ANSWER_STEM) -> LetterTokens:
    """Find the token of each letter in the sentence `<stem><letter>.` as the tokenizer splits it.

    Args:
        tokenizer: Has `encode(text) -> list[int]`.
        letters: Two or more letters.
        stem: What precedes the letter, with its space; empty where the answer is the bare letter.

    Raises:
        ValueError: Fewer than two letters, or one that is not a single token of its own there.
    """
    wanted = sorted(set(letters))
    if len(wanted) < 2:
        raise ValueError(f"a choice needs at least two letters, got {wanted}; check the task's `letters`")
    sentences = {letter: list(tokenizer.encode(f"{stem}{letter}.")) for letter in wanted}
    shared = 0
    while len({tuple(ids[: shared + 1]) for ids in sentences.values()}) == 1:
        shared += 1
    tails = {letter: ids[shared + 1 :] for letter, ids in sentences.items()}
    full_stop = list(tokenizer.encode("."))
    long = [letter for letter in wanted if tails[letter] != full_stop]
    if long:
        raise ValueError(
            f"letter{'s' if len(long) > 1 else ''} {', '.join(long)} after {stem!r}: not one token in this "
            "vocabulary, so no single next token decides; train the tokenizer with a larger tokenizer.vocab_size, "
            "or on text that has such answers"
        )
    first = next(iter(sentences.values()))
    return LetterTokens(tuple(first[:shared]), {letter: ids[shared] for letter, ids in sentences.items()})


@torch.no_grad()
def score_letters(
    model: Any,
    prompts: Sequence[Sequence[int]],
    letters: Sequence[Sequence[str]],
    tokens: LetterTokens,
    max_batch_tokens: int | None = None,
) -> list[dict[str, float]]:
    """Return log p(letter | prompt, stem) in nats for each question's own letters, over the whole vocabulary.

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
    rows = [[*prompt, *tokens.stem] for prompt in prompts]
    scores: list[dict[str, float]] = [{} for _ in rows]
    for indices in _batches_by_length([len(row) for row in rows], max_batch_tokens):
        lengths = torch.tensor([len(rows[index]) for index in indices])
        ids = torch.zeros(len(indices), int(lengths.max()), dtype=torch.int64)
        for row, index in enumerate(indices):
            ids[row, : len(rows[index])] = torch.tensor(rows[index])
        hidden = model.hidden(ids.to(model.device))
        last = hidden[torch.arange(len(indices), device=hidden.device), (lengths - 1).to(hidden.device)]
        log_probs = model.logits(last).float().log_softmax(dim=-1).cpu()
        for row, index in enumerate(indices):
            scores[index] = {letter: float(log_probs[row, tokens.ids[letter]]) for letter in letters[index]}
        if not log_probs.isfinite().all():
            raise ValueError(
                "the model's scores are not finite: its weights are broken; evaluate an earlier checkpoint"
            )
    return scores


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
