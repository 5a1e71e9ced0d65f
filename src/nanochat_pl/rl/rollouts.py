"""Answers with rewards: one call of the engine samples several answers to each of many questions.

Each answer draws from its own random stream, named by seed, step, slot in the step and number of the sample, so that
neither the number of ranks nor an interruption changes what is sampled. The answers to one question are a group; the
advantage of an answer says how much better it was than its group.
"""

import math
import random
import statistics
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nanochat_pl.engine import Completion, Engine, Request
from nanochat_pl.tasks.base import Mixture
from nanochat_pl.tokenizer import Tokenizer

__all__ = [
    "Group",
    "Questions",
    "Rollout",
    "SampledAnswer",
    "SamplingSettings",
    "advantages",
    "answer_questions",
    "roll_out",
    "rollout_metrics",
    "rollout_sums",
]

STD_EPS = 1e-6
LARGEST_REWARD = 1e15
"""Largest absolute reward: the sum of squares of many of them is still finite in fp32."""


@dataclass(frozen=True)
class SamplingSettings:
    """How answers are drawn."""

    num_samples: int
    max_new_tokens: int
    temperature: float
    top_k: int | None
    batch_size: int
    """Rows that the engine decodes at a time."""


@dataclass
class SampledAnswer:
    """One sampled answer with its reward."""

    tokens: list[int]
    """Its new tokens; the last is the end token if it ended with one."""
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
    """Number of the question in the step, 0 to prompts_per_step - 1, over all ranks."""
    question: int
    """Row of the tasks."""
    prompt: list[int]
    answers: list[SampledAnswer]

    @property
    def has_signal(self) -> bool:
        """Whether its rewards differ: equal ones leave nothing to learn."""
        rewards = [answer.reward for answer in self.answers]
        return max(rewards) > min(rewards)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Group":
        """Rebuild a group from the result of `dataclasses.asdict`."""
        return cls(**{**state, "answers": [SampledAnswer(**answer) for answer in state["answers"]]})


class Questions:
    """Tasks as questions with a reward.

    Args:
        rows: Conversations whose last turn is the answer.
        max_prompt_tokens: Longer questions are left out.
        limit: Use only this many rows, from the first; None = all.

    Attributes:
        usable: Rows that are short enough.
        num_too_long: Number of the others.

    Raises:
        ValueError: A task cannot be graded, or every question is too long.
    """

    def __init__(self, rows: Mixture, tokenizer: Tokenizer, max_prompt_tokens: int, limit: int | None = None) -> None:
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
        """Return the token ids of a question, up to and including `<|assistant_start|>`."""
        return self.tokenizer.render_for_completion(self.rows[row], max_tokens=2**31)

    def text(self, row: int) -> str:
        """Return the last message of the user."""
        return str(self.rows[row]["messages"][-2]["content"])

    def reward(self, row: int, completion: str) -> float:
        """Return the reward that the question's task gives an answer.

        Raises:
            ValueError: It is not a finite number, or larger than `LARGEST_REWARD`; names task, question and value.
        """
        conversation = self.rows[row]
        reward = self.rows.reward(conversation, completion)
        try:
            value = float(reward)
        except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several numbers
            value = math.nan
        if not abs(value) <= LARGEST_REWARD or isinstance(reward, str):
            question = textwrap.shorten(self.text(row), 80, placeholder=" …")
            raise ValueError(
                f"the task {conversation['task']} rewarded an answer to the question {question!r} with {reward!r}, and "
                f"a reward must be a finite number, at most {LARGEST_REWARD:g} in size; mend its reward() or grade(), "
                f"or leave the task out with mixture.tasks.{conversation['task']}=null"
            )
        return value


def check_graded(rows: Mixture) -> None:
    """Raise ValueError unless every task of a mixture can be graded."""
    for name, task in rows.tasks.items():
        if not getattr(task, "graded", False):
            raise ValueError(
                f"the task {name} ({type(task).__name__}) has no reward, and stage=rl needs one of every task; "
                f"leave it out with mixture.tasks.{name}=null (or mixture.val_tasks.{name}=null)"
            )


def answer_questions(
    engine: Engine, questions: Questions, chosen: Sequence[tuple[int, int, str]], sampling: SamplingSettings
) -> list[Group]:
    """Sample the answers to many questions through one call of the engine and reward them.

    `chosen` holds the slot of each question, its row and the name of its random stream.
    """
    prompts = [questions.prompt(row) for _, row, _ in chosen]
    requests = [
        Request(
            prompt,
            sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            seed=f"{stream}/{sample}",
        )
        for prompt, (_, _, stream) in zip(prompts, chosen, strict=True)
        for sample in range(sampling.num_samples)
    ]
    completions = iter(engine.run(requests, batch_size=sampling.batch_size))
    return [
        Group(slot, row, prompt, [_answer(next(completions), questions, row) for _ in range(sampling.num_samples)])
        for prompt, (slot, row, _) in zip(prompts, chosen, strict=True)
    ]


def _answer(completion: Completion, questions: Questions, row: int) -> SampledAnswer:
    stop = [] if completion.stop_token is None else [completion.stop_token]
    return SampledAnswer(
        tokens=completion.tokens + stop,
        mask=completion.mask + [1] * len(stop),
        reward=questions.reward(row, questions.tokenizer.decode(completion.tokens)),
        truncated=not stop,
        tool_calls=completion.tool_calls,
        tool_errors=completion.tool_errors,
    )


@dataclass
class Rollout:
    """The answers of one step on one rank."""

    groups: list[Group]
    resampled: int
    """Number of questions that were drawn to replace groups without signal."""
    new_tokens: int
    """Number of all tokens that were sampled, including those of replaced groups."""
    seconds: float


def roll_out(
    engine: Engine,
    questions: Questions,
    chosen: Sequence[tuple[int, int]],
    sampling: SamplingSettings,
    *,
    algorithm: str,
    max_resamples: int,
    seed: int,
    step: int,
) -> Rollout:
    """Sample and reward the answers to a step's questions, and compute their advantages.

    With dapo, groups whose rewards are all equal are replaced by answers to other questions, drawn anew for at most
    `max_resamples` rounds; groups that stay without signal keep their slot and train nothing.

    Args:
        chosen: Slot and row of each question of this rank.
        step: Optimizer steps done before this rollout; it names the random streams.
    """
    begin = time.perf_counter()
    # 1) Every question once, all samples through one call of the engine.
    groups = answer_questions(engine, questions, [(s, row, f"{seed}/{step}/{s}/0") for s, row in chosen], sampling)
    new_tokens, resampled = _num_tokens(groups), 0
    # 2) dapo: a group without signal gives its slot to another question, as long as attempts are left.
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
    # 3) Each answer is compared with the others of its group.
    for group in groups:
        values = advantages([answer.reward for answer in group.answers], algorithm)
        for answer, value in zip(group.answers, values, strict=True):
            answer.advantage = value
    return Rollout(groups, resampled, new_tokens, time.perf_counter() - begin)


def _num_tokens(groups: Iterable[Group]) -> int:
    return sum(len(answer.tokens) for group in groups for answer in group.answers)


def advantages(rewards: Sequence[float], algorithm: str) -> list[float]:
    """Return the advantage of each reward of one group; equal rewards give exactly 0.

    reinforce: r - mean(r) (nanochat, 2025-11). rloo: r minus the mean of the others (Ahmadian et al. 2024).
    grpo, dapo: (r - mean(r)) / (std(r) + 1e-6) with the sample's standard deviation (Shao et al. 2024).
    """
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    if algorithm == "rloo":
        return [(reward - mean) * len(rewards) / (len(rewards) - 1) for reward in rewards]
    scale = statistics.stdev(rewards) + STD_EPS if algorithm in ("grpo", "dapo") else 1.0
    return [(reward - mean) / scale for reward in rewards]


SUMS = (
    "answers", "groups", "reward", "reward_squared", "no_signal", "trained_tokens", "answer_tokens", "row_tokens",
    "truncated", "tool_calls", "tool_errors",
)  # fmt: skip
"""The sums that `rollout_sums` returns, in this order."""


def rollout_sums(groups: Sequence[Group]) -> list[float]:
    """Return the sums that `rollout_metrics` needs; those of several ranks may be added."""
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


def rollout_metrics(total: Sequence[float]) -> dict[str, float]:
    """Turn the sums over all groups of a rollout into the metrics to log."""
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
