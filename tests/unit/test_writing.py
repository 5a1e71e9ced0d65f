"""What cannot be written is named in one line with what to do, whoever writes it; what was there before stays whole."""

import contextlib
import errno
import logging
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nanochat_pl.cli.arguments import in_words, refuse
from nanochat_pl.paths import WriteError, atomic_file, check_place, worded, write_atomically, writing
from nanochat_pl.training.loggers import MetricsFile
from nanochat_pl.training.record import write_log


@contextlib.contextmanager
def full_disk(size: int = 4096) -> Iterator[None]:
    """Let no file grow beyond `size` bytes, as a full disk or a quota would."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_metrics_on_a_full_disk_name_their_file_and_the_remedy(tmp_path: Path):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.log_metrics({"loss": 1.0}, 0)

    def log_on() -> None:
        for step in range(1, 5000):
            metrics.log_metrics({"loss": 1.0}, step)

    with full_disk(), pytest.raises(WriteError) as error:
        log_on()
    assert str(error.value).startswith(f"cannot write {tmp_path}/metrics.csv (file too large, ")
    assert "MiB free); free some space, or choose a folder on a larger disk (outputs=, --out)" in str(error.value)
    assert [row["step"] for row in metrics.rows()][:2] == ["0", "1"]


def test_a_file_that_does_not_fit_leaves_the_one_before(tmp_path: Path):
    file = tmp_path / "summary.json"
    write_atomically(file, "before")
    with full_disk(), pytest.raises(WriteError, match=r"cannot write .*/summary\.json \("):
        write_atomically(file, "x" * 100_000)
    assert file.read_text() == "before" and [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("library", ["torch", "torch to a file", "safetensors"])
def test_what_libraries_write_is_worded_as_well(tmp_path: Path, library: str):
    weights = {"w": torch.zeros(100_000)}

    def write() -> None:
        with atomic_file(tmp_path / "weights") as file:
            if library == "torch":
                torch.save(weights, file)
            elif library == "safetensors":
                save_file(weights, file)
            else:
                with file.open("wb") as out:
                    torch.save(weights, out)

    with full_disk(), pytest.raises(WriteError, match=r"cannot write .*/weights \("):
        write()
    assert not any(tmp_path.iterdir())


def log_on(logger: logging.Logger) -> None:
    for _ in range(1000):
        logger.info("a line of the log")


def test_a_log_on_a_full_disk_ends_the_run_and_prints_no_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    logger = logging.getLogger("nanochat_pl")
    before = logger.propagate, logger.level, list(logger.handlers)
    write_log(tmp_path / "log.txt", first=True)
    try:
        with full_disk(), pytest.raises(WriteError, match=r"cannot write .*/log\.txt"):
            log_on(logger)
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.propagate, logger.level, logger.handlers = before[0], before[1], before[2]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOENT])
def test_no_error_of_the_system_is_shown_in_its_own_terms(tmp_path: Path, number: int):
    def write() -> None:
        with writing(tmp_path / "x"):
            raise OSError(number, os.strerror(number))

    with pytest.raises(WriteError) as error:
        write()
    text = str(error.value)
    assert str(tmp_path / "x") in text and "Errno" not in text and "outputs=" in text and "\n" not in text
    assert "Errno" not in in_words(OSError(number, os.strerror(number), "/a/b")) and "/a/b" in in_words(
        OSError(number, os.strerror(number), "/a/b")
    )
    assert isinstance(error.value, OSError), "callers that mend errors of the system mend this one"


def test_errors_that_say_so_themselves_stay(capsys: pytest.CaptureFixture[str]):
    for kind, text in (
        (FileNotFoundError, "there is no checkpoint"),
        (ValueError, "write failed: x=1"),
        (KeyError, "x"),
    ):
        with pytest.raises(kind, match=text), writing("anywhere"):
            raise kind(text)
        assert worded(kind(text)) is None
    assert refuse(FileNotFoundError(2, "No such file or directory", "/no/where")) == 2
    assert capsys.readouterr().err == "error: cannot use /no/where (no such file or directory)\n"


def test_a_place_is_looked_at_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_place(tmp_path / "a" / "b")
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"cannot make the folder .*/file/x: .*/file is a file; choose another"):
        check_place(tmp_path / "file" / "x")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(WriteError, match=r"is not yours to write to; choose a folder that you may write to"):
        check_place(tmp_path / "a")
