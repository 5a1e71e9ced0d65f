"""From a checked config to a finished run: the pieces are put together here and nowhere else.

`run(cfg, ...)` trains the stage of the config and returns the summary of the run. `fit` shows the order in which the
pieces are made; each is made by a small function that a notebook may call by itself.
"""

import contextlib
import inspect
import logging
import random
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy

from nanochat_pl.checkpoint.lightning import checkpoint_metadata
from nanochat_pl.checkpoint.whole import stored_step
from nanochat_pl.config.checks import preflight
from nanochat_pl.config.processes import idle_gpus, is_first_process
from nanochat_pl.config.run_folder import clear_run, resume_file, warn_of_older_checkpoint
from nanochat_pl.config.schema import RLConfig, TrainConfig
from nanochat_pl.config.sizing import scale_optim
from nanochat_pl.config.stages import StageName
from nanochat_pl.config.targets import make
from nanochat_pl.model.accounting import flops_per_token, num_parameters
from nanochat_pl.model.gpt import GPT
from nanochat_pl.paths import read_record, writing
from nanochat_pl.runtime import check_fp8, peak_flops, pick_compute_dtype, pick_device
from nanochat_pl.training.callbacks import by_priority
from nanochat_pl.training.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from nanochat_pl.training.callbacks.conversations import ConversationCounts
from nanochat_pl.training.callbacks.picture import Picture
from nanochat_pl.training.callbacks.progress import Progress, ProgressBar
from nanochat_pl.training.callbacks.samples import PromptSamples, RolloutSamples
from nanochat_pl.training.callbacks.summary import Summary
from nanochat_pl.training.callbacks.validation import Validation, loss_measure
from nanochat_pl.training.claim import check_free, claimed
from nanochat_pl.training.data import build_data, prepare_data
from nanochat_pl.training.datamodules import StepBatches
from nanochat_pl.training.environment import cluster_environment
from nanochat_pl.training.loggers import MetricsFile, finish_loggers
from nanochat_pl.training.module import LanguageModel
from nanochat_pl.training.questions import QuestionData
from nanochat_pl.training.record import describe_run, is_terminal, write_log
from nanochat_pl.training.rl_module import PolicyModel, pass_at_k_measure
from nanochat_pl.training.signals import Stopped
from nanochat_pl.training.start import Start, find_start, inputs_of
from nanochat_pl.training.state import CheckpointFolder, RunState
from nanochat_pl.training.tokenizers import train_tokenizer

log = logging.getLogger(__name__)

WORTH_COMPILING_STEPS = 50
"""Shorter runs end before compilation has paid for itself; trainer.compile=true compiles them anyway."""
LOST_CONNECTION = ("Connection closed", "Connection reset", "Broken pipe", "remote process exit")
"""What gloo and NCCL say of a process that is gone; they have no class of error for it."""


class LostProcessError(ConnectionError):
    """Another process of the run has ended."""


def run(cfg: TrainConfig, plain: dict[str, Any], folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Train one stage in `folder` and return its summary.

    Args:
        cfg: the checked config.
        plain: the same, resolved, as plain containers (saved with the run and inside its checkpoints).
        folder: the run folder.
        arguments: the command line, saved with the run.

    Raises:
        ValueError, FileNotFoundError: `preflight` fails, or another process writes to the folder.
    """
    first = is_first_process()
    if first:
        check_free(folder)  # first, since `preflight` would take what the other process writes for a finished run
    preflight(cfg, folder)
    with contextlib.ExitStack() as owned:
        if first:
            owned.enter_context(claimed(folder))
        resume = resume_file(cfg, folder)  # again, now that no other process can change the folder
        write_log(None, first, hold=True)
        if first:
            warn_of_older_checkpoint(cfg, resume)
        if cfg.stage.name == StageName.tokenizer:
            return train_tokenizer(cfg, folder, partial(take_folder, cfg, plain, folder, arguments, resume))
        return fit(cfg, plain, folder, arguments, resume)


def fit(
    cfg: TrainConfig, plain: dict[str, Any], folder: Path, arguments: list[str], resume: Path | None
) -> dict[str, Any]:
    """Train a stage that has a model; return its summary."""
    check_device(cfg)  # before anything is fetched or made
    shards = prepare_data(cfg)  # the text of stage=base; made or fetched where it is missing
    start = find_start(cfg, plain, resume)  # tokenizer, shape of the model, weights or none
    data = build_data(cfg, start.tokenizer, start.config, shards)  # batches, and the number of steps
    module = build_module(cfg, plain, start, data)  # the model and the losses of its stage
    own = [make(spec) for spec in cfg.callbacks.values() if spec is not None]
    take_folder(cfg, plain, folder, arguments, resume)  # from here on nothing is refused that a user could correct
    state = build_state(cfg, folder, start, module, inputs_of(cfg, folder, resume, shards), resume)
    describe = partial(describe_run, folder, plain, arguments) if resume else None
    trainer = build_trainer(cfg, folder, data.num_steps, [*build_callbacks(cfg, state, start, data, describe), *own])
    return train(trainer, module, data, state, resume)


def check_device(cfg: TrainConfig) -> None:
    """Check that this machine has the device, and the device the arithmetic, that the config asks for.

    Raises:
        ValueError: as `pick_device`, `pick_compute_dtype` and `check_fp8`.
    """
    device = pick_device(cfg.trainer.accelerator)
    dtype = pick_compute_dtype(cfg.trainer.compute_dtype, device)
    if cfg.trainer.fp8:
        check_fp8(device, dtype)


def take_folder(
    cfg: TrainConfig, plain: dict[str, Any], folder: Path, arguments: list[str], resume: Path | None
) -> None:
    """Take the run folder over: called once nothing can be refused any more, so that no refusal costs an earlier run.

    The record of a run that resumes is rewritten only when it trains: a resume that is refused leaves it as it is.
    """
    first = is_first_process()
    if first:
        if cfg.force and (resume is None or folder.resolve() not in resume.resolve().parents):
            clear_run(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if resume is None:
            describe_run(folder, plain, arguments)
    write_log(folder / "log.txt", first)


def build_module(cfg: TrainConfig, plain: dict[str, Any], start: Start, data: StepBatches) -> LanguageModel:
    """Build the model with its initial weights, compile it if that pays, and wrap it in the module that trains it."""
    device = pick_device(cfg.trainer.accelerator)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(cfg.seed)
    random.seed(cfg.seed)  # our code draws nothing from these two, but a task or callback of the user may
    np.random.seed(cfg.seed % 2**32)  # noqa: NPY002
    model = GPT(start.config, pick_compute_dtype(cfg.trainer.compute_dtype, device))
    if start.weights is None:
        model.init_weights()
    else:
        model.load_state_dict(start.weights)
    if cfg.trainer.fp8:
        from nanochat_pl.model.fp8 import use_fp8  # not every torch has what it needs

        use_fp8(model)
    compiled = compile_model(model, cfg, device, data.num_steps)
    metadata = checkpoint_metadata(str(cfg.stage.name), start.config, plain, start.tokenizer)
    stage = cfg.stage
    batch_tokens = stage.total_batch_tokens or (stage.total_batch_rows or 0) * stage.sequence_len or None
    optim = scale_optim(cfg.optim, start.config, batch_tokens, data.num_steps, cfg.model.aspect_ratio)
    what = (model, optim, data.num_steps, cfg.trainer.log_every_steps, metadata)
    if isinstance(data, QuestionData):
        module: LanguageModel = PolicyModel(
            *what,
            rl=cfg.rl,
            questions=data.train,
            tokenizer=start.tokenizer,
            device_batch=cfg.stage.device_batch,
            seed=cfg.seed,
            engine_dtype=str(cfg.engine.dtype),
        )
    else:
        module = LanguageModel(*what)
    module.compiled = compiled
    return module


def compile_model(model: GPT, cfg: TrainConfig, device: torch.device, num_steps: int) -> bool:
    """Compile the model in place if the config says so, or if it pays and works; return whether it was compiled."""
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


def build_state(
    cfg: TrainConfig,
    folder: Path,
    start: Start,
    module: LanguageModel,
    inputs: dict[str, Any],
    resume: Path | None = None,
) -> RunState:
    """Build what the callbacks share: the checkpoint files, and the facts of summary.json besides the metrics."""
    warn_of_no_effect(cfg)
    device = pick_device(cfg.trainer.accelerator)
    facts = {
        "stage": str(cfg.stage.name),
        "run_name": cfg.run_name,
        "folder": str(folder),
        "init_from": start.origin,
        "num_parameters": num_parameters(start.config),
        "flops_per_token": flops_per_token(start.config),
        "vocab_size": start.config.vocab_size,
        "device": str(device),
        "compute_dtype": str(module.model.compute_dtype).removeprefix("torch."),
        "compiled": module.compiled,
        "inputs": inputs,
    }
    log.info(
        "%s: %s parameters, %s steps, %s on %s, %s, start: %s",
        folder,
        f"{facts['num_parameters']:,}",
        f"{module.num_steps:,}",
        facts["compute_dtype"],
        device,
        "compiled" if module.compiled else "eager",
        start.origin if resume is None else f"resumed from {resume}",
    )
    files = CheckpointFolder(folder / "checkpoints", cfg.stage.checkpoint_every_steps, cfg.stage.keep_checkpoints)
    return RunState(folder, files, facts, facts["flops_per_token"])


def build_callbacks(
    cfg: TrainConfig, state: RunState, start: Start, data: StepBatches, describe: Callable[[], None] | None = None
) -> list[L.Callback]:
    """Build what happens around the training step: log, checkpoints, validation, samples, evaluations.

    Args:
        describe: called when training starts, to save the record of the run anew; None if it is saved already.
    """
    stage = cfg.stage
    callbacks: list[L.Callback] = [
        Progress(state, cfg.trainer.log_every_steps, peak_flops(pick_device(cfg.trainer.accelerator))),
        Checkpoints(state, cfg.trainer.stop_after_steps),
        ConversationCounts(state),
        Summary(state, describe),
        Picture(state),
    ]
    if isinstance(data, QuestionData):
        state.facts |= {"sandbox": data.sandbox} if data.sandbox else {}
        measure, best = pass_at_k_measure(data.val), "pass@1"
        callbacks.append(RolloutSamples(state, cfg.trainer.log_every_steps))
    else:
        token_bytes = start.tokenizer.token_bytes() if stage.counts_tokens else None
        measure = loss_measure(data, token_bytes)
        best = "val/loss" if token_bytes is None else "val/bpb"
    callbacks.append(Validation(state, measure, stage.val_every_steps, best))
    if stage.sample_every_steps is not None and stage.shows_samples:
        length = start.config.sequence_len
        dtype = str(cfg.engine.dtype)
        callbacks.append(PromptSamples(state, stage, start.tokenizer, sequence_len=length, engine_dtype=dtype))
    if stage.eval_every_steps is not None:
        from nanochat_pl.training.callbacks.evaluation import Evaluations  # it loads every evaluation

        callbacks.append(Evaluations(state, cfg, start.tokenizer, stage.eval_every_steps))
    if is_terminal():
        callbacks.append(ProgressBar(state))
    return callbacks


def warn_of_no_effect(cfg: TrainConfig) -> None:
    """Warn of settings that the stage does not read, and of devices that the run does not use."""
    if cfg.trainer.accelerator != "cpu" and (idle := idle_gpus(cfg.trainer)):
        log.warning(
            "the job holds %d GPUs of this node more than trainer.devices=%d; trainer=ddp trainer.devices=%d uses all",
            *(idle, cfg.trainer.devices, cfg.trainer.devices + idle),
        )
    if cfg.stage.name != StageName.rl and cfg.rl != RLConfig():
        log.warning("rl.* has no effect on stage=%s", cfg.stage.name)
    if cfg.stage.sample_every_steps is not None and not cfg.stage.shows_samples:
        log.warning(
            "stage.sample_every_steps has no effect on stage=%s: its samples are the answers of its rollouts, every "
            "trainer.log_every_steps steps",
            cfg.stage.name,
        )


def train(
    trainer: L.Trainer, module: LanguageModel, data: StepBatches, state: RunState, resume: Path | None
) -> dict[str, Any]:
    """Train to the end, or until a signal stops it; return the summary, with the signal if there was one."""
    if resume is not None and (done := stored_step(resume)) >= data.num_steps:
        past = f", and stage.num_steps is {data.num_steps}" if done > data.num_steps else ""
        text = "%s has all its steps: %d are done%s; what comes after the last one is made"
        log.warning(text, state.folder, done, past)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except RuntimeError as error:  # a signal may have ended a compiler, a worker or another rank first
        if state.signal is not None:
            raise Stopped(state.signal) from error
        if trainer.world_size > 1 and any(words in str(error) for words in LOST_CONNECTION):
            raise LostProcessError(
                "another process of the run has ended, and this one cannot go on without it; why it ended stands in "
                "what it printed last, if it could print; to continue from the last checkpoint: the same command with "
                "resume=auto"
            ) from error
        raise
    except Stopped:
        if state.signal is None or state.ended_unsaved:
            raise
    finally:
        finish_loggers(trainer)
    result = read_record(state.folder / "summary.json") or {}
    if state.signal is not None:
        result["signal"] = state.signal
    return result


def build_trainer(cfg: TrainConfig, folder: Path, num_steps: int, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """Build the Lightning Trainer: one epoch of `num_steps` batches, with everything automatic switched off."""
    quiet_lightning()
    device = pick_device(cfg.trainer.accelerator)
    world = cfg.trainer.world_size
    strategy: Any = "auto"
    if world > 1 or cfg.trainer.strategy == "ddp":
        backend = "nccl" if device.type == "cuda" else "gloo"
        # The only buffers are constant tables; torch 2.13 renamed the switch that keeps them from being sent.
        accepted = inspect.signature(torch.nn.parallel.DistributedDataParallel.__init__).parameters
        keep = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"
        strategy = DDPStrategy(gradient_as_bucket_view=True, process_group_backend=backend, **{keep: False})
    loggers: list[Any] = [MetricsFile(folder / "metrics.csv")]
    loggers += [make(spec, folder=str(folder)) for spec in cfg.logger.values() if spec is not None]
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
        enable_progress_bar=is_terminal(),
        use_distributed_sampler=False,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=by_priority(callbacks),
        # Under Slurm, Lightning loads any hpc_ckpt_*.ckpt from this folder, so no run may keep files there.
        default_root_dir=str(folder / "lightning"),
        plugins=[AtomicCheckpointIO(), cluster_environment()],
    )
    _reach_the_end(trainer)
    return trainer


def quiet_lightning() -> None:
    """Keep back Lightning's advice, which is about loaders and starts of runs that are chosen here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # a machine with Slurm, and no job


def _reach_the_end(trainer: L.Trainer) -> None:
    """Let a run that resumes after its last step end as others do: with validation, evaluation and summary.

    Lightning's loop would return before any callback is called.
    """
    plain_loop: Any = type(trainer.fit_loop)

    class Loop(plain_loop):
        @property
        def skip(self) -> bool:
            return False

    trainer.fit_loop.__class__ = Loop
