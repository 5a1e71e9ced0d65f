"""Bits per byte: what counts, and that it is the same number however it is cut."""

from dataclasses import replace
from math import inf, isnan, log

import numpy as np
import pytest
import torch

from nanochat_pl.data.batch import Batch
from nanochat_pl.eval.bpb import BitsPerByte, evaluate_bpb, evaluate_loss
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT

VOCAB = 40


@pytest.fixture(scope="module")
def model():
    model = GPT(GPTConfig(sequence_len=16, vocab_size=VOCAB, n_layer=2, n_head=2, n_kv_head=2, n_embd=16))
    model.init_weights(torch.Generator().manual_seed(0))
    for parameter in model.parameters():  # the initial one does not look at its context
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def token_bytes():
    return np.arange(VOCAB, dtype=np.int32) % 5  # every fifth token spells nothing


def batch(seed, micro_batches=2):
    draw = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randint(0, VOCAB, (2, micro_batches, 3, 8), generator=draw)
    return Batch(inputs=inputs, targets=targets)


def test_a_model_without_knowledge_needs_log2_of_the_vocabulary_per_token(token_bytes):
    ignorant = GPT(GPTConfig(sequence_len=16, vocab_size=VOCAB, n_layer=1, n_head=1, n_kv_head=1, n_embd=8))
    ignorant.init_weights()
    all_one = np.ones(VOCAB, dtype=np.int32)
    assert evaluate_bpb(ignorant, [batch(0)], all_one) == pytest.approx(log(VOCAB) / log(2), rel=1e-6)


def test_bpb_equals_its_definition(model, token_bytes):
    one = batch(1)
    spelled = torch.as_tensor(token_bytes)[one.targets].double()
    with torch.no_grad():
        losses = torch.stack([model(x, y, reduction="none") for x, y in zip(one.inputs, one.targets)]).double()
    expected = (losses * (spelled > 0)).sum() / (log(2) * spelled.sum())
    assert evaluate_bpb(model, [one], token_bytes) == pytest.approx(expected.item(), rel=1e-6)


def test_bpb_does_not_depend_on_how_rows_are_cut_into_batches(model, token_bytes):
    one = batch(2, micro_batches=4)
    singles = [Batch(inputs=one.inputs[a : a + 1], targets=one.targets[a : a + 1]) for a in range(4)]
    assert evaluate_bpb(model, [one], token_bytes) == pytest.approx(evaluate_bpb(model, singles, token_bytes), rel=1e-6)


def test_documents_of_packed_rows_do_not_see_each_other(model, token_bytes):
    one = batch(3, micro_batches=1)
    restarted = torch.arange(4).repeat(2).expand(1, 3, 8)
    halves = Batch(inputs=one.inputs.reshape(1, 6, 4), targets=one.targets.reshape(1, 6, 4))
    packed = evaluate_bpb(model, [replace(one, positions=restarted)], token_bytes)
    assert packed == pytest.approx(evaluate_bpb(model, [halves], token_bytes), rel=1e-5)
    assert packed != pytest.approx(evaluate_bpb(model, [one], token_bytes), rel=1e-5)


def test_tokens_without_text_and_ignored_targets_count_on_neither_side():
    metric = BitsPerByte(torch.tensor([0, 1, 3]))
    metric.update(torch.tensor([inf, 1.0, 2.0, 99.0]), torch.tensor([0, 1, 2, -1]))
    assert metric.compute().item() == pytest.approx(3.0 / (4 * log(2)))


def test_nothing_counted_is_infinite(model, token_bytes):
    one = batch(4)
    assert evaluate_bpb(model, [replace(one, targets=torch.full_like(one.targets, -1))], token_bytes) == inf


def test_mean_loss_weighs_every_supervised_token_the_same(model, token_bytes):
    one = batch(5)
    one.targets[0, :, 3:] = -1  # the first micro-batch has fewer
    flat = [tensor.reshape(-1, 8) for tensor in (one.inputs, one.targets)]
    with torch.no_grad():
        expected = model(*flat).item()
    loss, bpb = evaluate_loss(model, [one], token_bytes, "cpu")
    assert loss == pytest.approx(expected, rel=1e-6)
    assert bpb == evaluate_bpb(model, [one], token_bytes)
    assert evaluate_loss(model.forward, [one], None, "cpu") == (loss, None)


def test_a_broken_model_has_no_mean_loss(token_bytes):
    nan = GPT(GPTConfig(sequence_len=16, vocab_size=VOCAB, n_layer=1, n_head=1, n_kv_head=1, n_embd=8))
    loss, bpb = evaluate_loss(nan, [batch(6)], token_bytes, "cpu")
    assert isnan(loss) and isnan(bpb)


def test_no_supervised_token_is_infinite(model):
    one = batch(7)
    assert evaluate_loss(model, [replace(one, targets=torch.full_like(one.targets, -1))], None, "cpu") == (inf, None)


def test_a_foreign_tokenizer_is_refused(model):
    with pytest.raises(ValueError, match="two tokenizers"):
        evaluate_bpb(model, [batch(0)], np.ones(VOCAB + 1, dtype=np.int32))


def _bpb_of_rank(rank, world, file, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    metric = BitsPerByte(torch.tensor([0, 1, 2]))
    # rank 1 has one batch more, as where batches do not divide
    for losses in ([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]])[rank]:
        metric.update(torch.tensor(losses), torch.tensor([1, 2]))
    results[rank] = metric.compute().item()
    torch.distributed.destroy_process_group()


@pytest.mark.dist
def test_ranks_agree_on_the_figure_of_all_batches(tmp_path):
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_bpb_of_rank, args=(2, tmp_path / "rendezvous", results), nprocs=2)
        assert dict(results) == {0: pytest.approx(21 / (9 * log(2))), 1: pytest.approx(21 / (9 * log(2)))}
