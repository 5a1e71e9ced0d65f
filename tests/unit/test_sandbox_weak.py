"""Laws of the sandbox without isolation: no program outlives its time, and none reaches whoever started it."""

import logging
import os
import sys
import time

import pytest

from nanochat_pl import sandbox
from nanochat_pl.sandbox import run_python


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process does not hear of its parent's end")
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
def test_in_weak_mode_a_program_that_ends_or_stops_its_keeper_ends_too(tmp_path, number):
    file = tmp_path / "late"
    program = (
        f"import os, signal, time\nos.kill(os.getppid(), signal.{number})\ntime.sleep(2)\nopen({str(file)!r}, 'w')"
    )
    assert not run_python(program, timeout_s=0.7, mode="weak").success
    time.sleep(1.5)
    assert not file.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel refuses no calls")
def test_in_weak_mode_whoever_started_a_program_gets_no_signal_of_it():
    callers = [os.getpid(), -os.getpgrp(), os.getppid(), -1]
    program = f"""
import ctypes, fcntl, os, resource, signal, subprocess
keeper, socket_owner = os.getppid(), 0x8901
libc, end = ctypes.CDLL(None, use_errno=True), os.pipe()[0]
tries = [lambda who=who: os.kill(who, 0) for who in (*{callers}, keeper, -keeper)]
tries += [lambda: resource.prlimit({os.getpid()}, resource.RLIMIT_CORE)]
tries += [lambda: fcntl.fcntl(end, fcntl.F_SETOWN, {os.getpid()})]
tries += [lambda: fcntl.ioctl(end, socket_owner, ({os.getpid()}).to_bytes(4, "little"))]
for number, attempt in enumerate(tries):
    try:
        attempt()
    except PermissionError:
        continue
    raise SystemExit(f"attempt {{number}} had its way")
own = subprocess.Popen(["/bin/sleep", "9"])
own.terminate()
assert own.wait() == -signal.SIGTERM
"""
    result = run_python(program, mode="weak")
    assert result.success, result.error


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a program may leave its process group")
def test_in_weak_mode_processes_that_hand_over_to_each_other_end_with_the_program(tmp_path):
    file = tmp_path / "late"
    program = f"import os\nfile = open({str(file)!r}, 'ab', 0)\n"
    program += "for _ in range(20_000):\n    if os.fork(): os._exit(0)\n    os.setsid()\n    file.write(b'.')"
    assert run_python(f"import os, time\nif os.fork(): time.sleep(9)\n{program}", timeout_s=1.0, mode="weak").timed_out
    written = file.stat().st_size
    time.sleep(0.3)
    assert 0 < written == file.stat().st_size < 20_000


def test_in_weak_mode_a_child_of_the_same_group_does_not_outlive_the_program(tmp_path):
    file = tmp_path / "late"
    program = f"import os, time\nif os.fork() == 0:\n    time.sleep(1)\n    open({str(file)!r}, 'w')"
    assert run_python(program, mode="weak").success
    time.sleep(1.5)
    assert not file.exists()


def test_in_weak_mode_a_program_does_not_outlive_an_interrupted_caller(tmp_path, monkeypatch):
    file = tmp_path / "late"

    def interrupted(process, timeout):
        time.sleep(0.7)  # until the program runs
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(sandbox.subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_python(f"import time\ntime.sleep(1.2)\nopen({str(file)!r}, 'w')", mode="weak")
    time.sleep(1.2)
    assert not file.exists()


def test_weak_mode_warns_once(caplog):
    sandbox._warn_of_weak.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            run_python("", mode="weak")
    assert [record.getMessage()[:12] for record in caplog.records] == ["sandbox=weak"]
