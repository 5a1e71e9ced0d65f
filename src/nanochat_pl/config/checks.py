"""Check everything about a run that can be known within a second, without torch.

Run folder, initial weights, resume point, shapes, batch arithmetic, input files. A run that passes here fails later
only for reasons nobody could know.
"""

import logging
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from nanochat_pl.checkpoint import check_model
from nanochat_pl.checkpoint.formats import FORMATS, ModelFiles
from nanochat_pl.config.evaluations import EVALUATIONS, EvalName
from nanochat_pl.config.inputs import other_text, prepare_root, prepare_text, start_weights
from nanochat_pl.config.processes import check_alone, check_processes, is_first_process
from nanochat_pl.config.run_folder import imported_run, resume_file, run_config, weights_only_error
from nanochat_pl.config.schema import DataSource, EvalConfig, LongConversations, RunConfig, TrainConfig
from nanochat_pl.config.shorthand import CONVERSATION_SUFFIXES
from nanochat_pl.config.sizing import batch_for_horizon, micro_batches, shape_for_depth
from nanochat_pl.config.stages import STAGES, StageName
from nanochat_pl.config.targets import is_module
from nanochat_pl.eval.core_tasks import check_bundle
from nanochat_pl.model.config import Architecture, GPTConfig
from nanochat_pl.paths import check_place, run_dir

log = logging.getLogger(__name__)


def named_eval(cfg: EvalConfig, stage: StageName) -> EvalName:
    """Return the evaluation that `eval=` names; `auto` is the default of the stage."""
    return EvalName(str(STAGES[stage].default_eval)) if cfg.name == EvalName.auto else cfg.name


def model_config(cfg: TrainConfig, vocab_size: int) -> GPTConfig:
    """Return the model config that `depth` and the `model` section describe."""
    model = cfg.model
    shape: dict[str, Any] = dict(shape_for_depth(cfg.depth, model.aspect_ratio, model.head_dim))
    if model.n_embd is not None:
        heads = max(1, -(-model.n_embd // model.head_dim))
        shape |= {"n_embd": model.n_embd, "n_head": heads, "n_kv_head": heads}
    if model.n_head is not None:
        shape |= {"n_head": model.n_head, "n_kv_head": model.n_head}
    if model.n_kv_head is not None:
        shape["n_kv_head"] = model.n_kv_head
    tricks = {field.name: getattr(model, field.name) for field in fields(Architecture)}
    return GPTConfig(sequence_len=cfg.stage.sequence_len, vocab_size=vocab_size, **shape, **tricks)


def auto_batch(cfg: TrainConfig) -> int:
    """Return the tokens of a step that stage.total_batch_tokens=auto means: those that suit the model of the config.

    Raises:
        ValueError: the stage does not count tokens, or has its model from a checkpoint.
        FileNotFoundError: tokenizer.path, whose size the model's depends on, does not exist.
    """
    stage = cfg.stage.name
    if stage != StageName.base:
        unit = STAGES[stage].batch_unit
        why = f"counts its batch in {unit}" if unit != "tokens" else "has its model from a checkpoint"
        raise ValueError(
            f"stage.total_batch_tokens=auto is for stage=base, whose model the config describes; stage={stage} {why}: "
            f"give stage.total_batch_tokens={'<a number>' if unit == 'tokens' else 'null'}"
        )
    check_tokenizer_path(cfg)
    vocab_size = cfg.tokenizer.vocab_size
    if cfg.tokenizer.path is not None:
        from nanochat_pl.tokenizer import Tokenizer

        vocab_size = Tokenizer.load(cfg.tokenizer.path).vocab_size
    return batch_for_horizon(model_config(cfg, vocab_size), cfg.model.aspect_ratio)


def batch_micro_batches(cfg: TrainConfig) -> int:
    """Return the number of micro-batches of one optimizer step over all ranks (stages whose batch counts tokens).

    Raises:
        ValueError: the batch does not divide, or it is set in the wrong unit.
    """
    stage, world = cfg.stage, cfg.trainer.world_size
    if stage.total_batch_tokens is None:
        raise ValueError(f"stage={stage.name} counts its batch in tokens; set stage.total_batch_tokens")
    per_rank = micro_batches(stage.total_batch_tokens, stage.device_batch, stage.sequence_len, world)
    return per_rank * world


def check_stage(cfg: TrainConfig) -> None:
    """Check the stage's numbers against each other.

    Raises:
        ValueError: with the arithmetic and the remedy.
    """
    stage, world = cfg.stage, cfg.trainer.world_size
    name, value = stage.horizon
    if name in ("tokens_per_param", "target_flops") and stage.name != StageName.base:
        raise ValueError(
            f"stage={stage.name} trains on conversations; give stage.num_epochs or stage.num_steps, not {name}"
        )
    if stage.counts_tokens:
        if stage.name == StageName.base:
            model_config(cfg, cfg.tokenizer.vocab_size)
        batch_micro_batches(cfg)
        if stage.total_batch_rows is not None:
            raise ValueError(
                f"stage.total_batch_rows counts conversations; stage={stage.name} takes stage.total_batch_tokens"
            )
        if stage.val_rows is not None:
            raise ValueError(f"stage.val_rows counts conversations; stage={stage.name} takes stage.val_tokens")
        if not stage.packed or stage.long_conversations != LongConversations.cut:
            raise ValueError(
                f"stage.packed=false and stage.long_conversations=drop have no effect on stage={stage.name}, where "
                "data.packing says what becomes of documents that do not fit a row; leave them out"
            )
        if name == "num_epochs" and stage.name == StageName.base:
            raise ValueError(
                f"stage.num_epochs={value}: a pass over a text stream is not counted; stage=base takes "
                "stage.num_steps, stage.tokens_per_param or stage.target_flops"
            )
    elif stage.name == StageName.rl:
        check_rl(cfg)
    else:
        rows = stage.total_batch_rows
        if rows is None or stage.total_batch_tokens is not None:
            raise ValueError(
                f"stage={stage.name} counts its batch in conversations; set stage.total_batch_rows, and "
                "stage.total_batch_tokens=null"
            )
        unit = world if stage.packed else world * stage.device_batch
        if rows % unit:
            what = f"{world} ranks" if stage.packed else f"device_batch {stage.device_batch} x {world} ranks = {unit}"
            raise ValueError(
                f"stage.total_batch_rows={rows} is not a multiple of {what}; set stage.total_batch_rows="
                f"{max(1, round(rows / unit)) * unit}" + ("" if stage.packed else " or another stage.device_batch")
            )
    if stage.eval_every_steps is not None:
        measured = named_eval(cfg.eval, stage.name)
        check_measure(measured, cfg.eval, cfg.data.root)
        check_answer_length(measured, cfg.eval.max_new_tokens, stage.sequence_len)


def check_rl(cfg: TrainConfig) -> None:
    """Check the numbers of stage=rl against each other.

    Raises:
        ValueError: with the arithmetic and the remedy.
    """
    stage, rl, world = cfg.stage, cfg.rl, cfg.trainer.world_size
    if stage.total_batch_tokens is not None or stage.total_batch_rows is not None:
        raise ValueError(
            "stage=rl counts its batch in questions: rl.prompts_per_step, each answered rl.num_samples times; set "
            "stage.total_batch_tokens=null and stage.total_batch_rows=null"
        )
    if stage.val_rows is not None or stage.val_tokens is not None:
        raise ValueError("stage.val_rows and stage.val_tokens are not used by stage=rl; set rl.val_questions instead")
    if not stage.packed or stage.long_conversations != LongConversations.cut:
        raise ValueError(
            "stage.packed=false and stage.long_conversations=drop have no effect on stage=rl, where every answer has a "
            "row of its own and questions that are too long are always left out; leave them away"
        )
    if stage.horizon[0] in ("tokens_per_param", "target_flops"):
        raise ValueError(
            f"stage=rl trains on questions; give stage.num_epochs or stage.num_steps, not {stage.horizon[0]}"
        )
    if cfg.trainer.compile == "true":
        raise ValueError(
            "trainer.compile=true would compile anew at almost every step of stage=rl, whose rows have another length "
            "each time; leave it auto, which does not compile here"
        )
    unit = world * rl.steps_per_rollout
    if rl.prompts_per_step % unit:
        near = max(1, round(rl.prompts_per_step / unit)) * unit
        raise ValueError(
            f"rl.prompts_per_step={rl.prompts_per_step} is not a multiple of {world} ranks x rl.steps_per_rollout "
            f"{rl.steps_per_rollout} = {unit}; set rl.prompts_per_step={near}"
        )
    if rl.max_new_tokens >= stage.sequence_len:
        raise ValueError(
            f"rl.max_new_tokens={rl.max_new_tokens} leaves no room for a question in stage.sequence_len="
            f"{stage.sequence_len}; lower it, or raise stage.sequence_len"
        )


def check_answer_length(name: EvalName, max_new_tokens: int, context: int) -> None:
    """Check that an evaluation which reserves room for its answers leaves some of the context for the questions.

    Args:
        context: the context of the model, in tokens.

    Raises:
        ValueError: no room is left.
    """
    if EVALUATIONS[name].reserves_answer and max_new_tokens >= context:
        raise ValueError(
            f"eval.max_new_tokens={max_new_tokens} leaves no room for a question in the model's {context} tokens; "
            "lower it"
        )


def check_penalties(name: EvalName, cfg: EvalConfig) -> None:
    """Check that penalties are set only for evaluations that write answers.

    Raises:
        ValueError: they are set for another one.
    """
    if not EVALUATIONS[name].writes_answers and (penalties := cfg.penalties()):
        raise ValueError(
            f"eval.{next(iter(penalties))} has no effect on eval={name}, which writes no answers; leave it out"
        )


def check_measure(name: EvalName, cfg: EvalConfig, root: str | None) -> None:
    """Check that what an evaluation reads in addition to the data sets is there, without loading it.

    Args:
        name: the evaluation; `auto` means that it is not known yet.
        cfg: its settings.
        root: data.root; None means that it is not known yet.

    Raises:
        FileNotFoundError: a file or folder is not there.
        ValueError: a package or a setting is missing, or penalties are given to what writes no answers.
    """
    check_penalties(name, cfg)
    if name == EvalName.core and (cfg.bundle or root):
        check_bundle(cfg.bundle or Path(str(root)) / "eval_bundle")
    if name == EvalName.lm_eval:
        if not cfg.tasks:
            raise ValueError(
                "eval=lm_eval needs tasks; give eval.tasks=[arc_easy] or the like, as the harness names them"
            )
        if not is_module("lm_eval"):
            raise ValueError(
                "eval=lm_eval needs the lm-evaluation-harness, which is not installed; it is the extra lm-eval: "
                "pip install 'nanochat-pl[lm-eval]'"
            )
    if name == EvalName.checks and cfg.checks is not None and not Path(cfg.checks).is_file():
        raise FileNotFoundError(
            f"eval.checks={cfg.checks} is no file; give a YAML list of checks, or null for the one of this package"
        )
    if name in (EvalName.bpb, EvalName.auto):
        for text, path in cfg.texts.items():
            if not Path(path).exists():
                raise FileNotFoundError(f"eval.texts.{text}={path} does not exist; give a file or folder of text")


def check_task_files(cfg: TrainConfig) -> None:
    """Check that the files which tasks read, and which nothing makes or fetches, are there.

    Raises:
        FileNotFoundError: a file or folder is missing; the message names the task.
    """
    if cfg.stage.reads_text:
        return
    made = Path(cfg.data.root or "").resolve() if cfg.data.source == DataSource.microworld else None
    for group, tasks in (("tasks", cfg.mixture.tasks), ("val_tasks", cfg.mixture.val_tasks)):
        for name, spec in tasks.items():
            if not (spec or {}).get("path"):
                continue
            path = Path(spec["path"])
            if path.exists() or (made is not None and path.resolve().is_relative_to(made)):
                continue
            fetched = (spec.get("fetch") or spec.get("hub")) and path.suffix not in (*CONVERSATION_SUFFIXES, ".txt")
            if fetched and not cfg.offline:
                continue
            what = "offline=true forbids fetching" if fetched else "nothing fetches"
            raise FileNotFoundError(
                f"there is no {path}, which mixture.{group}.{name} reads and {what}; put it there (docs/data.md says "
                f"where from), or leave the task out: mixture.{group}.{name}=null"
            )


def preflight(cfg: TrainConfig, folder: Path | None = None) -> None:
    """Check one job without starting it.

    Args:
        folder: where it would write; None takes the folder that stage and run_name give.

    Raises:
        ValueError, FileNotFoundError: the first thing that would stop it, with the remedy.
    """
    check_group(cfg)
    check_job(cfg, folder)


def check_group(cfg: TrainConfig) -> None:
    """Check the processes that were started for a job, or for a chain.

    Raises:
        ValueError: they are not those that it needs.
    """
    if cfg.chain:
        check_alone("a chain starts the processes of its stages itself")
    elif cfg.stage.name == StageName.tokenizer:
        check_alone("a tokenizer is trained by one")
    else:
        check_processes(cfg.trainer)


def check_job(cfg: TrainConfig, folder: Path | None = None) -> None:
    """Check everything about a job except its processes, which something may still have to start.

    Raises:
        ValueError, FileNotFoundError: as `preflight`.
    """
    own = run_dir(cfg.stage.name, cfg.run_name, cfg.outputs)  # checks the name, also where a sweep has other folders
    folder = folder or own
    resume = check_own(cfg, folder)
    if cfg.stage.name != StageName.tokenizer:
        check_start(cfg, folder, resume)


def check_own(cfg: TrainConfig, folder: Path) -> Path | None:
    """Check everything about a job except what it starts from, which an earlier stage may still have to make.

    Returns:
        The checkpoint to continue from; None for a fresh run.

    Raises:
        ValueError, FileNotFoundError: as `preflight`.
    """
    if is_first_process():
        check_place(folder)
    resume = resume_file(cfg, folder)
    root = Path(cfg.data.root or "")
    if cfg.data.source == DataSource.local:
        prepare_root(cfg.data)  # makes nothing: a folder that is not there is refused
        if cfg.stage.reads_text:
            from nanochat_pl.data.parquet import list_shards

            if (source := other_text(cfg.data)) is not None:
                source.check()
            else:
                list_shards(root / cfg.data.text, cfg.data.val_shard)
    if cfg.data.source == DataSource.hub and cfg.offline and cfg.stage.reads_text:
        prepare_text(cfg.data, offline=True)  # makes nothing: what is not there is refused
    if cfg.stage.name == StageName.tokenizer:
        if cfg.trainer.stop_after_steps:
            raise ValueError("trainer.stop_after_steps has no effect on stage=tokenizer; leave it null")
        return None
    check_stage(cfg)
    check_task_files(cfg)
    return resume


def check_start(cfg: TrainConfig, folder: Path, resume: Path | None) -> None:
    """Check initial weights and tokenizer of a job that would write to `folder` and goes on from `resume`.

    Raises:
        ValueError, FileNotFoundError: as `preflight`.
    """
    start = resume or start_weights(cfg.stage.name, cfg.run_name, cfg.init_from, cfg.outputs, start_arguments(cfg))
    if start is not None:
        source = check_model(start, hub_folder(cfg), cfg.offline)
        if resume is not None and source is not None and source.format != "lightning":
            raise ValueError(
                f"resume={cfg.resume} is of the format {source.format}, of which this project takes over no optimizer "
                f"state to go on with; to start from its weights: resume=null init_from={source.file}"
            )
        if resume is not None and source is not None and imported_run(source.file) is not None:
            raise weights_only_error(source.file)
        if resume is not None and source is not None:
            saved = run_config(source.file, default={})
            if isinstance(saved.get("stage"), Mapping) and saved["stage"].get("name") == cfg.stage.name:
                check_optimizer(saved, {"optim": {"matrix_optimizer": str(cfg.optim.matrix_optimizer)}}, source.file)
        if resume is None and cfg.force and source is not None and folder.resolve() in source.file.resolve().parents:
            raise ValueError(
                f"force=true would throw away {source.file}, which the run starts from; give another run_name"
            )
    check_tokenizer_path(cfg)
    if start is None and cfg.tokenizer.path is None:
        tokenizer = run_dir(StageName.tokenizer, cfg.run_name, cfg.outputs)
        if (tokenizer / "tokenizer.json").is_file():
            from nanochat_pl.tokenizer import Tokenizer

            check_vocabulary(cfg, Tokenizer.load(tokenizer).vocab_size, tokenizer)
        elif cfg.data.source != DataSource.microworld:  # there one is trained
            raise no_tokenizer_error(cfg, tokenizer)


def check_tokenizer_path(cfg: TrainConfig) -> None:
    """Raise FileNotFoundError if tokenizer.path names nothing."""
    if cfg.tokenizer.path is not None and not Path(cfg.tokenizer.path).exists():
        raise FileNotFoundError(f"tokenizer.path={cfg.tokenizer.path} does not exist; make one with stage=tokenizer")


def check_optimizer(then: Mapping[str, Any], now: Mapping[str, Any], file: Path) -> None:
    """Refuse to resume with another optimizer for the matrices: the state of one means nothing to another.

    Args:
        then: the config that the checkpoint was saved with.
        now: the config of the run that would continue from it.
        file: the checkpoint.

    Raises:
        ValueError: they differ.
    """
    sections = (config.get("optim") for config in (then, now))
    before, after = ((s if isinstance(s, Mapping) else {}).get("matrix_optimizer", "muon") for s in sections)
    if before != after:
        raise ValueError(
            f"{file} was trained with optim.matrix_optimizer={before}, whose state {after} cannot continue; set it "
            f"back, or start anew from its weights: resume=null init_from={file}"
        )


def hub_folder(cfg: RunConfig) -> Path:
    """Return the folder in which models of the hub are kept."""
    return Path(cfg.outputs) / "hub"


def names_no_data(source: ModelFiles) -> bool:
    """Return whether a model is known, without opening it, to lack a config that names its data."""
    if source.format != "lightning":
        return not FORMATS[source.format].holds_run_config
    return imported_run(source.file) is not None and "data" not in run_config(source.file, default={"data": None})


def no_data_error(file: Path, model_format: str, name: EvalName) -> ValueError:
    """Return the error for an evaluation whose data neither the model nor the command line names."""
    return ValueError(
        f"{file} ({model_format}) does not say what data eval={name} reads; give data=local data.root=<folder with "
        "data sets>, or data=hub or data=microworld"
    )


def no_tokenizer_error(cfg: TrainConfig, folder: Path) -> FileNotFoundError:
    """Return the error for a run without a tokenizer; its message holds the command that makes one."""
    return FileNotFoundError(
        f"there is no tokenizer at {folder}; train one with `python train.py stage=tokenizer "
        f"{shlex.quote(f'run_name={cfg.run_name}')}"
        f"{start_arguments(cfg)} tokenizer.vocab_size={cfg.tokenizer.vocab_size}`, or give tokenizer.path=<folder>"
    )


def check_vocabulary(cfg: TrainConfig, vocab_size: int, folder: Path) -> None:
    """Check that the tokenizer of a run has the size that the config says; one named by tokenizer.path may have any.

    Raises:
        ValueError: it has another size.
    """
    if not cfg.tokenizer.path and vocab_size != cfg.tokenizer.vocab_size:
        raise ValueError(
            f"the tokenizer at {folder} has {vocab_size} tokens, the config says tokenizer.vocab_size="
            f"{cfg.tokenizer.vocab_size}; set tokenizer.vocab_size={vocab_size}, or another run_name"
        )


def start_arguments(cfg: TrainConfig) -> str:
    """Return the overrides that the command line of a remedy has to repeat, quoted for a shell."""
    parts = [f"depth={cfg.depth}"] if cfg.depth != 4 else []
    if cfg.data.source != DataSource.microworld:
        parts.append(f"data={cfg.data.source}")
        parts += [f"data.root={cfg.data.root}"] if cfg.data.source == DataSource.local else []
    parts += [f"outputs={cfg.outputs}"] if cfg.outputs != "outputs" else []
    return "".join(f" {shlex.quote(part)}" for part in parts)
