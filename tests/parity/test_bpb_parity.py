"""Bits per byte of a recorded model on recorded batches equals nanochat's."""

import json
from math import inf

import pytest
import torch

from nanochat_pl.data.batch import Batch
from nanochat_pl.eval.bpb import evaluate_bpb
from tests.parity.reference import load, main_weights


@pytest.fixture(scope="module")
def recorded(reference_root):
    model = load(main_weights(reference_root))
    token_bytes = torch.load(reference_root / "base" / "tokenizer" / "token_bytes.pt", weights_only=True)
    return model, token_bytes, json.loads((reference_root / "bpb.json").read_text())


@pytest.mark.parametrize(
    ("targets", "num_batches", "figure"),
    [("y", None, "bpb"), ("y_masked", None, "bpb_masked"), ("y", 2, "bpb_two_steps")],
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
