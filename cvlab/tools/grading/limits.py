"""What a student's code may not do, as far as the system can forbid it without an administrator.

On Linux: Landlock closes the file system, a seccomp filter forbids processes, sockets and signals
to others, capabilities are given up; on every POSIX system limits of time, memory and files hold.
"""

import ctypes
import os
import platform
import resource
import site
import struct
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cvlab.paths import PACKAGE

MEMORY = 2 * 2**30  # bytes of addresses beyond those of the process that waits for work
FILE_BYTES, FOLDER_BYTES = 16 * 2**20, 64 * 2**20

NO_NEW_PRIVILEGES, SET_SECCOMP, BY_FILTER = 38, 22, 2  # of prctl
CREATE, ADD_RULE, RESTRICT = 444, 445, 446  # Landlock's system calls, everywhere
EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER, TRUNCATE = (1 << bit for bit in (0, 1, 2, 3, 14))
READ = READ_FILE | READ_FOLDER
OWN = READ | WRITE_FILE | TRUNCATE | sum(1 << bit for bit in (4, 5, 7, 8, 13))  # make, remove, move
MACHINES = {  # audit's name of it, column below, the number of capset
    "x86_64": (0xC000003E, 0, 126),
    "aarch64": (0xC00000B7, 1, 91),
}
# Forbidden calls: their numbers on x86_64 and on aarch64, - where there is no such call. Landlock
# does not know owners, modes, times and attributes of files: of the last lines.
CALLS = """
fork 57 -, vfork 58 -, execve 59 221, execveat 322 281, socket 41 198, ptrace 101 117, tkill 200 130
process_vm_readv 310 270, process_vm_writev 311 271, rt_sigqueueinfo 129 138, setns 308 268
rt_tgsigqueueinfo 297 240, pidfd_open 434 434, pidfd_send_signal 424 424, memfd_create 319 279
shmget 29 194, msgget 68 186, semget 64 190, mq_open 240 180, add_key 248 217, keyctl 250 219
io_uring_setup 425 425, bpf 321 280, userfaultfd 323 282, perf_event_open 298 241, mount 165 40
unshare 272 97, chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452, chown 92 -
fchown 93 55, lchown 94 -, fchownat 260 54, utime 132 -, utimes 235 -, futimesat 261 -
utimensat 280 88, truncate 76 45, setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7
removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, setpriority 141 140
"""
OWN_ONLY = {"kill": (62, 129), "tgkill": (234, 131)}  # allowed where they mean the caller
CLONE, CLONE3, THREAD = (56, 220), 435, 0x10000
PRLIMIT = (302, 261)  # of another process: a second of time would end it; 0 is the caller
FCNTL, IOCTL = (72, 25), (16, 29)
OWNERS = ((FCNTL, 8), (FCNTL, 15), (IOCTL, 0x8901), (IOCTL, 0x8902))  # who gets a file's signals


def readable() -> list[Path]:
    """What a student's code may read: Python, its packages and ours, but not the checks."""
    ours = PACKAGE
    found = [Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix) / "lib", ours / "lessons"]
    found += [*ours.glob("*.py"), ours.parent / "notebooks" / "profiles.toml"]
    for folder in map(Path, site.getsitepackages()):  # by entry: a wheel's cvlab lies there too
        inside = folder.iterdir() if folder.is_dir() else ()
        found += [entry for entry in inside if not entry.name.startswith("cvlab")]
    system = "/lib /lib64 /usr/lib /usr/lib64 /usr/share/zoneinfo /etc/ld.so.cache /etc/localtime"
    return [*found, *map(Path, f"{system} /dev/urandom /dev/null /proc/cpuinfo".split())]


def rules(read: Iterable[Path], own: Iterable[Path], more: int = 0) -> int | None:
    """Landlock's rules, for `confine`: which paths may be read, and changed; None if not here."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE, None, 0, 1) if sys.platform == "linux" else -1
    if version < 1:
        return None
    known = (1 << 13) - 1 | (1 << 13 if version > 1 else 0) | (TRUNCATE if version > 2 else 0)
    found = libc.syscall(CREATE, struct.pack("=Q", known), 8, 0)
    for path, rights in [(p, READ | more) for p in read] + [(p, OWN | more) for p in own]:
        if path.exists():
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            fit = known if path.is_dir() else known & (EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE)
            libc.syscall(ADD_RULE, found, 1, struct.pack("=Qi", rights & fit, place), 0)
            os.close(place)
    return found


def limit(cpu_seconds: int, memory: int, files: int = 64) -> None:
    """Limits of this process and what it starts: a file's size, open files, memory, time."""
    for what, most in {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_CORE: 0,
    }.items():
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(OSError, ValueError):  # macOS knows no limit of addresses
            resource.setrlimit(what, (most, most))


def confine(found: int | None, alone: bool = True) -> None:
    """For good, in this process: Landlock's rules, no capabilities, no gain of privileges.

    With `alone` also no process, no socket, no signal to others; threads are allowed.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if found is not None:
        libc.syscall(RESTRICT, found, 0)
        os.close(found)
    if alone and platform.machine() in MACHINES:
        libc.syscall(MACHINES[platform.machine()][2], struct.pack("=Ii", 0x20080522, 0), bytes(24))
        code = _filter(*MACHINES[platform.machine()][:2], os.getpid())
        buffer = ctypes.create_string_buffer(code)
        program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
        libc.prctl(SET_SECCOMP, BY_FILTER, program, 0, 0)


def _filter(machine: int, column: int, own: int) -> bytes:
    """The seccomp filter, in the kernel's byte code: load, compare and jump, return."""
    load, equal, any_of, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse, unknown, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
    code = [(load, 0, 0, 4), (equal, 1, 0, machine), (give, 0, 0, kill), (load, 0, 0, 0)]
    code += [(0x35, 0, 1, 1 << 30), (give, 0, 0, refuse)]  # the other numbering of x86
    for call in CALLS.strip().replace("\n", ", ").split(", "):
        if (number := call.split()[1 + column]) != "-":
            code += [(equal, 0, 1, int(number)), (give, 0, 0, refuse)]
    code += [(equal, 0, 1, CLONE3), (give, 0, 0, unknown)]  # then libc takes clone
    for call, value in OWNERS:
        code += [(equal, 0, 3, call[column]), (load, 0, 0, 24)]
        code += [(equal, 0, 1, value), (give, 0, 0, refuse), (load, 0, 0, 0)]
    for number, test, value in [(CLONE[column], any_of, THREAD), (PRLIMIT[column], equal, 0)] + [
        (numbers[column], equal, own) for numbers in OWN_ONLY.values()
    ]:
        ends = [(give, 0, 0, refuse), (give, 0, 0, allow)]
        code += [(equal, 0, 4, number), (load, 0, 0, 16), (test, 1, 0, value), *ends]
    return b"".join(struct.pack("=HBBI", *one) for one in [*code, (give, 0, 0, allow)])
