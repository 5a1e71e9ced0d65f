"""A run owns its folder while it lives; what the dead leave behind stands in nobody's way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat_pl.training import claim
from nanochat_pl.training.claim import FolderInUseError, check_free, claimed

OWNER = """
import sys, time
from pathlib import Path
from nanochat_pl.training.claim import claimed
with claimed(Path(sys.argv[1])):
    print("owns", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "owns\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def note_of(folder: Path, **changes: Any) -> Path:
    """Leave a note as a process leaves it that had no time to take it away."""
    with claimed(folder):
        note = json.loads((folder / ".lock.json").read_text())
    (folder / ".lock.json").write_text(json.dumps(note | {"token": "another"} | changes))
    return folder / ".lock.json"


def test_the_second_process_is_told_who_has_the_folder_and_what_to_do(owner: subprocess.Popen[str], tmp_path: Path):
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    said = rf"in use by process {owner.pid} on \S+, started {since}.*kill {owner.pid}.*run_name="
    for look in (check_free, lambda folder: claimed(folder).__enter__()):
        with pytest.raises(FolderInUseError, match=said) as refused:
            look(tmp_path)
        assert "\n" not in str(refused.value)


def test_what_a_killed_process_leaves_stands_in_nobodys_way(owner: subprocess.Popen[str], tmp_path: Path):
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    check_free(tmp_path)
    begin = time.monotonic()
    with claimed(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert time.monotonic() - begin < 2
    assert not (tmp_path / ".lock.json").exists()


def test_a_folder_is_free_again_after_a_claim_that_failed(tmp_path: Path):
    with pytest.raises(KeyError), claimed(tmp_path):
        raise KeyError
    with claimed(tmp_path):
        pass


def test_looking_writes_nothing(tmp_path: Path):
    check_free(tmp_path / "nowhere")
    check_free(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no-locks"])
def test_another_machine_is_believed_while_it_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
):
    monkeypatch.setattr(claim, "SILENT_S", 1.2)
    note = note_of(tmp_path, host="node7", boot="other", pid=1)
    if not locks:
        monkeypatch.setattr(claim, "_acquire", lambda folder: None)
    over = threading.Event()
    threading.Timer(0.3, os.utime, (note,)).start()
    with pytest.raises(FolderInUseError, match="process 1 on node7, started"):
        claimed(tmp_path).__enter__()
    over.set()
    with claimed(tmp_path):  # it has been silent since
        assert json.loads(note.read_text())["host"] != "node7"


def test_a_machine_that_has_long_been_silent_is_not_waited_for(tmp_path: Path):
    note = note_of(tmp_path, host="node7", boot="other", pid=1)
    os.utime(note, (time.time() - 3600,) * 2)
    begin = time.monotonic()
    with claimed(tmp_path):
        assert time.monotonic() - begin < 1


def test_without_locks_a_process_of_this_machine_is_judged_by_its_number_and_birth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claim, "_acquire", lambda folder: None)
    note_of(tmp_path)  # of this very process, which lives
    with pytest.raises(FolderInUseError, match=f"process {os.getpid()} on"):
        claimed(tmp_path).__enter__()
    note_of(tmp_path / "again", birth="12")  # the number was another process's, and is taken again
    with claimed(tmp_path / "again"):
        pass


NO_NOTES = ["", '{"host": ', "[1]", "[" * 100_000, '{"pid": Infinity, "host": "a", "started": "b"}']
NO_NOTES += [
    json.dumps({"host": "a", "pid": 1, "started": "b"} | {key: value})
    for key, values in {"pid": (None, [1], "1", -1, 0, 10**30), "host": (None, {}), "started": (None, 1)}.items()
    for value in values
]


@pytest.mark.parametrize("note", NO_NOTES, ids=range(len(NO_NOTES)))
def test_a_damaged_note_is_no_trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: str):
    monkeypatch.setattr(claim, "NOTE_S", 0.1)
    (tmp_path / ".lock.json").write_text(note)
    with claimed(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
        (tmp_path / ".lock.json").write_text(note)
        with pytest.raises(FolderInUseError, match="in use by another process"):
            check_free(tmp_path)


def test_signs_of_life_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(claim, "TOUCH_EVERY_S", 0.05)
    with claimed(tmp_path):
        os.utime(tmp_path / ".lock.json", (0, 0))
        time.sleep(0.3)
        assert (tmp_path / ".lock.json").stat().st_mtime > 0
