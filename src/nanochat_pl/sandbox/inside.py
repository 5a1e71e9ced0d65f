"""The script that runs inside the sandbox: it moves into namespaces, sets the limits, and starts the program.

`run_python` starts it in a fresh interpreter without packages, with its task as JSON; it imports nothing of ours and
little of the standard library, since it runs anew for every program. It reports through a pipe that the program does
not have: the program's exit code, or `!` and why there is none.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

__all__: list[str] = []

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_DETACH = 2
_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS = 1, 4, 38
_DROP_RIGHT, _ADOPT_ORPHANS = 24, 36
_JOIN_SESSION_KEYRING = 1
_SECCOMP, _SECCOMP_FILTER = 22, 2
_FIRST_UID = 61184
"""The first of systemd's range of users without a name; each run takes another, so that processes are not counted
together."""


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the C library.

    Raises:
        OSError: if it returns -1.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    plain = [argument.encode() if isinstance(argument, str) else argument for argument in arguments]
    if getattr(libc, name)(*plain) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _enter_namespaces(spec: Mapping[str, Any]) -> None:
    """Move into new namespaces, as their first process, and see nothing but what `spec` lists; returns only inside."""
    uid, gid = os.getuid(), os.getgid()
    _call("prctl", _PDEATHSIG, signal.SIGKILL)
    _call("unshare", _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET | (_NEWUSER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    if child := os.fork():
        os.waitpid(child, 0)
        os._exit(0)
    _call("prctl", _PDEATHSIG, signal.SIGKILL)
    _call("mount", None, "/", None, _REC | _PRIVATE, None)
    _build_root(spec)
    os.chdir(spec["root"])
    _call("pivot_root", ".", ".")
    _call("umount2", ".", _DETACH)
    os.chdir("/tmp")
    if not uid:
        nobody = _FIRST_UID + int.from_bytes(os.urandom(2)) % 4000
        os.setgroups([])
        os.setresgid(nobody, nobody, nobody)
        os.setresuid(nobody, nobody, nobody)
        _call("prctl", _PDEATHSIG, signal.SIGKILL)  # changing the user resets it


def _build_root(spec: Mapping[str, Any]) -> None:
    """Build the program's file system: what `spec` lists, read-only, and an empty folder in memory."""
    root = spec["root"]
    os.mkdir(root)
    _call("mount", "tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    os.mkdir(f"{root}/tmp")  # first, as Python itself may be below it
    options = f"size={spec['folder_bytes']},nr_inodes=1k,mode=1777"
    _call("mount", "tmpfs", f"{root}/tmp", "tmpfs", _NOSUID | _NODEV, options)
    for source, target in [*spec["binds"], ["/dev/null", "/dev/null"]]:
        path = root + target
        os.makedirs(path if os.path.isdir(source) else os.path.dirname(path), exist_ok=True)
        if not os.path.isdir(source):
            open(path, "w").close()
        _call("mount", source, path, None, _BIND, None)
        if source != "/dev/null":  # flags of the source cannot be removed: noexec and times
            kept = os.statvfs(path).f_flag & ~(_RDONLY | _NOSUID | _NODEV)
            flags = sum(flag for bit, flag in _KEPT.items() if kept & bit)
            _call("mount", None, path, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | flags, None)
    for text, path in spec["links"]:
        os.symlink(text, root + path)
    _call("mount", None, root, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV, None)


_KEPT = {8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
"""Bits of statvfs -> of mount: noexec, noatime, nodiratime, relatime."""


def _limit(limits: Mapping[str, int], strict: bool) -> None:
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(number, (value, value))
        except (ValueError, OSError):  # macOS knows no limit of address space
            if strict:
                raise


_FORBIDDEN = {
    # memory that no limit of a process counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    # keys of the caller
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    # namespaces and mounts of one's own, where limits begin anew
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "personality": (135, 92),
}
"""System calls that a program never gets, with their numbers on x86-64 and on 64-bit ARM."""
_CLONE, _CLONE3 = (56, 220), (435, 435)
_SETSOCKOPT, _FCNTL, _IOCTL, _PRLIMIT = (54, 208), (72, 25), (16, 29), (302, 261)
_SETSID, _SETPGID = (112, 157), (109, 154)
_KILLING = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "sigqueue": (129, 138),
    "tgsigqueue": (297, 240),
}
_NEW_ANY = _NEWNS | _NEWUTS | _NEWIPC | _NEWUSER | _NEWPID | _NEWNET | 0x2000000  # the last: a cgroup namespace
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the numbers above, and the kernel's number of the architecture."""
_FIRST_X32 = 0x40000000
_MAX_SPARED = 32
"""Most processes and groups that are spared signals, since a filter may have 4,096 instructions."""


def _who_started(pid: int) -> list[int]:
    """Return a process, the chain of those that started it, and their groups (negative), as `kill` takes them."""
    found: list[int] = []
    while pid > 1 and len(found) < _MAX_SPARED:
        try:
            with open(f"/proc/{pid}/stat") as file:
                parent, group = file.read().rpartition(")")[2].split()[1:3]
        except OSError:
            return [*found, pid]
        found += [pid, -int(group) or pid]  # 0 is the group of one outside a container, and would mean one's own
        pid = int(parent)
    return found


def _forbid_calls(spared: Collection[int] = ()) -> None:
    """Forbid the system calls of `_FORBIDDEN` to this process and its descendants: they fail with EPERM.

    So do signals to the processes and groups `spared`, and changes of another process's limits. If `spared` is not
    empty, calls to leave the process group have no effect: one signal to the group then ends all that the program has
    started, however fast it starts more.

    A filter of the kernel (seccomp, `linux/filter.h`) checks the number of each call; calls of other architectures that
    the machine supports are all refused.

    Raises:
        OSError: where the kernel has no such filters, or the machine's numbers are not known here.
    """
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise OSError(f"no numbers of system calls are known for {machine}")
    column, architecture = _MACHINES[machine]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, deny, absent, kill = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # EPERM; ENOSYS, so that clone is taken
    ignore = 0x00050000  # no error
    code = [
        (load, 0, 0, 4),
        (equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, 0, 1, _FIRST_X32),
        (give, 0, 0, deny),
        (equal, 0, 1, _CLONE3[column]),
        (give, 0, 0, absent),
    ]
    # Buffers in the kernel; sending a file's signals to others (F_SETOWN, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP).
    for numbers, argument, values in (
        (_SETSOCKOPT, 32, (7, 8, 32, 33)),
        (_FCNTL, 24, (1031, 8, 15)),
        (_IOCTL, 24, (0x8901, 0x8902)),
        *((numbers, 16, spared) for numbers in _KILLING.values()),
    ):
        for value in values:
            code += [(equal, 0, 4, numbers[column]), (load, 0, 0, argument), (equal, 0, 1, value), (give, 0, 0, deny)]
            code += [(load, 0, 0, 0)]
    # Only its own limits may be changed.
    code += [(equal, 0, 4, _PRLIMIT[column]), (load, 0, 0, 16), (equal, 1, 0, 0), (give, 0, 0, deny), (load, 0, 0, 0)]
    for numbers in _FORBIDDEN.values():
        code += [(equal, 0, 1, numbers[column]), (give, 0, 0, deny)]
    code += [(equal, 0, 3, _CLONE[column]), (load, 0, 0, 16), (any_bit, 0, 1, _NEW_ANY), (give, 0, 0, deny)]
    if spared:
        for numbers in (_SETSID, _SETPGID):
            code += [(equal, 0, 1, numbers[column]), (give, 0, 0, ignore)]
    code += [(give, 0, 0, allow)]
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    instructions = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(instructions))
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _SECCOMP, _SECCOMP_FILTER, ctypes.c_char_p(program), 0, 0)


def _leave_keys() -> None:
    """Join a new, empty session keyring, as the caller's would be inherited."""
    machine = os.uname().machine
    if sys.platform.startswith("linux") and machine in _MACHINES:
        number = _FORBIDDEN["keyctl"][_MACHINES[machine][0]]
        ctypes.CDLL(None).syscall(number, _JOIN_SESSION_KEYRING, None)  # without keyrings there is nothing to leave


def _drop_rights() -> None:
    """Drop root's rights over what belongs to other users and processes, for this process and its descendants."""
    prctl = ctypes.CDLL(None).prctl
    for right in range(64):
        prctl(_DROP_RIGHT, right, 0, 0, 0)  # it fails only for a process that has no such rights


def _end_orphans() -> None:
    """Kill what the program has left running, other sessions included: they are now children of this process."""
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
        while file.seek(0) == 0 and (children := file.read().split()):
            for child in children:
                os.kill(int(child), signal.SIGKILL)
            for _ in children:
                os.waitpid(-1, 0)


def _supervise(spec: Mapping[str, Any]) -> NoReturn:
    """Start the program, wait for it, and report its exit code (negative = signal) through a pipe that it lacks."""
    status: int = spec["status"]
    weak = spec["isolation"] == "weak"
    os.set_inheritable(status, False)
    if sys.platform.startswith("linux"):
        if weak:
            _call("prctl", _ADOPT_ORPHANS, 1, 0, 0, 0)
        else:
            _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
        _call("prctl", _DUMPABLE, 0, 0, 0, 0)  # the program has the same user, but must not reach into this process
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _leave_keys()
    spared = {-1, *_who_started(os.getpid())} if weak and sys.platform.startswith("linux") else ()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()  # a signal to its own group reaches nobody else
            _limit(spec["limits"], strict=not weak)
            if sys.platform.startswith("linux"):
                _drop_rights()
                _call("prctl", _PDEATHSIG, signal.SIGKILL)
            try:
                _forbid_calls([number & 0xFFFFFFFF for number in spared])
            except (OSError, AttributeError):
                if not weak:
                    raise
            os.execve(spec["python"], [spec["python"], "-s", "-S", "-P", spec["program"]], dict(os.environ))
        except BaseException as error:
            os.write(status, f"!{error}\n".encode())
        os._exit(127)
    if weak:

        def end(*_: object) -> NoReturn:
            os.kill(child, signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)
            _end_orphans()
            os._exit(1)

        signal.signal(signal.SIGTERM, end)
        os.write(status, f"{child}\n".encode())  # so that the caller can end it
    _, exit_status = os.waitpid(child, 0)
    os.write(status, f"={os.waitstatus_to_exitcode(exit_status)}\n".encode())
    if weak:
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)  # whatever it has left running
        _end_orphans()
    os._exit(0)


def _main() -> NoReturn:
    spec = json.loads(sys.argv[1])
    os.umask(0o022)  # what is made here must be readable to the program's user
    try:
        if spec["isolation"] == "namespaces":
            _enter_namespaces(spec)
        _supervise(spec)
    except BaseException as error:
        os.write(spec["status"], f"!{error}\n".encode())
        os._exit(1)


if __name__ == "__main__":
    _main()
