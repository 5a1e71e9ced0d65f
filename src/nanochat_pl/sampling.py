"""Sampling of tokens from logits: penalties, temperature, top-k, top-p, min-p, and one number in [0, 1) a row.

The number selects a token by the row's cumulative distribution. All randomness lies in these numbers, which each row
draws from its own stream, so that the other rows of the batch do not matter. Sums run over blocks of fixed
width: within a block in fp32, over blocks in double precision; a full double-precision scan of a vocabulary of 65,536
would cost more than the model's step.
"""

import torch
from torch import Tensor

__all__ = ["penalize", "sample"]

BLOCK = 128
FIRST_CANDIDATES = 128
"""How many of the most likely tokens top-p sorts first on a CPU, where sorting a vocabulary is slow."""
LEAST_TEMPERATURE = 1e-20
"""Below it everything but the most likely token has weight 0 anyway."""


def sample(
    logits: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Draw one token a row from softmax(logits / temperature), restricted to likely tokens.

    The restrictions hold after the temperature; top-p applies to what top-k leaves, renormalised.

    Args:
        logits: (B, V) fp32.
        uniform: (B,) float64, numbers in [0, 1).
        temperature: (B,) fp32, above 0.
        top_k: the k most likely tokens; None = all.
        top_p: the fewest most likely tokens that together reach this probability; None = all.
        min_p: tokens at least this many times as likely as the most likely one; None = all.

    Returns:
        (B,) int64.
    """
    divisor = temperature.clamp(min=LEAST_TEMPERATURE)[:, None]
    tokens = None
    if top_k is not None and top_k < logits.size(-1):
        logits, tokens = logits.topk(top_k)
        weights = (logits - logits[:, :1]).div_(divisor).exp_()
    else:
        weights = (logits - logits.amax(dim=-1, keepdim=True)).div_(divisor).exp_()
    if top_p is not None:
        if tokens is None:
            weights, tokens, cumulative, total = _likely(weights, top_p)
        else:
            cumulative = weights.double().cumsum(dim=-1)
            total = cumulative[:, -1:]
        weights = weights.masked_fill(cumulative - weights >= top_p * total, 0)
    if min_p is not None:
        weights = weights.masked_fill(weights < min_p, 0)  # the most likely token has weight 1
    index = _invert(weights, uniform)
    index = index.clamp(max=weights.size(-1) - 1)  # beyond it only if logits are NaN, which the caller reports
    return index if tokens is None else tokens.gather(1, index[:, None]).squeeze(1)


def penalize(logits: Tensor, rows: Tensor, tokens: Tensor, repetition: Tensor, subtracted: Tensor) -> Tensor:
    """Make tokens that already occur in a row less (or more) likely.

    A logit above 0 is divided by the repetition penalty and one below 0 multiplied by it (Keskar et al., CTRL, 2019);
    then `subtracted` is subtracted (OpenAI's frequency and presence penalties).

    Args:
        logits: (B, V) fp32.
        rows, tokens: (N,) int64, indices of the logits to change; each pair at most once.
        repetition: (N,) fp32, above 0; 1 = none.
        subtracted: (N,) fp32.

    Returns:
        New logits (B, V).
    """
    picked = logits[rows, tokens]
    picked = torch.where(picked > 0, picked / repetition, picked * repetition) - subtracted
    return logits.index_put((rows, tokens), picked)


def _likely(weights: Tensor, top_p: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return enough of the largest weights (B, N) to reach the share `top_p`, with their tokens, sums and total."""
    total = _block_sums(weights).sum(dim=-1, keepdim=True)
    vocab_size = weights.size(-1)
    # Asking whether they are enough would make a GPU wait; it sorts all of them quickly.
    count = vocab_size if weights.is_cuda else min(FIRST_CANDIDATES, vocab_size)
    while True:
        largest, tokens = weights.topk(count)
        cumulative = largest.double().cumsum(dim=-1)
        if count == vocab_size or bool((cumulative[:, -1:] >= top_p * total).all()):
            return largest, tokens, cumulative, total
        count = min(8 * count, vocab_size)


def _block_sums(weights: Tensor) -> Tensor:
    """Sum (B, N) over blocks of `BLOCK`, the last one shorter: (B, ceil(N / BLOCK)) float64."""
    whole = weights.size(-1) // BLOCK
    sums = weights[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)).sum(dim=-1)
    if weights.size(-1) % BLOCK:
        sums = torch.cat((sums, weights[:, whole * BLOCK :].sum(dim=-1, keepdim=True)), dim=-1)
    return sums.double()


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the first index (B,) at which the sum of weights exceeds the share `uniform` of the total."""
    if weights.size(-1) <= 2 * BLOCK:
        cumulative = weights.double().cumsum(dim=-1)
        return _first_above(cumulative, uniform[:, None] * cumulative[:, -1:]).squeeze(1)
    cumulative = _block_sums(weights).cumsum(dim=-1)
    sought = uniform[:, None] * cumulative[:, -1:]
    block = _first_above(cumulative, sought)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0)
    places = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(1, places.clamp(max=weights.size(-1) - 1)).double()
    inside = inside.masked_fill(places >= weights.size(-1), 0).cumsum(dim=-1)
    return (block * BLOCK + _first_above(inside, sought - before)).squeeze(1)


def _first_above(cumulative: Tensor, sought: Tensor) -> Tensor:
    """Return the first index (B, 1) whose sum (B, N) exceeds `sought` (B, 1): never one of weight 0.

    Rounding can lift `sought` to the last sum; it is then replaced by the number just below.
    """
    last = cumulative[:, -1:]
    below = torch.minimum(sought, torch.nextafter(last, torch.zeros_like(last)))
    return torch.searchsorted(cumulative, below, right=True)
