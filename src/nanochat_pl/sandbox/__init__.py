"""Run a Python program that a model wrote in a process that can do no harm, as grading HumanEval's answers needs.

The program gets a fresh interpreter with the standard library alone, an empty environment, no input, an empty folder in
memory, and limits on time, memory, file size and processes. One of these isolations confines it:

- `bubblewrap`: the command `bwrap`, where it is installed.
- `namespaces`: the same from Linux itself: no network, its own processes, and a file system that holds nothing but
  Python and the system's libraries, read-only. Root drops its rights first, because its processes cannot be limited.
- `weak`: only the limits, in a process of the caller's user (root's without root's rights): it can read and write that
  user's files, open sockets, start processes, and may find the tests in its caller's memory. It must be asked for.
  On Linux it can neither signal its caller nor change its caller's limits, and all its processes end with it.

In the first two, a filter of the kernel (seccomp) also refuses the system calls that reach keys, other processes, new
namespaces, or memory that no limit counts; in all three, a program has a session and a keyring of its own.

`probe` tries the first two with a program that attempts what must not work, and trusts only what prevents it. None of
them protects from faults of the kernel. `inside.py` is the script that sets the limits and starts the program.

Differs from nanochat (2025-11), which takes functions away from Python inside a forked process: here the system limits,
the network is closed, and packages other than the standard library cannot be imported.
"""

import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "ISOLATIONS",
    "MAX_FILE_BYTES",
    "MAX_OUTPUT_BYTES",
    "MAX_PROCESSES",
    "Probe",
    "ProgramResult",
    "isolation_for",
    "probe",
    "run_python",
    "run_tests",
]

log = logging.getLogger(__name__)

ISOLATIONS = ("bubblewrap", "namespaces")
"""The isolations, strongest first."""
MAX_PROCESSES = 8
"""Processes and threads of a program at a time; each may use up to the memory limit."""
MAX_FILE_BYTES = 16 * 2**20
"""Size limit of one file, of standard output, and of all files together where the folder is in memory."""
MAX_OUTPUT_BYTES = 64 * 1024
"""Size of standard output in a result; a longer one loses its middle."""
_MAX_FILES = 64
_INSIDE = str(Path(__file__).with_name("inside.py").resolve())
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/etc/ld.so.cache")
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # the order of a set is the same in every run
}


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended."""

    success: bool
    """It ended by itself, in time, with exit code 0."""
    stdout: str
    error: str | None
    """The last line of standard error, or what ended it; None = success."""
    timed_out: bool
    memory_exceeded: bool
    isolation: str
    """What confined it; to be reported with the results."""


@dataclass(frozen=True)
class Probe:
    """Which isolation works on this machine."""

    isolation: str | None
    """The strongest that works; None = none."""
    reasons: Mapping[str, str]
    """Why each of the others does not work."""


def run_python(
    program: str, *, stdin: str = "", timeout_s: float = 5.0, memory_bytes: int = 256 * 2**20, mode: str = "auto"
) -> ProgramResult:
    """Run a program as `__main__`; any number of threads may do so at a time.

    Args:
        stdin: what it reads on standard input.
        timeout_s: seconds of wall clock, the interpreter's start (about 0.1) included.
        memory_bytes: address space of each of its processes.
        mode: auto (the strongest isolation that works here), one of `ISOLATIONS`, or weak.

    Raises:
        ValueError: if mode is none of these, or its isolation does not work here.
        RuntimeError: if the isolation breaks down although it worked before (for lack of memory, for example).
    """
    return _run(program, isolation_for(mode), timeout_s, memory_bytes, stdin)


def run_tests(
    code: str, *, prompt: str, imports: str, test: str, entry_point: str, timeout_s: float = 5.0, mode: str = "auto"
) -> ProgramResult:
    """Run the tests of a function that a program defines; success means that they ran to their end.

    Tests and program run in two processes of one sandbox (`trial.py`): the program can neither read the tests nor reach
    into them, and what its function returns arrives as values of built-in types, or not at all.

    Args:
        prompt: What it was written for. The tests may call the helpers that it defines.
        imports: Its import lines, which are run instead of a prompt that is no complete program.
        test: Defines `check(candidate)`.
        timeout_s, mode: As for `run_python`.

    Raises:
        ValueError, RuntimeError: As `run_python`.
    """
    spec = {"code": code, "prompt": prompt, "imports": imports, "test": test, "entry_point": entry_point}
    trial = Path(__file__).with_name("trial.py").read_text(encoding="utf-8")
    return run_python(trial, stdin=json.dumps(spec), timeout_s=timeout_s, mode=mode)


def isolation_for(mode: str) -> str:
    """Return the isolation that programs run in under a mode; with weak, warn once.

    Raises:
        ValueError: if mode is unknown, or its isolation does not work here.
    """
    if mode not in ("auto", "weak", *ISOLATIONS):
        raise ValueError(f"sandbox={mode} is unknown; choose auto, weak, {' or '.join(ISOLATIONS)}")
    if mode == "weak":
        _warn_of_weak()
        return mode
    isolation, reasons = probe().isolation, probe().reasons
    if isolation is None or mode in reasons:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if mode in ("auto", name))
        raise ValueError(
            f"generated code is not run: sandbox={mode} does not hold on this machine ({why}); install bubblewrap or "
            "allow user namespaces; or, on a machine that has nothing to lose, set sandbox=weak (limits of time and "
            "memory only)"
        )
    return isolation if mode == "auto" else mode


@functools.cache
def probe() -> Probe:
    """Try the isolations, once a process (about 0.3 s each)."""
    reasons = {name: reason for name in ISOLATIONS if (reason := _weakness(name))}
    return Probe(next((name for name in ISOLATIONS if name not in reasons), None), reasons)


def _weakness(isolation: str) -> str | None:
    """Return why an isolation does not work, None where it does."""
    if not sys.platform.startswith("linux"):
        return f"needs Linux, and this is {sys.platform}"
    if isolation == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    with tempfile.NamedTemporaryFile() as ours, socket.create_server(("127.0.0.1", 0)) as listener:
        check = _CHECK.format(file=ours.name, port=listener.getsockname()[1], processes=MAX_PROCESSES)
        try:
            result = _run(check, isolation, 10.0, 256 * 2**20)
        except (OSError, RuntimeError) as error:
            return str(error)
    if result.success and result.stdout.strip() == "held":
        return None
    return result.stdout.strip() or result.error or "the check said nothing"


@functools.cache
def _warn_of_weak() -> None:
    log.warning(
        "sandbox=weak: generated code runs with limits of time and memory only; it can reach the network and whatever "
        "this user can"
    )


def _run(program: str, isolation: str, timeout_s: float, memory_bytes: int, stdin: str = "") -> ProgramResult:
    with (
        tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as input_file,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        file = Path(folder) / "program.py"
        file.write_text(program, encoding="utf-8", errors="surrogatepass")
        file.chmod(0o644)  # its reader may be another user; the folder is closed
        input_file.write(stdin.encode(errors="surrogatepass"))
        input_file.seek(0)
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        command = _command(isolation, Path(folder), write_end, timeout_s, memory_bytes)
        try:
            process = subprocess.Popen(
                command,
                stdin=input_file,
                stdout=stdout,
                stderr=stderr,
                env=_ENVIRONMENT,
                cwd=folder,
                start_new_session=True,
                pass_fds=(write_end,),
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        with open(read_end, "rb", buffering=0) as status:
            try:
                process.wait(timeout_s)
                timed_out = False
            except subprocess.TimeoutExpired:
                timed_out = True
            finally:  # even where the caller is interrupted
                unfinished = process.returncode is None  # not reaped, so the number is still its
                if unfinished and isolation == "weak":  # it ends what the program started, which no namespace does
                    process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(1.0)
                if unfinished:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                lines = (status.read() or b"").decode(errors="replace").splitlines()
                ended = any(line.startswith("=") for line in lines)
                # The program has a session of its own, which does not end with the others.
                if not ended and lines and lines[0].isdecimal():
                    with contextlib.suppress(OSError):
                        os.killpg(int(lines[0]), signal.SIGKILL)
            code = next((line for line in lines if not line.isdecimal()), "").removeprefix("=")
        return _result(code, timed_out, timeout_s, isolation, stdout, stderr)


def _result(
    code: str, timed_out: bool, timeout_s: float, isolation: str, stdout: BinaryIO, stderr: BinaryIO
) -> ProgramResult:
    errors = _text(stderr).rstrip().splitlines()
    last = errors[-1].strip()[:500] if errors else ""
    if code.startswith("!") or not (code or timed_out or isolation == "weak"):
        raise RuntimeError(f"{isolation} broke down before the program ended: {code[1:] or last or 'killed'}")
    success = code == "0" and not timed_out
    error: str | None = None
    if timed_out:
        error = f"timed out after {timeout_s:g} s"
    elif not success:
        number = int(code or -signal.SIGKILL)
        error = f"killed: {signal.strsignal(-number)}" if number < 0 else last or f"exit code {number}"
    return ProgramResult(
        success=success,
        stdout=_text(stdout),
        error=error,
        timed_out=timed_out,
        memory_exceeded=not success and last.startswith("MemoryError"),
        isolation=isolation,
    )


def _text(file: BinaryIO) -> str:
    """Read a file's first and last part, together at most MAX_OUTPUT_BYTES."""
    size, half = file.seek(0, os.SEEK_END), MAX_OUTPUT_BYTES // 2
    file.seek(0)
    if size <= MAX_OUTPUT_BYTES:
        return file.read().decode(errors="replace")
    head = file.read(half)
    file.seek(-half, os.SEEK_END)
    return f"{head.decode(errors='replace')}\n...\n{file.read(half).decode(errors='replace')}"


def _command(isolation: str, folder: Path, status: int, timeout_s: float, memory_bytes: int) -> list[str]:
    """Return the command that runs `inside.py`, with the isolation's tool around it."""
    python = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    inside = isolation != "weak"
    binds, links = _visible(python, folder)
    limits = {
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_CPU": int(timeout_s) + 2,
        "RLIMIT_FSIZE": MAX_FILE_BYTES,
        "RLIMIT_NOFILE": _MAX_FILES,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
    }
    if inside:  # otherwise it would count the user's other processes; two of them start the program
        limits["RLIMIT_NPROC"] = MAX_PROCESSES + 2
    spec = {
        "isolation": isolation,
        "status": status,
        "python": python,
        "program": "/program.py" if inside else str(folder / "program.py"),
        "limits": limits,
        "folder_bytes": MAX_FILE_BYTES,
        "binds": binds,
        "links": links,
        "root": str(folder / "root"),
    }
    script = [python, "-I", "-S", "/inside.py" if isolation == "bubblewrap" else _INSIDE, json.dumps(spec)]
    if isolation != "bubblewrap":
        return script
    binds.append((_INSIDE, "/inside.py"))
    mounts = ["--size", str(MAX_FILE_BYTES), "--tmpfs", "/tmp"]  # first, as Python itself may be below it
    mounts += [word for source, target in binds for word in ("--ro-bind", source, target)]
    mounts += [word for source, target in links for word in ("--symlink", source, target)]
    mounts += ["--dev-bind", "/dev/null", "/dev/null"]
    mounts += ["--remount-ro", "/", "--chdir", "/tmp"]
    flags = ["--unshare-all", "--as-pid-1", "--die-with-parent", "--new-session"]
    return [shutil.which("bwrap") or "bwrap", *flags, *mounts, "--", *script]


def _visible(python: str, folder: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return what the program may read: folders and files (source, target), and symbolic links (text, path)."""
    prefixes = {sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.dirname(python))}
    paths = [path for path in _SYSTEM if os.path.exists(path)]
    paths += sorted(prefix for prefix in map(os.path.realpath, prefixes) if not f"{prefix}/".startswith("/usr/"))
    links = [(os.readlink(path), path) for path in paths if os.path.islink(path)]
    binds = [(path, path) for path in paths if not os.path.islink(path)]
    return [*binds, (str(folder / "program.py"), "/program.py")], links


_CHECK = """
import ctypes, os, socket, sys
faults = []
for path in ({file!r}, "/etc/passwd", "/proc/1/environ"):
    if os.path.exists(path):
        faults.append("the caller's files can be seen")
for path in ("/outside", "/usr/outside", sys.prefix + "/outside"):
    try:
        open(path, "w").close()
        faults.append("files can be written outside")
    except OSError:
        pass
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=1).close()
    faults.append("the network can be reached")
except OSError:
    pass
if os.getuid() == 0 or set(os.environ) - {{"PATH", "HOME", "LANG", "LC_CTYPE", "OMP_NUM_THREADS", "PWD"}} - {{
    "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED"}}:
    faults.append("it runs as root or with the caller's environment")
libc, machine = ctypes.CDLL(None, use_errno=True), os.uname().machine
if libc.shmget(0, 4096, 0o1600) != -1 or libc.msgget(0, 0o1600) != -1:
    faults.append("memory can be had that no limit counts (System V)")
try:
    os.close(os.memfd_create("x"))
    faults.append("memory can be had that no limit counts (memfd)")
except OSError:
    pass
if libc.syscall({{"aarch64": 219}}.get(machine, 250), 0, -3, 0) != -1:
    faults.append("the kernel's keys can be reached")
if libc.unshare(0x10000000) != -1:
    faults.append("namespaces of its own can be made")
if os.getpgrp() != os.getpid():
    faults.append("it is of its caller's process group")
read_end, write_end = os.pipe()
children = 0
try:
    while children <= {processes}:
        if os.fork() == 0:
            os.close(write_end)
            os.read(read_end, 1)
            os._exit(0)
        children += 1
    faults.append("the number of processes is not limited")
except BlockingIOError:
    pass
print("; ".join(dict.fromkeys(faults)) or "held")
"""
"""A program that tries what must not work; it starts at most one process too many, which ends with the others."""
