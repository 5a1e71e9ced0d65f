"""All that can be measured on a model, by name: chats (`asking.py`), and what is no chat.

`evaluate.py` and a callback during training share these functions.
"""

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanochat_pl.config.inputs import prepare_text
from nanochat_pl.config.provenance import together
from nanochat_pl.config.schema import EvalName
from nanochat_pl.data.corpus import TextCorpus
from nanochat_pl.data.packing import Batch, TokenBatches
from nanochat_pl.data.parquet import read_documents
from nanochat_pl.data.textfiles import TEXT_ENDINGS, TextSource, convert_whole, find_text_files, is_text_file
from nanochat_pl.eval.asking import Measure, Progress, Subject, arc, chat, chosen, plain, recall, scienceqa
from nanochat_pl.eval.bpb import evaluate_bpb
from nanochat_pl.eval.checks import load_checks, run_checks
from nanochat_pl.eval.compression import evaluate_compression, sample_texts
from nanochat_pl.eval.core import evaluate_core
from nanochat_pl.eval.core_tasks import load_bundle
from nanochat_pl.eval.harness import run_harness
from nanochat_pl.eval.results import REQUESTS, Evaluation, ExampleLog, MetricRow
from nanochat_pl.model.kv_cache import KVCache
from nanochat_pl.rows import unreadable
from nanochat_pl.runtime import rank, world_size
from nanochat_pl.vocabulary import cut_runs

__all__ = ["MEASURES"]

TEXT_CHARS = 1_000_000
"""So much of the training and of the validation text is encoded to compare tokenizers."""


def bpb(subject: Subject) -> Measure:
    """Bits per byte on the validation shard and on each of `eval.texts`."""
    cfg = subject.cfg.eval
    val = prepare_text(subject.data, subject.cfg.offline, subject.cfg.outputs).val
    sources = {val.name: [val]} | {
        name: text_files(name, Path(path), subject.data.column, subject.cfg.outputs) for name, path in cfg.texts.items()
    }
    length = subject.model.config.sequence_len
    batch_rows = max(1, min(32, 16_384 // length))
    count = max(1, cfg.val_tokens // (batch_rows * length))

    def answer(log: ExampleLog, progress: Progress | None) -> Evaluation:
        begin = time.perf_counter()
        rows = []
        for done, (name, files) in enumerate(sources.items(), start=1):
            batches = list(_read_once(files, subject.tokenizer, batch_rows, length, count * batch_rows * length))
            tokens = sum(batch.inputs.numel() for batch in batches)
            if not tokens:
                raise ValueError(
                    f"the text {name} holds nothing but empty documents, so there is nothing to measure; give another "
                    "(eval.texts, or the data's validation file)"
                )
            if tokens < count * batch_rows * length:
                rows_held = "in whole rows" if tokens >= length else "in one short row"
                logging.getLogger(__name__).info(
                    "%s has only %s tokens %s; all of them are measured", name, f"{tokens:,}", rows_held
                )
            value = evaluate_bpb(subject.model, batches, subject.tokenizer.token_bytes())
            rows.append(MetricRow(task=name, metric="bpb", value=value, n=tokens))
            if progress is not None:
                progress(done, len(sources))
        seconds = time.perf_counter() - begin
        return Evaluation(records=[], rows=rows, seconds=seconds, num_answered=sum(row.n for row in rows))

    content = {name: together({file.name: file for file in files}) for name, files in sources.items()}
    return Measure({"val_tokens": cfg.val_tokens, "texts": dict(cfg.texts), "content": content}, answer)


def _read_once(files: Sequence[Path], tokenizer: Any, batch_rows: int, length: int, most: int) -> Iterator[Batch]:
    """Yield up to `most` tokens of a text in batches, none of them twice; the last batches hold single rows.

    A text that does not fill a row is one shorter row.
    """
    cursor: Any = None
    for rows in (batch_rows, 1):
        batches = TokenBatches(
            files,
            tokenizer,
            batch_rows=rows,
            sequence_len=length,
            micro_batches=1,
            logical_shards=1,
            rank=0,
            world_size=1,
            num_workers=0,
            cursor=cursor,
        )
        for batch in itertools.islice(batches, most // (rows * length)):
            assert batch.cursor is not None
            if any(place["epoch"] for place in batch.cursor["shards"].values()):
                break  # the stream is endless, and has begun the text again
            yield batch
            cursor = batch.cursor
            most -= batch.inputs.numel()
    if cursor is None:
        ids = np.concatenate(TextCorpus(files, tokenizer).encode(list(read_documents(files)))).astype(np.int64)
        row = torch.from_numpy(ids)[None, None]
        if any(tokenizer.token_bytes()[ids[1:]]):
            yield Batch(row[..., :-1], row[..., 1:])


def text_files(name: str, path: Path, column: str, outputs: str | Path) -> list[Path]:
    """Give the parquet files of a further text; text of another form is converted once.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file cannot be read, or has no such column.
    """
    files = find_text_files(path) if path.is_dir() else [path] if is_text_file(path) else []
    if not files:
        raise FileNotFoundError(
            f"eval.texts.{name}={path} is no file of text ({', '.join(TEXT_ENDINGS)}), nor a folder that holds one"
        )
    if all(file.suffix == ".parquet" and (column == "text" or _has_text(file)) for file in files):
        return files
    folder = path if path.is_dir() else path.parent
    return [convert_whole(TextSource(folder, tuple(files), column), Path(outputs) / "data")]


def _has_text(file: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return "text" in pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def core(subject: Subject) -> Measure:
    """CORE's tasks, or those of them that `eval.tasks` names."""
    cfg = subject.cfg.eval
    bundle = load_bundle(cfg.bundle or subject.root / "eval_bundle")
    tasks = [task for task in bundle if task.label in chosen(cfg, [task.label for task in bundle])]

    def answer(log: ExampleLog, progress: Progress | None) -> Evaluation:
        return evaluate_core(
            subject.model,
            subject.tokenizer,
            tasks,
            max_per_task=cfg.max_questions,
            cache_type=KVCache,
            rank=rank(),
            world_size=world_size(),
            log=log,
            progress=progress,
        )

    settings = {"max_per_task": cfg.max_questions, "tasks": {task.label: task.fingerprint() for task in tasks}}
    return Measure(settings, answer)


def tokenizer(subject: Subject) -> Measure:
    """Bytes a token against other vocabularies, on texts of several domains and on the data's own."""
    shards = prepare_text(subject.data, subject.cfg.offline, subject.cfg.outputs)

    def answer(log: ExampleLog, progress: Progress | None) -> Evaluation:
        own = {"train": _texts(shards.train), "val": _texts([shards.val])}
        return evaluate_compression(subject.tokenizer, sample_texts() | own, progress=progress)

    content = together({file.name: file for file in (*shards.train, shards.val)})
    return Measure({"text_chars": TEXT_CHARS, "content": content}, answer)


def checks(subject: Subject) -> Measure:
    """Prompts with expectations, from a file."""
    entries = load_checks(subject.cfg.eval.checks)[: subject.cfg.eval.max_questions]

    def answer(log: ExampleLog, progress: Progress | None) -> Evaluation:
        return run_checks(
            subject.engine(), subject.tokenizer, entries, seed=subject.cfg.seed, log=log, progress=progress
        )

    return Measure({"checks": [plain(dataclasses.asdict(entry)) for entry in entries]}, answer)


def lm_eval(subject: Subject) -> Measure:
    """Tasks of EleutherAI's lm-evaluation-harness (the extra lm-eval), its own or those below `eval.include_path`."""
    cfg = subject.cfg.eval
    if not cfg.tasks:
        raise ValueError("eval=lm_eval needs tasks; give eval.tasks=[arc_easy] or the like, as the harness names them")
    asked: dict[str, Any] = {
        "include_path": cfg.include_path,
        "num_fewshot": cfg.num_fewshot,
        "limit": cfg.max_questions,
        "chat": cfg.as_chat,
        "max_new_tokens": cfg.max_new_tokens,
    }

    def answer(log: ExampleLog, progress: Progress | None) -> Evaluation:
        # Requests are logged as they are answered; samples, the records of other evaluations, are drawn from them.
        requests = None if log.path is None else ExampleLog(log.path.with_name(REQUESTS), log.config)
        found = run_harness(
            subject.model,
            subject.tokenizer,
            subject.engine(),
            cfg.tasks or (),
            **asked,
            batch_size=cfg.batch_size,
            cache_type=KVCache,
            seed=subject.cfg.seed,
            offline=subject.cfg.offline,
            answers=requests,
            progress=progress,
        )
        judged = [record for record in found.records if record["correct"] is not None]
        log.append([record for record in judged if record["id"] not in log.records])
        return found

    return Measure(asked | {"tasks": list(cfg.tasks), "seed": subject.cfg.seed}, answer)


MEASURES: dict[EvalName, Callable[[Subject], Measure]] = {
    EvalName.bpb: bpb,
    EvalName.core: core,
    EvalName.chat: chat,
    EvalName.scienceqa: scienceqa,
    EvalName.arc: arc,
    EvalName.recall: recall,
    EvalName.tokenizer: tokenizer,
    EvalName.checks: checks,
    EvalName.lm_eval: lm_eval,
}


def _texts(files: Sequence[Path]) -> list[str]:
    """Read documents until they have TEXT_CHARS characters."""
    texts, chars = [], 0
    for text in read_documents(files):
        texts += cut_runs(text)  # the other vocabularies come without our own guard against endless runs
        chars += len(text)
        if chars >= TEXT_CHARS:
            break
    return texts
