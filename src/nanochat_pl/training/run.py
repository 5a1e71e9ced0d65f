"""From a checked config to a finished run: the pieces are put together here and nowhere else.

`run(cfg, ...)` trains what `cfg.stage` names and returns the run's summary. Each part is a small function that a
notebook may call by itself.
"""

import contextlib
import inspect
import json
import logging
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from nanochat_pl.checkpoint.lightning import (
    checkpoint_metadata,
)
from nanochat_pl.checkpoint.whole import stored_step
from nanochat_pl.config.checks import (
    clear_run,
    is_first_process,
    preflight,
    resume_file,
    say_what_is_resumed,
)
from nanochat_pl.config.inputs import prepare_root, prepare_text
from nanochat_pl.config.schema import RLConfig, TrainConfig
from nanochat_pl.config.stages import StageName
from nanochat_pl.config.targets import make
from nanochat_pl.model.accounting import flops_per_token, num_parameters
from nanochat_pl.model.gpt import GPT
from nanochat_pl.paths import writing
from nanochat_pl.runtime import peak_flops, pick_compute_dtype, pick_device
from nanochat_pl.training.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from nanochat_pl.training.callbacks.evaluation import Evaluations
from nanochat_pl.training.callbacks.progress import Bar, Progress
from nanochat_pl.training.callbacks.samples import PromptSamples
from nanochat_pl.training.callbacks.summary import Picture, Summary
from nanochat_pl.training.callbacks.validation import Validation, loss_measure
from nanochat_pl.training.claim import check_free, claimed
from nanochat_pl.training.data import build_data
from nanochat_pl.training.datamodules import (
    ConversationCounts,
)
from nanochat_pl.training.loggers import MetricsFile
from nanochat_pl.training.module import LanguageModel
from nanochat_pl.training.questions import QuestionData
from nanochat_pl.training.record import describe_run, finish_loggers, is_terminal, write_log
from nanochat_pl.training.rl_module import PolicyModel, Samples, pass_at_k_measure
from nanochat_pl.training.signals import Stopped
from nanochat_pl.training.start import find_start, inputs_of
from nanochat_pl.training.tokenizers import train_tokenizer

log = logging.getLogger(__name__)

WORTH_COMPILING_STEPS = 50
"""Shorter runs end before compilation has paid for itself; trainer.compile=true compiles them all the same."""


def run(cfg: TrainConfig, plain: dict[str, Any], folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Train one stage in `folder` and return what its summary.json says.

    Args:
        cfg: the checked config.
        plain: the same, resolved, as plain containers (saved with the run and inside its checkpoints).
        folder: where everything goes.
        arguments: the command line, saved with the run.

    Raises:
        ValueError, FileNotFoundError: what `preflight` finds, or another process writes to the folder.
    """
    first = is_first_process()
    if first:
        check_free(folder)  # else it would be called a finished run's
    preflight(cfg, folder)
    with contextlib.ExitStack() as owned:
        if first:
            owned.enter_context(claimed(folder))
        return run_in(cfg, plain, folder, arguments, first)


def run_in(cfg: TrainConfig, plain: dict[str, Any], folder: Path, arguments: list[str], first: bool) -> dict[str, Any]:
    """Train one stage in a folder that is this run's own; returns as `run`."""
    resume = resume_file(cfg, folder)  # looked up now, when no other process changes what is there
    write_log(None, first, hold=True)
    if first:
        say_what_is_resumed(cfg, resume)

    def describe() -> None:
        describe_run(folder, plain, arguments)

    def begin() -> None:
        """Take the folder: called when all that can be refused is made, so that no refusal costs an earlier run."""
        if first:
            if cfg.force and (resume is None or folder.resolve() not in resume.resolve().parents):
                clear_run(folder)
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            if resume is None:
                describe()
        write_log(folder / "log.txt", first)

    if cfg.stage.name == StageName.tokenizer:
        return train_tokenizer(cfg, folder, begin)
    return fit(cfg, plain, folder, resume, begin, describe)


def fit(
    cfg: TrainConfig,
    plain: dict[str, Any],
    folder: Path,
    resume: Path | None,
    begin: Callable[[], None],
    describe: Callable[[], None],
) -> dict[str, Any]:
    """Train a stage that has a model; `begin` is called before anything is written to its folder.

    `describe` is called when a resumed run trains: a resume that is refused leaves the run's description as it is.
    """
    device = pick_device(cfg.trainer.accelerator)
    dtype = pick_compute_dtype(cfg.trainer.compute_dtype, device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    is_text = cfg.stage.name == StageName.base
    shards = prepare_text(cfg.data, cfg.offline, cfg.outputs) if is_text else prepare_root(cfg.data)
    start = find_start(cfg, plain, resume)
    data, num_steps = build_data(cfg, start.tokenizer, start.config, shards)

    torch.manual_seed(cfg.seed)
    random.seed(cfg.seed)  # nothing of ours draws from these two; a task or callback of the user's may
    np.random.seed(cfg.seed % 2**32)  # noqa: NPY002
    model = GPT(start.config, dtype)
    if start.weights is None:
        model.init_weights()
    else:
        model.load_state_dict(start.weights)
    flops = flops_per_token(start.config)
    compiled = compile_model(model, cfg, device, num_steps)
    own = [make(spec) for spec in cfg.callbacks.values() if spec is not None]
    begin()

    checkpoints = Checkpoints(
        folder / "checkpoints",
        cfg.stage.checkpoint_every_steps,
        cfg.stage.keep_checkpoints,
        cfg.trainer.stop_after_steps,
    )
    token_bytes = start.tokenizer.token_bytes() if cfg.stage.counts_tokens else None
    if cfg.stage.name != StageName.rl and cfg.rl != RLConfig():
        log.warning("rl.* has no effect on stage=%s", cfg.stage.name)
    if cfg.stage.sample_every_steps is not None and not cfg.stage.shows_samples:
        log.warning(
            "stage.sample_every_steps has no effect on stage=%s: its samples are the answers of its rollouts, every "
            "trainer.log_every_steps steps",
            cfg.stage.name,
        )
    every = cfg.stage.val_every_steps
    if isinstance(data, QuestionData):
        validation = Validation(pass_at_k_measure(data.val), checkpoints, every, best="pass@1", higher_is_better=True)
    else:
        best = "val/loss" if token_bytes is None else "val/bpb"
        validation = Validation(loss_measure(data, token_bytes), checkpoints, every, best)
    progress = Progress(
        cfg.trainer.log_every_steps,
        flops,
        peak_flops(device),
        validation,
    )
    facts = {
        "stage": str(cfg.stage.name),
        "run_name": cfg.run_name,
        "folder": str(folder),
        "init_from": start.origin,
        "num_parameters": num_parameters(start.config),
        "flops_per_token": flops,
        "vocab_size": start.config.vocab_size,
        "device": str(device),
        "compute_dtype": str(dtype).removeprefix("torch."),
        "compiled": compiled,
        "inputs": inputs_of(cfg, folder, resume, shards),
    }
    when_training = (lambda: None) if resume is None else describe
    summary = Summary(folder / "summary.json", facts, progress, validation, checkpoints, when_training)
    callbacks: list[L.Callback] = [progress, checkpoints, validation, ConversationCounts(data, facts), summary]
    if isinstance(data, QuestionData):
        facts |= {"sandbox": data.sandbox} if data.sandbox else {}
        callbacks.append(Samples(folder / "samples.jsonl", cfg.trainer.log_every_steps))
    elif cfg.stage.sample_every_steps is not None:
        callbacks.append(
            PromptSamples(
                folder / "samples.jsonl",
                cfg.stage,
                start.tokenizer,
                sequence_len=start.config.sequence_len,
                engine_dtype=str(cfg.engine.dtype),
                validation=validation,
            )
        )
    if cfg.stage.eval_every_steps is not None:
        callbacks.append(Evaluations(cfg, start.tokenizer, cfg.stage.eval_every_steps, validation))
    callbacks.append(Picture(folder, str(cfg.stage.name), cfg.run_name, checkpoints))
    callbacks += own
    terminal = is_terminal()
    if terminal:
        callbacks.append(Bar(progress))
    log.info(
        "%s: %s parameters, %s steps, %s on %s, %s, start: %s",
        folder,
        f"{facts['num_parameters']:,}",
        f"{num_steps:,}",
        facts["compute_dtype"],
        device,
        "compiled" if compiled else "eager",
        start.origin if resume is None else f"resumed from {resume}",
    )
    trainer = build_trainer(cfg, folder, device, num_steps, callbacks, terminal)
    record = checkpoint_metadata(str(cfg.stage.name), start.config, plain, start.tokenizer)
    made_of = (model, cfg.optim, num_steps, cfg.trainer.log_every_steps, record)
    if isinstance(data, QuestionData):
        module: LanguageModel = PolicyModel(
            *made_of,
            rl=cfg.rl,
            questions=data.train,
            tokenizer=start.tokenizer,
            device_batch=cfg.stage.device_batch,
            seed=cfg.seed,
            engine_dtype=str(cfg.engine.dtype),
        )
    else:
        module = LanguageModel(*made_of)
    if resume is not None and (done := stored_step(resume)) >= num_steps:
        past = f", and stage.num_steps is {num_steps}" if done > num_steps else ""
        log.warning("%s has all its steps: %d are done%s; what comes after the last one is made", folder, done, past)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except RuntimeError as error:  # a signal to all processes may end a compiler, a worker or another rank first
        if checkpoints.signal is None:
            raise
        raise Stopped(checkpoints.signal) from error
    except Stopped:
        if checkpoints.signal is None or checkpoints.ended_unsaved:
            raise
    finally:
        finish_loggers(trainer)
    result = json.loads((folder / "summary.json").read_text())
    if checkpoints.signal is not None:
        result["signal"] = checkpoints.signal
    return result


def compile_model(model: GPT, cfg: TrainConfig, device: torch.device, num_steps: int) -> bool:
    """Compile the model in place where that is asked for, or pays and works."""
    choice = cfg.trainer.compile
    if choice == "false":
        return False
    if choice == "auto":
        if num_steps < WORTH_COMPILING_STEPS:
            return False
        padded = cfg.stage.total_batch_rows is not None and not cfg.stage.packed
        if padded or cfg.stage.name == StageName.rl:
            log.info("trainer.compile=auto: eager, since padded rows change their length from step to step")
            return False
        try:
            probe = torch.compile(lambda x: x.exp().sum(), dynamic=False)
            probe(torch.ones(8, device=device))
        except Exception as error:  # whatever the compiler's tool chain raises: the point of a probe
            log.warning("trainer.compile=auto: eager, a probe did not compile (%s)", str(error).splitlines()[0][:200])
            return False
    model.compile(dynamic=False)
    return True


def build_trainer(
    cfg: TrainConfig, folder: Path, device: torch.device, num_steps: int, callbacks: list[Any], terminal: bool
) -> L.Trainer:
    """Make the Lightning Trainer: one epoch of `num_steps` batches, everything automatic switched off."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # A machine with Slurm may also train without it; what a job must ask for is checked in preflight.
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    world = cfg.trainer.devices * cfg.trainer.num_nodes
    strategy: Any = "auto"
    if world > 1 or cfg.trainer.strategy == "ddp":
        backend = "nccl" if device.type == "cuda" else "gloo"
        # The only buffers are constant tables; torch 2.13 renamed the switch that keeps them from being sent.
        accepted = inspect.signature(torch.nn.parallel.DistributedDataParallel.__init__).parameters
        keep = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"
        strategy = DDPStrategy(gradient_as_bucket_view=True, process_group_backend=backend, **{keep: False})
    loggers: list[Any] = [MetricsFile(folder / "metrics.csv")]
    loggers += [make(spec, folder=str(folder)) for spec in cfg.logger.values() if spec is not None]
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():  # the order in which Lightning looks
        # Its own way of saving on SIGUSR1, without our cursor's rules, and of requeueing the job stays off.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    trainer = L.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=cfg.trainer.devices,
        num_nodes=cfg.trainer.num_nodes,
        strategy=strategy,
        precision="32-true",
        # A sized epoch of exactly the run's steps: no prefetched batch is lost when the run resumes.
        limit_train_batches=num_steps,
        max_steps=num_steps,
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=terminal,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=callbacks,
        # Under Slurm, Lightning loads any hpc_ckpt_*.ckpt that lies in this folder: it must not be one that runs use.
        default_root_dir=str(folder / "lightning"),
        plugins=plugins,
    )
    _reach_the_end(trainer)
    return trainer


def _reach_the_end(trainer: L.Trainer) -> None:
    """Let a run that resumes after its last step end as others do: with validation, evaluation and summary.

    Lightning's loop would return before any callback learns that there is something to do.
    """
    plain_loop: Any = type(trainer.fit_loop)

    class Loop(plain_loop):
        @property
        def skip(self) -> bool:
            return False

    trainer.fit_loop.__class__ = Loop
