"""How processes that run models are started and ended."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from typing import Any, Final

from device.inference.fence import kept_groups
from signing.child import python_command

_END_S: Final = 10.0  # the kernel needs a moment to take a large process apart

_SETTINGS: Final = {
    # Each further arena of glibc reserves 64 MiB of address space, which the limit on it would count.
    "MALLOC_ARENA_MAX": "2",
    # A model must not bring its own session settings along.
    "ORT_LOAD_CONFIG_FROM_MODEL": "0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "PYTHONUNBUFFERED": "1",
}


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The agent's environment with what a runtime needs to stay small and quiet; without its service manager's."""
    kept = {
        key: value for key, value in environ.items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
    }
    return {**kept, **_SETTINGS}


async def start_process(
    module: str, *arguments: str, environ: Mapping[str, str], **options: Any
) -> asyncio.subprocess.Process:
    """Starts a module of ours that runs models, behind the fence (`fence`) and in a session of its own.

    Args:
        module: Its name.
        arguments: For it.
        environ: Its environment.
        options: As of `asyncio.create_subprocess_exec`.

    Raises:
        OSError: The machine has no memory, process or descriptor left.
    """
    return await asyncio.create_subprocess_exec(
        *python_command("device.inference.fence"),
        module,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=dict(environ),
        start_new_session=True,
        extra_groups=await asyncio.to_thread(kept_groups),
        **options,
    )


async def end_process(process: asyncio.subprocess.Process) -> None:
    """Kills what is left of a process and its group, and waits until it is gone. Safe to repeat."""
    if process.returncode is None:
        # Not by the process's own `kill`: that looks for the end itself, and asyncio then hears of 255 for a status.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _END_S)
