"""Keys and values of the tokens that a batch of rows has read so far, so that decoding reads each token once.

Every row has its own length: prompts of different lengths are prefilled together, padded on the right; a row's next
token is written at its own length, over the padding, and a query at position p sees the keys 0..p only. Once a
forward the model gets the positions of the new tokens (`next_position`), each layer writes its keys and values there
and attends to all of them (`attend`), and the caller counts the tokens that were real (`advance`). Lengths are known on
the host, so nothing here waits for the device.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_pl.model.attention import causal_attention
from nanochat_pl.model.config import GPTConfig

__all__ = ["CachePosition", "KVCache"]


@dataclass(frozen=True)
class CachePosition:
    """Positions of the next tokens of every row, and what they see; made once a forward and shared by all layers."""

    start: int | None
    """The length of every row, if all are equally long."""
    positions: Tensor | None
    """(B, T) int64 position of each token; None if all rows are equally long."""
    masks: dict[int | None, Tensor | None]
    """By the window of a layer: (B or 1, 1, T, keys), 0 where a query sees a key and -inf elsewhere; None = causal, or
    nothing to hide but by the window."""


class KVCache:
    """Room for `capacity` tokens in each of `batch` rows.

    Attributes:
        k, v: (L, rows, Hkv, capacity, D), keys after rotation and norm; the first `batch` rows are in use.
        lengths: tokens each row in use holds.
    """

    def __init__(self, config: GPTConfig, batch: int, capacity: int, device: torch.device | str, dtype: torch.dtype):
        shape = (config.n_layer, batch, config.n_kv_head, capacity, config.head_dim)
        # Zeros, not empty: hidden keys are multiplied by weight 0, and 0 x NaN would be NaN.
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * batch
        self._on_device: Tensor | None = None  # lengths, (B,) int64
        self._index: Tensor | None = None  # (B * Hkv * T,) rows of a layer's (B * Hkv * capacity, D), if lengths differ
        self._end = 0
        # By place: the last vectors read, (rows, count, C); and these with the new ones behind, until `advance`.
        self._past: dict[int, Tensor] = {}
        self._read: dict[int, Tensor] = {}

    @property
    def batch(self) -> int:
        """Rows in use."""
        return len(self.lengths)

    @property
    def rows(self) -> int:
        """Rows there is room for."""
        return self.k.size(1)

    @property
    def capacity(self) -> int:
        """Tokens a row has room for."""
        return self.k.size(3)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths, default=0)

    def next_position(self, num_tokens: int, windows: Iterable[int | None] = (None,)) -> CachePosition:
        """Return the positions of the next `num_tokens` of each row; `insert` then writes there.

        `windows` are those of the layers: how many tokens before itself a token sees, None = all.

        Raises:
            ValueError: if the longest row has no room for them.
        """
        longest = self.longest
        if longest + num_tokens > self.capacity:
            raise ValueError(
                f"the key/value cache holds {self.capacity} tokens a row; {longest} are taken and {num_tokens} "
                f"more were given; make it with capacity={longest + num_tokens} or give less"
            )
        device = self.k.device
        self._end = longest + num_tokens
        # 1) All rows are equally long: the new tokens are one slice. A prompt (nothing read before) is plain causal
        # attention, and a single token sees all there is; only several tokens behind others need a mask.
        if min(self.lengths, default=0) == longest:
            self._index = None
            masks: dict[int | None, Tensor | None] = dict.fromkeys(windows)
            if longest and num_tokens > 1:
                masks = self._masks(torch.arange(longest, self._end, device=device)[None], windows)
            return CachePosition(longest, None, masks)
        # 2) Rows differ: each continues at its own length, and what lies beyond it (padding of its prompt, or what
        # longer rows hold) is hidden from it.
        if self._on_device is None:
            self._on_device = torch.tensor(self.lengths, device=device)
        positions = self._on_device[:, None]
        if num_tokens > 1:
            positions = positions + torch.arange(num_tokens, device=device)
        # 3) The place of each new key, counted through a layer's rows and heads, so that one copy writes them all.
        heads = self.k.size(2)
        first = torch.arange(0, self.batch * heads * self.capacity, self.capacity, device=device)
        self._index = (first.view(-1, heads, 1) + positions[:, None]).flatten()
        return CachePosition(None, positions, self._masks(positions, windows))

    def _masks(self, positions: Tensor, windows: Iterable[int | None]) -> dict[int | None, Tensor | None]:
        """Let a query at position p (B, T) see the keys 0..p, or p - window..p: (B, 1, T, end) by window."""
        keys, p = torch.arange(self._end, device=positions.device), positions[..., None]
        masks: dict[int | None, Tensor | None] = {}
        for window in windows:
            hidden = keys > p if window is None else (keys > p) | (keys < p - window)
            # Numbers, not booleans, which attention would turn into numbers anew in every layer.
            mask = torch.zeros(hidden.shape, dtype=self.k.dtype, device=hidden.device)
            masks[window] = mask.masked_fill_(hidden, -torch.inf)[:, None]
        return masks

    def insert(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, Hkv, T, D) of one layer at the positions of `next_position`.

        Returns:
            All keys and values so far as views (B, Hkv, longest + T, D); `advance` has yet to count the new ones.
        """
        batch, end = self.batch, self._end
        if self._index is None:
            start = end - k.size(2)
            self.k[layer, :batch, :, start:end] = k
            self.v[layer, :batch, :, start:end] = v
        else:
            for cached, new in ((self.k, k), (self.v, v)):
                cached[layer].flatten(0, 2).index_copy_(0, self._index, new.to(cached.dtype).flatten(0, 2))
        return self.k[layer, :batch, :, :end], self.v[layer, :batch, :, :end]

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int | None = None
    ) -> Tensor:
        """Add the keys and values of new tokens to one layer, and let their queries attend to all that it holds.

        Args:
            layer: number of the block.
            q: (B, T, H, D).
            k, v: (B, T, Hkv, D).
            mask: the mask of `next_position` for this window.
            window: how many tokens before itself a query sees; None = all.

        Returns:
            (B, T, H * D) in the cache's dtype.
        """
        B, T, H, D = q.shape
        k, v = self.insert(layer, k.transpose(1, 2), v.transpose(1, 2))
        if T == 1 and mask is None and window is not None:  # all rows are equally long: what lies before is left out
            k, v = k[:, :, -window - 1 :], v[:, :, -window - 1 :]
        if T > 1 or k.device.type != "cpu":
            queries = q.transpose(1, 2).to(k.dtype)
            if mask is None and T > 1:
                y = causal_attention(queries, k, v, window)
            else:
                y = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, enable_gqa=k.size(1) != H)
            return y.transpose(1, 2).reshape(B, T, H * D)
        # One query a row: on a CPU plain matrix products are up to three times as fast as the function above, because a
        # batch of rows is one call. Query heads that share a key head are the rows of one matrix.
        queries = (q.to(k.dtype) * D**-0.5).view(B, k.size(1), H // k.size(1), D)
        scores = queries @ k.transpose(2, 3)
        if mask is not None:
            scores += mask
        return (scores.softmax(dim=-1) @ v).view(B, 1, H * D)

    def extend(self, place: int, x: Tensor, count: int) -> Tensor:
        """Put the last `count` vectors that each row read at a place before its new ones, and remember them.

        Args:
            place: what is remembered, such as the number of a block.
            x: (B, T, C), of the tokens that `next_position` was asked about.
            count: vectors to look back on, the same at every call for a place.

        Returns:
            (B, count + T, C); zeros where a row is shorter. `advance` has yet to say how many of x are real.
        """
        if place not in self._past:
            self._past[place] = x.new_zeros(self.rows, count, x.size(2))
        self._read[place] = torch.cat((self._past[place][: self.batch], x), dim=1)
        return self._read[place]

    def advance(self, num_tokens: int | Sequence[int]) -> None:
        """Count the tokens just written: a number for all rows, or for each row the number of those that were real."""
        more = [num_tokens] * self.batch if isinstance(num_tokens, int) else list(num_tokens)
        for place, read in self._read.items():
            past = self._past[place]
            if isinstance(num_tokens, int):
                past[: self.batch] = read[:, num_tokens : num_tokens + past.size(1)]
            else:  # the last ones before each row's own end
                last = torch.tensor(more, device=read.device)[:, None] + torch.arange(past.size(1), device=read.device)
                past[: self.batch] = read.gather(1, last[..., None].expand(-1, -1, read.size(2)))
        self._read.clear()
        self.lengths = [length + n for length, n in zip(self.lengths, more, strict=True)]
        if isinstance(num_tokens, int) and self._on_device is not None:
            self._on_device = self._on_device + num_tokens
        else:
            self._on_device = None

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room for at least `rows` rows of `capacity` tokens, keeping what is there."""
        if rows <= self.rows and capacity <= self.capacity:
            return
        layers, _, heads, _, width = self.k.shape
        shape = (layers, max(rows, self.rows), heads, max(capacity, self.capacity), width)
        batch, longest = self.batch, self.longest
        for name in ("k", "v"):
            old = getattr(self, name)
            new = old.new_zeros(shape)
            new[:, :batch, :, :longest] = old[:, :batch, :, :longest]
            setattr(self, name, new)
        for place, past in self._past.items():
            self._past[place] = torch.cat((past, past.new_zeros(self.rows - len(past), *past.shape[1:])))

    def add_rows(self, other: "KVCache", index: Sequence[int]) -> None:
        """Append the rows `index` of `other` to those in use; a row may be named several times.

        Raises:
            ValueError: if there is no room; see `reserve`.
        """
        lengths = [other.lengths[i] for i in index]
        longest, begin = max(lengths), self.batch
        if longest > self.capacity or begin + len(index) > self.rows:
            raise ValueError(
                f"{len(index)} more rows of up to {longest} tokens do not fit a key/value cache of {self.rows} rows "
                f"({begin} in use) of {self.capacity} tokens; call reserve first"
            )
        source = torch.tensor(index, device=self.k.device)
        self.k[:, begin : begin + len(index), :, :longest] = other.k[:, source, :, :longest]
        self.v[:, begin : begin + len(index), :, :longest] = other.v[:, source, :, :longest]
        for place, past in other._past.items():
            if place not in self._past:
                self._past[place] = past.new_zeros(self.rows, *past.shape[1:])
            self._past[place][begin : begin + len(index)] = past[source]
        self.lengths = self.lengths + lengths
        self._on_device = None

    def drop_rows(self, index: Sequence[int]) -> list[int]:
        """Drop the rows `index`; rows from the end move into the gaps, so that little is copied.

        Returns:
            The rows kept, by their old number, in their new order.
        """
        order = list(range(self.batch))
        for gap in sorted(index, reverse=True):
            number, length = order.pop(), self.lengths.pop()
            last = len(order)
            if gap < last:
                self.k[:, gap, :, :length] = self.k[:, last, :, :length]
                self.v[:, gap, :, :length] = self.v[:, last, :, :length]
                for past in self._past.values():
                    past[gap] = past[last]
                order[gap], self.lengths[gap] = number, length
        self._on_device = None
        return order
