"""Files of the hub are fetched whole through any trouble, once, and go on where they broke off."""

import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tenacity import wait_none

from nanochat_pl import downloads
from nanochat_pl.downloads import fetch_hub_file, fetch_hub_files

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Hub(ThreadingHTTPServer):
    """A stand-in for the Hugging Face hub on 127.0.0.1 that answers badly on request.

    ``trouble`` is a list of what happens to the next body requests: an int is a status, ``("cut", n)`` sends n bytes
    and hangs up, ``("stall", n)`` sends n bytes and then nothing; afterwards all goes well.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.files = {"/datasets/owner/texts/resolve/main/shard.parquet": CONTENT}
        self.etag = SHA256
        self.trouble: list = []
        self.head_trouble: list[int] = []
        self.ranges_work = True
        self.bodies: list[str | None] = []  # the Range header of every GET
        self.closing = threading.Event()


class _HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args):
        pass

    def _answer(self, status, length=0, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()

    def _file(self):
        content = self.server.files.get(self.path)
        if content is None:
            self._answer(404, X_Error_Code="EntryNotFound", X_Error_Message="no such file")
        return content

    def do_HEAD(self):
        content = self._file()
        if content is None:
            return
        if self.server.head_trouble:
            self._answer(self.server.head_trouble.pop(0))
            return
        self._answer(200, len(content), ETag=f'"{self.server.etag}"', X_Repo_Commit="0" * 40)

    def do_GET(self):
        content = self._file()
        if content is None:
            return
        wanted = self.headers.get("Range")
        self.server.bodies.append(wanted)
        trouble = self.server.trouble.pop(0) if self.server.trouble else None
        if isinstance(trouble, int):
            self._answer(trouble)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges_work else 0
        self._answer(206 if start else 200, len(content) - start)
        self.wfile.write(content[start : start + trouble[1]] if trouble else content[start:])
        if trouble and trouble[0] == "stall":
            self.wfile.flush()
            self.server.closing.wait(60)


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import close_session

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(downloads, "_WAIT", wait_none())
    close_session()
    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    close_session()


def fetch(hub, dest, filename="shard.parquet", **options):
    return fetch_hub_file("owner/texts", filename, dest, endpoint=hub.endpoint, **options)


def leftovers(folder):
    return sorted(p.name for p in Path(folder).iterdir() if not p.name.endswith(".lock"))


def test_a_file_is_fetched_once_and_then_taken_from_disk(hub, tmp_path):
    dest = tmp_path / "deep" / "shard.parquet"
    assert fetch(hub, dest) == dest and dest.read_bytes() == CONTENT
    assert leftovers(dest.parent) == ["shard.parquet"]
    fetch(hub, dest)
    assert hub.bodies == [None]


@pytest.mark.parametrize("trouble", [500, 503, 429, 408, ("cut", 0)])
def test_status_408_429_5xx_and_a_cut_body_are_tried_again(hub, tmp_path, trouble):
    hub.trouble = [trouble]
    assert fetch(hub, tmp_path / "x").read_bytes() == CONTENT
    assert len(hub.bodies) == 2


def test_status_5xx_for_the_metadata_is_tried_again(hub, tmp_path):
    hub.head_trouble = [502, 503]
    assert fetch(hub, tmp_path / "x").read_bytes() == CONTENT


def test_an_interrupted_body_is_continued_not_restarted(hub, tmp_path):
    hub.trouble = [("cut", 1_500_000), ("cut", 700_000)]
    assert fetch(hub, tmp_path / "x").read_bytes() == CONTENT
    first, second, third = hub.bodies
    assert first is None and second == "bytes=1500000-" and third == "bytes=2200000-"
    assert leftovers(tmp_path) == ["x"]


def test_a_server_without_ranges_is_read_from_the_start(hub, tmp_path):
    hub.ranges_work = False
    hub.trouble = [("cut", 1_500_000)]
    assert fetch(hub, tmp_path / "x").read_bytes() == CONTENT


def test_giving_up_leaves_no_half_file_and_the_next_call_continues(hub, tmp_path):
    hub.trouble = [("cut", 100_000)] * downloads._ATTEMPTS
    with pytest.raises(FileNotFoundError, match=r"shard.parquet of the dataset owner/texts.*gave up after 5 attempts"):
        fetch(hub, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert fetch(hub, tmp_path / "x").read_bytes() == CONTENT
    assert hub.bodies[-1] == "bytes=500000-"


def test_a_body_of_other_content_is_refused_however_often_it_comes(hub, tmp_path):
    hub.files = dict.fromkeys(hub.files, CONTENT[::-1])
    with pytest.raises(FileNotFoundError, match="SHA-256"):
        fetch(hub, tmp_path / "x")
    assert leftovers(tmp_path) == []


def test_a_file_that_changed_on_the_hub_is_not_glued_to_the_old_beginning(hub, tmp_path):
    hub.trouble = [("cut", 100_000)] * downloads._ATTEMPTS
    with pytest.raises(FileNotFoundError):
        fetch(hub, tmp_path / "x")
    other = os.urandom(400_000)
    hub.files = dict.fromkeys(hub.files, other)
    hub.etag = hashlib.sha256(other).hexdigest()
    assert fetch(hub, tmp_path / "x").read_bytes() == other


def test_an_empty_file_is_fetched_too(hub, tmp_path):
    hub.files = dict.fromkeys(hub.files, b"")
    hub.etag = hashlib.sha256(b"").hexdigest()
    assert fetch(hub, tmp_path / "x").read_bytes() == b""


def test_a_partial_file_longer_than_the_real_one_starts_anew(hub, tmp_path):
    hub.trouble = [("cut", 100_000)] * downloads._ATTEMPTS
    with pytest.raises(FileNotFoundError):
        fetch(hub, tmp_path / "x")
    (partial,) = tmp_path.glob("*.partial")
    partial.write_bytes(CONTENT + b"x")
    hub.trouble = [416]
    assert fetch(hub, tmp_path / "x").read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403])
def test_status_401_and_403_are_not_tried_again(hub, tmp_path, status):
    hub.head_trouble = [status]
    with pytest.raises(FileNotFoundError, match="private or gated"):
        fetch(hub, tmp_path / "x")
    assert hub.bodies == [] and leftovers(tmp_path) == []


def test_status_404_is_not_tried_again(hub, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.parquet of the dataset owner/texts .* knows no such"):
        fetch(hub, tmp_path / "x", filename="nothing.parquet")


def test_an_unreachable_hub_is_an_error_with_its_address_after_five_attempts(hub, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        hub.endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
        with pytest.raises(FileNotFoundError, match=rf"{hub.endpoint}.*gave up after 5 attempts"):
            fetch(hub, tmp_path / "x")


def test_a_full_disk_is_not_tried_again_and_leaves_no_half_file(hub, tmp_path, monkeypatch):
    def full(temporary, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "move_into_place", full)
    with pytest.raises(OSError, match="No space left") as error:
        fetch(hub, tmp_path / "x")
    assert error.value.errno == errno.ENOSPC and len(hub.bodies) == 1 and not (tmp_path / "x").exists()


def test_offline_opens_no_socket_and_serves_what_is_there(tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    with pytest.raises(
        FileNotFoundError, match=r"offline=true forbids fetching shard.parquet of the dataset owner/texts"
    ):
        fetch_hub_file("owner/texts", "shard.parquet", tmp_path / "x", offline=True)
    (tmp_path / "x").touch()
    assert fetch_hub_file("owner/texts", "shard.parquet", tmp_path / "x", offline=True) == tmp_path / "x"


def test_the_hubs_own_offline_variable_is_respected(hub, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):
        fetch(hub, tmp_path / "x")


def test_several_files_keep_their_names_and_survive_one_missing(hub, tmp_path):
    names = [f"sub/shard_{i}.parquet" for i in range(6)]
    hub.etag = "small files have another kind of etag"
    hub.files = {f"/owner/texts/resolve/v1/{name}": name.encode() * 1000 for name in names[:-1]}
    options = {"endpoint": hub.endpoint, "repo_type": "model", "revision": "v1"}
    with pytest.raises(FileNotFoundError, match=r"shard_5.parquet of the model owner/texts"):
        fetch_hub_files("owner/texts", names, tmp_path, **options)
    found = fetch_hub_files("owner/texts", names[:-1], tmp_path, **options)
    assert found == [tmp_path / name for name in names[:-1]]
    assert [path.read_bytes() for path in found] == [name.encode() * 1000 for name in names[:-1]]
    assert len(hub.bodies) == 5


SCRIPT = """
import sys
from nanochat_pl.downloads import fetch_hub_file
fetch_hub_file("owner/texts", "shard.parquet", sys.argv[1])
"""


def start(hub, dest):
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(dest)], env=environment)


def test_concurrent_processes_download_once(hub, tmp_path):
    started = [start(hub, tmp_path / "x") for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert hub.bodies == [None]


def test_a_killed_download_leaves_no_half_file_and_is_continued(hub, tmp_path):
    hub.trouble = [("stall", 2_500_000)]
    process = start(hub, tmp_path / "x")
    while not any(partial.stat().st_size for partial in tmp_path.glob("*.partial")):
        assert process.poll() is None  # still at it; a hang ends by the time limit of the tests
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not (tmp_path / "x").exists()
    assert fetch(hub, tmp_path / "x").read_bytes() == CONTENT
    assert len(hub.bodies) == 2 and hub.bodies[1].startswith("bytes=")


def test_importing_downloads_loads_neither_torch_nor_the_hub():
    code = "import sys, nanochat_pl.downloads; print([m for m in ('torch', 'huggingface_hub') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
