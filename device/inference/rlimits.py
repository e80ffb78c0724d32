"""What a process that runs a foreign model may take: address space, processor time, no core file, no new privileges.

The limit on address space is counted from what the process holds when it is set, that is with the runtime imported,
so that a model's bound means the model. Accelerators map far more than they use (CUDA reserves its whole address
space), so it is set for models on the CPU only.
"""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

SLACK_MIB: Final = 320
"""Beside a model's own memory: a decoded frame of the largest size and its copy, stacks and arenas of the threads."""


def confine(*, memory_mib: int | None, cpu_s: int | None, slack_mib: int = SLACK_MIB) -> None:
    """Sets the limits on this process for good.

    Args:
        memory_mib: For the model, above what the process has now; None for models on an accelerator.
        cpu_s: Processor seconds from the process's start, after which SIGXCPU ends it; None for no limit.
        slack_mib: Beside that memory.
    """
    _lower(resource.RLIMIT_CORE, 0)
    if memory_mib is not None:
        _lower(resource.RLIMIT_AS, _address_space_bytes() + (memory_mib + slack_mib) * (1 << 20))
    if cpu_s is not None:
        _lower(resource.RLIMIT_CPU, cpu_s)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with(parent_pid: int) -> None:
    """Asks the kernel to kill this process when its parent ends, and ends it at once if that has happened.

    A worker without its agent would hold an accelerator that the next agent needs.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit(0)


def _lower(which: int, wanted: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(which, (wanted, hard))


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _prctl(option: int, value: int) -> None:
    """Best effort: it exists on Linux only, and what it gives is a second fence."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
