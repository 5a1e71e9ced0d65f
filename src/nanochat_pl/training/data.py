"""From a config to the data module of its stage: tasks, mixtures, the rows of a step, the number of steps."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from nanochat_pl.config.checks import batch_micro_batches, check_stage
from nanochat_pl.config.inputs import prepare_root, prepare_text
from nanochat_pl.config.schema import LongConversations, StageConfig, TrainConfig
from nanochat_pl.config.sizing import plan_horizon
from nanochat_pl.config.stages import StageName
from nanochat_pl.config.targets import make
from nanochat_pl.data.batch import Batch, Cursor
from nanochat_pl.data.conversation_corpus import ConversationCorpus, conversation_text_batches, num_token_steps
from nanochat_pl.data.conversations import (
    ConversationBatches,
    Lengths,
    conversation_batches,
    measure_lengths,
    num_row_steps,
)
from nanochat_pl.data.corpus import TextCorpus
from nanochat_pl.data.packing import PackedBatches, TokenBatches, fixed_batches
from nanochat_pl.data.parquet import Shards
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.runtime import rank, world_size
from nanochat_pl.tasks.base import Mixture, overlap
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.datamodules import StepBatches, log_streams
from nanochat_pl.training.questions import question_data

log = logging.getLogger(__name__)


def prepare_data(cfg: TrainConfig) -> Shards | None:
    """Make or fetch what the stage reads, where it is not there yet; return the text shards of stage=base."""
    is_text = cfg.stage.name == StageName.base
    return prepare_text(cfg.data, cfg.offline, cfg.outputs) if is_text else prepare_root(cfg.data)


def build_data(cfg: TrainConfig, tokenizer: Tokenizer, config: GPTConfig, shards: Shards | None) -> StepBatches:
    """Build the data module of the stage, which also settles how many optimizer steps the run has.

    Args:
        config: the config of the model, on which a budget in FLOPs or tokens per parameter depends.
        shards: the text of stage=base.
    """
    check_stage(cfg)
    if shards is not None:
        return text_data(cfg, tokenizer, config, shards)
    rows, val_rows = build_mixtures(cfg)
    if cfg.stage.name == StageName.rl:
        return question_data(rows, val_rows, tokenizer, cfg)
    build = conversation_text_data if cfg.stage.counts_tokens else conversation_data
    return build(cfg, tokenizer, rows, val_rows)


def row_shape(cfg: TrainConfig) -> dict[str, int]:
    """Return the arguments for the shape of micro-batches and for the share of this rank.

    Ranks exist only once the Trainer has started, so this is called when batches are made, not before.
    """
    stage = cfg.stage
    return {
        "batch_rows": stage.device_batch,
        "sequence_len": stage.sequence_len,
        "rank": rank(),
        "world_size": world_size(),
    }


def packed_shape(cfg: TrainConfig, cursor: Cursor | None) -> dict[str, Any]:
    """Return the arguments of a step that is packed from streams: those of `row_shape` and the numbers of each.

    Without data.logical_shards there is one stream for each rank at the start; a resumed run keeps their number.
    """
    return {
        **row_shape(cfg),
        "micro_batches": batch_micro_batches(cfg),
        "logical_shards": cfg.data.logical_shards or (cursor["logical_shards"] if cursor else world_size()),
        "num_workers": cfg.data.num_workers,
        "packing": str(cfg.data.packing),
        "cursor": cursor,
    }


def validation_tokens(stage: StageConfig) -> int:
    """Return the tokens of the fixed validation set over all ranks, for stages that count tokens."""
    assert stage.total_batch_tokens is not None
    return stage.val_tokens or 20 * stage.total_batch_tokens


def text_data(cfg: TrainConfig, tokenizer: Tokenizer, config: GPTConfig, shards: Shards) -> StepBatches:
    """Build the data module of stage=base: streams of tokens from documents, and a validation shard of its own."""
    packed: list[Batch] = []  # made once, at the first validation, and kept as int32 in half the memory

    def train(cursor: Cursor | None) -> TokenBatches:
        which = {"order_seed": cfg.data.order_seed, "frac": cfg.data.text_frac}
        batches = TokenBatches(shards.train, tokenizer, **which, **packed_shape(cfg, cursor))
        log_streams(batches.stream_rows, "documents")
        return batches

    def validation() -> Iterator[Batch]:
        if not packed:
            batches = fixed_batches(
                TextCorpus([shards.val], tokenizer),
                tokens=validation_tokens(cfg.stage),
                packing=str(cfg.data.packing),
                num_workers=cfg.data.num_workers,
                **row_shape(cfg),
            )
            packed.extend(replace(batch, inputs=batch.inputs.int(), targets=batch.targets.int()) for batch in batches)
        return (replace(batch, inputs=batch.inputs.long(), targets=batch.targets.long()) for batch in packed)

    name, value = cfg.stage.horizon
    assert cfg.stage.total_batch_tokens is not None
    budget: dict[str, Any] = {name: int(value) if name == "num_steps" else float(value)}
    return StepBatches(train, validation, plan_horizon(config, cfg.stage.total_batch_tokens, **budget).num_steps)


def conversation_text_data(cfg: TrainConfig, tokenizer: Tokenizer, rows: Mixture, val_rows: Mixture) -> StepBatches:
    """Build the data module of stage=mid: conversations packed as text is, every token supervised.

    Args:
        val_rows: the first ones, up to the number of validation tokens, are the fixed validation set.
    """
    corpus = ConversationCorpus(rows, tokenizer, seed=cfg.data_seed, shuffle=not getattr(rows, "ordered", False))
    packed: list[list[Batch]] = []  # made once, at the first validation

    def train(cursor: Cursor | None) -> PackedBatches:
        batches = PackedBatches(corpus, **packed_shape(cfg, cursor))
        log_streams(batches.stream_rows, "conversations")
        return batches

    def validation() -> list[Batch]:
        if not packed:
            size = {"val_tokens": validation_tokens(cfg.stage), "packing": str(cfg.data.packing)}
            packed.append(conversation_text_batches(val_rows, tokenizer, **size, **row_shape(cfg)))
        return packed[0]

    name, value = cfg.stage.horizon
    num_steps = int(value)
    if name != "num_steps":
        num_steps = num_token_steps(
            epoch_lengths(cfg, rows, tokenizer),
            batch_rows=cfg.stage.device_batch,
            sequence_len=cfg.stage.sequence_len,
            micro_batches=batch_micro_batches(cfg),
            packing=str(cfg.data.packing),
            num_epochs=int(value),
        )
    return StepBatches(train, validation, num_steps)


def conversation_data(cfg: TrainConfig, tokenizer: Tokenizer, rows: Mixture, val_rows: Mixture) -> StepBatches:
    """Build the data module of the stages that are supervised on the assistant's words alone.

    Args:
        val_rows: the first `stage.val_rows` are the fixed validation set.

    Raises:
        ValueError: no answer fits into the rows of training or of validation.
    """
    stage = cfg.stage
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

    def train(cursor: Cursor | None) -> ConversationBatches:
        return ConversationBatches(
            rows,
            tokenizer,
            total_batch_rows=stage.total_batch_rows,
            packed=stage.packed,
            drop_long=drop_long,
            seed=cfg.data_seed,
            shuffle=not getattr(rows, "ordered", False),
            cursor=cursor,
            num_workers=cfg.data.num_workers,
            **row_shape(cfg),
        )

    def validation() -> Iterable[Batch]:
        size = {"num_rows": num_val_rows, "total_batch_rows": stage.total_batch_rows}
        return conversation_batches(val_rows, tokenizer, **size, **row_shape(cfg))

    name, value = stage.horizon
    num_steps = int(value)
    if name != "num_steps":
        lengths = epoch_lengths(cfg, rows, tokenizer) if drop_long else None
        num_steps = num_row_steps(len(rows), stage.total_batch_rows, int(value), lengths, stage.sequence_len)
    return StepBatches(train, validation, num_steps)


def epoch_lengths(cfg: TrainConfig, rows: Mixture, tokenizer: Tokenizer) -> Lengths:
    """Measure the lengths of the conversations of an epoch, and log how it was done."""
    lengths = measure_lengths(rows, tokenizer, cfg.data_seed, cfg.data.num_workers)
    log.info("an epoch has %s tokens (%s)", f"{lengths.total:,}", lengths.method)
    return lengths


def check_room(rows: Mixture, tokenizer: Tokenizer, sequence_len: int, drop_long: bool = False) -> None:
    """Refuse rows so short that they cut off every answer; warn if they cut some conversations.

    Raises:
        ValueError: none of the first conversations keeps a supervised token.
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


def check_validation(rows: Mixture, num_rows: int | None, tokenizer: Tokenizer, sequence_len: int) -> None:
    """Refuse a validation set without a single supervised token, whose loss would be undefined.

    Args:
        num_rows: the number of first rows that are the fixed validation set; None = all.

    Raises:
        ValueError: there is no such token; the message has the row length that the shortest answer needs.
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
    """Build the mixtures of training and validation; log how much they share, and drop it if the config says so.

    The order of validation, whose first conversations are measured, is one for all seeds.

    Raises:
        ValueError: one has no tasks, or nothing is left to train on.
    """
    rows = build_tasks(cfg.mixture.tasks, cfg, cfg.data_seed)
    val_rows = build_tasks(cfg.mixture.val_tasks, cfg, TrainConfig.seed)
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


def build_tasks(specs: dict[str, Any], cfg: TrainConfig, seed: int) -> Mixture:
    """Build a mixture, in the order of a seed, from the tasks that the config names.

    Raises:
        ValueError: there are none.
    """
    if not specs:
        raise ValueError(f"stage={cfg.stage.name} needs conversations, but the mixture has no tasks; try mixture=sft")
    return Mixture({name: make(spec) for name, spec in specs.items()}, seed=seed)
