"""The size and cost of a model: parameters by role and FLOPs, as pure functions of its config."""

from nanochat_pl.model.config import GATE_CHANNELS, SMEAR_CHANNELS, GPTConfig

__all__ = ["flops_per_token", "num_parameters", "parameters_by_role"]


def parameters_by_role(config: GPTConfig) -> dict[str, int]:
    """Count parameters under the names of `GPT.param_roles`, vocabulary padding included; no count is 0."""
    width, kv_width = config.n_embd, config.n_kv_head * config.head_dim
    attention = 2 * width * width + 2 * width * kv_width
    mlp = 2 * width * 4 * width
    tables = sum(map(config.has_value_embedding, range(config.n_layer)))
    vocabulary = config.padded_vocab_size
    counts = {
        "matrix": config.n_layer * (attention + mlp) + tables * GATE_CHANNELS * config.n_kv_head,
        "embedding": vocabulary * width,
        "unembedding": vocabulary * width,
        "value_embedding": tables * vocabulary * kv_width,
        "residual_lambda": config.n_layer * config.residual_lambdas,
        "input_lambda": config.n_layer * config.input_lambdas,
        "smear": (SMEAR_CHANNELS + 1) * config.smear + config.backout,
        "short_conv": config.n_layer * config.short_conv * width,
    }
    return {role: count for role, count in counts.items() if count}


def num_parameters(config: GPTConfig) -> int:
    """Count all parameters, both vocabulary matrices included, as nanochat does for its tokens-per-parameter ratio."""
    return sum(parameters_by_role(config).values())


def flops_per_token(config: GPTConfig) -> int:
    """Return the FLOPs of forward and backward for one token in a row of `sequence_len`.

    That is six for each parameter that is multiplied (tables are looked up, scalars and short convolutions are not
    counted), plus for attention scores and values 12 * C for each token that a layer sees, at most T, not halved for
    causality (PaLM, Chowdhery et al. 2022, appendix B).
    """
    roles = parameters_by_role(config)
    length = config.sequence_len
    windows = [config.window(layer) for layer in range(config.n_layer)]
    attention = 12 * config.n_embd * sum(length if window is None else min(window, length) for window in windows)
    return 6 * (roles["matrix"] + roles["unembedding"] + SMEAR_CHANNELS * config.smear) + attention
