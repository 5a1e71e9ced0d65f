"""Models on the Hugging Face hub, by the address `hf://owner/repo[@revision][/folder or file]`.

A repository is read by the same rule as a folder (`formats.choose`). The files of one model, and no more, are fetched
below `<outputs>/hub/owner/repo[@revision]/`, the weights last: if they are there, so is the rest, and the hub is not
asked again. The repository's listing is kept beside them, so that an address means the same model whichever of several
is here.
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nanochat_pl.checkpoint.formats import (
    FORMATS,
    ModelFiles,
    check_model_type,
    choose,
    find_model_files,
    metadata_path,
    model_config,
    read_json,
    tokenizer_paths,
)
from nanochat_pl.downloads import fetch_hub_files, list_hub_files
from nanochat_pl.paths import write_atomically

__all__ = ["HUB_FOLDER", "HubModel", "is_hub_address"]

HUB_FOLDER = "outputs/hub"
"""Where models of the hub are kept by default."""

_LISTING = ".listing.json"


def is_hub_address(path: str | Path) -> bool:
    """Tell an address on the hub from a path (pathlib folds its two slashes into one)."""
    return str(path).startswith("hf:/")


@dataclass(frozen=True)
class HubModel:
    """A model named by an address, and where it is kept."""

    address: str
    repo: str
    revision: str
    inside: str
    """Folder or file in the repository; empty = its top."""
    folder: Path
    """The repository's folder on this machine."""

    @classmethod
    def parse(cls, address: str | Path, root: str | Path = HUB_FOLDER) -> "HubModel":
        """Read an address.

        Raises:
            ValueError: if it is none; the message says what one looks like.
        """
        parts = str(address).removeprefix("hf:").strip("/").split("/")
        owner, name = (*parts, "", "")[:2]
        name, _, revision = name.partition("@")
        if not owner or not name or any(part in ("", ".", "..") or "\\" in part for part in parts):
            raise ValueError(f"{address} is no address on the hub; give hf://owner/repo or hf://owner/repo/folder")
        kept = f"{name}@{revision}" if revision else name
        inside = "/".join(parts[2:])
        return cls(f"hf://{'/'.join(parts)}", f"{owner}/{name}", revision or "main", inside, Path(root) / owner / kept)

    def here(self) -> ModelFiles | None:
        """Return the model as it lies on this machine; None if it was not fetched, or not wholly.

        Raises:
            ValueError: if there are several models; the message lists them.
        """
        path = self.folder / self.inside
        try:
            if (self.folder / _LISTING).is_file():  # else someone copied the files there
                names = read_json(self.folder / _LISTING)["names"]
                path = self.folder / self._chosen(names)[1]
                if not path.is_file():
                    return None
            return find_model_files(path)
        except FileNotFoundError:
            return None

    def look(self, offline: bool = False) -> None:
        """Make sure that the model is here or can be fetched, without fetching it; errors are those of `fetch`."""
        if self.here() is None:
            self._files(self._names(offline))

    def fetch(self, offline: bool = False) -> ModelFiles:
        """Bring the model to this machine unless it is here.

        Raises:
            FileNotFoundError: if it is not here and cannot be had, or there is no model in that place; the message says
                what there is.
            ValueError: if there are several models, or one that does not open here.
        """
        if (found := self.here()) is not None:
            return found
        names = self._names(offline)
        kind, (*others, weights) = self._files(names)
        write_atomically(self.folder / _LISTING, json.dumps({"names": names}))

        def bring(names: list[str]) -> None:
            fetch_hub_files(self.repo, names, self.folder, repo_type="model", revision=self.revision)

        # A page first: gigabytes of another kind of model are not worth waiting for.
        is_hugging_face = kind == "huggingface"
        page = str(PurePosixPath(weights).with_name("config.json")) if is_hugging_face else metadata_path(weights)
        bring([page])
        if is_hugging_face:
            check_model_type(self.folder / page)
        else:
            model_config(read_json(self.folder / page), self.folder / page)
        bring(others)
        bring([weights])
        return find_model_files(self.folder / weights)

    def _names(self, offline: bool) -> list[str]:
        """Ask the hub which files the repository has."""
        if offline:
            raise FileNotFoundError(
                f"{self.address} is not in {self.folder} and offline=true forbids fetching it; fetch it once with "
                "offline=false, or copy its files there"
            )
        names = list_hub_files(self.repo, repo_type="model", revision=self.revision)
        return [name for name in names if ".." not in name.split("/") and not name.startswith("/")]

    def _chosen(self, names: list[str]) -> tuple[str, str]:
        """Return format and weights of the model that the address stands for."""
        is_file = self.inside in names
        top = str(PurePosixPath(self.inside).parent) if is_file else self.inside
        prefix = "" if top in ("", ".") else f"{top}/"
        within = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        if is_file and self.inside.endswith((".safetensors", ".json")):  # no file of another format is meant
            within = [name for name in within if name.endswith((".safetensors", ".json")) and "/" not in name]
        elif is_file:
            within = [PurePosixPath(self.inside).name]
        choice = choose(within, self.address)
        if choice is None:
            shown = ", ".join(within[:12]) + (f" and {len(within) - 12} more" if len(within) > 12 else "")
            kinds = "; ".join(known.files for kind, known in FORMATS.items() if kind not in ("lightning", "package"))
            raise FileNotFoundError(
                f"no model at {self.address}, which holds {shown or 'nothing'}; expected one of: {kinds}"
            )
        return choice.format, prefix + choice.weights

    def _files(self, names: list[str]) -> tuple[str, list[str]]:
        """Return the model's format and files; the last of them holds the weights or lists their files."""
        kind, weights = self._chosen(names)
        return kind, [*self._needed(kind, weights, names), weights]

    def _needed(self, kind: str, weights: str, names: list[str]) -> list[str]:
        """List the other files in the repository that belong to the weights."""
        if kind == "huggingface":
            folder = PurePosixPath(weights).parent
            beside = [name for name in names if PurePosixPath(name).parent == folder and name != weights]
            if not any(PurePosixPath(name).name in ("tokenizer.json", "tokenizer.pkl") for name in beside):
                raise FileNotFoundError(f"{self.address} has {weights} without tokenizer.json; nothing was fetched")
            endings = (".json", "tokenizer.pkl", *([".safetensors"] if weights.endswith(".json") else []))
            return [name for name in beside if name.endswith(endings)]
        wanted = {"its metadata": [metadata_path(weights)], "its tokenizer": tokenizer_paths(weights)}
        found = {what: next((name for name in paths if name in names), None) for what, paths in wanted.items()}
        if missing := [f"{what} ({' or '.join(wanted[what])})" for what, name in found.items() if name is None]:
            raise FileNotFoundError(
                f"{self.address} has {weights} without {' and '.join(missing)}; nothing was fetched"
            )
        return [name for name in found.values() if name is not None]
