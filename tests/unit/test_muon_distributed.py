"""Ranks that share the matrices compute what one process computes on as many micro-batches."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.groups import build_optimizers, clip_gradients, set_schedule
from nanochat_pl.optim.muon import Muon

pytestmark = pytest.mark.dist

VOCAB, WIDTH, STEPS = 50, 16, 6
CLASSIC = OptimConfig(warmdown_frac=0.5, ns_dtype="float32")
MODERN = replace(
    CLASSIC,
    orthogonalizer="polar_express",
    row_equilibration=True,
    frobenius_snap=True,
    second_moment_beta=0.9,
    matrix_weight_decay=0.5,
    matrix_weight_decay_schedule="cosine",
    cautious_weight_decay=True,
    momentum_final=0.8,
    warmup_steps=2,
)
# Ranks are processes of their own, which read this module anew.
CFG = MODERN if os.environ.get("NANOCHAT_TEST_OPTIM") == "modern" else CLASSIC
WORLD = int(os.environ.get("NANOCHAT_TEST_WORLD", "2"))


@pytest.fixture(params=["classic-2", "modern-2", "modern-4"])
def recipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the optimizers and the number of ranks, here and in the ranks."""
    name, world = request.param.split("-")
    monkeypatch.setenv("NANOCHAT_TEST_OPTIM", name)
    monkeypatch.setenv("NANOCHAT_TEST_WORLD", world)
    monkeypatch.setattr(sys.modules[__name__], "CFG", MODERN if name == "modern" else CLASSIC)
    monkeypatch.setattr(sys.modules[__name__], "WORLD", int(world))


class Toy(nn.Module):
    """Three shapes of matrices, an odd number of them, and the two ends of a vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte = nn.Embedding(VOCAB, WIDTH)
        self.square = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.wte(idx)
        for layer in self.square:
            x = x + layer(x).tanh()
        return self.lm_head(x + self.down(self.up(x).relu()))

    def optimizers(self) -> tuple[Muon, torch.optim.AdamW]:
        matrices = [p for name, p in self.named_parameters() if not name.startswith(("wte", "lm_head"))]
        roles = {"matrix": matrices, "embedding": [self.wte.weight], "unembedding": [self.lm_head.weight]}
        return build_optimizers(roles, WIDTH, CFG)


def train(model: nn.Module, optimizers: tuple, steps: range, rank: int, world_size: int) -> list[float]:
    """Train on two micro-batches a step, shared out over the ranks; return the gradient norms."""
    norms = []
    for step in steps:
        for k in range(rank, WORLD, world_size):
            ids = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(WORLD * step + k))
            loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            (loss * world_size / WORLD).backward()  # DistributedDataParallel divides by the number of ranks
        norms.append(clip_gradients(model.parameters(), 1.0).item())
        set_schedule(optimizers, step, STEPS, CFG)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return norms


def save(file: Path, toy: Toy, optimizers: tuple, norms: list[float]) -> None:
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": toy.state_dict(), "optimizers": states, "norms": norms}, file)


def load(file: Path, toy: Toy, optimizers: tuple) -> None:
    checkpoint = torch.load(file, weights_only=True)
    toy.load_state_dict(checkpoint["model"])
    for optimizer, state in zip(optimizers, checkpoint["optimizers"]):
        optimizer.load_state_dict(state)


def run_rank(rank: int, folder: Path, body: Callable) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)  # no port to lose to another process
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=120))
    try:
        body(rank, folder)
        dist.barrier()  # leave together: a rank that ends while the other still hangs on it may abort
    finally:
        dist.destroy_process_group()


def on_ranks(folder: Path, body: Callable) -> None:
    mp.spawn(run_rank, args=(folder, body), nprocs=WORLD)


def train_and_save(rank: int, folder: Path, steps: range = range(STEPS), start: str | None = None) -> None:
    toy = Toy()
    optimizers = toy.optimizers()
    if start is not None:
        load(folder / start, toy, optimizers)
    norms = train(DistributedDataParallel(toy), optimizers, steps, rank, WORLD)
    optimizers[0].consolidate_state_dict()
    save(folder / f"rank{rank}.pt", toy, optimizers, norms)


def first_half(rank: int, folder: Path) -> None:
    train_and_save(rank, folder, range(STEPS // 2))


def second_half(rank: int, folder: Path) -> None:
    train_and_save(rank, folder, range(STEPS // 2, STEPS), start="half.pt")


def one_process(folder: Path, name: str, steps: range, start: Path | None = None) -> dict:
    toy = Toy()
    optimizers = toy.optimizers()
    if start is not None:
        load(start, toy, optimizers)
    norms = train(toy, optimizers, steps, 0, 1)
    save(folder / name, toy, optimizers, norms)
    return torch.load(folder / name, weights_only=True)


def assert_same(one: dict, two: dict, norms: slice = slice(None)) -> None:
    assert two["norms"] == pytest.approx(one["norms"][norms], abs=1e-6)
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(one["optimizers"], two["optimizers"]):
        assert ours["param_groups"] == theirs["param_groups"]
        assert ours["state"].keys() == theirs["state"].keys()
        for key, entry in ours["state"].items():
            for name, value in entry.items():
                torch.testing.assert_close(theirs["state"][key][name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("recipe")
def test_ranks_equal_one_process_with_as_many_micro_batches(tmp_path):
    straight = one_process(tmp_path, "one.pt", range(STEPS))
    on_ranks(tmp_path, train_and_save)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD)]
    assert_same(straight, ranks[0])
    for name, weight in ranks[0]["model"].items():  # replicas agree to the bit
        assert torch.equal(weight, ranks[1]["model"][name])
    for index, entry in ranks[0]["optimizers"][0]["state"].items():  # and each rank's state is whole
        assert all(torch.equal(value, ranks[1]["optimizers"][0]["state"][index][name]) for name, value in entry.items())


@pytest.mark.usefixtures("recipe")
def test_a_state_of_several_ranks_continues_in_one_process(tmp_path):
    straight = one_process(tmp_path, "one.pt", range(STEPS))
    on_ranks(tmp_path, first_half)
    resumed = one_process(tmp_path, "resumed.pt", range(STEPS // 2, STEPS), start=tmp_path / "rank0.pt")
    assert_same(straight, resumed, slice(STEPS // 2, None))


@pytest.mark.usefixtures("recipe")
def test_a_state_of_one_process_continues_on_several_ranks(tmp_path):
    straight = one_process(tmp_path, "one.pt", range(STEPS))
    one_process(tmp_path, "half.pt", range(STEPS // 2))
    on_ranks(tmp_path, second_half)
    assert_same(straight, torch.load(tmp_path / "rank0.pt", weights_only=True), slice(STEPS // 2, None))


def check_shares(rank: int, folder: Path) -> None:
    toy = Toy()
    optimizers = toy.optimizers()
    muon = optimizers[0]
    with pytest.raises(RuntimeError, match="call consolidate_state_dict"):
        muon.state_dict()
    muon.consolidate_state_dict()
    assert not any(entry["momentum_buffer"].any() for entry in muon.state_dict()["state"].values())

    train(DistributedDataParallel(toy), optimizers, range(1), rank, WORLD)
    with pytest.raises(RuntimeError, match="call consolidate_state_dict"):  # stale after a step
        muon.state_dict()
    numbers = {id(p): i for i, p in enumerate(muon.param_groups[0]["params"])}
    kept = {numbers[id(p)] for p in muon.state}
    shares: list[set[int]] = [set(), set()]
    dist.all_gather_object(shares, kept)
    assert shares[0] | shares[1] == set(numbers.values())
    assert not shares[0] & shares[1]

    muon.consolidate_state_dict()
    whole = muon.state_dict()
    assert whole["state"].keys() == set(numbers.values())
    fresh = toy.optimizers()[0]
    fresh.load_state_dict(whole)
    assert {numbers[id(p)] for p in fresh.state} == kept


def test_each_rank_keeps_momentum_for_its_own_matrices_only(tmp_path):
    on_ranks(tmp_path, check_shares)


def leave_one_matrix_out(rank: int, folder: Path) -> None:
    """The owner of the odd matrix has no gradient for it, and more ranks than matrices of that shape exist."""
    params = [nn.Parameter(torch.eye(4)), nn.Parameter(torch.eye(4)), nn.Parameter(torch.ones(6, 3))]
    muon = Muon(params, lr=0.1)
    for p in params[1:]:
        p.grad = torch.arange(p.numel(), dtype=torch.float32).view_as(p)
    muon.step()
    assert torch.equal(params[0], torch.eye(4))
    assert not torch.equal(params[1], torch.eye(4))
    assert not torch.equal(params[2], torch.ones(6, 3))
    everyones = [[torch.empty_like(p) for _ in range(WORLD)] for p in params]
    for gathered, p in zip(everyones, params):
        dist.all_gather(gathered, p.detach())
        assert torch.equal(*gathered)


def test_a_matrix_without_gradient_stays_and_the_ranks_agree(tmp_path):
    on_ranks(tmp_path, leave_one_matrix_out)
