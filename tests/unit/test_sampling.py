"""Laws of sampling: shares follow the softmax, restrictions are those of a plain reference, no impossible token."""

import itertools

import pytest
import torch
from torch import Tensor

from nanochat_pl.sampling import BLOCK, FIRST_CANDIDATES, sample

SIZES = [2, 61, BLOCK, 2 * BLOCK, 2 * BLOCK + 1, 7 * BLOCK, 9 * BLOCK + 5]


def logits_of(rows: int, size: int, scale: float = 2.0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(size)) * scale


def grid(count: int) -> Tensor:
    """Evenly spread numbers in [0, 1)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def temperatures(rows: int, value: float) -> Tensor:
    return torch.full((rows,), value)


def reference(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> Tensor:
    """Probabilities (V,) of one row, as the settings' definitions say it, one token after another."""
    probabilities = torch.softmax(logits.double() / temperature, dim=-1).tolist()
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])[:top_k]
    if top_p is not None:
        total, mass, kept = sum(probabilities[token] for token in order), 0.0, []
        for token in order:
            if mass >= top_p * total:
                break
            kept.append(token)
            mass += probabilities[token]
        order = kept
    if min_p is not None:
        order = [token for token in order if probabilities[token] >= min_p * max(probabilities)]
    kept_mass = sum(probabilities[token] for token in order)
    result = torch.zeros(len(probabilities), dtype=torch.float64)
    for token in order:
        result[token] = probabilities[token] / kept_mass
    return result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("top_k", "top_p", "min_p"), list(itertools.product([None, 5], [None, 0.7], [None, 0.1])))
def test_shares_are_those_of_the_plain_reference(size, top_k, top_p, min_p):
    draws, [row] = 20_000, logits_of(1, size)
    tokens = sample(row.expand(draws, -1), grid(draws), temperatures(draws, 0.8), top_k, top_p, min_p)
    expected = reference(row, 0.8, top_k, top_p, min_p)
    shares = torch.bincount(tokens, minlength=size) / draws
    torch.testing.assert_close(shares.double(), expected, atol=2 / draws, rtol=0)


def test_top_p_looks_further_where_many_tokens_are_likely():
    flat, peaked = torch.zeros(2000), torch.zeros(2000).index_fill(0, torch.tensor([7]), 30.0)
    draws = 4000
    tokens = sample(flat.expand(draws, -1), grid(draws), temperatures(draws, 1.0), None, 0.5)
    assert len(set(tokens.tolist())) == 1000 > FIRST_CANDIDATES
    both = sample(torch.stack([flat, peaked]), torch.tensor([0.9, 0.9]).double(), temperatures(2, 1.0), None, 0.5)
    assert both[1] == 7


@pytest.mark.parametrize("settings", [(None, None, None), (9, None, None), (None, 0.8, None), (9, 0.8, 0.05)], ids=str)
def test_a_row_does_not_depend_on_its_neighbours(settings):
    rows, uniform = logits_of(40, 700), grid(40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    heat = torch.linspace(0.1, 3, 40)
    together = sample(rows, uniform, heat, *settings)
    alone = [sample(rows[i : i + 1], uniform[i : i + 1], heat[i : i + 1], *settings).item() for i in range(40)]
    assert together.tolist() == alone


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("top_p", [None, 1.0])
def test_the_ends_of_the_unit_interval_pick_possible_tokens(size, top_p):
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    logits = torch.full((2, size), -1e4)
    logits[:, [size // 2, size // 2 - 1]] = 1.0
    tokens = sample(logits, ends, temperatures(2, 1.0), None, top_p).tolist()
    assert set(tokens) == {size // 2, size // 2 - 1}


def test_a_temperature_near_zero_is_greedy():
    rows = logits_of(50, 300)
    for temperature in (1e-3, 1e-12, 1e-30):
        tokens = sample(rows, grid(50), temperatures(50, temperature))
        assert tokens.tolist() == rows.argmax(dim=-1).tolist()
