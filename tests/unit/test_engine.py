"""Laws of generation: what a prompt yields is its own affair."""

import pytest
import torch

from nanochat_pl.engine import Engine, sample
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17], [4], [18, 19, 20, 21, 22]]


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(GPTConfig(sequence_len=24, vocab_size=61, n_layer=2, n_head=4, n_kv_head=2, n_embd=32))
    generator = torch.Generator().manual_seed(3)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


@torch.inference_mode()
def naive_greedy(model: GPT, prompt: list[int], max_new_tokens: int, stop_ids: set[int]) -> list[int]:
    """Read the whole row anew for every token."""
    new: list[int] = []
    while len(new) < max_new_tokens and len(prompt) + len(new) < model.config.sequence_len:
        token = int(model(torch.tensor([prompt + new]))[0, -1].argmax())
        if token in stop_ids:
            break
        new.append(token)
    return new


def common_stop(model: GPT) -> set[int]:
    """A token that some prompts reach early and others late or never."""
    rows = [naive_greedy(model, prompt, 12, set()) for prompt in PROMPTS]
    return {rows[0][4]}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_greedy_equals_reading_each_row_anew(model, batch_size):
    stop_ids = common_stop(model)
    expected = [naive_greedy(model, prompt, 12, stop_ids) for prompt in PROMPTS]
    assert len({len(row) for row in expected}) > 1, "rows must end at different times for this test to mean anything"
    assert Engine(model, stop_ids).generate(PROMPTS, 12, batch_size=batch_size) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_sampling_does_not_depend_on_the_batch(model, batch_size):
    engine = Engine(model, common_stop(model))
    together = engine.generate(PROMPTS, 10, temperature=1.0, top_k=20, seed=5)
    assert engine.generate(PROMPTS, 10, temperature=1.0, top_k=20, seed=5, batch_size=batch_size) == together
    assert engine.generate(PROMPTS[:2], 10, temperature=1.0, top_k=20, seed=5) == together[:2]
    assert engine.generate(PROMPTS, 10, temperature=1.0, top_k=20, seed=6) != together


def test_equal_prompts_draw_different_samples(model):
    rows = Engine(model, ()).generate([[4]] * 8, 10, temperature=1.0)
    assert len({tuple(row) for row in rows}) == 8


def test_top_1_is_greedy(model):
    engine = Engine(model, ())
    assert engine.generate(PROMPTS, 8, temperature=1.0, top_k=1) == engine.generate(PROMPTS, 8)


def test_results_are_new_tokens_without_the_stop_token(model):
    [first] = Engine(model, ()).generate([PROMPTS[0]], 6)
    stop = first[3]
    assert Engine(model, {stop}).generate([PROMPTS[0]], 6) == [first[: first.index(stop)]]


def test_max_new_tokens_is_respected(model):
    for n in (0, 1, 5):
        assert [len(row) for row in Engine(model, ()).generate(PROMPTS, n)] == [n] * len(PROMPTS)
    assert Engine(model, ()).generate([], 5) == []


def test_a_row_stops_when_the_context_is_full(model):
    rows = Engine(model, ()).generate([[1] * 23, [1] * 20, [1]], 100)
    assert [len(row) for row in rows] == [1, 4, 23]


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[1], [1] * 24], {}, r"prompt 1 has 24 tokens.*sequence_len=24.*cut it to 23"),
        ([[]], {}, "prompt 0 is empty"),
        ([[1, 61]], {}, "prompt 0 holds ids from 1 to 61"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
        ([[1]], {"top_k": 0}, "top_k=0"),
        ([[1]], {"batch_size": 0}, "batch_size=0"),
        ([[1]], {"max_new_tokens": -1}, "max_new_tokens=-1"),
    ],
)
def test_what_cannot_be_generated_is_refused_with_the_remedy(model, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, ()).generate(prompts, **{"max_new_tokens": 3} | settings)


def test_sampled_tokens_follow_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    uniform = ((torch.arange(4000) + 0.5) / 4000).tolist()
    tokens = sample(logits.expand(4000, -1), 0.7, None, uniform)
    shares = torch.bincount(tokens, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.softmax(logits[0] / 0.7, -1), atol=1e-3, rtol=0)
    tokens = sample(logits.expand(4000, -1), 0.7, 2, uniform)
    assert set(tokens.tolist()) == {1, 2}


def test_the_ends_of_the_unit_interval_pick_possible_tokens():
    logits = torch.tensor([[-1e4, 0.0, 0.0, -1e4]]).expand(2, -1)
    assert sample(logits, 1.0, None, [0.0, 1 - 2**-53]).tolist() == [1, 2]
