"""Two seeds: `seed` draws initial weights and samples, `data.order_seed` the order of the data, neither the other."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat_pl.config.checks import model_config
from nanochat_pl.config.schema import TrainConfig
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.data import build_data, prepare_data
from nanochat_pl.training.run import build_module
from nanochat_pl.training.start import Start
from tests.integration.conftest import BASE, SFT, TINY, Train, compose, metrics

STAGES = {
    "base": BASE,
    "base, best fit": [*BASE, "data.packing=bestfit_split"],
    "mid": [*TINY, "stage=mid", "stage.total_batch_tokens=512", "stage.val_tokens=512", "stage.num_steps=4"],
    "sft": [*SFT, "stage=sft", "stage.num_steps=4"],
    "rl": [*TINY, "stage=rl", "mixture=microworld_rl", "stage.sequence_len=256", "stage.num_steps=4",
           "rl.prompts_per_step=8", "rl.val_questions=8"],
}  # fmt: skip


class Run:
    """What a run of two seeds would begin with and read, without training it."""

    def __init__(self, world: Path, stage: str, seed: int, order_seed: int | None):
        order = "null" if order_seed is None else order_seed
        self.cfg: TrainConfig = compose(
            [*STAGES[stage], f"data.root={world / 'data'}", f"seed={seed}", f"data.order_seed={order}"]
        )
        tokenizer = Tokenizer.load(world / "tokenizer")
        config = model_config(self.cfg, tokenizer.vocab_size)
        self.data = build_data(self.cfg, tokenizer, config, prepare_data(self.cfg))
        self.module = build_module(self.cfg, {}, Start(config, tokenizer, None, ""), self.data)

    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.module.model.parameters()])

    def batches(self) -> list[Any]:
        """The tokens of some steps, or the questions where a stage has these."""
        taken = itertools.islice(self.data.train_dataloader(), 6)
        return [batch.questions if self.cfg.stage.name == "rl" else batch.inputs.tolist() for batch in taken]

    def texts(self) -> list[str]:
        """What the questions of reinforcement learning ask: their numbers are of a mixture in its own order."""
        data: Any = self.data
        return [str(data.train.rows[index]) for index in itertools.chain(*self.batches())]

    def validation(self) -> Any:
        data: Any = self.data
        if self.cfg.stage.name == "rl":
            return [str(data.val.rows[index]) for index in data.val.usable]
        return [batch.inputs.tolist() for batch in data.val_batches()]


@pytest.mark.parametrize("stage", STAGES)
def test_each_seed_varies_its_own_noise_alone(world: Path, stage: str):
    first, other_order, other_start = (Run(world, stage, *seeds) for seeds in ((1, 5), (1, 6), (2, 5)))
    read = Run.texts if stage == "rl" else Run.batches
    assert torch.equal(first.weights(), other_order.weights())
    assert read(first) != read(other_order)
    assert not torch.equal(first.weights(), other_start.weights())
    assert read(first) == read(other_start)
    assert first.validation() == other_order.validation() == other_start.validation()
    assert first.data.num_steps == other_order.data.num_steps == other_start.data.num_steps


@pytest.mark.parametrize("stage", STAGES)
def test_without_a_seed_of_its_own_the_order_follows_the_other_or_the_files(world: Path, stage: str):
    first, second = Run(world, stage, 1, None), Run(world, stage, 2, None)
    assert first.validation() == second.validation()
    assert (first.batches() == second.batches()) == stage.startswith("base")
    if not stage.startswith("base"):
        same = Run(world, stage, 2, 1)
        assert first.batches() == same.batches()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_run_with_an_order_of_its_own_resumes_bit_for_bit_and_with_no_other_order(train: Train, tmp_path: Path):
    run = [*BASE, "stage.num_steps=12", "data.order_seed=3", "data.packing=bestfit_split"]
    train(*run)
    train(*run, "run_name=halves", "trainer.stop_after_steps=5")
    with pytest.raises(ValueError, match=r"made with data\.order_seed=3, not 4; set it back"):
        train(*run, "run_name=halves", "data.order_seed=4", "resume=auto")
    with pytest.raises(ValueError, match=r"made with data\.order_seed=3, not null"):
        train(*run, "run_name=halves", "data.order_seed=null", "resume=auto")
    train(*run, "run_name=halves", "resume=auto")
    straight, halves = tmp_path / "base" / "tiny", tmp_path / "base" / "halves"
    assert metrics(halves, "train/loss") == metrics(straight, "train/loss")
    assert all(torch.equal(tensor, weights(halves)[name]) for name, tensor in weights(straight).items())
    assert "order_seed: 3" in (straight / "config.yaml").read_text()
