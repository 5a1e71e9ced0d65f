"""Generation: many different prompts at once, each token read once.

Prompts are read longest first, each in a row of one key/value cache. A row that is done leaves, a waiting prompt takes
its place, and when none waits the batch shrinks; so a long answer never holds up a batch of short ones. What a prompt
yields depends on the model, its own tokens and its place in the list, not on who shares the batch (up to the rounding
of matrix products of another shape).
"""

import random
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanochat_pl.model.gpt import GPT
from nanochat_pl.model.kv_cache import KVCache

__all__ = ["Engine", "sample"]


def sample(logits: Tensor, temperature: float, top_k: int | None, uniform: Sequence[float]) -> Tensor:
    """Pick one token a row by inverting the cumulative distribution at a given number.

    Args:
        logits: (B, V).
        temperature: divides the logits; 0 = the most likely token.
        top_k: only the k most likely tokens take part; None = all.
        uniform: B numbers in [0, 1); unused when temperature is 0.

    Returns:
        (B,) int64.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    tokens = None
    if top_k is not None and top_k < logits.size(-1):
        logits, tokens = logits.topk(top_k)
    cumulative = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
    at = torch.tensor(uniform, dtype=torch.float64).to(logits.device)[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, at, right=True).clamp(max=logits.size(-1) - 1)
    return (index if tokens is None else tokens.gather(1, index)).squeeze(1)


@dataclass
class _Row:
    """One prompt on its way through the engine."""

    prompt: list[int]
    room: int
    """How many new tokens it may have."""

    rng: random.Random
    new: list[int] = field(default_factory=list)
    done: bool = False

    def take(self, token: int, stop_ids: Collection[int]) -> None:
        if token in stop_ids:
            self.done = True
            return
        self.new.append(token)
        self.done = len(self.new) >= self.room


class Engine:
    """Generate with a model.

    Args:
        model: its device and compute dtype are used; it is not changed.
        stop_ids: tokens that end a row; they are not part of the result.
    """

    def __init__(self, model: GPT, stop_ids: Collection[int]):
        self.model = model
        self.stop_ids = frozenset(stop_ids)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[list[int]]:
        """Continue every prompt until a stop token, `max_new_tokens`, or a row of the model's `sequence_len` tokens.

        Args:
            prompts: token ids, at least one each and fewer than `sequence_len`.
            max_new_tokens: most new tokens of a row.
            temperature: 0 = greedy.
            top_k: sample among the k most likely tokens only; None = among all.
            seed: prompt i draws from a stream of its own, given by (seed, i).
            batch_size: most rows at once.

        Returns:
            The new tokens of each prompt, in the prompts' order.

        Raises:
            ValueError: for a prompt that is empty, leaves no room or holds an unknown id; for settings out of range.
        """
        self._check(prompts, max_new_tokens, temperature, top_k, batch_size)
        if not prompts or max_new_tokens == 0:
            return [[] for _ in prompts]
        limit = self.model.config.sequence_len
        rows = [
            _Row(list(prompt), min(max_new_tokens, limit - len(prompt)), random.Random(f"{seed}/{i}"))
            for i, prompt in enumerate(prompts)
        ]
        waiting = deque(sorted(rows, key=lambda row: -len(row.prompt)))
        cache = self._make_cache(min(batch_size, len(rows)), min(limit, len(waiting[0].prompt) + max_new_tokens))

        def choose(readers: list[_Row], logits: Tensor) -> None:
            uniform = [row.rng.random() for row in readers] if temperature else []
            for row, token in zip(readers, sample(logits, temperature, top_k, uniform).tolist(), strict=True):
                row.take(token, self.stop_ids)

        active: list[_Row] = []  # one a row of the cache
        free = list(range(cache.batch))
        while True:
            while waiting and free:
                entering = [waiting.popleft() for _ in free[: len(waiting)]]
                choose(entering, self._prefill(entering, cache, free[: len(entering)]))
                for slot, row in zip(free, entering, strict=False):
                    active[slot : slot + 1] = [row]
                free = [slot for slot, row in enumerate(active) if row.done]
            if free:
                kept = [slot for slot, row in enumerate(active) if not row.done]
                cache.select_rows(torch.tensor(kept, dtype=torch.int64, device=self.model.device))
                active = [active[slot] for slot in kept]
            if not active:
                return [row.new for row in rows]
            choose(active, self._decode([row.new[-1] for row in active], cache))
            free = [slot for slot, row in enumerate(active) if row.done]

    def _check(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        batch_size: int,
    ) -> None:
        config = self.model.config
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be 0 or more")
        if temperature < 0:
            raise ValueError(f"temperature={temperature} must be 0 (greedy) or more")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1, or None to sample among all tokens")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {i} is empty; begin it with the tokenizer's <|bos|>")
            if len(prompt) >= config.sequence_len and max_new_tokens:
                raise ValueError(
                    f"prompt {i} has {len(prompt)} tokens; with model.sequence_len={config.sequence_len} there is no "
                    f"room for a new one; cut it to {config.sequence_len - 1} tokens or fewer"
                )
            if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
                raise ValueError(
                    f"prompt {i} holds ids from {min(prompt)} to {max(prompt)}, the model knows 0 to "
                    f"{config.vocab_size - 1}; was it encoded with this model's tokenizer?"
                )

    def _make_cache(self, batch: int, capacity: int) -> KVCache:
        return KVCache(self.model.config, batch, capacity, self.model.device, self.model.compute_dtype)

    def _prefill(self, rows: list[_Row], cache: KVCache, slots: list[int]) -> Tensor:
        """Read the rows' prompts into the cache's `slots`; return the logits (n, V) of what follows them."""
        device = self.model.device
        lengths = torch.tensor([len(row.prompt) for row in rows], device=device)
        longest = max(len(row.prompt) for row in rows)
        padded = [row.prompt + [0] * (longest - len(row.prompt)) for row in rows]
        fresh = self._make_cache(len(rows), longest)
        hidden = self.model.hidden(torch.tensor(padded, device=device), kv_cache=fresh)
        fresh.advance(lengths)
        cache.write_rows(torch.tensor(slots, device=device), fresh)
        return self.model.logits(hidden[torch.arange(len(rows), device=device), lengths - 1])

    def _decode(self, tokens: list[int], cache: KVCache) -> Tensor:
        """Read one token a row; return the logits (B, V) of what follows."""
        hidden = self.model.hidden(torch.tensor(tokens, device=self.model.device)[:, None], kv_cache=cache)
        cache.advance(1)
        return self.model.logits(hidden[:, 0])
