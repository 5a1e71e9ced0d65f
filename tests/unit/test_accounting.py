"""The counts of the accounting equal the model's own tensors and the published tables."""

import pytest

from nanochat_pl.config.sizing import shape_for_depth
from nanochat_pl.model.accounting import flops_per_token, num_parameters, parameters_by_role
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT

TABLE = {  # depth: (embedding, blocks, all parameters, FLOPs per token at 2048 tokens)
    4: (16_777_216, 3_145_728, 36_700_160, 144_703_488),
    12: (50_331_648, 84_934_656, 185_597_952, 1_038_090_240),
    20: (83_886_080, 393_216_000, 560_988_160, 3_491_758_080),
    26: (109_051_904, 863_895_552, 1_081_999_360, 6_900_940_800),
    32: (134_217_728, 1_610_612_736, 1_879_048_192, 12_079_595_520),
}


@pytest.mark.parametrize("depth", TABLE)
def test_sizes_equal_nanochats_table(depth):
    config = GPTConfig(sequence_len=2048, vocab_size=65536, **shape_for_depth(depth))
    vocabulary, matrix, total, flops = TABLE[depth]
    assert parameters_by_role(config) == {"matrix": matrix, "embedding": vocabulary, "unembedding": vocabulary}
    assert num_parameters(config) == total
    assert flops_per_token(config) == flops


@pytest.mark.parametrize("changes", [{}, {"n_kv_head": 1}, {"pad_vocab_to": 64}])
def test_counts_equal_the_models_own(changes):
    config = GPTConfig(**{"vocab_size": 61, "n_layer": 3, "n_head": 4, "n_kv_head": 4, "n_embd": 32} | changes)
    counted = {role: sum(p.numel() for p in group) for role, group in GPT(config).param_roles().items()}
    assert parameters_by_role(config) == counted


def test_parameters_of_a_model_counted_by_hand():
    config = GPTConfig(vocab_size=10, n_layer=1, n_head=1, n_kv_head=1, n_embd=2)
    assert parameters_by_role(config) == {"matrix": 48, "embedding": 20, "unembedding": 20}
