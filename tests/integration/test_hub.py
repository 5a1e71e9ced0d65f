"""data=hub against a stand-in on this machine: fetched once, then offline; and what is said when nothing is there."""

import hashlib
from functools import partial
from pathlib import Path

import pytest

from nanochat_pl.config import inputs
from nanochat_pl.config.inputs import prepare_text
from nanochat_pl.config.schema import TrainConfig
from nanochat_pl.world.write import write_microworld
from tests.integration.conftest import BASE, compose
from tests.unit.test_downloads import Hub, hub  # noqa: F401  (fixture)


@pytest.fixture
def cfg(tmp_path: Path) -> TrainConfig:
    return compose(
        [*BASE, "data=hub", "data.hub_text=owner/texts", "data.text_shards=2", f"outputs={tmp_path}"]
        + ["data.val_shard=shard_00002.parquet"]
    )


def test_text_shards_come_from_the_hub_once_and_then_from_disk(
    hub: Hub,  # noqa: F811
    cfg: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    world = write_microworld(tmp_path / "world")
    monkeypatch.setattr(inputs, "fetch_hub_files", partial(inputs.fetch_hub_files, endpoint=hub.endpoint))
    for name in ("shard_00000", "shard_00001", "shard_00002"):
        content = (world / "text" / f"{name}.parquet").read_bytes()
        hub.files[f"/datasets/owner/texts/resolve/main/{name}.parquet"] = content
    hub.etag = hashlib.sha1(b"any").hexdigest()
    shards = prepare_text(cfg.data, offline=False)
    assert [path.name for path in shards.train] == ["shard_00000.parquet", "shard_00001.parquet"]
    assert shards.val.name == "shard_00002.parquet"
    assert len(hub.bodies) == 3
    hub.files.clear()
    assert prepare_text(cfg.data, offline=True) == shards
    assert len(hub.bodies) == 3


def test_offline_without_the_files_names_what_is_missing(cfg: TrainConfig):
    with pytest.raises(FileNotFoundError, match=r"shard_0000\d\.parquet.*offline"):
        prepare_text(cfg.data, offline=True)
