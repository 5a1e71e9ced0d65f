"""Reward right answers in plain PyTorch: what `python train.py stage=rl` computes, on one page.

Run `python examples/rl.py` after `examples/sft.py`: right answers to sums become likelier. A test checks that its
weights equal those of train.py, bit for bit.
"""

from pathlib import Path

import numpy as np
import torch

from nanochat_pl import Engine, load_model
from nanochat_pl.checkpoint.lightning import checkpoint_metadata
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.groups import build_optimizers, set_schedule
from nanochat_pl.rl.losses import micro_batches, policy_loss
from nanochat_pl.rl.rollouts import Questions, SamplingSettings, roll_out
from nanochat_pl.tasks.arithmetic import Arithmetic
from nanochat_pl.tasks.base import Mixture


def reward_sums(start: Path, folder: Path, num_steps: int = 20, prompts: int = 8, length: int = 256) -> list[float]:
    """Train the model of `start` on its own answers, save `rl.ckpt` to `folder`, return the rewards of the steps."""
    loaded = load_model(start, compute_dtype=torch.float32)
    model, tokenizer = loaded.model.train(), loaded.tokenizer
    sampling = SamplingSettings(num_samples=8, max_new_tokens=32, temperature=1.0, top_k=50, batch_size=64)
    questions = Questions(Mixture({"sums": Arithmetic(size=20_000)}, seed=42), tokenizer, length - 32)
    order = np.random.default_rng([42, 0]).permutation(np.array(questions.usable))
    optim = OptimConfig(init_lr_frac=0.05, warmdown_frac=1.0, momentum_ramp_steps=None, grad_clip=None)
    optimizers = build_optimizers(model.param_roles(), model.config.n_embd, optim)
    engine = Engine(model, tokenizer.stop_ids, tokenizer=tokenizer, dtype="auto")
    rewards = []
    for step in range(num_steps):
        set_schedule(optimizers, step, num_steps, optim)
        # 1) The current model answers each question several times; a task gives each answer a reward.
        # The reward minus the mean reward of the question is the answer's advantage.
        engine.refresh()
        numbered = list(enumerate(order[step * prompts : (step + 1) * prompts].tolist()))
        options = {"algorithm": "reinforce", "max_resamples": 0, "seed": 42, "step": step}
        groups = roll_out(engine, questions, numbered, sampling, **options).groups
        answers = [answer for group in groups for answer in group.answers]

        # 2) The gradient of -advantage x log-probability makes better answers likelier and worse ones less likely.
        num_tokens = sum(sum(answer.mask) for answer in answers)
        pad_id = tokenizer.special_id("<|assistant_end|>")
        for batch in micro_batches(groups, 8, pad_id, "reinforce", num_tokens, len(answers)):
            logp = -model(batch.inputs, batch.targets, reduction="none")
            loss, _ = policy_loss(logp, batch, "reinforce")
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        rewards.append(sum(answer.reward for answer in answers) / len(answers))
        print(f"step {step:3d} | reward {rewards[-1]:.3f}")
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    metadata = checkpoint_metadata("rl", model.config, {}, tokenizer)
    torch.save({"state_dict": state, "global_step": num_steps, "nanochat_pl": metadata}, folder / "rl.ckpt")
    return rewards


if __name__ == "__main__":
    reward_sums(Path("outputs/example/sft.ckpt"), Path("outputs/example"))
