"""Keys and values of what a batch of rows has read so far, so that decoding reads each token once.

Every row has its own length: prompts of different lengths are prefilled together, padded on the right; a row's next
token is written at its own length, over the padding, and a query at position p sees the keys 0..p only. The model
writes (`insert`), the caller says how many of the written tokens were real (`advance`).
"""

import torch
from torch import Tensor

from nanochat_pl.model.config import GPTConfig

__all__ = ["KVCache"]


class KVCache:
    """Room for `capacity` tokens in each of `batch` rows.

    Attributes:
        k, v: (L, B, Hkv, capacity, D), keys after rotation and norm.
        lengths: (B,) int64, tokens each row holds.
        longest: the largest of `lengths`, known without asking the device.
    """

    def __init__(self, config: GPTConfig, batch: int, capacity: int, device: torch.device | str, dtype: torch.dtype):
        shape = (config.n_layer, batch, config.n_kv_head, capacity, config.head_dim)
        # Zeros, not empty: hidden keys are multiplied by weight 0, and 0 x NaN would be NaN.
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.longest = 0

    @property
    def batch(self) -> int:
        return self.k.size(1)

    @property
    def capacity(self) -> int:
        return self.k.size(3)

    def positions(self, num_tokens: int) -> Tensor:
        """Return where the next `num_tokens` of each row belong, (B, num_tokens) int64.

        Raises:
            ValueError: when the longest row has no room for them.
        """
        if self.longest + num_tokens > self.capacity:
            raise ValueError(
                f"the key/value cache holds {self.capacity} tokens a row; {self.longest} are taken and {num_tokens} "
                f"more were given; make it with capacity={self.longest + num_tokens} or give less"
            )
        return self.lengths[:, None] + torch.arange(num_tokens, device=self.lengths.device)

    def insert(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v (B, Hkv, T, D) of one layer behind each row's tokens.

        Returns:
            All keys and values so far as views (B, Hkv, longest + T, D); `advance` has yet to count the new ones.
        """
        num_tokens = k.size(2)
        where = self.positions(num_tokens)
        end = self.longest + num_tokens
        rows = torch.arange(self.batch, device=where.device)[:, None]
        self.k[layer, rows, :, where] = k.transpose(1, 2)
        self.v[layer, rows, :, where] = v.transpose(1, 2)
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def advance(self, num_tokens: int | Tensor) -> None:
        """Count the tokens just written: as many in every row, or (B,) as many as were real in each."""
        self.lengths = self.lengths + num_tokens
        if isinstance(num_tokens, int):
            self.longest += num_tokens
        else:
            self.longest = int(self.lengths.max())

    def select_rows(self, index: Tensor) -> None:
        """Keep the rows `index` (n,) int64, in that order; a row may be named several times."""
        self.k, self.v = self.k.index_select(1, index), self.v.index_select(1, index)
        self.lengths = self.lengths.index_select(0, index)
        self.longest = int(self.lengths.max()) if len(index) else 0

    def write_rows(self, index: Tensor, other: "KVCache") -> None:
        """Replace the rows `index` (n,) int64 by the n rows of `other`, which may be of smaller capacity."""
        if other.longest > self.capacity:
            raise ValueError(f"rows of {other.longest} tokens do not fit a key/value cache of {self.capacity}")
        self.k[:, index, :, : other.longest] = other.k[:, :, :, : other.longest]
        self.v[:, index, :, : other.longest] = other.v[:, :, :, : other.longest]
        self.lengths = self.lengths.index_copy(0, index, other.lengths)
        self.longest = int(self.lengths.max())
