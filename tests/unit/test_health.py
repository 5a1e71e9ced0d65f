"""Health figures say what their names promise, and training does not notice that they are taken."""

from pathlib import Path

import pytest
import torch

from nanochat_pl.lit.callbacks import over_ranks
from nanochat_pl.lit.health import is_logged, logit_max_frac, peak_memory_gib, update_ratio
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from tests.integration.conftest import BASE, SFT, Train, metrics, train, world

__all__ = ["train", "world"]  # fixtures

ROLES = ("matrix", "embedding", "unembedding")
EVERY_RUN = {f"health/update_ratio_{role}" for role in ROLES} | {
    "health/logit_max_frac",
    "health/padding_frac",
    "health/data_wait_frac",
    "health/peak_memory_gib",
}


@pytest.fixture
def model() -> GPT:
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_kv_head=2, n_embd=32, vocab_size=50, sequence_len=16))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def columns(folder: Path) -> set[str]:
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    return {name for name in header.split(",") if name.startswith("health/")}


def figures(folder: Path, name: str) -> list[float]:
    return [float(value) for value in metrics(folder, name).values()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


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


def test_training_is_the_same_bit_for_bit_with_and_without(train: Train, tmp_path: Path):
    config = [*BASE, "stage.num_steps=8", "stage.val_every_steps=4", "trainer.log_every_steps=3"]
    summary = train(*config, "run_name=with")
    train(*config, "run_name=without", "~callbacks.health")
    watched, plain = tmp_path / "base" / "with", tmp_path / "base" / "without"
    for name in ("train/loss", "train/grad_norm", "val/loss", "val/bpb", "tokens"):
        assert metrics(watched, name) == metrics(plain, name), name
    one, two = weights(watched), weights(plain)
    assert all(torch.equal(one[key], two[key]) for key in two)
    assert columns(plain) == set()
    assert columns(watched) == EVERY_RUN
    for name in EVERY_RUN:
        assert sorted(metrics(watched, name)) == [0, 3, 6, 7], name
    assert summary["health/logit_max_frac"] == figures(watched, "health/logit_max_frac")[-1]


def test_base_training_shows_plausible_figures(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=6")
    folder = tmp_path / "base" / "tiny"
    assert figures(folder, "health/update_ratio_unembedding")[0] == 1  # it begins at zero
    assert figures(folder, "health/update_ratio_embedding")[0] == 0  # so nothing comes back through it yet
    assert figures(folder, "health/logit_max_frac")[0] == pytest.approx(0, abs=1e-6)
    assert figures(folder, "health/logit_max_frac")[-1] > 0
    for role in ROLES:
        assert all(0 < ratio <= 1 for ratio in figures(folder, f"health/update_ratio_{role}")[1:]), role
    assert figures(folder, "health/padding_frac") == [0] * 6  # a stream of tokens has none
    assert all(0 <= share <= 1 for share in figures(folder, "health/data_wait_frac"))
    assert all(0 < gib < 1024 for gib in figures(folder, "health/peak_memory_gib"))


def test_the_update_ratio_of_a_run_is_that_of_its_checkpoints(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=3", "stage.checkpoint_every_steps=1", "stage.keep_checkpoints=3")
    folder = tmp_path / "base" / "tiny"
    before, after = (
        torch.load(folder / "checkpoints" / f"step_{step:06d}.ckpt", weights_only=True)["state_dict"] for step in (2, 3)
    )
    names = {"embedding": "wte", "unembedding": "lm_head", "matrix": ".h."}
    for role, part in names.items():
        keys = [key for key in after if part in key]
        expected = update_ratio([before[key].clone() for key in keys], [after[key] for key in keys])
        found = figures(folder, f"health/update_ratio_{role}")[2]
        assert found == pytest.approx(float(expected), rel=1e-5), role


def test_fine_tuning_counts_what_was_cut_and_what_was_padded(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2")
    start = [f"init_from={tmp_path / 'base' / 'tiny'}", "trainer.log_every_steps=4", "stage.num_steps=8"]
    summary = train(*SFT, *start, "stage.sequence_len=192")
    folder = tmp_path / "sft_scienceqa" / "tiny"
    cut, padded = figures(folder, "health/cut_frac"), figures(folder, "health/padding_frac")
    rows = (1, 4, 3)  # steps behind each of the rows of steps 0, 4 and 7
    assert sum(share * steps * 8 for share, steps in zip(cut, rows)) == pytest.approx(summary["conversations"]["cut"])
    assert 0 < summary["conversations"]["cut"] < 64
    assert all(0 < share < 1 for share in padded)


def test_a_resumed_run_counts_only_its_own_steps(train: Train, tmp_path: Path):
    train(*BASE, "stage.num_steps=2")
    start = [*SFT, f"init_from={tmp_path / 'base' / 'tiny'}", "stage.num_steps=6", "stage.sequence_len=96"]
    train(*start, "run_name=straight")
    train(*start, "run_name=halves", "trainer.stop_after_steps=3")
    train(*start, "run_name=halves", "resume=auto")
    straight, halves = (tmp_path / "sft_scienceqa" / name for name in ("straight", "halves"))
    for name in ("cut_frac", "padding_frac", "logit_max_frac", "update_ratio_matrix"):
        assert metrics(halves, f"health/{name}") == metrics(straight, f"health/{name}"), name
