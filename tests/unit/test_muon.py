"""Muon in one process: the rule, its state, and the sharing-out of the work."""

import copy
import io

import pytest
import torch
from torch.nn import Parameter

from nanochat_pl.optim.muon import MAX_BATCH_ELEMENTS, Muon, assign_owners
from nanochat_pl.optim.orthogonalize import newton_schulz

SHAPES = [(16, 16), (64, 16), (16, 64), (16, 16), (64, 16)]


def make_parameters(seed: int = 0) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(params: list[Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def train(params: list[Parameter], optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        set_gradients(params, seed)
        optimizer.step()


@pytest.mark.parametrize("nesterov", [True, False])
def test_two_steps_follow_the_rule_written_out(nesterov):
    lr, mu = 0.1, 0.8
    params = make_parameters()
    expected = [p.detach().clone() for p in params]
    momenta = [torch.zeros_like(p) for p in params]
    optimizer = Muon(params, lr=lr, momentum=mu, nesterov=nesterov, ns_dtype="float32")
    for seed in (1, 2):
        set_gradients(params, seed)
        for p, weight, momentum in zip(params, expected, momenta):
            momentum += (1 - mu) * (p.grad - momentum)
            direction = (1 - mu) * p.grad + mu * momentum if nesterov else momentum
            rows, cols = p.shape
            weight -= lr * max(1, rows / cols) ** 0.5 * newton_schulz(direction, 5, torch.float32)
        optimizer.step()
    for p, weight, momentum in zip(params, expected, momenta):
        torch.testing.assert_close(p.detach(), weight, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], momentum)


def test_it_agrees_with_torch_optim_muon():
    """The common subset: no weight decay, bfloat16 iterations, the rate scaled by the root of rows / cols."""
    ours, theirs = make_parameters(), make_parameters()
    train(ours, Muon(ours, lr=0.02, momentum=0.9, ns_dtype="bfloat16"), range(4))
    train(
        theirs,
        torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.0, nesterov=True, adjust_lr_fn="original"),
        range(4),
    )
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=4e-3, rtol=0)
        assert (a - b).abs().mean() < 4e-4


def test_bfloat16_iterations_stay_near_float32():
    fine, coarse = make_parameters(), make_parameters()
    train(fine, Muon(fine, ns_dtype="float32"), range(3))
    train(coarse, Muon(coarse, ns_dtype="bfloat16"), range(3))
    for a, b in zip(fine, coarse):
        torch.testing.assert_close(a, b, atol=4e-3, rtol=0)


def test_gradients_are_left_as_they_are():
    params = make_parameters()
    set_gradients(params, 1)
    before = [p.grad.clone() for p in params]
    Muon(params).step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(params, before))


def test_a_matrix_without_gradient_stays_and_has_no_state():
    params = make_parameters()
    set_gradients(params, 1)
    params[0].grad = None
    before = params[0].detach().clone()
    optimizer = Muon(params)
    optimizer.step()
    assert torch.equal(params[0], before)
    assert params[0] not in optimizer.state
    assert params[3] in optimizer.state


def test_a_zero_gradient_moves_nothing():
    params = make_parameters()
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    Muon(params, lr=1.0).step()
    assert all(torch.equal(p, weight) for p, weight in zip(params, before))


def test_cutting_a_shape_into_several_batches_changes_nothing(monkeypatch):
    whole, cut = make_parameters(), make_parameters()
    train(whole, Muon(whole, ns_dtype="float32"), range(2))
    monkeypatch.setattr("nanochat_pl.optim.muon.MAX_BATCH_ELEMENTS", 1)
    train(cut, Muon(cut, ns_dtype="float32"), range(2))
    assert sum(p.numel() for p in whole) < MAX_BATCH_ELEMENTS
    for a, b in zip(whole, cut):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_each_group_has_its_own_settings():
    params = make_parameters()
    before = [p.detach().clone() for p in params]
    optimizer = Muon([{"params": params[:3], "lr": 0.0}, {"params": params[3:], "lr": 0.1}])
    train(params, optimizer, range(1))
    assert [torch.equal(p, weight) for p, weight in zip(params, before)] == [True, True, True, False, False]


def test_saved_and_loaded_is_as_if_never_stopped():
    straight = make_parameters()
    train(straight, Muon(straight), range(6))

    params = make_parameters()
    optimizer = Muon(params)
    train(params, optimizer, range(3))
    file = io.BytesIO()
    optimizer.consolidate_state_dict()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = Muon(params, lr=123.0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(params, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(params, straight))


def test_the_state_has_torch_optim_muons_layout():
    params = make_parameters()
    optimizer = Muon(params)
    train(params, optimizer, range(1))
    state = optimizer.state_dict()["state"]
    assert {i: list(entry) for i, entry in state.items()} == {i: ["momentum_buffer"] for i in range(len(SHAPES))}
    assert [tuple(state[i]["momentum_buffer"].shape) for i in range(len(SHAPES))] == SHAPES


def test_a_copy_trains_alike():
    params = make_parameters()
    optimizer = Muon(params, ns_dtype="float32")
    train(params, optimizer, range(2))
    copied_params, copied = copy.deepcopy((params, optimizer))
    train(params, optimizer, range(2, 4))
    train(copied_params, copied, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(params, copied_params))


def test_a_closure_is_called_with_gradients_and_its_loss_returned():
    (param,) = params = [Parameter(torch.eye(4))]
    optimizer = Muon(params)

    def closure() -> torch.Tensor:
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert not torch.equal(param, torch.eye(4))


@pytest.mark.parametrize("shape", [(4,), (), (2, 3, 4)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="takes matrices only"):
        Muon([Parameter(torch.zeros(shape))])


def test_an_unknown_ns_dtype_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match=r"set optim\.ns_dtype"):
        Muon(make_parameters(), ns_dtype="half")


GPT_SHAPES = tuple([(256, 256)] * 16 + [(1024, 256), (256, 1024)] * 4)


def cost(shape: tuple[int, int]) -> int:
    short, long = sorted(shape)
    return short**2 * (2 * long + short)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 64])
def test_no_rank_has_more_to_do_than_a_fair_share_and_one_matrix(world_size):
    owners = assign_owners(GPT_SHAPES, world_size)
    load = [sum(cost(s) for s, owner in zip(GPT_SHAPES, owners) if owner == rank) for rank in range(world_size)]
    assert sum(load) == sum(map(cost, GPT_SHAPES))
    assert max(load) <= sum(load) / world_size + max(map(cost, GPT_SHAPES))


def test_a_depth_four_model_divides_evenly_by_two():
    owners = assign_owners(GPT_SHAPES, 2)
    assert sum(cost(s) * (1 if owner else -1) for s, owner in zip(GPT_SHAPES, owners)) == 0


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_each_shape_is_spread_evenly(world_size):
    """What the ranks exchange is padded to the rank that owns most of a shape."""
    owners = assign_owners(GPT_SHAPES, world_size)
    for shape in set(GPT_SHAPES):
        counts = [sum(s == shape and o == rank for s, o in zip(GPT_SHAPES, owners)) for rank in range(world_size)]
        assert max(counts) - min(counts) <= 3
        assert max(counts) <= -(-sum(counts) // world_size) + 1


def one_step(gradient: torch.Tensor, **settings) -> torch.Tensor:
    """Return what one step of rate 1 takes off a matrix of ones."""
    weight = torch.nn.Parameter(torch.ones_like(gradient))
    weight.grad = gradient
    Muon([weight], lr=1.0, ns_dtype="float32", **settings).step()
    return 1 - weight.detach()


def test_a_snapped_update_has_the_norm_of_an_orthogonal_matrix():
    gradient = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert torch.linalg.vector_norm(one_step(gradient, frobenius_snap=True)).item() == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_evened_out_rows_or_columns_keep_the_norm_of_the_update(shape: tuple[int, int]):
    gradient = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    plain, even = one_step(gradient), one_step(gradient, second_moment_beta=0.9)
    assert torch.linalg.vector_norm(even).item() == pytest.approx(torch.linalg.vector_norm(plain).item(), rel=1e-5)
    norms = torch.linalg.vector_norm(even, dim=1 if shape[0] >= shape[1] else 0)
    torch.testing.assert_close(norms, norms.mean().expand_as(norms))


def test_cautious_decay_shrinks_only_weights_that_the_update_shrinks():
    gradient = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    plain = one_step(gradient)
    torch.testing.assert_close(one_step(gradient, weight_decay=0.1), plain + 0.1)
    torch.testing.assert_close(one_step(gradient, weight_decay=0.1, cautious=True), plain + 0.1 * (plain >= 0))
