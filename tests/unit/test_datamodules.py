"""The streams of training and the fixed set of validation: what is said of them, and that ranks only share them out."""

import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nanochat_pl.config.schema import DataConfig, Packing, StageConfig, StageName, TrainConfig
from nanochat_pl.data.batch import IGNORE
from nanochat_pl.data.parquet import Shards
from nanochat_pl.eval.bpb import evaluate_loss
from nanochat_pl.model.config import GPTConfig
from nanochat_pl.tokenizer import Tokenizer
from nanochat_pl.training.data import conversation_data, conversation_text_data, text_data
from nanochat_pl.training.datamodules import log_streams

TOKENIZER = Tokenizer([bytes([byte]) for byte in range(256)])
B, T = 2, 16


@pytest.mark.parametrize(
    ("rows", "said", "warned"),
    [
        ([8], "training data: 8 documents in one stream", False),
        ([2000, 2000], "training data: 4,000 documents in 2 streams of 2,000", False),
        ([93, 92], "185 documents in 2 streams of 92 to 93", False),
        ([1, 184], "185 documents in 2 streams of 1 to 184", True),
    ],
)
def test_documents_of_each_stream_are_said_and_unequal_streams_warned_of(caplog, rows, said, warned):
    with caplog.at_level(logging.INFO):
        log_streams(rows, "documents")
    assert said in caplog.text
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert bool(warnings) == warned
    if warned:
        assert "the smallest of 2 streams (data.logical_shards) has 1 documents, the largest 184" in warnings[0]


def write_files(folder, num_documents=40, group_rows=1000):
    """A training and a validation file, in one row group each."""
    files = []
    for name in ("train", "val"):
        rng = np.random.default_rng(len(files))
        texts = ["".join(rng.choice(list("abcdefgh"), rng.integers(0, 60))) for _ in range(num_documents)]
        files.append(folder / f"{name}.parquet")
        pq.write_table(pa.table({"text": texts}), files[-1], row_group_size=group_rows)
    return files


def config(name, packing="stream", num_workers=0, **stage):
    stage = StageConfig(name=StageName(name), sequence_len=T, num_steps=1, **{"device_batch": B} | stage)
    return TrainConfig(stage=stage, data=DataConfig(packing=Packing(packing), num_workers=num_workers), seed=0)


def text(files, packing="stream", val_tokens=10**6, num_workers=0, device_batch=B):
    train, val = files
    stage = {"device_batch": device_batch, "total_batch_tokens": 6 * device_batch * T, "val_tokens": val_tokens}
    cfg = config("base", packing=packing, num_workers=num_workers, **stage)
    return text_data(cfg, TOKENIZER, GPTConfig(vocab_size=TOKENIZER.vocab_size), Shards([train], val))


ROWS = [
    {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "abcdefgh"[: 1 + i % 8] * 3}]}
    for i in range(30)
]


def conversations(files, packing):
    return conversation_data(config("sft", total_batch_rows=6, val_rows=25), TOKENIZER, ROWS, ROWS)


def transcripts(files, packing):
    stage = {"total_batch_tokens": 6 * B * T, "val_tokens": 10**6}
    return conversation_text_data(config("mid", packing=packing, **stage), TOKENIZER, ROWS, ROWS)


def one_micro_batch(files, packing):
    return text(files, packing, val_tokens=1)


SETS = {
    **{f"text {packing}": (text, packing) for packing in ("stream", "bestfit", "bestfit_split")},
    **{f"transcripts {packing}": (transcripts, packing) for packing in ("stream", "bestfit_split")},
    "conversations": (conversations, ""),
    "one micro-batch": (one_micro_batch, "stream"),
}


def surprise(inputs, targets, positions=None, reduction="none"):
    """A loss of each target that depends on its neighbour, as if a model had computed it."""
    return 1 + ((inputs * 31 + targets * 7) % 101) / 50


def measure(files):
    figures = {}
    for name, (make, packing) in SETS.items():
        data = make(files, packing)
        figures[name] = [evaluate_loss(surprise, data.val_batches(), TOKENIZER.token_bytes(), "cpu") for _ in range(2)]
    return figures


def _measure_on_rank(rank, world, folder, files):
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=world)
    torch.save(measure(files), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.dist
@pytest.mark.parametrize("world", [2, 3])
def test_validation_figures_do_not_depend_on_the_number_of_ranks(tmp_path, world):
    files = write_files(tmp_path)
    alone = measure(files)
    mp.spawn(_measure_on_rank, args=(world, tmp_path, files), nprocs=world)
    for rank in range(world):
        together = torch.load(tmp_path / f"{rank}.pt")
        for name, figures in alone.items():
            for one, other in zip(figures, together[name], strict=True):
                assert other == pytest.approx(one, rel=1e-6), name


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_validation_text_is_read_once_however_much_is_asked_for(tmp_path, num_workers):
    files = write_files(tmp_path)
    tokens = [id for text in pq.read_table(files[1])["text"].to_pylist() for id in TOKENIZER.encode(text, prepend=256)]
    batches = list(text(files, num_workers=num_workers).val_batches())
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    inputs = torch.cat([batch.inputs.flatten() for batch in batches])
    taken = [tokens[first : first + B * T + 1] for first in range(0, len(tokens), B * T + 1)]  # as in training
    assert inputs[targets != IGNORE].tolist() == [id for piece in taken for id in piece[:-1]]
    assert targets[targets != IGNORE].tolist() == [id for piece in taken for id in piece[1:]]
    assert sum(batch.tokens for batch in batches) == sum(len(piece) - 1 for piece in taken)


def test_validation_with_no_token_to_predict_is_refused(tmp_path):
    files = write_files(tmp_path)
    pq.write_table(pa.table({"text": pa.array([None], pa.string())}), files[1])
    with pytest.raises(ValueError, match="the validation set holds no token to predict"):
        list(text(files).val_batches())
