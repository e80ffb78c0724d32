"""A fence around processes that run models: they keep what opens a device, and none of the agent's other rights.

`python -m device.inference.fence MODULE ...` runs a module of ours behind it. An agent with containers is in the group
of the engine's socket and may give files away, and whoever has either can become root. So a model's process loses

- the agent's supplementary groups that own no device (`kept_groups`, for whoever starts it),
- every capability, and any way to gain one; root alone keeps reading what others own, as its folders may be,
- where the kernel has Landlock: writing anywhere but in `WRITABLE` (the settings name programs that the agent runs),
  and the memory of processes outside.

Each is best effort: a process that runs models must come up on every machine. Rights belong to threads, and libraries
start some as they are imported, so all this is done before.
"""

import ctypes
import logging
import os
import runpy
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

WRITABLE: Final = ("/dev", "/proc", "/sys", "/tmp", "/run")  # noqa: S108  (drivers' places; under systemd /tmp is the unit's)

_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITIES: Final = 64
_CAP_DAC_READ_SEARCH: Final = 2
_CAP_SETGID: Final = 6
_CAPABILITY_VERSION: Final = 0x20080522

_LANDLOCK_CREATE: Final = 444  # system calls: the same numbers on every architecture
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_PATH_BENEATH: Final = 1
_WRITING: Final = (1 << 1) | (0b1_1111_1111 << 4)  # to write into files; to remove and make files and folders
_REFER: Final = 1 << 13  # to move between folders; from version 2
_TRUNCATE: Final = 1 << 14  # from version 3


def kept_groups(devices: Path = Path("/dev")) -> list[int] | None:
    """The supplementary groups of this process that own a device. Blocking.

    Returns:
        For `extra_groups` of whoever starts a process; None where all stay, also for want of CAP_SETGID.
    """
    have = set(os.getgroups())
    kept = have.intersection(_owners(devices))
    if kept == have:
        return None
    if not _may_set_groups():
        _log.warning("models keep the agent's groups %s: it has no CAP_SETGID to take them away", sorted(have - kept))
        return None
    return sorted(kept)


def _owners(folder: Path) -> Iterator[int]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISCHR(found.st_mode):
            yield found.st_gid
        elif stat.S_ISDIR(found.st_mode):
            yield from _owners(Path(entry.path))


def _may_set_groups() -> bool:
    try:
        lines = Path("/proc/thread-self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    effective = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_SETGID & 1)


def go_behind() -> None:
    """Gives up the rights of this thread, and so of all that it starts, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(_CAPABILITIES):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: of the lower 32, then of the upper
    libc.capget(header, held)
    kept = held[1] & (1 << _CAP_DAC_READ_SEARCH) if os.geteuid() == 0 else 0
    libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept))
    _write_nowhere_else(libc)


def _write_nowhere_else(libc: ctypes.CDLL) -> None:
    def ask_version() -> int:
        return int(libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))

    if not _survives(ask_version) or (version := ask_version()) < 1:
        return
    rights = _WRITING | (_REFER if version > 1 else 0) | (_TRUNCATE if version > 2 else 0)
    handled = ctypes.c_uint64(rights)
    rules = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(handled), ctypes.c_size_t(8), ctypes.c_uint32(0))
    if rules < 0:
        return
    for path in WRITABLE:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rule = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
        libc.syscall(_LANDLOCK_ADD_RULE, rules, _PATH_BENEATH, rule, ctypes.c_uint32(0))
        os.close(place)
    libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, ctypes.c_uint32(0))
    os.close(rules)


def _survives(call: Callable[[], object]) -> bool:
    """Whether a system call may be made: a unit's filter that does not know it ends whoever makes it."""
    child = os.fork()
    if child == 0:
        call()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def main() -> None:
    """The command."""
    if sys.platform == "linux":
        go_behind()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
