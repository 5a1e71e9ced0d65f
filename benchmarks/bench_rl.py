"""Measure a step of reinforcement learning: the rollout of all questions in one engine call, against one question at
a time as in nanochat (2025-11), and the update that follows.

The three take turns within each round, so that a busy machine slows all of them alike; the table has the medians of the
rounds. The model is random and an answer ends by chance, after 64 tokens on average. Prints Markdown.

    python benchmarks/bench_rl.py --depth 4 --vocab 4096 --rounds 3
    python benchmarks/bench_rl.py --device cuda --depth 20 --vocab 65536 --questions 16 --samples 16 --tokens 256
"""

import argparse
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timing import timed

from nanochat_pl.config.sizing import shape_for_depth
from nanochat_pl.engine import Engine
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.rl.losses import micro_batches, policy_loss
from nanochat_pl.rl.rollouts import Group, Questions, SamplingSettings, roll_out
from nanochat_pl.runtime import pick_compute_dtype, pick_device
from nanochat_pl.tasks.base import Conversation, Mixture, Task

MEAN_ANSWER_TOKENS = 64


class Chance(Task):
    """Questions of 40 to 160 tokens whose answers are rewarded at random, by their length."""

    graded = True

    def __init__(self, size: int):
        self.size = size
        super().__init__()

    @property
    def num_rows(self) -> int:
        return self.size

    def conversation(self, row: int, epoch: int) -> Conversation:
        length = random.Random(row).randint(40, 160)
        return {"messages": [{"role": "user", "content": "q" * length}, {"role": "assistant", "content": ""}]}

    def grade(self, conversation: Mapping[str, Any], completion: str) -> bool:
        return len(completion) % 2 == 0


class Letters:
    """A tokenizer that needs no text: as many ids as letters."""

    def decode(self, ids: Sequence[int]) -> str:
        return "a" * sum(ids)

    def render_for_completion(self, conversation: Mapping[str, Any], max_tokens: int = 2048) -> list[int]:
        return [1] * len(conversation["messages"][0]["content"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="most new tokens of an answer")
    parser.add_argument("--rollout-batch", type=int, default=64)
    parser.add_argument("--device-batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    device = pick_device(options.device)
    dtype = pick_compute_dtype("auto", device)
    torch.manual_seed(0)
    config = GPTConfig(sequence_len=512, vocab_size=options.vocab, **shape_for_depth(options.depth))
    model = GPT(config, dtype).to(device)
    model.init_weights()
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)  # nearly uniform, and another top k at every token
    engine = Engine(model, range(0, options.vocab, MEAN_ANSWER_TOKENS))
    questions = Questions(Mixture({"chance": Chance(options.questions)}), Letters(), 512 - options.tokens)
    chosen = list(enumerate(questions.usable))

    def rollout(part: list[tuple[int, int]], rows: int) -> list[Group]:
        sampling = SamplingSettings(options.samples, options.tokens, 1.0, 50, rows)
        settings = {"algorithm": "reinforce", "max_resamples": 0, "seed": 0, "step": 0}
        return roll_out(engine, questions, part, sampling, **settings).groups  # type: ignore[arg-type]

    def update(groups: list[Group]) -> None:
        answers = [answer for group in groups for answer in group.answers]
        count = sum(sum(answer.mask) for answer in answers)
        for batch in micro_batches(groups, options.device_batch, 0, "reinforce", count, len(answers)):
            batch = batch.to(device)
            logp = -model(batch.inputs, batch.targets, reduction="none")
            policy_loss(logp, batch, "reinforce")[0].backward()
        model.zero_grad(set_to_none=True)

    seconds: dict[str, list[float]] = {"together": [], "one by one": [], "update": []}
    tokens = 0
    for turn in range(options.rounds + 1):
        groups, together = timed(lambda: rollout(chosen, options.rollout_batch), device)
        _, apart = timed(lambda: [rollout([one], options.samples) for one in chosen], device)
        _, trained = timed(lambda groups=groups: update(groups), device)  # type: ignore[misc]
        tokens = sum(len(answer.tokens) for group in groups for answer in group.answers)
        if turn:  # the first warms up
            for name, value in zip(seconds, (together, apart, trained), strict=True):
                seconds[name].append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(a / t for a, t in zip(seconds["one by one"], seconds["together"], strict=True))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(
        f"{name}, {str(dtype).removeprefix('torch.')}, depth {options.depth}, vocabulary {options.vocab}: "
        f"{len(chosen)} questions x {options.samples} answers, {tokens:,} tokens sampled\n"
    )
    print("| | s | tokens/s | share of the step |\n| --- | ---: | ---: | ---: |")
    for how in ("together", "one by one"):
        share = median[how] / (median[how] + median["update"])
        print(f"| rollout, {how} | {median[how]:.2f} | {tokens / median[how]:,.0f} | {share:.0%} |")
    print(f"| update | {median['update']:.2f} | {tokens / median['update']:,.0f} | |")
    print(f"\none by one takes {ratio:.2f} times as long (median over {options.rounds} rounds)")


if __name__ == "__main__":
    main()
