"""Where alarms go on the machine itself: a command, a line that is raised, a Unix socket.

A sink fires before the result is put into the outbox: a stop signal waits for no disk. Each has a time limit, one that
fails is counted and told, and none holds up another.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, assert_never

from device.cancelling import cancel
from device.inference.settings import AlarmSettings, CommandAlarm, FileAlarm, SocketAlarm

FIRE_S: Final = 1.0  # a sink that has not taken an alarm by then is passed over; the next alarm tries again
_LOWER_AGAIN_S: Final = 1.0  # a line that could not be lowered
_RUNNING: Final = 4  # commands at once: a burst of alarms must not fill the machine with processes


class AlarmSink(Protocol):
    """Takes alarms."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    async def fire(self, row: bytes) -> None:
        """Passes an alarm on, and returns once that has happened.

        Args:
            row: The result row's JSON, without a newline.

        Raises:
            OSError: It could not be passed on.
            TimeoutError: Not in time.
        """
        ...

    def looked(self) -> None:
        """A frame was inferred by every model, and its alarms, if any, were fired. Never blocks."""
        ...

    async def close(self) -> None:
        """Lets go; a line stays as it stands."""
        ...


def make_sinks(settings: Sequence[AlarmSettings]) -> tuple[AlarmSink, ...]:
    """The sinks that the settings name."""
    return tuple(_make(one) for one in settings)


class CommandSink:
    """Starts a program for each alarm. Fired means started: what it does then is its own."""

    def __init__(self, settings: CommandAlarm) -> None:
        self.name = f"command {settings.argv[0]}"
        self._settings = settings
        self._running: set[asyncio.Task[None]] = set()

    async def fire(self, row: bytes) -> None:
        """As in the port."""
        if len(self._running) >= _RUNNING:
            raise BlockingIOError(f"{_RUNNING} of them are still running")
        process = await asyncio.create_subprocess_exec(
            *self._settings.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        task = asyncio.get_running_loop().create_task(self._attend(process, row + b"\n"))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def looked(self) -> None:
        """As in the port."""

    async def close(self) -> None:
        """As in the port; programs that still run are killed."""
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _attend(self, process: asyncio.subprocess.Process, line: bytes) -> None:
        try:
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(process.communicate(line), self._settings.limit_s)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait_for(process.wait(), FIRE_S)


class FileSink:
    """Raises a line: `1` at an alarm, `0` once none came for `hold_s`.

    A life before this one may have been closed or killed while the line was up. It stays up then, for a machine that
    nobody looks out for is to stand still; but only until frames are inferred again and none of them raised it for
    `hold_s`.
    """

    def __init__(self, settings: FileAlarm) -> None:
        self.name = f"file {settings.path}"
        self._settings = settings
        self._until_s = 0.0  # of the loop's clock
        self._writing = asyncio.Lock()  # a `0` that is on its way must not land after the next `1`
        self._raising: asyncio.Task[None] | None = None
        self._lowering: asyncio.Task[None] | None = None
        self._is_known = False  # whether the line stands as this life has put it, or will

    async def fire(self, row: bytes) -> None:
        """As in the port.

        A disk that takes longer than the caller waits writes the `1` all the same: it is lowered like any other.
        """
        self._hold()
        if self._raising is None or self._raising.done():
            self._raising = asyncio.get_running_loop().create_task(self._raise())
            self._raising.add_done_callback(_heard)
        await asyncio.shield(self._raising)

    def looked(self) -> None:
        """As in the port."""
        if not self._is_known:
            self._hold()
            self._lower_later()

    async def close(self) -> None:
        """As in the port."""
        async with self._writing:  # a `0` that is on its way must not land after a `1` of the sink that comes next
            if self._lowering is not None:
                await cancel(self._lowering)

    async def _raise(self) -> None:
        try:
            async with self._writing:
                await asyncio.to_thread(self._write, b"1")
        finally:
            self._lower_later()

    def _hold(self) -> None:
        self._until_s = asyncio.get_running_loop().time() + self._settings.hold_s

    def _lower_later(self) -> None:
        self._is_known = True
        if self._lowering is None or self._lowering.done():
            self._lowering = asyncio.get_running_loop().create_task(self._lower())

    async def _lower(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.0, self._until_s - loop.time()))
            async with self._writing:
                if self._until_s > loop.time():
                    continue
                try:
                    await asyncio.to_thread(self._write, b"0")
                except OSError:
                    self._until_s = loop.time() + _LOWER_AGAIN_S  # the machine would stand still for ever
                else:
                    return

    def _write(self, value: bytes) -> None:
        # One write of the whole value, as sysfs wants it; a plain file is made when it is not there.
        fd = os.open(self._settings.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        try:
            os.write(fd, value)
        finally:
            os.close(fd)


class SocketSink:
    """Sends each alarm to a Unix socket; connects anew each time, so that the listener may come and go."""

    def __init__(self, settings: SocketAlarm) -> None:
        self.name = f"socket {settings.path}"
        self._settings = settings

    async def fire(self, row: bytes) -> None:
        """As in the port."""
        kind = socket.SOCK_STREAM if self._settings.stream else socket.SOCK_DGRAM
        with socket.socket(socket.AF_UNIX, kind) as channel:
            channel.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(channel, str(Path(self._settings.path)))
            # A datagram goes in one piece or not at all, a stream may need several.
            await loop.sock_sendall(channel, row + b"\n")

    def looked(self) -> None:
        """As in the port."""

    async def close(self) -> None:
        """As in the port."""


def _heard(task: "asyncio.Task[None]") -> None:
    """Takes note of how a task ended: who waited for it may have gone."""
    if not task.cancelled():
        task.exception()


def _make(settings: AlarmSettings) -> AlarmSink:
    match settings:
        case CommandAlarm():
            return CommandSink(settings)
        case FileAlarm():
            return FileSink(settings)
        case SocketAlarm():
            return SocketSink(settings)
        case _:
            assert_never(settings)
