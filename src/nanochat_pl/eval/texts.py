"""Texts that evaluations measure: found in any form that training reads, and read once, no token twice."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nanochat_pl.data.batch import Batch, Cursor
from nanochat_pl.data.corpus import TextCorpus
from nanochat_pl.data.packing import TokenBatches
from nanochat_pl.data.parquet import read_documents
from nanochat_pl.data.textfiles import TEXT_ENDINGS, TextSource, convert_whole, find_text_files, is_text_file
from nanochat_pl.rows import unreadable
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.vocabulary import cut_runs

__all__ = ["first_texts", "read_once", "text_files"]


def first_texts(files: Sequence[Path], num_chars: int) -> list[str]:
    """Read documents until they have `num_chars` characters."""
    texts, chars = [], 0
    for text in read_documents(files):
        texts += cut_runs(text)  # vocabularies of others come without our guard against endless runs
        chars += len(text)
        if chars >= num_chars:
            break
    return texts


def read_once(files: Sequence[Path], tokenizer: Tokenizer, batch_rows: int, length: int, most: int) -> Iterator[Batch]:
    """Yield up to `most` tokens of a text in batches, none of them twice; the last batches hold single rows.

    A text that does not fill a row is one shorter row.
    """
    cursor: Cursor | None = None
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
            if any(shard["epoch"] for shard in batch.cursor["shards"].values()):
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
    """Return the parquet files of one of `eval.texts`; text of another form is converted once.

    Raises:
        FileNotFoundError: There is no file of text.
        ValueError: A file cannot be read, or has no such column.
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
    try:
        return "text" in pq.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from error
