"""What a run needs from outside: is it there, and if not, which command brings it. Checked in seconds, before a run.

Nothing here imports torch. `start_weights` only looks; `prepare_*` make or fetch.
"""

import logging
from pathlib import Path
from typing import Any

from nanochat_pl.data.microworld import write_microworld
from nanochat_pl.data.parquet import Shards, list_shards
from nanochat_pl.downloads import fetch_hub_files
from nanochat_pl.paths import checkpoint_file, run_dir

log = logging.getLogger(__name__)

START_STAGES = {
    "mid": ("base",),
    "sft": ("mid", "base"),
    "sft_scienceqa": ("sft", "mid", "base"),
    "rl": ("sft", "sft_scienceqa", "mid", "base"),
}
"""Where each stage's start weights come from, the first that exists; base starts from nothing."""


def prepare_text(data: Any, offline: bool) -> Shards:
    """Bring the text shards of a data config to disk and list them.

    Args:
        data: the `data` section.
        offline: open no socket.

    Raises:
        FileNotFoundError, ValueError: as `list_shards`; for the hub also when offline and a file is missing.
    """
    prepare_root(data)
    folder = Path(data.root) / data.text
    if data.source == "hub":
        if data.val_shard is None:
            raise ValueError("data.val_shard=null: name the validation shard to fetch, as in shard_01822.parquet")
        names = [f"shard_{index:05d}.parquet" for index in range(data.text_shards)]
        fetch_hub_files(data.hub_text, [*names, data.val_shard], folder, offline=offline)
        shards = list_shards(folder, data.val_shard)
        # Other shards that were fetched before are not asked for.
        return Shards([path for path in shards.train if path.name in names], shards.val)
    return list_shards(folder, data.val_shard)


def prepare_root(data: Any) -> None:
    """Generate the embedded world if it is the source; say clearly when a local folder is not there.

    Raises:
        FileNotFoundError: data.root does not exist.
    """
    if data.source == "microworld":
        write_microworld(Path(data.root), seed=data.seed)
    elif data.source == "local" and not Path(data.root).is_dir():
        raise FileNotFoundError(f"there is no folder data.root={data.root}; give the folder that holds {data.text}/ …")


def start_weights(
    stage: str, run_name: str, init_from: str | None, outputs: str, arguments: str = ""
) -> str | Path | None:
    """Find what a stage takes its weights from, as `checkpoint.read_model` opens it; None = it starts from nothing.

    Args:
        stage: the stage that will train.
        run_name: where `init_from` is null, the earlier stage's folder of this name is taken.
        init_from: a checkpoint file, a folder with a model, or an address `hf://owner/repo`.
        outputs: folder of all runs.
        arguments: what the remedy's command line should repeat (data, depth).

    Raises:
        FileNotFoundError: nothing there; the message is the command that makes one.
    """
    if init_from is not None:
        if init_from.startswith("hf://"):
            return init_from
        if Path(init_from).exists():
            return Path(init_from)
        try:
            return checkpoint_file(init_from)  # <run folder>/last
        except FileNotFoundError:
            raise FileNotFoundError(
                f"init_from={init_from} does not exist; give a checkpoint file, a run folder, another folder with a "
                "model, or hf://owner/repo"
            ) from None
    if stage not in START_STAGES:
        return None
    for earlier in START_STAGES[stage]:
        folder = run_dir(earlier, run_name, outputs)
        if (folder / "checkpoints").is_dir() and any((folder / "checkpoints").glob("*.ckpt")):
            return folder
    looked = ", ".join(str(run_dir(s, run_name, outputs)) for s in START_STAGES[stage])
    raise FileNotFoundError(
        f"stage={stage} starts from an earlier stage, but there is no checkpoint in {looked}; make one with "
        f"`python train.py stage=base run_name={run_name}{arguments}`, or give init_from=<checkpoint or run folder>"
    )
