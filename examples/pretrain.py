"""Pretrain a small GPT in plain PyTorch: everything that `python train.py stage=base` computes, on one page.

Run `python examples/pretrain.py`: it takes a minute on two CPU cores, on the embedded world. Its checkpoint
is like any other: use it with `nanochat-pl chat outputs/example/base.ckpt --complete` or as `init_from=` of the next
stage. A test checks that its weights equal those of train.py, bit for bit.
"""

from itertools import islice
from pathlib import Path

import torch

from nanochat_pl import GPT, GPTConfig, Tokenizer
from nanochat_pl.checkpoint.lightning import checkpoint_metadata
from nanochat_pl.config.sizing import shape_for_depth
from nanochat_pl.data.corpus import TextCorpus
from nanochat_pl.data.packing import TokenBatches, fixed_batches
from nanochat_pl.data.parquet import list_shards, read_documents
from nanochat_pl.eval.bpb import evaluate_bpb
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.groups import build_optimizers, clip_gradients, set_schedule
from nanochat_pl.tokenizer import training_texts
from nanochat_pl.world.write import write_microworld


def pretrain(folder: Path, depth: int = 1, num_steps: int = 60, rows: int = 8, length: int = 256) -> float:
    """Train on the embedded world, save `base.ckpt` to `folder`, return bits per byte.

    Each step reads two micro-batches of `rows` rows of `length` tokens.
    """
    # 1) Text: parquet files of documents, the last of which is for validation.
    shards = list_shards(write_microworld(folder / "world") / "text")

    # 2) Vocabulary: the most frequent pairs of bytes are merged until there are 2,048 tokens.
    tokenizer = Tokenizer.train(training_texts(read_documents(shards.train), 2_000_000_000, 10_000), vocab_size=2048)

    # 3) Batches: one endless stream of tokens, a BOS before each document, cut into rows.
    # The target of a token is the one after it.
    shape = {"batch_rows": rows, "sequence_len": length, "rank": 0, "world_size": 1}
    batches = TokenBatches(shards.train, tokenizer, micro_batches=2, logical_shards=1, **shape)
    val = list(fixed_batches(TextCorpus([shards.val], tokenizer), tokens=16_384, packing="stream", **shape))

    # 4) The model. It is built without weights; the seed determines the initial ones.
    torch.manual_seed(42)
    config = GPTConfig(**shape_for_depth(depth), sequence_len=length, vocab_size=tokenizer.vocab_size)
    model = GPT(config)
    model.init_weights()

    # 5) Two optimizers: Muon for the matrices, AdamW for both ends of the vocabulary.
    optim = OptimConfig()
    optimizers = build_optimizers(model.param_roles(), config.n_embd, optim)

    for step, batch in enumerate(islice(batches, num_steps)):
        set_schedule(optimizers, step, num_steps, optim)
        # Gradients of the micro-batches add up to that of the mean over all tokens of the step.
        total = torch.zeros(())
        for inputs, targets in zip(batch.inputs, batch.targets):
            loss = model(inputs, targets, reduction="sum") * (1 / batch.supervised_tokens)
            loss.backward()
            total += loss.detach()
        clip_gradients(model.parameters(), optim.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        if step % 10 == 0:
            print(f"step {step:3d} | loss {total:.4f}")

    # 6) Bits per byte: the loss on unseen text, comparable between vocabularies.
    bits_per_byte = evaluate_bpb(model, val, tokenizer.token_bytes())
    print(f"validation: {bits_per_byte:.4f} bits per byte")
    state = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    metadata = checkpoint_metadata("base", config, {}, tokenizer)
    torch.save({"state_dict": state, "global_step": num_steps, "nanochat_pl": metadata}, folder / "base.ckpt")
    return bits_per_byte


if __name__ == "__main__":
    pretrain(Path("outputs/example"))
