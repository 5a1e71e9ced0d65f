"""Policy gradients: answers padded into micro-batches, and the losses that raise the better ones.

Tokens that the model sampled are trained, including its end token (Differs: nanochat, 2025-11, never trains that);
tokens that a tool forced are not. Log-probabilities are those of the model itself, without temperature and top-k, as in
nanochat.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanochat_pl.data.batch import IGNORE
from nanochat_pl.rl.rollouts import Group, SampledAnswer

__all__ = ["RATIO", "MicroBatch", "by_length", "micro_batches", "policy_loss", "token_weights"]

RATIO = ("grpo", "dapo")
"""Algorithms that weigh a token by the clipped ratio of its new to its old probability."""


@dataclass(frozen=True)
class MicroBatch:
    """Questions with their answers, padded on the right to the longest."""

    inputs: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64, IGNORE where nothing is trained."""
    advantages: Tensor
    """(B, 1) float32."""
    weights: Tensor
    """(B, T) float32: each token's share in the step's mean, 0 where nothing is trained."""
    old: Tensor | None = None
    """(B, T) float32 log-probabilities at the time of the rollout, 0 where nothing is trained; None = the current."""

    def to(self, device: torch.device | str) -> "MicroBatch":
        """Return the batch on `device`."""
        return MicroBatch(
            self.inputs.to(device),
            self.targets.to(device),
            self.advantages.to(device),
            self.weights.to(device),
            None if self.old is None else self.old.to(device),
        )


def token_weights(answer: SampledAnswer, algorithm: str, num_tokens: int, num_answers: int) -> float:
    """Return the weight of each trained token of an answer in the step's mean.

    grpo takes the mean over answers of the mean over an answer's tokens, as in its paper. The others take the mean over
    all tokens of the step, so that a token of a long answer weighs no less. Differs: nanochat (2025-11) takes that mean
    over eight answers at a time and averages the means. `num_tokens` (the trained ones) and `num_answers` are those of
    the whole step over all ranks.
    """
    return 1 / (sum(answer.mask) * num_answers) if algorithm == "grpo" else 1 / num_tokens


def by_length(groups: Iterable[Group]) -> list[tuple[list[int], SampledAnswer]]:
    """Return questions with their answers, the longest first: the order of the rows of `micro_batches`."""
    rows = [(group.prompt, answer) for group in groups for answer in group.answers]
    return sorted(rows, key=lambda row: -len(row[0]) - len(row[1].tokens))


def micro_batches(
    groups: Iterable[Group], batch_rows: int, pad_id: int, algorithm: str, num_tokens: int, num_answers: int
) -> Iterator[MicroBatch]:
    """Pad answers into micro-batches of rows of similar length, longest first; the last may hold fewer rows."""
    sorted_rows = by_length(groups)
    for first in range(0, len(sorted_rows), batch_rows):
        rows = sorted_rows[first : first + batch_rows]
        shape = (len(rows), len(rows[0][0]) + len(rows[0][1].tokens) - 1)
        inputs, targets = np.full(shape, pad_id), np.full(shape, IGNORE)
        weights, old = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for i, (prompt, answer) in enumerate(rows):
            ids = prompt + answer.tokens
            start, end = len(prompt) - 1, len(ids) - 1
            trained = np.array(answer.mask, dtype=bool)
            inputs[i, :end] = ids[:-1]
            targets[i, start:end] = np.where(trained, answer.tokens, IGNORE)
            weights[i, start:end] = trained * token_weights(answer, algorithm, num_tokens, num_answers)
            if answer.old is not None:
                old[i, start:end] = np.where(trained, answer.old.numpy(), 0)
        yield MicroBatch(
            torch.from_numpy(inputs),
            torch.from_numpy(targets),
            torch.tensor([[answer.advantage] for _, answer in rows]),
            torch.from_numpy(weights),
            torch.from_numpy(old) if rows[0][1].old is not None else None,
        )


def policy_loss(
    logp: Tensor,
    batch: MicroBatch,
    algorithm: str,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    reference: Tensor | None = None,
    kl_coef: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a micro-batch: its part of the step's weighted sum over tokens.

    reinforce, rloo: -A log p. grpo, dapo: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), where r = p / p_old is
    exactly 1 if the batch has no old log-probabilities. `kl_coef` times the KL divergence to a reference is added, by
    the estimator exp(d) - d - 1 with d = log p_ref - log p (Schulman 2020), which is never negative.

    Args:
        logp: (B, T) log-probabilities of the targets, with gradient; anything finite where nothing is trained.
        reference: (B, T) log-probabilities of the reference model.

    Returns:
        The loss, and sums over the batch's trained tokens: `entropy` (-log p), `clipped` (tokens whose gradient is
        clipped away), `kl`.
    """
    trained = batch.targets != IGNORE
    A = batch.advantages
    # torch.where, because indexing would wait for the device
    sums = {"entropy": -torch.where(trained, logp.detach(), 0).sum()}
    if algorithm in RATIO:
        ratio = torch.exp(logp - (logp.detach() if batch.old is None else batch.old))
        token_loss = -torch.minimum(ratio * A, ratio.clamp(1 - clip_low, 1 + clip_high) * A)
        r = ratio.detach()
        sums["clipped"] = (torch.where(A > 0, r > 1 + clip_high, r < 1 - clip_low) & (A != 0) & trained).sum()
    else:
        token_loss = -A * logp
    if reference is not None:
        d = reference - logp
        kl = torch.exp(d) - d - 1
        sums["kl"] = torch.where(trained, kl.detach(), 0).sum()
        token_loss = token_loss + kl_coef * kl
    return (token_loss * batch.weights).sum(), sums
