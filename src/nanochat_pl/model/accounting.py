"""The size and cost of a model: parameters by role and FLOPs, as pure functions of its config."""

from nanochat_pl.model.config import GPTConfig

__all__ = ["flops_per_token", "num_parameters", "parameters_by_role"]


def parameters_by_role(config: GPTConfig) -> dict[str, int]:
    """Count parameters under the names of `GPT.param_roles`, vocabulary padding included."""
    width, kv_width = config.n_embd, config.n_kv_head * config.head_dim
    attention = 2 * width * width + 2 * width * kv_width
    mlp = 2 * width * 4 * width
    vocabulary = config.padded_vocab_size * width
    return {"matrix": config.n_layer * (attention + mlp), "embedding": vocabulary, "unembedding": vocabulary}


def num_parameters(config: GPTConfig) -> int:
    """Count all parameters, both vocabulary matrices included, as nanochat does for its tokens-per-parameter ratio."""
    return sum(parameters_by_role(config).values())


def flops_per_token(config: GPTConfig) -> int:
    """Return the FLOPs of forward and backward for one token in a row of `sequence_len`.

    That is six for each parameter (the embedding is a lookup and costs none), plus 12 * L * C * T for attention scores
    and values, not halved for causality (PaLM, Chowdhery et al. 2022, appendix B).
    """
    roles = parameters_by_role(config)
    attention = 12 * config.n_layer * config.n_embd * config.sequence_len
    return 6 * (roles["matrix"] + roles["unembedding"]) + attention
