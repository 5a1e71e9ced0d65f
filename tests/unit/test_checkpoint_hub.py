"""Models of the hub, against a stand-in on this machine: what is fetched, in which order, once; and what is refused."""

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from nanochat_pl import downloads
from nanochat_pl.checkpoint import check_model, huggingface, load_model, nanochat, read_model, sciassist
from nanochat_pl.checkpoint import hub as hub_module
from nanochat_pl.checkpoint.hub import HubModel, is_hub_address
from nanochat_pl.tokenizer import Tokenizer
from tests.unit.test_checkpoint import stored_model
from tests.unit.test_downloads import Hub, hub  # noqa: F401  (fixture)


@pytest.fixture(scope="module")
def stored():
    return stored_model(Tokenizer([bytes([byte]) for byte in range(256)]))


class Shelf:
    """A repository of the stand-in hub."""

    def __init__(self, server: Hub):
        server.files.clear()
        server.etag = hashlib.sha1(b"any").hexdigest()
        self.server = server

    def put(self, folder: Path, repo: str = "owner/repo", prefix: str = "", revision: str = "main") -> None:
        """Publish all files of a folder."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                name = prefix + file.relative_to(folder).as_posix()
                self.server.files[f"/{repo}/resolve/{revision}/{name}"] = file.read_bytes()
        self.list(repo, revision)

    def list(self, repo: str = "owner/repo", revision: str = "main", more: tuple[str, ...] = ()) -> None:
        beginning = f"/{repo}/resolve/{revision}/"
        names = [path.removeprefix(beginning) for path in self.server.files if path.startswith(beginning)]
        tree = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in [*names, *more]]
        self.server.files[f"/api/models/{repo}/tree/{revision}?recursive=true"] = json.dumps(tree).encode()

    def asked(self) -> int:
        return len(self.server.bodies)


@pytest.fixture
def shelf(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shelf:  # noqa: F811
    for name in ("fetch_hub_files", "list_hub_files"):
        monkeypatch.setattr(hub_module, name, partial(getattr(downloads, name), endpoint=hub.endpoint))
    monkeypatch.chdir(tmp_path)
    return Shelf(hub)


def kept(folder: Path) -> list[str]:
    """List what was fetched, without locks."""
    return sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    )


def test_a_published_nanochat_is_fetched_once_and_then_opened_without_a_socket(shelf: Shelf, stored, tmp_path: Path):
    published = tmp_path / "published"  # as the public ones are: four files side by side, and some more
    nanochat.write(stored, published)
    for name in ("tokenizer.pkl", "token_bytes.pt"):
        (published / "tokenizer" / name).rename(published / name)
    (published / "README.md").write_text("read me")
    (published / "optim_000012_rank0.pt").write_bytes(b"large")
    shelf.put(published)
    loaded = load_model("hf://owner/repo", compute_dtype=torch.float32)
    assert loaded.path == Path("outputs/hub/owner/repo/model_000012.pt")
    assert (loaded.format, loaded.step) == ("nanochat", 12)
    assert torch.equal(loaded.model.lm_head.weight, stored.state["lm_head.weight"])
    assert kept(tmp_path / "outputs/hub") == [
        "owner/repo/meta_000012.json",
        "owner/repo/model_000012.pt",
        "owner/repo/tokenizer.pkl",
    ]
    before = shelf.asked()
    assert before == 4  # the listing and three files
    shelf.server.files.clear()
    assert read_model("hf://owner/repo", offline=True).step == 12
    assert read_model(Path("hf://owner/repo")).step == 12  # pathlib folds the slashes
    assert shelf.asked() == before


@pytest.mark.parametrize("module", [sciassist, huggingface])
def test_every_format_comes_from_a_folder_of_a_repository(shelf: Shelf, stored, tmp_path: Path, module):
    module.write(stored, tmp_path / "made")
    shelf.put(tmp_path / "made", prefix="models/tutor/")
    again = read_model("hf://owner/repo/models/tutor", tmp_path / "kept")
    assert again.format == module.__name__.rpartition(".")[2]
    assert torch.equal(again.state["lm_head.weight"], stored.state["lm_head.weight"])
    assert all(name.startswith("owner/repo/models/tutor/") for name in kept(tmp_path / "kept"))


def test_a_revision_is_kept_apart(shelf: Shelf, stored, tmp_path: Path):
    nanochat.write(stored, tmp_path / "made")
    shelf.put(tmp_path / "made", revision="v2")
    assert read_model("hf://owner/repo@v2").file == Path("outputs/hub/owner/repo@v2/model_000012.pt")
    with pytest.raises(FileNotFoundError, match="knows no such repository, revision or file"):
        read_model("hf://owner/repo")


def test_the_weights_come_last_so_that_a_broken_download_is_taken_up(shelf: Shelf, stored, tmp_path: Path):
    nanochat.write(stored, tmp_path / "made")
    shelf.put(tmp_path / "made")
    weights = shelf.server.files.pop("/owner/repo/resolve/main/model_000012.pt")
    with pytest.raises(FileNotFoundError, match=r"could not fetch model_000012.pt of the model owner/repo"):
        load_model("hf://owner/repo")
    assert kept(tmp_path / "outputs/hub") == ["owner/repo/meta_000012.json", "owner/repo/tokenizer/tokenizer.pkl"]
    shelf.server.files["/owner/repo/resolve/main/model_000012.pt"] = weights
    before = shelf.asked()
    assert load_model("hf://owner/repo").step == 12
    assert shelf.asked() == before + 2  # the listing and the weights


def test_another_kind_of_model_is_refused_before_its_weights_are_fetched(shelf: Shelf, stored, tmp_path: Path):
    folder = tmp_path / "made"
    nanochat.write(stored, folder)
    meta = json.loads((folder / "meta_000012.json").read_text())
    meta["model_config"]["window_pattern"] = "SXL"
    (folder / "meta_000012.json").write_text(json.dumps(meta))
    shelf.put(folder)
    with pytest.raises(ValueError, match="must consist of the letters S and L"):
        load_model("hf://owner/repo")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "llama" / name).write_bytes(b"large")
    shelf.put(tmp_path / "llama", repo="meta/llama")
    with pytest.raises(ValueError, match="model_type='llama'"):
        load_model("hf://meta/llama")
    assert kept(tmp_path / "outputs/hub") == ["meta/llama/config.json", "owner/repo/meta_000012.json"]


def test_several_models_of_a_repository_are_listed_and_one_can_be_named(shelf: Shelf, stored, tmp_path: Path):
    nanochat.write(stored, tmp_path / "made")
    shelf.put(tmp_path / "made")
    shelf.list(more=("model_000013.pt", "meta_000013.json"))
    for ask in (check_model, load_model):
        with pytest.raises(ValueError, match=r"hf://owner/repo holds 2 models: model_000012.pt, model_000013.pt"):
            ask("hf://owner/repo")
    assert load_model("hf://owner/repo/model_000012.pt").step == 12


def test_an_address_means_the_same_model_whichever_is_here(shelf: Shelf, stored, tmp_path: Path):
    for tag, step in (("", 12), ("old/", 3)):
        nanochat.write(replace(stored, step=step), tmp_path / f"made{step}")
        shelf.put(tmp_path / f"made{step}", prefix=tag)
    assert load_model("hf://owner/repo/old").step == 3
    assert load_model("hf://owner/repo").step == 12, "not the older one, which is here already"
    shelf.server.files.clear()
    assert load_model("hf://owner/repo/old", offline=True).step == 3


def test_a_fetched_model_is_not_chosen_silently_where_the_repository_has_several(shelf: Shelf, stored, tmp_path: Path):
    nanochat.write(stored, tmp_path / "made")
    shelf.put(tmp_path / "made")
    shelf.list(more=("model_000013.pt", "meta_000013.json"))
    assert load_model("hf://owner/repo/model_000012.pt").step == 12
    for ask in (check_model, load_model):
        with pytest.raises(ValueError, match=r"hf://owner/repo holds 2 models: model_000012.pt, model_000013.pt"):
            ask("hf://owner/repo", offline=True)


def test_a_file_name_chooses_between_two_formats_in_one_repository(shelf: Shelf, stored, tmp_path: Path):
    huggingface.write(stored, tmp_path / "made")
    nanochat.write(replace(stored, step=13), tmp_path / "made")
    shelf.put(tmp_path / "made")
    with pytest.raises(ValueError, match="holds 2 models"):
        load_model("hf://owner/repo")
    assert load_model("hf://owner/repo/model.safetensors").format == "huggingface"
    assert load_model("hf://owner/repo/model_000013.pt").step == 13
    assert load_model("hf://owner/repo/model.safetensors", offline=True).step == 12


def test_adapter_config_json_beside_a_model_is_ignored(shelf: Shelf, stored, tmp_path: Path):
    huggingface.write(stored, tmp_path / "made")
    (tmp_path / "made" / "adapter_config.json").write_text("{}")
    shelf.put(tmp_path / "made")
    assert load_model("hf://owner/repo").format == "huggingface"


def test_weights_without_a_tokenizer_are_not_fetched(shelf: Shelf, stored, tmp_path: Path):
    huggingface.write(stored, tmp_path / "made")
    (tmp_path / "made" / "tokenizer.json").unlink()
    shelf.put(tmp_path / "made")
    with pytest.raises(FileNotFoundError, match=r"without tokenizer\.json; nothing was fetched"):
        check_model("hf://owner/repo")


def test_files_that_someone_copied_there_are_opened(stored, tmp_path: Path):
    nanochat.write(stored, tmp_path / "hub" / "owner" / "repo")
    assert read_model("hf://owner/repo", tmp_path / "hub", offline=True).step == 12


def test_a_repository_without_a_model_says_what_it_holds(shelf: Shelf, tmp_path: Path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "README.md").write_text("x")
    (tmp_path / "made" / "pytorch_model.bin").write_text("x")
    shelf.put(tmp_path / "made")
    with pytest.raises(
        FileNotFoundError, match=r"no model at hf://owner/repo, which holds README.md, pytorch_model.bin"
    ):
        check_model("hf://owner/repo")
    shelf.list(more=("model_000001.pt",))
    with pytest.raises(
        FileNotFoundError, match=r"without its metadata \(meta_000001.json\) and its tokenizer \(tokeniz"
    ):
        check_model("hf://owner/repo")


def test_looking_fetches_nothing_and_offline_opens_no_socket(shelf: Shelf, stored, tmp_path: Path):
    nanochat.write(stored, tmp_path / "made")
    shelf.put(tmp_path / "made")
    assert check_model("hf://owner/repo") is None
    assert shelf.asked() == 1
    for ask in (check_model, read_model):
        with pytest.raises(FileNotFoundError, match=r"not in outputs/hub/owner/repo and offline=true forbids"):
            ask("hf://owner/repo", offline=True)
    assert shelf.asked() == 1
    assert not (tmp_path / "outputs").exists()


def test_the_variable_for_offline_use_forbids_the_listing_too(shelf: Shelf, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE forbids listing the files of the model owner/repo"):
        load_model("hf://owner/repo")


def test_a_hub_in_trouble_is_asked_again_and_then_given_up_in_words(shelf: Shelf, stored, tmp_path: Path):
    nanochat.write(stored, tmp_path / "made")
    shelf.put(tmp_path / "made")
    shelf.server.trouble = [503, 500]
    assert check_model("hf://owner/repo") is None
    before = shelf.asked()
    shelf.server.trouble = [503] * 10
    with pytest.raises(FileNotFoundError, match=r"could not list the files of .*gave up after 5 attempts; run again"):
        check_model("hf://owner/repo")
    assert shelf.asked() == before + 5


def test_an_answer_that_is_no_list_of_files_is_an_error(shelf: Shelf):
    for answer in (b"<html>", b'{"error": 1}', b"[1]"):
        shelf.server.files["/api/models/owner/repo/tree/main?recursive=true"] = answer
        with pytest.raises(FileNotFoundError, match="the answer is no listing"):
            check_model("hf://owner/repo")


def test_names_that_lead_out_of_the_folder_are_never_written(shelf: Shelf, stored, tmp_path: Path):
    shelf.list(more=("../../../model_000001.pt", "../../../meta_000001.json", "/etc/model_000002.pt"))
    with pytest.raises(FileNotFoundError, match="no model at"):
        load_model("hf://owner/repo")


@pytest.mark.parametrize(
    "address", ["hf://", "hf://owner", "hf://owner/", "hf://owner/..", "hf://../x", "hf://a/b//c", "hf://owner/@v1"]
)
def test_what_is_no_address_is_refused(address: str):
    assert is_hub_address(address)
    with pytest.raises(ValueError, match="give hf://owner/repo"):
        HubModel.parse(address)


def test_paths_are_no_addresses():
    assert not any(is_hub_address(path) for path in ("hf", "outputs/hf://x", "./hf:", Path("a/hf:/b")))


def test_a_long_listing_is_read_page_by_page(monkeypatch: pytest.MonkeyPatch):
    import httpx
    import huggingface_hub.utils

    def answer(request: httpx.Request) -> httpx.Response:
        first = "cursor" not in str(request.url)
        headers = {"Link": f'<{request.url}&cursor=2>; rel="next"'} if first else {}
        tree = [{"type": "file", "path": "a" if first else "b"}, {"type": "directory", "path": "c"}]
        return httpx.Response(200, json=tree, headers=headers)

    client = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: client)
    assert downloads.list_hub_files("owner/repo", repo_type="model", endpoint="http://127.0.0.1") == ["a", "b"]
    client.close()
