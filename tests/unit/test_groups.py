"""Roles become optimizer groups, the schedule reaches all of them, clipping sees one global norm."""

import io

import pytest
import torch
from torch import nn

from nanochat_pl.optim.config import MATRIX_OPTIMIZERS, OptimConfig
from nanochat_pl.optim.groups import OPTIMIZERS, build_optimizers, check_roles, clip_gradients, set_schedule
from nanochat_pl.optim.muon import Muon
from nanochat_pl.optim.schedules import lr_multiplier, muon_momentum

WIDTH, VOCAB = 16, 40


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCAB, WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.wte(idx)
        return self.lm_head(x + self.down(self.up(x).relu()))

    def param_roles(self) -> dict[str, list[nn.Parameter]]:
        return {
            "matrix": [self.up.weight, self.down.weight],
            "embedding": [self.wte.weight],
            "unembedding": [self.lm_head.weight],
        }


@pytest.fixture
def model() -> Toy:
    torch.manual_seed(0)
    return Toy()


def backward(model: Toy, seed: int = 0) -> None:
    ids = torch.randint(VOCAB, (4, 9), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()


def test_each_role_is_one_named_group_with_its_learning_rate(model):
    cfg = OptimConfig(init_lr_frac=0.5, weight_decay=0.1, reference_width=4 * WIDTH)
    muon, adamw = build_optimizers(model.param_roles(), WIDTH, cfg)
    by_name = {group["name"]: group for optimizer in (muon, adamw) for group in optimizer.param_groups}
    assert isinstance(muon, Muon) and isinstance(adamw, torch.optim.AdamW)
    assert {name: group["initial_lr"] for name, group in by_name.items()} == pytest.approx(
        {"matrix": 0.02 * 0.5, "unembedding": 0.004 * 2 * 0.5, "embedding": 0.2 * 2 * 0.5}
    )
    assert all(group["lr"] == group["initial_lr"] for group in by_name.values())
    assert [group["name"] for group in adamw.param_groups] == ["unembedding", "embedding"]
    for name, params in model.param_roles().items():
        assert [id(p) for p in by_name[name]["params"]] == [id(p) for p in params]
    assert by_name["embedding"]["betas"] == (0.8, 0.95)
    assert by_name["embedding"]["eps"] == 1e-10
    assert by_name["embedding"]["weight_decay"] == 0.1
    assert by_name["embedding"]["fused"]


def test_muons_settings_come_from_the_config(model):
    cfg = OptimConfig(momentum_start=0.7, nesterov=False, ns_steps=3, ns_dtype="float32")
    group = build_optimizers(model.param_roles(), WIDTH, cfg)[0].param_groups[0]
    assert (group["momentum"], group["nesterov"], group["ns_steps"], group["ns_dtype"]) == (0.7, False, 3, "float32")


def test_fused_adamw_equals_the_plain_one(model):
    def trained(fused: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        toy = Toy()
        _, adamw = build_optimizers(toy.param_roles(), WIDTH, OptimConfig())
        if not fused:
            adamw = torch.optim.AdamW(adamw.param_groups, fused=False)
            for group in adamw.param_groups:
                group["fused"] = False
        for seed in range(3):
            toy.zero_grad()
            backward(toy, seed)
            adamw.step()
        return list(toy.parameters())

    for a, b in zip(trained(True), trained(False)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_schedule_reaches_every_group(model):
    cfg = OptimConfig(warmup_frac=0.1, warmdown_frac=0.5, momentum_ramp_steps=10)
    muon, adamw = build_optimizers(model.param_roles(), WIDTH, cfg)
    for step in (0, 7, 19, 12, 7):  # any order: nothing is remembered
        multiplier = set_schedule((muon, adamw), step, 20, cfg)
        assert multiplier == lr_multiplier(step, 20, cfg)
        for group in muon.param_groups + adamw.param_groups:
            assert group["lr"] == group["initial_lr"] * multiplier
        assert muon.param_groups[0]["momentum"] == muon_momentum(step, cfg)


def test_both_states_load_with_weights_only(model):
    cfg = OptimConfig()
    optimizers = build_optimizers(model.param_roles(), WIDTH, cfg)
    backward(model)
    set_schedule(optimizers, 0, 10, cfg)
    for optimizer in optimizers:
        optimizer.step()
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        optimizer.load_state_dict(torch.load(file, weights_only=True))


def test_roles_that_partition_the_parameters_pass(model):
    check_roles(model.param_roles(), model.named_parameters())


def test_a_role_that_no_optimizer_knows_is_refused(model):
    roles = {**model.param_roles(), "gate": [nn.Parameter(torch.zeros(2, 2))]}
    with pytest.raises(ValueError, match="'gate' has no optimizer; known roles are matrix, unembedding, embedding"):
        build_optimizers(roles, WIDTH, OptimConfig())


def test_a_role_without_parameters_is_left_out_and_so_is_an_optimizer_without_roles(model):
    roles = {**model.param_roles(), "embedding": []}
    assert [group["name"] for group in build_optimizers(roles, WIDTH, OptimConfig())[1].param_groups] == ["unembedding"]
    (only,) = build_optimizers({"embedding": [model.wte.weight]}, WIDTH, OptimConfig())
    assert isinstance(only, torch.optim.AdamW)


def test_a_parameter_in_two_roles_is_refused(model):
    roles = model.param_roles()
    roles["matrix"].append(model.lm_head.weight)
    with pytest.raises(ValueError, match="in two roles, 'matrix' and 'unembedding'"):
        build_optimizers(roles, WIDTH, OptimConfig())


def test_a_parameter_twice_in_one_role_is_refused(model):
    roles = model.param_roles()
    roles["matrix"].append(model.up.weight)
    with pytest.raises(ValueError, match="in two roles, 'matrix' and 'matrix'"):
        build_optimizers(roles, WIDTH, OptimConfig())


def test_a_parameter_without_a_role_is_named(model):
    model.extra = nn.Linear(WIDTH, WIDTH, bias=False)
    with pytest.raises(ValueError, match=r"extra\.weight: no role"):
        check_roles(model.param_roles(), model.named_parameters())


def test_a_parameter_of_another_model_is_refused(model):
    roles = model.param_roles()
    roles["matrix"].append(nn.Parameter(torch.zeros(3, 5)))
    with pytest.raises(ValueError, match=r"shape \(3, 5\) that the model does not list"):
        check_roles(roles, model.named_parameters())


def gradient_norm(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()


@pytest.mark.parametrize("max_norm", [None, 1e9])
def test_a_gradient_below_the_norm_is_measured_and_left_alone(model, max_norm):
    backward(model)
    before = [p.grad.clone() for p in model.parameters()]
    norm = clip_gradients(model.parameters(), max_norm)
    torch.testing.assert_close(norm, gradient_norm(model))
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), before))


def test_a_gradient_above_the_norm_is_scaled_down_to_it_and_keeps_its_direction(model):
    backward(model)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = clip_gradients(model.parameters(), 0.25)
    assert norm > 0.25
    torch.testing.assert_close(gradient_norm(model), torch.tensor(0.25), atol=1e-5, rtol=0)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, before[name] * (0.25 / norm), atol=1e-6, rtol=1e-4)


def test_parameters_without_gradient_are_passed_over(model):
    backward(model)
    model.wte.weight.grad = None
    expected = gradient_norm(model)
    torch.testing.assert_close(clip_gradients(model.parameters(), 1e9), expected)
    model.zero_grad()
    assert clip_gradients(model.parameters(), 1.0) == 0


def test_the_config_names_the_optimizers_that_there_are():
    assert set(MATRIX_OPTIMIZERS) == set(OPTIMIZERS)


def test_adamw_can_take_the_matrices_too(model):
    cfg = OptimConfig(matrix_optimizer="adamw", matrix_lr=0.01, reference_width=4 * WIDTH)
    (adamw,) = build_optimizers(model.param_roles(), WIDTH, cfg)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [group["name"] for group in adamw.param_groups] == ["matrix", "unembedding", "embedding"]
    assert adamw.param_groups[0]["lr"] == pytest.approx(0.02)  # at a quarter of the width that the rates are meant for
    backward(model)
    before = model.up.weight.clone()
    adamw.step()
    assert not torch.equal(before, model.up.weight)


def test_a_run_is_not_resumed_with_another_optimizer_whose_state_it_cannot_have(tmp_path):
    from nanochat_pl.config.checks import check_optimizer

    muon, adamw = ({"optim": {"matrix_optimizer": name}} for name in ("muon", "adamw"))
    with pytest.raises(ValueError, match=r"trained with optim\.matrix_optimizer=muon, .* resume=null init_from="):
        check_optimizer(muon, adamw, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"trained with optim\.matrix_optimizer=muon"):
        check_optimizer({"optim": {}}, adamw, tmp_path / "last.ckpt")  # saved before there was a choice
    check_optimizer({}, muon, tmp_path / "last.ckpt")
    check_optimizer(adamw, adamw, tmp_path / "last.ckpt")
