"""Reinforcement learning under Lightning: a batch of questions becomes a rollout, and this one or more updates.

The pure part is `nanochat_pl.rl`. This module samples before it trains, and measures pass@k. The rest of a rollout and,
with a KL term, the initial weights are saved in the checkpoint, so that a run resumes exactly at any step.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat_pl.config.schema import RLConfig
from nanochat_pl.engine import Engine
from nanochat_pl.model.gpt import GPT
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.rl.losses import MicroBatch, by_length, micro_batches, policy_loss
from nanochat_pl.rl.rollouts import (
    Group,
    Questions,
    SamplingSettings,
    answer_questions,
    roll_out,
    rollout_metrics,
    rollout_sums,
)
from nanochat_pl.runtime import gather, rank, world_size
from nanochat_pl.tasks.answers import pass_at_k
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.module import LanguageModel
from nanochat_pl.training.questions import QuestionBatch


@dataclass(frozen=True)
class RolloutBatch:
    """One rank's part of an optimizer step: sampled answers with their weights."""

    inputs: list[MicroBatch]
    tokens: int
    num_tokens: int
    """Trained tokens of the step over all ranks."""


class PolicyModel(LanguageModel):
    """Train on answers that the model itself samples.

    Args:
        model, optim, num_steps, log_every_steps, metadata: see `LanguageModel`.
        rl: the algorithm and its settings.
        questions: the questions and the rewards of their answers.
        tokenizer: for the calculator and the end tokens.
        device_batch: rows of a micro-batch.
        seed: the seed of the sampling.
        engine_dtype: the number format in which the engine computes.
    """

    def __init__(
        self,
        model: GPT,
        optim: OptimConfig,
        num_steps: int,
        log_every_steps: int,
        metadata: dict | None,
        *,
        rl: RLConfig,
        questions: Questions,
        tokenizer: Tokenizer,
        device_batch: int,
        seed: int,
        engine_dtype: str,
    ) -> None:
        super().__init__(model, optim, num_steps, log_every_steps, metadata)
        self.rl = rl
        self.questions = questions
        self.tokenizer = tokenizer
        self.device_batch = device_batch
        self.seed = seed
        self.engine_dtype = engine_dtype
        self.groups: list[Group] = []
        """This rank's groups of the current rollout that are still to be trained on."""
        self.example: Group | None = None
        """The first group of the last rollout, for the table of samples."""
        self._engine: Engine | None = None
        self._reference: list[GPT] = []  # in a list: not a submodule, so neither trained nor saved with the weights
        self._rollout_metrics: dict[str, float] = {}
        self._loss_sums: dict[str, Tensor] = {}
        self._seconds = {"sampling": 0.0, "all": 0.0}

    @property
    def sampling(self) -> SamplingSettings:
        """How answers are drawn."""
        rl = self.rl
        return SamplingSettings(rl.num_samples, rl.max_new_tokens, rl.temperature, rl.top_k, rl.rollout_batch)

    def fresh_engine(self) -> Engine:
        """Return the engine, with the current weights."""
        if self._engine is None:
            stop_ids = self.tokenizer.stop_ids
            self._engine = Engine(self.model, stop_ids, tokenizer=self.tokenizer, dtype=self.engine_dtype)
        else:
            self._engine.refresh()
        return self._engine

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.rl.kl_coef > 0 and not self._reference:
            if self.trainer.global_step > 0:
                raise ValueError(
                    f"rl.kl_coef={self.rl.kl_coef} needs the initial weights, which this run did not keep because it "
                    "was started with rl.kl_coef=0; resume with rl.kl_coef=0 or start a new run"
                )
            self._keep_reference(self.model.state_dict())
        for reference in self._reference:
            reference.to(self.device)

    def prepare(self, batch: QuestionBatch) -> RolloutBatch:
        """Sample the answers of a rollout if one begins; pack those of this optimizer step into micro-batches."""
        self._begin = time.perf_counter()
        if batch.part == 0:
            self._roll_out(batch)
        per_part = self.rl.prompts_per_step // self.rl.steps_per_rollout
        now = [group for group in self.groups if group.slot // per_part == batch.part]
        self.groups = [group for group in self.groups if group.slot // per_part > batch.part]
        answers = [answer for group in now for answer in group.answers]
        trained, count = self.total([sum(sum(a.mask) for a in answers), len(answers)])
        tokens = sum(len(group.prompt) + len(a.tokens) - 1 for group in now for a in group.answers)
        return RolloutBatch(list(self._micro_batches(now, int(trained), int(count))), tokens, int(trained))

    def _roll_out(self, batch: QuestionBatch) -> None:
        self._check_finite()  # nothing can be sampled from weights that are NaN; the device is waited for anyway
        prompts = list(enumerate(batch.questions))[rank() :: world_size()]
        step = self.trainer.global_step
        rollout = roll_out(
            self.fresh_engine(),
            self.questions,
            prompts,
            self.sampling,
            algorithm=str(self.rl.algorithm),
            max_resamples=self.rl.max_resamples,
            seed=self.seed,
            step=step,
        )
        self.groups = rollout.groups
        self.example = rollout.groups[0]
        self._seconds["sampling"] += rollout.seconds
        *total, resampled = self.total([*rollout_sums(rollout.groups), rollout.resampled])
        self._rollout_metrics = rollout_metrics(total)
        if self.rl.algorithm == "dapo":
            self._rollout_metrics["rl/resampled"] = resampled
        self._rollout_metrics["rl/rollout_tok_per_sec"] = rollout.new_tokens / max(rollout.seconds, 1e-9)
        if self.rl.steps_per_rollout > 1:
            self._note_old()

    @torch.no_grad()
    def _note_old(self) -> None:
        """Store the log-probabilities of the answers of later updates, from the same forward that these will use."""
        if self.rl.algorithm not in ("grpo", "dapo"):
            return
        per_part = self.rl.prompts_per_step // self.rl.steps_per_rollout
        for part in range(1, self.rl.steps_per_rollout):
            groups = [group for group in self.groups if group.slot // per_part == part]
            rows = iter(by_length(groups))
            for micro in self._micro_batches(groups, 1, 1):
                logp = self._logp(self.model, micro.to(self.device)).cpu()
                for values in logp:
                    prompt, answer = next(rows)
                    start = len(prompt) - 1
                    answer.old = values[start : start + len(answer.tokens)].clone()

    def _micro_batches(self, groups: list[Group], num_tokens: int, num_answers: int) -> Iterator[MicroBatch]:
        pad_id = self.tokenizer.special_id("<|assistant_end|>")
        return micro_batches(groups, self.device_batch, pad_id, str(self.rl.algorithm), num_tokens, num_answers)

    @staticmethod
    def _logp(model: Any, batch: MicroBatch) -> Tensor:
        return -model(batch.inputs, batch.targets, reduction="none")

    def losses(self, batch: RolloutBatch) -> Iterator[Tensor]:  # type: ignore[override]
        """Yield one loss per micro-batch; over micro-batches and ranks they add up to the step's loss."""
        world = self.trainer.world_size
        self._loss_sums = {}
        for micro in batch.inputs:
            micro = micro.to(self.device)
            logp = self._logp(self.model, micro)
            reference = None
            if self._reference:
                with torch.no_grad():
                    reference = self._logp(self._reference[0], micro)
            loss, found = policy_loss(
                logp,
                micro,
                str(self.rl.algorithm),
                clip_low=self.rl.clip_low,
                clip_high=self.clip_high,
                reference=reference,
                kl_coef=self.rl.kl_coef,
            )
            for name, value in found.items():
                share = value.float() * world / batch.num_tokens
                self._loss_sums[name] = self._loss_sums.get(name, 0) + share
            yield loss * world
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds["all"] += time.perf_counter() - self._begin

    @property
    def clip_high(self) -> float:
        """The upper clip in force."""
        if self.rl.clip_high is not None:
            return self.rl.clip_high
        return 0.28 if self.rl.algorithm == "dapo" else self.rl.clip_low

    def example_tokens(self, batch: QuestionBatch) -> tuple[Tensor, Tensor | None] | None:
        if self.example is None:  # resumed in the middle of a rollout
            return None
        return torch.tensor([[*self.example.prompt, *self.example.answers[0].tokens]], device=self.device), None

    def metrics(self) -> dict[str, Any]:
        """Return what is logged in addition to loss and gradient norm; the mean over ranks is the step's."""
        names = {"entropy": "rl/entropy", "clipped": "rl/clip_frac", "kl": "rl/kl"}
        found = {names[key]: value for key, value in self._loss_sums.items()}
        share = self._seconds["sampling"] / max(self._seconds["all"], 1e-9)
        return self._rollout_metrics | found | {"rl/sampling_frac": share}

    def total(self, values: list[float]) -> list[float]:
        """Return the sums of numbers over ranks."""
        if world_size() == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        states = gather([asdict(group) for group in self.groups])
        checkpoint["rollout"] = {
            "groups": sorted((group for state in states for group in state), key=lambda group: group["slot"]),
            "figures": self._rollout_metrics,
            "reference": self._reference[0].state_dict() if self._reference else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the rest of a rollout, for any number of ranks, and the initial weights.

        This is not done in `on_train_start`, because validation saves before that.
        """
        state, world = checkpoint["rollout"], world_size()
        self.groups = [Group.from_state(group) for group in state["groups"] if group["slot"] % world == rank()]
        self._rollout_metrics = state["figures"]
        if state["reference"] is not None and self.rl.kl_coef > 0:
            self._keep_reference(state["reference"])

    def _keep_reference(self, weights: Mapping[str, Tensor]) -> None:
        """Keep a frozen copy of the initial weights, in the compute dtype to which the model would cast them."""
        reference = GPT(self.model.config, self.model.compute_dtype).requires_grad_(False)
        tables = reference.cos, reference.sin
        reference.to(self.model.compute_dtype)
        reference.cos, reference.sin = tables  # these keep their own dtype
        reference.load_state_dict(weights)
        self._reference = [reference]


def pass_at_k_measure(questions: Questions) -> Callable[[PolicyModel], dict[str, float]]:
    """Return the measure of validation: pass@1 to pass@val_samples, sampled as in training, and `pass@1_greedy`.

    An answer counts as right if its reward is 1 or more. Ranks share the questions; the random streams are the same at
    every step and for any number of ranks.
    """

    def measure(module: PolicyModel) -> dict[str, float]:
        engine, n = module.fresh_engine(), module.rl.val_samples
        prompts = [(slot, row, f"{module.seed}/val/{row}") for slot, row in enumerate(questions.usable)]
        prompts = prompts[rank() :: world_size()]
        sampled = answer_questions(engine, questions, prompts, replace(module.sampling, num_samples=n))
        greedy = answer_questions(engine, questions, prompts, replace(module.sampling, num_samples=1, temperature=0.0))
        right = [sum(answer.reward >= 1 for answer in group.answers) for group in sampled]
        totals = [sum(pass_at_k(n, count, k) for count in right) for k in range(1, n + 1)]
        totals.append(sum(group.answers[0].reward >= 1 for group in greedy))
        names = [*(f"pass@{k}" for k in range(1, n + 1)), "pass@1_greedy"]
        return {name: count / len(questions.usable) for name, count in zip(names, module.total(totals), strict=True)}

    return measure
