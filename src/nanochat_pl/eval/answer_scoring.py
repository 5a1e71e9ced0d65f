"""The bits of given answers: what `answer_bpb.py` makes figures of, for every evaluation that asks in conversations.

An answer is read after its prompt with the right tokens in front of each (teacher forcing). What counts are the tokens
that a model is trained to write and that spell text: neither `<|assistant_end|>`, as everywhere in bits per byte, nor
what a tool wrote, nor what introduces every answer, such as "The correct answer is". CORE, whose questions are no
conversations, finds its answers itself; both are read by `score_items`, in batches that do not change the numbers.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_pl.eval.answer_bpb import AnswerFields
from nanochat_pl.eval.ask import without_beginning
from nanochat_pl.eval.core_scoring import Row, common_prefix, score_items
from nanochat_pl.model.gpt import GPT
from nanochat_pl.tokenizer import Tokenizer

__all__ = [
    "Answer",
    "answer_fields",
    "answer_of_message",
    "answer_of_text",
    "num_bytes",
    "score_answers",
    "warn_of_unmeasured",
]

log = logging.getLogger(__name__)

_WHOLE = 2**31
"""More tokens than any conversation has: nothing is cut off."""
_SHORTEST_PROMPT = 4
"""Tokens without which nothing is asked: the beginning, the turns of user and assistant, and a token of a question."""


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer after its prompt, and which of them count."""

    ids: tuple[int, ...]
    counts: tuple[bool, ...]
    num_bytes: int
    """UTF-8 bytes of the text that counts; 0 = empty, which is not measured."""


def answer_of_message(tokenizer: Tokenizer, conversation: Mapping[str, Any]) -> Answer:
    """Return the last message of a conversation, the assistant's, as it is rendered in training."""
    prompt = tokenizer.render_for_completion(conversation, max_tokens=_WHOLE)
    ids, mask = tokenizer.render_conversation(conversation, max_tokens=_WHOLE)
    spelled = tokenizer.token_bytes()
    written = ids[len(prompt) : -1]  # without the end of the turn
    counts = [bool(learned) and spelled[token] > 0 for token, learned in zip(written, mask[len(prompt) : -1])]
    return Answer(tuple(written), tuple(counts), int(sum(spelled[t] for t, own in zip(written, counts) if own)))


def answer_of_text(tokenizer: Tokenizer, text: str, given: str = "") -> Answer:
    """Return a turn's text as an answer of which the beginning is given.

    The space at the end of `given` belongs to the answer, as it does in its first token. A token that merges the end of
    what is given with the answer counts whole, since nothing else predicts the answer's beginning; the bytes are those
    of the answer.

    Raises:
        ValueError: `text` does not begin with `given`.
    """
    if not text.startswith(given):
        raise ValueError(f"the answer {text[:80]!r} does not begin with {given!r}; give its own beginning, or none")
    before, ids = given.rstrip(" "), tokenizer.encode(text)
    start = common_prefix([tokenizer.encode(before), ids])
    return Answer(tuple(ids), tuple(index >= start for index in range(len(ids))), num_bytes(text[len(before) :]))


def num_bytes(text: str) -> int:
    """Count the UTF-8 bytes of a text; half a surrogate pair counts as the character that replaces it."""
    return len(text.encode("utf-8", errors="surrogatepass"))


def score_answers(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Answer]],
    max_batch_tokens: int | None = None,
    max_prompt_tokens: int | None = None,
) -> list[AnswerFields]:
    """Return the bits of the answers to each question.

    A prompt that leaves no room for the longest of its answers loses its beginning, as `render_prompts` cuts it; where
    not even the answers fit into the model's positions, the question is not measured.

    Args:
        prompts: Token ids up to and including `<|assistant_start|>`.
        answers: The right answer first, then the wrong choices.
        max_batch_tokens: As in `score_items`.
        max_prompt_tokens: A longer prompt loses its beginning as well; None = as far as the model's positions reach.

    Raises:
        ValueError: A loss is not finite: the weights are broken.
    """
    user_start = tokenizer.special_id("<|user_start|>")
    items: list[list[Row]] = []
    for prompt, own in zip(prompts, answers, strict=True):
        room = model.config.rotary_rows - max(len(answer.ids) for answer in own)
        rows = []
        if room >= _SHORTEST_PROMPT:
            begin = without_beginning(list(prompt), user_start, min(room, max_prompt_tokens or room))
            rows = [Row((*begin, *a.ids), len(begin) + a.counts.index(True)) for a in own if a.num_bytes]
        items.append(rows)
    found = []
    for rows, scores, own in zip(items, score_items(model, items, max_batch_tokens), answers, strict=True):
        losses = iter([score.losses for score in scores])
        bits: list[float | None] = []
        for answer in own:
            if not (rows and answer.num_bytes):
                bits.append(None)
                continue
            counts = answer.counts[answer.counts.index(True) :]
            bits.append(math.fsum(loss for loss, own in zip(next(losses), counts, strict=True) if own) / math.log(2))
        found.append(answer_fields(bits, [answer.num_bytes for answer in own]))
    return found


def answer_fields(bits: Sequence[float | None], sizes: Sequence[int], gold: int = 0) -> AnswerFields:
    """Return bits and bytes of the answers to a question as fields of its record; `gold` is the place of the right."""
    wrong = [index for index in range(len(bits)) if index != gold]
    return AnswerFields(
        answer_bits=bits[gold],
        answer_bytes=sizes[gold],
        wrong_bits=[bits[index] for index in wrong],
        wrong_bytes=[sizes[index] for index in wrong],
    )


def warn_of_unmeasured(task: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Warn how many questions have an answer that could not be measured."""
    without = [record for record in records if record.get("answer_bits", 0.0) is None]
    if without:
        empty = sum(not record["answer_bytes"] for record in without)
        log.warning(
            "%s: the bits per byte of the answer leave out %d of %d questions: %d have an empty answer, %d one that "
            "is longer than what the model's positions hold",
            task,
            len(without),
            len(records),
            empty,
            len(without) - empty,
        )
