"""Find what a run reads, make or fetch what is missing, and name the command that makes what cannot be fetched.

Nothing here imports torch. `start_weights` only looks; `prepare_*` make or fetch.
"""

import logging
import shlex
from pathlib import Path
from typing import Any

from nanochat_pl.config.stages import STAGES, StageName
from nanochat_pl.data.parquet import Shards, list_shards
from nanochat_pl.data.textfiles import VALIDATION_FILE, TextSource, convert_text, find_text_files
from nanochat_pl.downloads import fetch_hub_files
from nanochat_pl.paths import checkpoint_file, run_dir, writing
from nanochat_pl.world.write import write_microworld

log = logging.getLogger(__name__)


def prepare_text(data: Any, offline: bool, outputs: str | Path = "outputs") -> Shards:
    """Make or fetch the text shards of a data config, and list them.

    Text of another form than parquet with a column `text` is converted once, see `nanochat_pl.data.textfiles`.

    Args:
        data: the `data` section.
        offline: open no socket.
        outputs: converted text is kept in its folder `data`.

    Raises:
        FileNotFoundError, ValueError: as `list_shards`; for the hub also if a file is missing and `offline` is true.
    """
    prepare_root(data)
    folder = Path(data.root) / data.text
    if data.source == "hub":
        if data.val_shard is None:
            raise ValueError("data.val_shard=null: name the validation shard to fetch, as in shard_01822.parquet")
        names = [f"shard_{index:05d}.parquet" for index in range(data.text_shards)]
        fetch_hub_files(data.hub_text, [*names, data.val_shard], folder, offline=offline)
        shards = list_shards(folder, data.val_shard)
        # Shards that lie there from an earlier, larger data.text_shards are not used.
        return Shards([path for path in shards.train if path.name in names], shards.val)
    source = other_text(data) if data.source == "local" else None
    if source is None:
        return list_shards(folder, data.val_shard)
    return list_shards(convert_text(source, Path(outputs) / "data"), VALIDATION_FILE)


def other_text(data: Any) -> TextSource | None:
    """Find the text of a local folder that has to be converted before it is read.

    This is all text below `<data.root>/<data.text>`, or below data.root where there is no such folder, unless the
    folder itself holds parquet files and data.column is `text`.

    Returns:
        The source; None if the parquet files are read as they are, or there is nothing to convert.

    Raises:
        FileNotFoundError: data.val_shard names a file that is not there.
    """
    root = Path(data.root or "")
    folder = root / data.text if (root / data.text).is_dir() else root
    files = find_text_files(folder)
    ready = [file for file in files if file.parent == folder and file.suffix == ".parquet"]
    if not files:
        return None
    if ready and data.column == "text" and folder != root:
        if others := [file for file in files if file not in ready]:
            log.warning(
                "%d text files such as %s are not read, because %s itself holds parquet files; move either elsewhere",
                len(others),
                others[0],
                folder,
            )
        return None
    val = None if data.val_shard is None else folder / data.val_shard
    if val is not None and val not in files:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:6])
        raise FileNotFoundError(f"data.val_shard={data.val_shard} does not exist; {folder} holds {names}")
    source = TextSource(folder, tuple(files), data.column, val)
    if folder == root:
        try:
            source.check()
        except ValueError as error:
            raise ValueError(
                f"there is no folder {root / data.text}, so the text files of {root} itself would be read, but "
                f"{error}, or set data.text to the folder that holds the text"
            ) from error
    return source


def prepare_root(data: Any) -> None:
    """Generate the embedded world if it is the source, and check that a local folder is there.

    Raises:
        FileNotFoundError: data.root does not exist.
    """
    if data.source == "microworld":
        with writing(data.root):
            write_microworld(Path(data.root), seed=data.seed)
    elif data.source == "local" and (data.root is None or not Path(data.root).is_dir()):
        what = "data.root is not set" if data.root is None else f"there is no folder data.root={data.root}"
        raise FileNotFoundError(f"{what}; give the folder that holds {data.text}/ …")


def start_weights(
    stage: str, run_name: str, init_from: str | None, outputs: str, arguments: str = ""
) -> str | Path | None:
    """Return what a stage starts from, as `checkpoint.read_model` opens it; None if it starts from fresh weights.

    Args:
        stage: the stage that will train.
        run_name: if `init_from` is null, the earlier stage's run of this name is taken.
        init_from: a checkpoint file, a folder with a model, or an address `hf://owner/repo`.
        outputs: folder of all runs.
        arguments: overrides that the command line of the remedy repeats (data, depth).

    Raises:
        FileNotFoundError: there is none; the message holds the command that makes one.
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
    starts = STAGES[StageName(stage)].starts_from
    if not starts:
        return None
    for earlier in starts:
        folder = run_dir(earlier, run_name, outputs)
        if (folder / "checkpoints").is_dir() and any((folder / "checkpoints").glob("*.ckpt")):
            return folder
    folders = ", ".join(str(run_dir(s, run_name, outputs)) for s in starts)
    raise FileNotFoundError(
        f"stage={stage} starts from an earlier stage, but there is no checkpoint in {folders}; make one with "
        f"`python train.py stage=base {shlex.quote(f'run_name={run_name}')}{arguments}`, or give "
        "init_from=<checkpoint or run folder>"
    )
