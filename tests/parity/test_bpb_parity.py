"""Bits per byte of a recorded model on recorded batches equals nanochat's."""

import json
from math import inf

import pytest
import torch

from nanochat_pl.data.batch import Batch
from nanochat_pl.eval.bpb import evaluate_bpb
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT


@pytest.fixture(scope="module")
def recorded(reference_root):
    folder = reference_root / "base" / "base_checkpoints" / "d4"
    meta = json.loads((folder / "meta_000000.json").read_text())
    model = GPT(GPTConfig(**meta["model_config"]))
    model.load_state_dict(torch.load(folder / "model_000000.pt", weights_only=True))
    token_bytes = torch.load(reference_root / "base" / "tokenizer" / "token_bytes.pt", weights_only=True)
    return model, token_bytes, json.loads((reference_root / "bpb.json").read_text())


@pytest.mark.parametrize(
    ("targets", "num_batches", "figure"),
    [("y", 3, "bpb"), ("y_masked", 3, "bpb_masked"), ("y", 2, "bpb_two_steps")],
)
def test_bpb_equals_the_recorded_figure(recorded, targets, num_batches, figure):
    model, token_bytes, reference = recorded
    batches = [
        Batch(inputs=torch.tensor([x]), targets=torch.tensor([y]))
        for x, y in zip(reference["x"][:num_batches], reference[targets][:num_batches])
    ]
    assert evaluate_bpb(model, batches, token_bytes) == pytest.approx(reference[figure], abs=1e-5)


def test_all_masked_is_infinite_as_recorded(recorded):
    model, token_bytes, reference = recorded
    inputs = torch.tensor(reference["x"])
    assert float(reference["bpb_all_masked"]) == inf
    assert evaluate_bpb(model, [Batch(inputs=inputs, targets=torch.full_like(inputs, -1))], token_bytes) == inf
