"""Health figures say what their names promise; that runs do not notice them is tested in tests/integration."""

from types import SimpleNamespace

import pytest
import torch

from nanochat_pl.data.batch import Batch
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.training.callbacks import is_logged, over_ranks
from nanochat_pl.training.callbacks.diagnostics import (
    Health,
    learned_scalars,
    logit_max_frac,
    peak_memory_gib,
    update_ratio,
)
from tests.unit.tricks import TRICKS


@pytest.fixture
def model() -> GPT:
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_kv_head=2, n_embd=32, vocab_size=50, sequence_len=16))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def test_every_single_number_that_a_trick_learns_is_logged_under_its_name_and_layer(model: GPT):
    assert learned_scalars(model) == {}, "the classic model has none"
    for name, trick in TRICKS.items():
        new = GPT(GPTConfig(n_layer=3, n_head=2, n_kv_head=2, n_embd=32, vocab_size=50, sequence_len=16, **trick))
        new.init_weights()
        numbers = {key: p for key, p in new.named_parameters() if "lambda" in key}
        expected = {}
        for key, p in numbers.items():
            expected |= {f"scalar/{key}" + (f"_{i}" if len(p) > 1 else ""): x for i, x in enumerate(p.tolist())}
        assert learned_scalars(new) == expected, name
    assert len(expected) == 3 + 3 + 1 + 1
    assert learned_scalars(new)["scalar/resid_lambdas_2"] == pytest.approx(1.05)


def test_an_update_ratio_is_one_rms_over_another():
    generator = torch.Generator().manual_seed(0)
    before = [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,))]
    after = [tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for tensor in before]
    flat = [torch.cat([tensor.flatten() for tensor in tensors]).double() for tensors in (before, after)]
    expected = (flat[1] - flat[0]).square().mean().sqrt() / flat[1].square().mean().sqrt()
    assert float(update_ratio(before, after)) == pytest.approx(float(expected), rel=1e-6)


def test_weights_that_begin_at_zero_have_a_ratio_of_one_and_nothing_at_all_of_zero():
    zero = torch.zeros(3, 2)
    assert float(update_ratio([zero.clone()], [torch.full((3, 2), 0.5)])) == 1
    assert float(update_ratio([zero.clone()], [zero])) == 0


def test_the_logit_maximum_is_of_softcapped_logits_and_seldom_above_one(model: GPT):
    tokens = torch.arange(16)[None]
    assert float(logit_max_frac(model, tokens)) == pytest.approx(0, abs=1e-6)  # the output layer begins at zero
    with torch.no_grad():
        model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(1))
        expected = float(model(tokens).abs().max()) / model.config.softcap
    found = logit_max_frac(model, tokens)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert 0 < float(found) < 1
    assert not found.requires_grad
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    assert float(logit_max_frac(model, tokens)) == pytest.approx(1)


def test_a_negative_logit_counts_by_its_size(model: GPT):
    with torch.no_grad():
        model.lm_head.weight[0] = -model.hidden(torch.tensor([[3]]))[0, 0]
    assert float(logit_max_frac(model, torch.tensor([[3]]))) > 0.5


def test_peak_memory_only_grows():
    before = peak_memory_gib(torch.device("cpu"))
    block = torch.ones(2**26)
    after = peak_memory_gib(torch.device("cpu"))
    assert 0 < before <= after
    assert after > block.numel() * 4 / 2**30


def test_logged_are_every_nth_step_and_the_last():
    assert [step for step in range(12) if is_logged(step, 5, 12)] == [0, 5, 10, 11]


def test_the_cut_share_of_packed_rows_is_of_the_tokens_read_since_the_last_row():
    health = Health()
    trainer = SimpleNamespace(global_step=0, max_steps=9)
    module = SimpleNamespace(log_every_steps=1, device=torch.device("cpu"))
    rows = torch.zeros(2, 3, 7, dtype=torch.int64)
    for cropped, expected in (([12, 4], 16 / (2 * 6 * 8 + 16)), ([0], 0), ([None], None)):
        for count in cropped:
            health.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]
            health.on_train_batch_start(trainer, module, Batch(rows, rows, tokens=42, cropped=count), 0)  # type: ignore[arg-type]
        assert health.step_metrics()[0].get("health/cut_frac") == expected


class Ranks:
    """Stands in for a trainer of two ranks whose other rank holds twice our figures."""

    world_size = 2

    @property
    def strategy(self) -> "Ranks":
        return self

    def reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        other = 2 * tensor
        return (tensor + other) / 2 if reduce_op == "mean" else torch.maximum(tensor, other)


def test_figures_of_ranks_are_averaged_or_the_largest_taken_whatever_their_kind():
    means = {"a": torch.tensor(1.0), "b": 2, "c": torch.tensor(3.0, dtype=torch.float64)}
    found = over_ranks(Ranks(), torch.device("cpu"), means, {"d": 5.0, "e": torch.tensor(6.0)})  # type: ignore[arg-type]
    assert found == {"a": 1.5, "b": 3, "c": 4.5, "d": 10, "e": 12}
    assert list(found) == list("abcde")
    assert over_ranks(Ranks(), torch.device("cpu"), means, {}) == {"a": 1.5, "b": 3, "c": 4.5}  # type: ignore[arg-type]
