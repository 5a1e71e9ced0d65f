"""From a checked config to a finished run: the pieces are put together here and nowhere else.

`run(cfg, ...)` trains what `cfg.stage` names and returns the run's summary. Each part is a small function that a
notebook may call by itself.
"""

import dataclasses
import inspect
import json
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.strategies import DDPStrategy

from nanochat_pl.checkpoint.lightning import (
    identity,
    model_weights,
    read_checkpoint,
    stored_model_config,
    stored_tokenizer,
)
from nanochat_pl.data.conversations import num_steps as conversation_steps
from nanochat_pl.data.lengths import Lengths, measure_lengths
from nanochat_pl.data.parquet import Shards
from nanochat_pl.data.transcripts import num_steps as transcript_steps
from nanochat_pl.inputs import prepare_root, prepare_text, start_weights
from nanochat_pl.lit.callbacks import Bar, Progress, Summary, Validation, loss_measure
from nanochat_pl.lit.checkpoints import AtomicCheckpointIO, Checkpoints
from nanochat_pl.lit.datamodules import (
    ConversationCounts,
    StepBatches,
    conversation_data,
    text_data,
    transcript_data,
)
from nanochat_pl.lit.loggers import MetricsFile
from nanochat_pl.lit.module import LanguageModel
from nanochat_pl.lit.preflight import (
    batch_micro_batches,
    check_stage,
    clear_run,
    is_first_process,
    model_config,
    preflight,
    resume_file,
    start_arguments,
)
from nanochat_pl.lit.provenance import run_inputs
from nanochat_pl.lit.questions import QuestionData, question_data
from nanochat_pl.lit.record import describe_run, finish_loggers, is_terminal, write_log
from nanochat_pl.lit.rl import PolicyModel, Samples, pass_at_k_measure
from nanochat_pl.lit.schema import LongConversations, RLConfig, StageName, TrainConfig
from nanochat_pl.lit.tokenizers import find_tokenizer, train_tokenizer
from nanochat_pl.model.accounting import flops_per_token, num_parameters
from nanochat_pl.model.config import Architecture, GPTConfig
from nanochat_pl.model.gpt import GPT
from nanochat_pl.paths import checkpoint_file
from nanochat_pl.runtime import peak_flops, pick_compute_dtype, pick_device
from nanochat_pl.scaling import plan_horizon
from nanochat_pl.tasks.base import Mixture, overlap
from nanochat_pl.tokenizer import Tokenizer

log = logging.getLogger(__name__)

WORTH_COMPILING_STEPS = 50
"""Shorter runs end before compilation has paid for itself; trainer.compile=true compiles them all the same."""


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run starts from."""

    config: GPTConfig
    tokenizer: Tokenizer
    weights: dict[str, torch.Tensor] | None
    """None = initialised from the seed."""
    origin: str
    """Where they come from, for people."""


def run(cfg: TrainConfig, plain: dict[str, Any], folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Train one stage in `folder` and return what its summary.json says.

    Args:
        cfg: the checked config.
        plain: the same, resolved, as plain containers (saved with the run and inside its checkpoints).
        folder: where everything goes.
        arguments: the command line, saved with the run.
    """
    preflight(cfg, folder)
    resume = resume_file(cfg, folder)
    if cfg.stage.name != StageName.tokenizer:
        pick_device(cfg.trainer.accelerator)  # a device that is not there must not cost an earlier run (force=true)
    first = is_first_process()
    if first:
        if cfg.force and (resume is None or folder.resolve() not in resume.resolve().parents):
            clear_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        describe_run(folder, plain, arguments)
    write_log(folder / "log.txt", first)
    if cfg.stage.name == StageName.tokenizer:
        return train_tokenizer(cfg, folder)
    return fit(cfg, plain, folder, resume)


def fit(cfg: TrainConfig, plain: dict[str, Any], folder: Path, resume: Path | None) -> dict[str, Any]:
    """Train a stage that has a model."""
    device = pick_device(cfg.trainer.accelerator)
    dtype = pick_compute_dtype(cfg.trainer.compute_dtype, device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    shards = prepare_text(cfg.data, cfg.offline) if cfg.stage.name == StageName.base else prepare_root(cfg.data)
    start = find_start(cfg, plain, resume)
    data, num_steps = build_data(cfg, start.tokenizer, start.config, shards)

    torch.manual_seed(cfg.seed)
    model = GPT(start.config, dtype)
    if start.weights is None:
        model.init_weights()
    else:
        model.load_state_dict(start.weights)
    flops = flops_per_token(start.config)
    compiled = compile_model(model, cfg, device, num_steps)

    checkpoints = Checkpoints(
        folder / "checkpoints",
        cfg.stage.checkpoint_every_steps,
        cfg.stage.keep_checkpoints,
        cfg.trainer.stop_after_steps,
    )
    token_bytes = start.tokenizer.token_bytes() if cfg.stage.counts_tokens else None
    if cfg.stage.name != StageName.rl and cfg.rl != RLConfig():
        log.warning("rl.* has no effect on stage=%s", cfg.stage.name)
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
    summary = Summary(folder / "summary.json", facts, progress, validation, checkpoints)
    callbacks: list[L.Callback] = [progress, checkpoints, validation, ConversationCounts(data, facts), summary]
    if isinstance(data, QuestionData):
        callbacks.append(Samples(folder / "samples.jsonl", cfg.trainer.log_every_steps))
    callbacks += [make(spec) for spec in cfg.callbacks.values()]
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
    record = identity(str(cfg.stage.name), start.config, plain, start.tokenizer)
    arguments = (model, cfg.optim, num_steps, cfg.trainer.log_every_steps, record)
    if isinstance(data, QuestionData):
        module: LanguageModel = PolicyModel(
            *arguments,
            rl=cfg.rl,
            questions=data.train,
            tokenizer=start.tokenizer,
            device_batch=cfg.stage.device_batch,
            seed=cfg.seed,
            engine_dtype=str(cfg.engine.dtype),
        )
    else:
        module = LanguageModel(*arguments)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    finally:
        finish_loggers(trainer)
    result = json.loads((folder / "summary.json").read_text())
    if checkpoints.signal is not None:
        result["signal"] = checkpoints.signal
    return result


def find_start(cfg: TrainConfig, plain: dict[str, Any], resume: Path | None) -> Start:
    """Settle config, tokenizer and start weights: from the checkpoint to resume, the one to start from, or nothing.

    Raises:
        ValueError: tokenizer and checkpoint have different vocabularies.
        FileNotFoundError: no tokenizer, or no checkpoint where one is needed.
    """
    source = resume or start_weights(cfg.stage.name, cfg.run_name, cfg.init_from, cfg.outputs, start_arguments(cfg))
    if source is None:
        tokenizer = find_tokenizer(cfg)
        return Start(model_config(cfg, tokenizer.vocab_size), tokenizer, None, f"seed {cfg.seed}")
    file = checkpoint_file(source)
    checkpoint = read_checkpoint(file)
    tokenizer = stored_tokenizer(checkpoint)
    config = dataclasses.replace(stored_model_config(checkpoint), sequence_len=cfg.stage.sequence_len)
    if cfg.tokenizer.path is not None:
        given = Tokenizer.load(cfg.tokenizer.path)
        if given.fingerprint() != tokenizer.fingerprint():
            raise ValueError(
                f"tokenizer.path={cfg.tokenizer.path} (vocabulary {given.vocab_size}) is not the tokenizer that {file} "
                f"was trained with (vocabulary {tokenizer.vocab_size}); leave tokenizer.path null to use that one"
            )
    if cfg.depth != config.n_layer:
        log.warning("depth=%d only names this run: the weights of %s have depth %d", cfg.depth, file, config.n_layer)
    if resume is not None:
        trained = checkpoint["nanochat_pl"]["stage"]
        if trained != cfg.stage.name:
            raise ValueError(
                f"{file} is a run of stage={trained}, which stage={cfg.stage.name} cannot continue; to start from its "
                f"weights: resume=null init_from={file}"
            )
        warn_of_changes(checkpoint["nanochat_pl"]["config"], plain)
    warn_of_other_model(cfg, config, file)
    weights = None if resume else model_weights(checkpoint)
    origin = f"{file} ({checkpoint['nanochat_pl']['stage']}, step {checkpoint['global_step']})"
    return Start(config, tokenizer, weights, origin)


def inputs_of(cfg: TrainConfig, folder: Path, resume: Path | None, shards: Shards | None) -> dict[str, Any]:
    """Describe what the run is made from; a run that resumes in its own folder says what it said when it began."""
    summary = folder / "summary.json"
    if resume is not None and summary.is_file():
        return json.loads(summary.read_text()).get("inputs") or {}
    return run_inputs(cfg, shards)


def warn_of_other_model(cfg: TrainConfig, config: GPTConfig, file: Path) -> None:
    """Say which architecture settings have no effect, because the weights were trained with others."""
    for field in dataclasses.fields(Architecture):
        asked, stored = getattr(cfg.model, field.name), getattr(config, field.name)
        if asked != stored:
            log.warning("model.%s=%s has no effect: the weights of %s have %s", field.name, asked, file, stored)


def warn_of_changes(then: dict[str, Any], now: dict[str, Any], prefix: str = "") -> None:
    """Say which settings of a resumed run differ from those it was saved with: they hold from here on."""
    free = (
        "depth",  # with model and tokenizer the checkpoint's: see warn_of_other_model
        "model",
        "tokenizer",
        "resume",
        "force",
        "init_from",
        "outputs",
        "trainer",
        "logger",
        "callbacks",
        "eval",
        "data.num_workers",
        "data.root",
    )
    for key in sorted(then.keys() | now.keys()):
        path, before, after = f"{prefix}{key}", then.get(key), now.get(key)
        if path in free or before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            warn_of_changes(before, after, f"{path}.")
        else:
            log.warning("resume: %s was %s, from here on it is %s", path, before, after)


def build_data(
    cfg: TrainConfig, tokenizer: Tokenizer, config: GPTConfig, shards: Shards | None
) -> tuple[StepBatches, int]:
    """Make the data module and settle how many optimizer steps the run has."""
    check_stage(cfg)
    stage = cfg.stage
    name, value = stage.horizon
    if shards is not None:
        assert stage.total_batch_tokens is not None
        budget: dict[str, Any] = {name: int(value) if name == "num_steps" else float(value)}
        plan = plan_horizon(config, stage.total_batch_tokens, **budget)
        data = text_data(
            shards.train,
            shards.val,
            tokenizer,
            device_batch=stage.device_batch,
            sequence_len=stage.sequence_len,
            micro_batches=batch_micro_batches(cfg),
            logical_shards=cfg.data.logical_shards,
            num_workers=cfg.data.num_workers,
            packing=str(cfg.data.packing),
            val_tokens=stage.val_tokens or 20 * stage.total_batch_tokens,
        )
        return data, plan.num_steps
    rows, val_rows = build_mixtures(cfg)
    if stage.name == StageName.rl:
        questions = question_data(rows, val_rows, tokenizer, cfg)
        return questions, int(value) * (1 if name == "num_steps" else questions.steps_per_epoch)
    if stage.counts_tokens:
        return build_transcripts(cfg, tokenizer, rows, val_rows)
    assert stage.total_batch_rows is not None
    drop_long = stage.long_conversations == LongConversations.drop
    check_room(rows, tokenizer, stage.sequence_len, drop_long)
    if name == "num_steps":
        steps = int(value)
    else:
        lengths = epoch_lengths(cfg, rows, tokenizer) if drop_long else None
        steps = conversation_steps(len(rows), stage.total_batch_rows, int(value), lengths, stage.sequence_len)
    data = conversation_data(
        rows,
        val_rows,
        tokenizer,
        total_batch_rows=stage.total_batch_rows,
        device_batch=stage.device_batch,
        sequence_len=stage.sequence_len,
        packed=stage.packed,
        drop_long=drop_long,
        seed=cfg.seed,
        num_val_rows=stage.val_rows,
        num_workers=cfg.data.num_workers,
    )
    return data, steps


def build_transcripts(cfg: TrainConfig, tokenizer: Tokenizer, rows: Any, val_rows: Any) -> tuple[StepBatches, int]:
    """Make the data module of a stage that reads conversations as text, and settle its number of steps."""
    stage = cfg.stage
    assert stage.total_batch_tokens is not None
    name, value = stage.horizon
    packing = {
        "device_batch": stage.device_batch,
        "sequence_len": stage.sequence_len,
        "micro_batches": batch_micro_batches(cfg),
        "packing": str(cfg.data.packing),
    }
    data = transcript_data(
        rows,
        val_rows,
        tokenizer,
        **packing,
        logical_shards=cfg.data.logical_shards,
        num_workers=cfg.data.num_workers,
        seed=cfg.seed,
        val_tokens=stage.val_tokens or 20 * stage.total_batch_tokens,
    )
    if name == "num_steps":
        return data, int(value)
    packing["batch_rows"] = packing.pop("device_batch")
    return data, transcript_steps(epoch_lengths(cfg, rows, tokenizer), **packing, num_epochs=int(value))


def epoch_lengths(cfg: TrainConfig, rows: Any, tokenizer: Tokenizer) -> Lengths:
    """Measure the conversations of an epoch, and say how."""
    lengths = measure_lengths(rows, tokenizer, cfg.seed, cfg.data.num_workers)
    log.info("an epoch has %s tokens (%s)", f"{lengths.total:,}", lengths.method)
    return lengths


def check_room(rows: Any, tokenizer: Tokenizer, sequence_len: int, drop_long: bool = False) -> None:
    """Refuse rows so short that they cut the answers away; warn where some are.

    Raises:
        ValueError: not one of the first conversations keeps a token to learn from.
    """
    sample = [tokenizer.render_conversation(rows[i], max_tokens=2**31) for i in range(min(len(rows), 256))]
    longest = max(len(ids) for ids, _ in sample)
    kept = sum(any(mask[: sequence_len + 1]) for _, mask in sample)
    cut = sum(len(ids) > sequence_len + 1 for ids, _ in sample)
    if kept == 0:
        raise ValueError(
            f"stage.sequence_len={sequence_len} cuts the answer off every conversation (the first {len(sample)} have "
            f"up to {longest} tokens); set stage.sequence_len={longest} or more"
        )
    if cut:
        log.warning(
            "%d of the first %d conversations are longer than stage.sequence_len=%d (up to %d tokens) and are %s",
            cut,
            len(sample),
            sequence_len,
            longest,
            "dropped" if drop_long else "cut",
        )


def make(spec: Any, **arguments: Any) -> Any:
    """Make what a `_target_` names; errors of its own come through unwrapped."""
    try:
        return instantiate(spec, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | OSError):
            raise error.__cause__ from None
        raise ValueError(str(error)) from error


def build_mixtures(cfg: TrainConfig) -> tuple[Mixture, Mixture]:
    """Make the mixtures of training and validation; say how much both would ask, and leave that out if asked to.

    Raises:
        ValueError: one has no tasks, or nothing is left to train on.
    """
    rows, val_rows = build_tasks(cfg.mixture.tasks, cfg), build_tasks(cfg.mixture.val_tasks, cfg)
    twice, drop = overlap(rows, val_rows), cfg.mixture.drop_train_duplicates
    if not twice:
        log.info("none of the %s training conversations asks what validation asks", f"{len(rows):,}")
        return rows, val_rows
    if drop and len(twice) == len(rows):
        raise ValueError(
            f"all {len(rows)} training conversations ask what validation asks, so mixture.drop_train_duplicates=true "
            "leaves none; give mixture.tasks another split than mixture.val_tasks"
        )
    log.log(
        logging.INFO if drop else logging.WARNING,
        "%s of %s training conversations ask what validation asks (%s) and are %s",
        f"{len(twice):,}",
        f"{len(rows):,}",
        ", ".join(f"{name}: {count:,}" for name, count in Counter(rows[i]["task"] for i in twice).items()),
        "left out" if drop else "kept; mixture.drop_train_duplicates=true leaves them out",
    )
    return (rows.without(twice) if drop else rows), val_rows


def build_tasks(specs: dict[str, Any], cfg: TrainConfig) -> Mixture:
    """Make a mixture from the tasks that the config names.

    Raises:
        ValueError: there are none.
    """
    if not specs:
        raise ValueError(f"stage={cfg.stage.name} needs conversations, but the mixture has no tasks; try mixture=sft")
    return Mixture({name: make(spec) for name, spec in specs.items()}, seed=cfg.seed)


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
    world = cfg.trainer.devices * cfg.trainer.num_nodes
    strategy: Any = "auto"
    if world > 1 or cfg.trainer.strategy == "ddp":
        backend = "nccl" if device.type == "cuda" else "gloo"
        # The only buffers are constant tables; torch 2.13 renamed the switch that keeps them from being sent.
        accepted = inspect.signature(torch.nn.parallel.DistributedDataParallel.__init__).parameters
        keep = "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"
        strategy = DDPStrategy(gradient_as_bucket_view=True, process_group_backend=backend, **{keep: False})
    loggers: list[Any] = [MetricsFile(folder / "metrics.csv")]
    loggers += [make(spec, folder=str(folder)) for spec in cfg.logger.values()]
    return L.Trainer(
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
        default_root_dir=str(folder),
        plugins=[AtomicCheckpointIO()],
    )
