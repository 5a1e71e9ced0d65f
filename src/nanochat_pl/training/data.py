"""From a config to the data module of its stage: tasks, mixtures, the rows of a step, the number of steps."""

import logging
from collections import Counter
from typing import Any

from nanochat_pl.config.checks import batch_micro_batches, check_stage
from nanochat_pl.config.schema import LongConversations, TrainConfig
from nanochat_pl.config.sizing import plan_horizon
from nanochat_pl.config.stages import StageName
from nanochat_pl.config.targets import make
from nanochat_pl.data.conversation_corpus import num_token_steps
from nanochat_pl.data.conversations import Lengths, measure_lengths, num_row_steps
from nanochat_pl.data.parquet import Shards
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.tasks.base import Mixture, overlap
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.datamodules import StepBatches, conversation_data, text_data, transcript_data
from nanochat_pl.training.questions import question_data

log = logging.getLogger(__name__)


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
    num_val_rows = stage.val_rows
    if num_val_rows is not None and num_val_rows > len(val_rows):
        log.info(
            "there are %d validation conversations, not stage.val_rows=%d: all are used", len(val_rows), num_val_rows
        )
        num_val_rows = None
    check_validation(val_rows, num_val_rows, tokenizer, stage.sequence_len)
    if name == "num_steps":
        steps = int(value)
    else:
        lengths = epoch_lengths(cfg, rows, tokenizer) if drop_long else None
        steps = num_row_steps(len(rows), stage.total_batch_rows, int(value), lengths, stage.sequence_len)
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
        num_val_rows=num_val_rows,
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
    return data, num_token_steps(epoch_lengths(cfg, rows, tokenizer), **packing, num_epochs=int(value))


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


def check_validation(rows: Any, num_rows: int | None, tokenizer: Tokenizer, sequence_len: int) -> None:
    """Refuse a validation set in which no conversation keeps a token to measure, whose loss would be infinite.

    Args:
        num_rows: the fixed validation set is the first so many rows; None = all.

    Raises:
        ValueError: there is none, with the length that the shortest answer needs.
    """
    needed: list[int] = []  # tokens up to the first supervised one
    measured = range(min(len(rows), num_rows or len(rows)))
    for index in measured:
        _, mask = tokenizer.render_conversation(rows[index], max_tokens=2**31)
        if any(mask[1 : sequence_len + 1]):
            return
        needed += [mask.index(1, 1)] if any(mask[1:]) else []
    why = (
        f"stage.sequence_len={sequence_len} cuts their answers away; set stage.sequence_len={min(needed)} or more"
        if needed
        else "they have no words of an assistant; give mixture.val_tasks conversations with answers"
    )
    raise ValueError(f"none of the {len(measured)} validation conversations has a token to measure: {why}")


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
