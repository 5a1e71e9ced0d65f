"""Fine-tune a model on conversations in plain PyTorch: what `python train.py stage=sft` computes, on one page.

Run `python examples/sft.py` after `examples/pretrain.py`: it teaches the model sums. A test checks that its
weights equal those of train.py, bit for bit.
"""

from itertools import islice
from pathlib import Path

import torch

from nanochat_pl import load_model
from nanochat_pl.checkpoint.lightning import checkpoint_metadata
from nanochat_pl.data.conversations import ConversationBatches, conversation_batches
from nanochat_pl.eval.bpb import evaluate_loss
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.groups import build_optimizers, clip_gradients, set_schedule
from nanochat_pl.tasks.arithmetic import Arithmetic
from nanochat_pl.tasks.base import Mixture

SPLITS = {"train": 20_000, "test": 500}


def finetune(start: Path, folder: Path, num_steps: int = 60, conversations: int = 32, length: int = 256) -> float:
    """Fine-tune the model of `start`, save `sft.ckpt` to `folder`, return the loss of the validation answers."""
    # 1) A trained model with its tokenizer.
    loaded = load_model(start, compute_dtype=torch.float32)
    model, tokenizer = loaded.model.train(), loaded.tokenizer

    # 2) Conversations become ids and a mask: only the assistant's tokens are targets, all others are -1.
    # Several conversations share a row; positions restart with each, so that none attends to another.
    rows, val_rows = (Mixture({"sums": Arithmetic(size=size, split=split)}, seed=42) for split, size in SPLITS.items())
    shape = {"batch_rows": 4, "sequence_len": length, "rank": 0, "world_size": 1, "total_batch_rows": conversations}
    batches = ConversationBatches(rows, tokenizer, packed=True, seed=42, **shape)
    val = list(conversation_batches(val_rows, tokenizer, num_rows=100, **shape))

    # 3) New optimizers, with small learning rates that fall to zero.
    optim = OptimConfig(init_lr_frac=0.2, warmdown_frac=1.0, momentum_ramp_steps=None, grad_clip=None)
    optimizers = build_optimizers(model.param_roles(), model.config.n_embd, optim)

    for step, batch in enumerate(islice(batches, num_steps)):
        set_schedule(optimizers, step, num_steps, optim)
        # Every supervised token of the step has the same weight, however long its answer is.
        total = torch.zeros(())
        for inputs, targets, positions in zip(batch.inputs, batch.targets, batch.positions):
            loss = model(inputs, targets, positions, reduction="sum") * (1 / batch.supervised_tokens)
            loss.backward()
            total += loss.detach()
        clip_gradients(model.parameters(), optim.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        if step % 10 == 0:
            print(f"step {step:3d} | loss {total:.4f}")

    # 4) Held-out conversations; ids have no bytes per token here, since only answers are measured.
    val_loss, _ = evaluate_loss(model.eval(), val, None, "cpu")
    print(f"validation: {val_loss:.4f} nats per token of an answer")
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    metadata = checkpoint_metadata("sft", model.config, {}, tokenizer)
    torch.save({"state_dict": state, "global_step": num_steps, "nanochat_pl": metadata}, folder / "sft.ckpt")
    return val_loss


if __name__ == "__main__":
    finetune(Path("outputs/example/base.ckpt"), Path("outputs/example"))
