"""Policy gradient on rewards that a program can check: sample answers, weigh them, raise the better ones.

A rollout asks every question of a step `num_samples` times, all of them in one batch of the engine. Each answer draws
from a random stream of its own, named by seed, step, place in the step and number of the sample, so that neither the
number of ranks nor an interruption changes what is sampled. The answers to one question are a group; an answer's
advantage says how much better than its group it was. Tokens that the model sampled are trained, its end token among
them (Differs: nanochat, 2025-11, never trains it); tokens that a tool forced are not.
"""

import math
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nanochat_pl.data.batch import IGNORE
from nanochat_pl.engine_adapter import Completion, Engine, Request

__all__ = [
    "Answer",
    "Group",
    "MicroBatch",
    "Questions",
    "Rollout",
    "Sampling",
    "advantages",
    "figures",
    "micro_batches",
    "pass_at_k",
    "policy_loss",
    "roll_out",
    "token_weights",
]

RATIO = ("grpo", "dapo")
"""Algorithms that weigh a token by the clipped ratio of its new to its old probability."""

STD_EPS = 1e-6


class Tokenizer(Protocol):
    """What this module asks of a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def render_for_completion(self, conversation: Mapping[str, Any], max_tokens: int = 2048) -> list[int]: ...


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    num_samples: int
    max_new_tokens: int
    temperature: float
    top_k: int | None
    batch_size: int
    """Rows that the engine decodes at a time."""


@dataclass
class Answer:
    """One sampled answer and what it was worth."""

    tokens: list[int]
    """Its new tokens, the end token last if it ended by one."""
    mask: list[int]
    """1 = sampled by the model and trained, 0 = forced by a tool."""
    reward: float
    truncated: bool
    tool_calls: int = 0
    tool_errors: int = 0
    advantage: float = 0.0
    old: Tensor | None = None
    """(len(tokens),) log-probabilities at the time of the rollout; None = those of the weights in training."""


@dataclass
class Group:
    """The answers to one question."""

    slot: int
    """Place in the step, 0 to prompts_per_step - 1, over all ranks."""
    question: int
    """Row of the tasks."""
    prompt: list[int]
    answers: list[Answer]

    @property
    def has_signal(self) -> bool:
        """Whether its rewards differ: equal ones leave nothing to learn."""
        rewards = [answer.reward for answer in self.answers]
        return max(rewards) > min(rewards)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Group":
        """Make it from what `dataclasses.asdict` gave."""
        return cls(**{**state, "answers": [Answer(**answer) for answer in state["answers"]]})


class Questions:
    """Tasks as questions with a reward.

    Args:
        rows: conversations whose last turn is the answer; knows `reward(conversation, completion)`.
        tokenizer: renders questions and reads answers.
        max_prompt_tokens: longer questions are left out.
        limit: look at the first so many rows only; None = all.

    Attributes:
        usable: rows that are short enough.
        num_too_long: how many are not.

    Raises:
        ValueError: if a task cannot be graded, or every question is too long.
    """

    def __init__(self, rows: Any, tokenizer: Tokenizer, max_prompt_tokens: int, limit: int | None = None) -> None:
        check_graded(rows)
        self.rows = rows
        self.tokenizer = tokenizer
        lengths = [len(self.prompt(row)) for row in range(min(len(rows), limit or len(rows)))]
        self.usable = [row for row, length in enumerate(lengths) if length <= max_prompt_tokens]
        self.num_too_long = len(lengths) - len(self.usable)
        if not self.usable:
            raise ValueError(
                f"every one of the {len(lengths)} questions is longer than the {max_prompt_tokens} tokens that "
                f"stage.sequence_len leaves beside rl.max_new_tokens (the shortest has {min(lengths)}); raise "
                "stage.sequence_len or lower rl.max_new_tokens"
            )

    def prompt(self, row: int) -> list[int]:
        """Give the token ids of a question, the assistant's turn opened."""
        return self.tokenizer.render_for_completion(self.rows[row], max_tokens=2**31)

    def text(self, row: int) -> str:
        """Give the last thing the user says."""
        return str(self.rows[row]["messages"][-2]["content"])

    def reward(self, row: int, completion: str) -> float:
        """Give what an answer is worth."""
        conversation = self.rows[row]
        if not hasattr(self.rows, "reward"):
            return float(self.rows._tasks[conversation["task"]].grade(conversation, completion))
        return float(self.rows.reward(conversation, completion))


def check_graded(rows: Any) -> None:
    """Raise ValueError unless every task of a mixture can be graded."""
    for name, task in rows._tasks.items():
        if not getattr(task, "graded", False):
            raise ValueError(
                f"the task {name} ({task.name}) has no reward, and stage=rl needs one of every task; leave it out with "
                f"mixture.tasks.{name}=null (or mixture.val_tasks.{name}=null)"
            )


def answer_questions(
    engine: Engine, questions: Questions, asked: Sequence[tuple[int, int, str]], sampling: Sampling
) -> list[Group]:
    """Sample the answers to many questions through one call of the engine and reward them.

    Args:
        asked: for each question its slot, its row and the name of its random stream.
    """
    prompts = [questions.prompt(row) for _, row, _ in asked]
    requests = [
        Request(
            prompt,
            sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            seed=f"{stream}/{sample}",
        )
        for prompt, (_, _, stream) in zip(prompts, asked, strict=True)
        for sample in range(sampling.num_samples)
    ]
    completions = iter(engine.run(requests, batch_size=sampling.batch_size))
    return [
        Group(slot, row, prompt, [_answer(next(completions), questions, row) for _ in range(sampling.num_samples)])
        for prompt, (slot, row, _) in zip(prompts, asked, strict=True)
    ]


def _answer(completion: Completion, questions: Questions, row: int) -> Answer:
    stop = [] if completion.stop_token is None else [completion.stop_token]
    return Answer(
        tokens=completion.tokens + stop,
        mask=completion.mask + [1] * len(stop),
        reward=questions.reward(row, questions.tokenizer.decode(completion.tokens)),
        truncated=not stop,
        tool_calls=completion.tool_calls,
        tool_errors=completion.tool_errors,
    )


@dataclass
class Rollout:
    """One rank's part of the answers of a step."""

    groups: list[Group]
    resampled: int
    """Questions drawn to replace groups without signal."""
    new_tokens: int
    """Everything that was sampled, replaced groups too."""
    seconds: float


def roll_out(
    engine: Engine,
    questions: Questions,
    asked: Sequence[tuple[int, int]],
    sampling: Sampling,
    *,
    algorithm: str,
    max_resamples: int,
    seed: int,
    step: int,
) -> Rollout:
    """Sample, reward and weigh the answers to a step's questions.

    With dapo, groups whose rewards are all equal are replaced by answers to other questions, drawn anew for at most
    `max_resamples` rounds; groups that stay without signal keep their place and train nothing.

    Args:
        asked: slot and row of each question of this rank.
        step: optimizer steps done before this rollout; names the random streams.
    """
    begin = time.perf_counter()
    groups = answer_questions(engine, questions, [(s, row, f"{seed}/{step}/{s}/0") for s, row in asked], sampling)
    new_tokens, resampled = _num_tokens(groups), 0
    for attempt in range(1, 1 + (max_resamples if algorithm == "dapo" else 0)):
        dull = [i for i, group in enumerate(groups) if not group.has_signal]
        if not dull:
            break
        again = []
        for i in dull:
            stream = f"{seed}/{step}/{groups[i].slot}/{attempt}"
            again.append((groups[i].slot, random.Random(stream).choice(questions.usable), stream))
        replacements = answer_questions(engine, questions, again, sampling)
        new_tokens += _num_tokens(replacements)
        resampled += len(dull)
        for i, group in zip(dull, replacements, strict=True):
            groups[i] = group
    for group in groups:
        values = advantages([answer.reward for answer in group.answers], algorithm)
        for answer, value in zip(group.answers, values, strict=True):
            answer.advantage = value
    return Rollout(groups, resampled, new_tokens, time.perf_counter() - begin)


def _num_tokens(groups: Iterable[Group]) -> int:
    return sum(len(answer.tokens) for group in groups for answer in group.answers)


def advantages(rewards: Sequence[float], algorithm: str) -> list[float]:
    """Weigh the rewards of one group.

    reinforce: r - mean(r) (nanochat, 2025-11). rloo: r minus the mean of the others (Ahmadian et al. 2024).
    grpo, dapo: (r - mean(r)) / (std(r) + 1e-6) with the sample's standard deviation (Shao et al. 2024).
    Equal rewards weigh exactly 0.
    """
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    if algorithm == "rloo":
        return [(reward - mean) * len(rewards) / (len(rewards) - 1) for reward in rewards]
    scale = statistics.stdev(rewards) + STD_EPS if algorithm in RATIO else 1.0
    return [(reward - mean) / scale for reward in rewards]


@dataclass(frozen=True)
class MicroBatch:
    """Answers behind their questions, padded on the right to the longest."""

    inputs: Tensor
    """(B, T) int64."""
    targets: Tensor
    """(B, T) int64, IGNORE where nothing is trained."""
    advantages: Tensor
    """(B, 1) float32."""
    weights: Tensor
    """(B, T) float32: each token's share in the step's mean, 0 where nothing is trained."""
    old: Tensor | None = None
    """(B, T) float32 log-probabilities at the time of the rollout, 0 where nothing is trained; None = those of now."""

    def to(self, device: torch.device | str) -> "MicroBatch":
        """Return it on `device`."""
        old = None if self.old is None else self.old.to(device)
        tensors = (self.inputs, self.targets, self.advantages, self.weights)
        return MicroBatch(*(tensor.to(device) for tensor in tensors), old)


def token_weights(answer: Answer, algorithm: str, num_tokens: int, num_answers: int) -> float:
    """Give the weight of each trained token of an answer in the step's mean.

    Args:
        num_tokens, num_answers: trained tokens and answers of the whole step, over all ranks.

    grpo: the mean over answers of the mean over an answer's tokens, as in its paper. Others: the mean over all tokens
    of the step, so that long answers do not weigh less a token. Differs: nanochat (2025-11) takes that mean over eight
    answers at a time and averages the means.
    """
    return 1 / (sum(answer.mask) * num_answers) if algorithm == "grpo" else 1 / num_tokens


def micro_batches(
    groups: Iterable[Group], batch_rows: int, pad_id: int, algorithm: str, num_tokens: int, num_answers: int
) -> Iterator[MicroBatch]:
    """Lay answers into micro-batches of rows of similar length, longest first; the last may hold fewer rows."""
    rows = [(group.prompt, answer) for group in groups for answer in group.answers]
    rows.sort(key=lambda row: -len(row[0]) - len(row[1].tokens))
    for first in range(0, len(rows), batch_rows):
        yield _lay(rows[first : first + batch_rows], pad_id, algorithm, num_tokens, num_answers)


def _lay(
    rows: Sequence[tuple[list[int], Answer]], pad_id: int, algorithm: str, num_tokens: int, num_answers: int
) -> MicroBatch:
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
    advantage = torch.tensor([[answer.advantage] for _, answer in rows])
    known = torch.from_numpy(old) if rows[0][1].old is not None else None
    return MicroBatch(torch.from_numpy(inputs), torch.from_numpy(targets), advantage, torch.from_numpy(weights), known)


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
    """Give the loss of a micro-batch: its part of the step's weighted sum over tokens.

    reinforce, rloo: -A log p. grpo, dapo: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = p / p_old, which
    exactly 1 where the batch has no old log-probabilities. `kl_coef` times the KL divergence to a reference is
    added, by the estimator exp(d) - d - 1 with d = log p_ref - log p (Schulman 2020), which is never negative.

    Args:
        logp: (B, T) log-probabilities of the targets, with gradient; anything finite where nothing is trained.
        reference: (B, T) the same of the reference model.

    Returns:
        The loss, and sums over the batch's trained tokens of: `entropy` (-log p), `clipped` (tokens whose
        gradient the clip cuts off), `kl`.
    """
    trained = batch.targets != IGNORE
    A = batch.advantages
    sums = {"entropy": -logp.detach()[trained].sum()}
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
        sums["kl"] = kl.detach()[trained].sum()
        token_loss = token_loss + kl_coef * kl
    return (token_loss * batch.weights).sum(), sums


SUMS = (
    "answers", "groups", "reward", "reward_squared", "no_signal", "trained_tokens", "answer_tokens", "row_tokens",
    "truncated", "tool_calls", "tool_errors",
)  # fmt: skip
"""What `sums` adds up, in this order."""


def sums(groups: Sequence[Group]) -> list[float]:
    """Add up what `figures` needs; lists of several ranks may be added."""
    answers = [(group, answer) for group in groups for answer in group.answers]
    return [
        len(answers),
        len(groups),
        math.fsum(a.reward for _, a in answers),
        math.fsum(a.reward**2 for _, a in answers),
        sum(not group.has_signal for group in groups),
        sum(sum(a.mask) for _, a in answers),
        sum(len(a.tokens) for _, a in answers),
        sum(len(g.prompt) + len(a.tokens) for g, a in answers),
        sum(a.truncated for _, a in answers),
        sum(a.tool_calls for _, a in answers),
        sum(a.tool_errors for _, a in answers),
    ]


def figures(total: Sequence[float]) -> dict[str, float]:
    """Turn the sums over all groups of a rollout into the figures to log."""
    t = dict(zip(SUMS, total, strict=True))
    n = t["answers"]
    mean = t["reward"] / n
    return {
        "reward": mean,
        "sequence_length": t["row_tokens"] / n,
        "rl/reward_std": math.sqrt(max(t["reward_squared"] / n - mean**2, 0.0)),
        "rl/no_signal_frac": t["no_signal"] / t["groups"],
        "rl/answer_tokens": t["answer_tokens"] / n,
        "rl/truncated_frac": t["truncated"] / n,
        "rl/tool_calls": t["tool_calls"] / n,
        "rl/tool_errors": t["tool_errors"] / n,
    }


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Estimate without bias the chance that one of k samples is right (Chen et al. 2021): 1 - C(n-c, k) / C(n, k).

    nanochat (2025-11) asks whether one of the first k is right: the same in expectation, with more noise.
    """
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)
