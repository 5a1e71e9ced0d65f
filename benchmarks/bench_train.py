"""Measure whole optimizer steps: our step against a plain one, and the Trainer against a bare loop.

The plain step is `PlainGPT` with torch's own Muon (bf16 Newton-Schulz) and fused AdamW: the classic system as one would
write it, eager and in fp32. Sides take turns within one process and ratios are medians of the turns' ratios, so that a
busy machine slows all of them. The overhead of the Trainer is counted in CPU time of the process, whole runs in turns.
On CUDA it also prints memory and MFU. Prints Markdown.

    python benchmarks/bench_train.py                              # d4, vocabularies 8,192 and 65,536
    python benchmarks/bench_train.py --only overhead
    python benchmarks/bench_train.py --depth 20 --sequence-len 2048 --rows 32 --vocab 65536 --sides "ours compiled bf16"
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from bench_loss import PlainGPT, make_batch
from torch import Tensor, nn

from nanochat_pl.config.sizing import shape_for_depth
from nanochat_pl.data.batch import Batch
from nanochat_pl.model.accounting import flops_per_token
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.optim.config import OptimConfig
from nanochat_pl.optim.groups import build_optimizers, clip_gradients, set_schedule
from nanochat_pl.runtime import peak_flops, pick_device

SIDES = ["plain eager fp32", "ours eager fp32", "ours compiled fp32", "ours compiled bf16"]


class Step:
    """One side: a model with its optimizers, one call = one whole optimizer step."""

    def __init__(self, name: str, config: GPTConfig) -> None:
        kind, mode, precision = name.split()
        self.device = pick_device()
        torch.manual_seed(42)
        ours = GPT(config, torch.bfloat16 if precision == "bf16" else torch.float32)
        ours.init_weights()
        self.model: nn.Module = ours
        if kind == "plain":
            self.model = PlainGPT(config)
            self.model.load_state_dict(ours.state_dict())
            self.model.cos, self.model.sin = self.model.cos.to(self.device), self.model.sin.to(self.device)
        self.model.to(self.device)
        self.optim = OptimConfig()
        if kind == "plain":
            ends = [self.model.lm_head.weight, self.model.transformer["wte"].weight]
            matrices = [p for p in self.model.parameters() if all(p is not end for end in ends)]
            self.optimizers = [
                torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
                torch.optim.AdamW(ends, lr=0.004, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True),
            ]
        else:
            self.optimizers = list(build_optimizers(ours.param_roles(), config.n_embd, self.optim))
        self.plain = kind == "plain"
        if mode == "compiled":
            self.model.compile(dynamic=False)
        self.count = 0

    def __call__(self, batch: tuple[Tensor, Tensor]) -> float:
        begin = time.perf_counter()
        if self.plain:
            loss = self.model(*batch)
        else:
            loss = self.model(*batch, reduction="sum") / batch[0].numel()
            set_schedule(self.optimizers, self.count, 1000, self.optim)
        loss.backward()
        if self.plain:
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        else:
            clip_gradients(self.model.parameters(), self.optim.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.count += 1
        return time.perf_counter() - begin


def speed(args: argparse.Namespace, vocab: int) -> None:
    """Time all sides in turns at one vocabulary size."""
    config = GPTConfig(sequence_len=args.sequence_len, vocab_size=vocab, **shape_for_depth(args.depth))
    batch = make_batch(config, args.rows)
    tokens = batch[0].numel()
    print(f"\nd{args.depth}, T={args.sequence_len}, B={args.rows}, V={vocab:,}, {pick_device()}, {args.turns} turns\n")
    print("| side | tok/s, median | ratio to the first | MFU |\n|---|---:|---:|---:|")
    steps = {name: Step(name, config) for name in args.sides}
    for step in steps.values():
        for _ in range(3):
            step(batch)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.turns):
        for name, step in steps.items():
            seconds[name].append(step(batch))
    first = seconds[args.sides[0]]
    peak = peak_flops(pick_device())
    for name, values in seconds.items():
        rate = tokens / statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(first, values))
        mfu = f"{100 * rate * flops_per_token(config) / peak:.1f}%" if peak else "-"
        print(f"| {name} | {rate:,.0f} | {ratio:.2f} | {mfu} |", flush=True)
    if pick_device().type == "cuda":
        print(f"\npeak memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def overhead(args: argparse.Namespace) -> None:
    """Compare CPU time of the Trainer with a bare loop over the same model and batches."""
    from lightning.pytorch.utilities.model_summary import ModelSummary  # noqa: F401  (import cost out of the timing)

    config = GPTConfig(sequence_len=args.sequence_len, vocab_size=8192, **shape_for_depth(args.depth))
    inputs, targets = make_batch(config, args.rows)
    micro = Batch(inputs[None].cpu(), targets[None].cpu(), tokens=inputs.numel())
    ratios = []
    for turn in range(args.turns + 1):
        bare, trainer = bare_seconds(config, micro, args.steps), trainer_seconds(config, micro, args.steps)
        if turn:  # the first turn warms up
            ratios.append(trainer / bare)
    low, high = min(ratios), max(ratios)
    print(f"\nTrainer / bare loop, CPU time of {args.steps} steps, d{args.depth}, {args.turns} turns: "
          f"median {statistics.median(ratios):.3f} (from {low:.3f} to {high:.3f})")  # fmt: skip


def bare_seconds(config: GPTConfig, batch: Batch, steps: int) -> float:
    """Return the CPU seconds of a plain loop: forward, backward, clip, both optimizers."""
    step = Step("ours eager fp32", config)
    pair = (batch.inputs[0].to(step.device), batch.targets[0].to(step.device))
    begin = time.process_time()
    for _ in range(steps):
        step(pair)
    return time.process_time() - begin


def trainer_seconds(config: GPTConfig, batch: Batch, steps: int) -> float:
    """Return the CPU seconds of the same steps through the LightningModule, with metrics file and log lines."""
    from nanochat_pl.config.schema import TrainConfig
    from nanochat_pl.training.callbacks.checkpoints import Checkpoints
    from nanochat_pl.training.callbacks.progress import Progress
    from nanochat_pl.training.callbacks.summary import Summary
    from nanochat_pl.training.callbacks.validation import Validation, loss_measure
    from nanochat_pl.training.datamodules import StepBatches
    from nanochat_pl.training.module import LanguageModel
    from nanochat_pl.training.run import build_trainer
    from nanochat_pl.training.state import CheckpointFolder, RunState

    torch.manual_seed(42)
    model = GPT(config, torch.float32)
    model.init_weights()

    def endless(cursor: object):
        while True:
            yield batch

    with tempfile.TemporaryDirectory() as folder:
        data = StepBatches(endless, list, steps)
        run = RunState(Path(folder), CheckpointFolder(Path(folder) / "checkpoints"), {}, flops_per_token(config))
        validation = Validation(run, loss_measure(data, None), None)
        validation.on_train_batch_end = lambda *a: None  # type: ignore[method-assign]  (training alone is timed)
        callbacks = [Progress(run, 10, None), Checkpoints(run), validation, Summary(run)]
        trainer = build_trainer(TrainConfig(run_name="bench"), Path(folder), steps, callbacks)
        module = LanguageModel(model, OptimConfig(), steps, 10)
        begin = time.process_time()
        trainer.fit(module, datamodule=data)
        return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--sequence-len", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 65536])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sides", nargs="+", default=SIDES)
    parser.add_argument("--only", choices=["speed", "overhead"])
    args = parser.parse_args()
    if args.only != "overhead":
        for vocab in args.vocab:
            speed(args, vocab)
    if args.only != "speed":
        overhead(args)


if __name__ == "__main__":
    main()
