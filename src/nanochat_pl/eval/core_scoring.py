"""The losses of the last tokens of rows. Rows come in items that begin alike, such as the choices of a question.

The choices share all that precedes them: with ten solved examples in front, nineteen tokens of twenty. That part is
read once into a key/value cache, copied to each choice, and only what differs is read for each. Items of similar length
share a forward, and only the hidden states that predict a scored token meet the unembedding. The numbers are those of
whole rows read one at a time, up to rounding, at a fraction of the work; memory is bounded by the size of a batch,
whatever the number of items.

`LineEncoder` encodes prompts that repeat each other's lines, each line once.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_pl.model.gpt import GPT
from nanochat_pl.model.kv_cache import KVCache
from nanochat_pl.tokenizer import Tokenizer

__all__ = ["LineEncoder", "Row", "RowScore", "batch_tokens_for", "common_prefix", "score_items"]

BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384, "mps": 4096}
"""Most tokens of one forward by type of device; more is slower on a CPU, as activations no longer fit its caches."""

_LOGITS_AT_ONCE = 2**25
"""Elements; 128 MiB in fp32."""


@dataclass(frozen=True)
class Row:
    """Token ids; those from `start` on are scored."""

    ids: Sequence[int]
    start: int
    """At least 1: the first token is predicted by nothing."""
    alternatives: tuple[int, ...] = ()
    """Token ids that are also scored in the last token's place, without a further row."""


@dataclass
class RowScore:
    """The scores of a row's tokens, one entry each."""

    losses: list[float] = field(default_factory=list)
    """-log p(token | all before it) in nats."""
    predictions: list[int] = field(default_factory=list)
    """The most likely token in the same place."""
    alternatives: list[float] = field(default_factory=list)
    """The loss of each of the row's alternatives."""

    @property
    def mean_loss(self) -> float | None:
        """Mean over the scored tokens; None if there are none."""
        return sum(self.losses) / len(self.losses) if self.losses else None


def batch_tokens_for(device: torch.device) -> int:
    """Return the most tokens of one forward that suit a device."""
    return BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Count the ids with which all rows begin."""
    # By columns: the shortest row ends it.
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows)))


@torch.no_grad()
def score_items(
    model: GPT, items: Sequence[Sequence[Row]], max_batch_tokens: int | None = None, share_beginnings: bool = True
) -> list[list[RowScore]]:
    """Return the score of each row of each item.

    Args:
        items: Rows that are likely to begin alike; each of at most `config.rotary_rows` tokens.
        max_batch_tokens: Most tokens of one forward, including padding and what its rows have read before; a longer
            row is read alone. Keys and values of as many tokens are kept as well. None = `batch_tokens_for` the device.
        share_beginnings: Read what the rows of an item have in common once. Otherwise every row is read whole, which
            gives the same scores several times slower.

    Raises:
        ValueError: `max_batch_tokens` is below 1, or a loss is not finite: the weights are broken.
    """
    limit = batch_tokens_for(model.device) if max_batch_tokens is None else max_batch_tokens
    if limit < 1:
        raise ValueError(f"max_batch_tokens={limit} must be 1 or more; null picks a size for the device")
    scores: list[list[RowScore]] = []
    heads: list[_Head] = []
    for rows in items:
        # Equal rows are one: two choices of the same words tie exactly.
        distinct = {(tuple(row.ids), row.start, row.alternatives): RowScore() for row in rows}
        scores.append([distinct[tuple(row.ids), row.start, row.alternatives] for row in rows])
        heads += _heads([(Row(*key), score) for key, score in distinct.items()], share_beginnings)
    # Longest first: if memory does not suffice, it shows at once.
    heads.sort(key=lambda head: -len(head.ids))
    for batch in _batches(heads, lambda batch, _: (len(batch) + 1) * len(batch[0].ids) <= limit):
        _read(model, batch, limit)
    return scores


class LineEncoder:
    """Encodes texts that have lines in common, each line once, with exactly the ids of the whole text.

    With the split patterns of GPT-4's family no token crosses the border between a line feed and a character that is no
    white space, whatever comes before and after. A line feed ends either a chunk of punctuation with the line breaks
    after it, or a run of white space up to its last line break; both match as long as they can, so they end there, and
    no rule looks back. With other patterns texts are encoded whole.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] | None = {} if getattr(tokenizer, "pattern", None) in _CUT_AT_LINES else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, after the token that begins a document."""
        bos_id: int = self._tokenizer.bos_id
        if self._known is None:
            return self._tokenizer.encode(list(texts), prepend=bos_id)
        rows = []
        for text in texts:
            row = [bos_id]
            for piece in _LINE_STARTS.split(text):
                ids = self._known.get(piece)
                if ids is None:
                    ids = self._known[piece] = self._tokenizer.encode(piece)
                row += ids
            rows.append(row)
        return rows

    def forget(self) -> None:
        """Drop what is remembered, for example when the next texts have other lines."""
        if self._known is not None:
            self._known.clear()


_DIGITS_AT_ONCE = ("1", "1,2", "1,3")
_CUT_AT_LINES = {
    rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|\p{{N}}{{{digits}}}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    for digits in _DIGITS_AT_ONCE
}
_LINE_STARTS = re.compile(r"(?<=\n)(?=\S)")


@dataclass(frozen=True)
class _Tail:
    """The rest of one row after the part that is read once."""

    ids: Sequence[int]
    row: Row
    score: RowScore


@dataclass(frozen=True)
class _Head:
    """Tokens read once for all rows that begin with them."""

    ids: Sequence[int]
    tails: list[_Tail]


_Wanted = tuple[int, int, Sequence[int], tuple[int, ...], RowScore]
"""Row of a batch, position of the first hidden state wanted, tokens predicted from there on, alternatives to the last
of them, and the score to add to."""


def _heads(rows: Sequence[tuple[Row, RowScore]], share: bool) -> list[_Head]:
    """Split an item into what is read once and the rest; the last token of a row is never read: it predicts nothing."""
    if share and len(rows) > 1:
        shared = common_prefix([row.ids for row, _ in rows])
        if shared:  # rows that were cropped may begin with different tokens
            ids = rows[0][0].ids[:shared]
            return [_Head(ids, [_Tail(row.ids[shared:-1], row, score) for row, score in rows])]
    return [_Head(row.ids[:-1], [_Tail((), row, score)]) for row, score in rows if len(row.ids) > row.start]


T = TypeVar("T")


def _batches(entries: Iterable[T], fits: Callable[[list[T], T], bool]) -> Iterator[list[T]]:
    """Yield batches of entries, each filled as long as the next entry fits."""
    batch: list[T] = []
    for entry in entries:
        if batch and not fits(batch, entry):
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch


def _read(model: GPT, heads: Sequence[_Head], limit: int) -> None:
    """Read heads, the longest first, in one forward, then their tails; add the scores of both."""
    lengths = [len(head.ids) for head in heads]
    following = [(index, tail) for index, head in enumerate(heads) for tail in head.tails if tail.ids]
    cache = _cache(model, len(heads), lengths[0]) if following else None
    hidden = model.hidden(_padded([head.ids for head in heads], model.device), kv_cache=cache)
    wanted = []
    for index, head in enumerate(heads):
        for tail in head.tails:
            row = tail.row
            others = () if tail.ids else row.alternatives
            wanted.append((index, row.start - 1, row.ids[row.start : len(head.ids) + 1], others, tail.score))
    _add_scores(model, hidden, wanted)
    if cache is None:
        return
    cache.advance(lengths)
    del hidden
    following.sort(key=lambda entry: -len(entry[1].ids))
    room = model.config.rotary_rows

    def fits(batch: list[tuple[int, _Tail]], entry: tuple[int, _Tail]) -> bool:
        longest, rows = len(batch[0][1].ids), len(batch) + 1
        deepest = max(lengths[index] for index, _ in (*batch, entry)) + longest
        # A row less than half as long as the first would be more padding than tokens.
        return 2 * len(entry[1].ids) >= longest and rows * deepest <= limit and deepest <= room

    for batch in _batches(following, fits):
        heads_read = [index for index, _ in batch]
        own = _cache(model, len(batch), max(lengths[index] for index in heads_read) + len(batch[0][1].ids))
        own.lengths = []
        own.add_rows(cache, heads_read)
        hidden = model.hidden(_padded([tail.ids for _, tail in batch], model.device), kv_cache=own)
        wanted = []
        for number, (index, tail) in enumerate(batch):
            begin = max(tail.row.start, lengths[index] + 1)
            wanted.append((number, begin - 1 - lengths[index], tail.row.ids[begin:], tail.row.alternatives, tail.score))
        _add_scores(model, hidden, wanted)


def _cache(model: GPT, rows: int, capacity: int) -> KVCache:
    # CPUs attend several times faster in fp32
    dtype = torch.float32 if model.device.type == "cpu" else model.compute_dtype
    return KVCache(model.config, rows, capacity, model.device, dtype)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return rows (B, T), padded on the right, where causal attention cannot see."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, own in zip(ids, rows, strict=True):
        row[: len(own)] = torch.tensor(own)
    return ids.to(device)


def _add_scores(model: GPT, hidden: Tensor, wanted: Sequence[_Wanted]) -> None:
    """Append to each score the losses and predictions of its tokens, from hidden states (B, T, C)."""
    width, device = hidden.size(1), hidden.device
    index: list[int] = []
    last: list[tuple[int, int, RowScore]] = []
    for row, first, tokens, alternatives, score in wanted:
        index += range(row * width + first, row * width + first + len(tokens))
        last += [(len(index) - 1, token, score) for token in alternatives]
    if not index:
        return
    # Only the hidden states that predict a scored token meet the unembedding, in parts whose logits stay small.
    flat = hidden.flatten(0, 1).index_select(0, torch.tensor(index, device=device))
    targets = torch.tensor([token for _, _, tokens, _, _ in wanted for token in tokens], device=device)
    losses, predictions, others = [], [], []
    step = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    for begin in range(0, len(index), step):
        logits = model.logits(flat[begin : begin + step])
        losses.append(F.cross_entropy(logits, targets[begin : begin + step], reduction="none"))
        predictions.append(logits.argmax(dim=-1))
        if here := [(row - begin, token) for row, token, _ in last if begin <= row < begin + step]:
            rows, tokens = torch.tensor(here, device=device).T
            others.append(-logits.log_softmax(dim=-1)[rows, tokens])
    scored, predicted, done = torch.cat(losses).tolist(), torch.cat(predictions).tolist(), 0
    alternative_losses = torch.cat(others).tolist() if others else []
    if not all(map(math.isfinite, (*scored, *alternative_losses))):
        raise ValueError("the model's losses are not finite: its weights are broken; evaluate an earlier checkpoint")
    for _, _, tokens, _, score in wanted:
        score.losses += scored[done : done + len(tokens)]
        score.predictions += predicted[done : done + len(tokens)]
        done += len(tokens)
    for (_, _, score), loss in zip(last, alternative_losses, strict=True):
        score.alternatives.append(loss)
