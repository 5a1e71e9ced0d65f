"""What the data modules say about their streams."""

import logging

import pytest

from nanochat_pl.lit.datamodules import say_streams


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
        say_streams(rows, "documents")
    assert said in caplog.text
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert bool(warnings) == warned
    if warned:
        assert "the smallest of 2 streams (data.logical_shards) has 1 documents, the largest 184" in warnings[0]
