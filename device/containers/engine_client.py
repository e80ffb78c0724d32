"""The agent's end of the engine: starts the engine child when there is something to ask, and never loads the SDK."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from device.cancelling import cancel
from device.containers.engine import EngineAwayError, EngineError, EngineView, MissingLayersError, Wish
from device.containers.engine_wire import (
    LINE_BYTES,
    LOG_BYTES,
    Answer,
    Ask,
    Asked,
    DropAsked,
    ExportAsked,
    Failed,
    LoadAsked,
    LogAsked,
    LogSaid,
    RemoveAsked,
    Said,
    StartAsked,
    StopAsked,
    ViewAsked,
    ViewSaid,
)
from device.containers.settings import is_there
from device.store import NoSpaceError
from protocol.container import Image
from protocol.errors import HeadlandError, Refused, StateError
from protocol.ids import Digest
from protocol.wire import decode, encode
from signing.child import python_command

WORD_S: Final = 180.0
"""The child gives up on an engine by itself, and says so; a child that hangs is ended after this."""
ARCHIVE_S: Final = 7200.0
"""A large image on a slow card."""

_TRIES: Final = 3
"""The child may go idle in the very moment of asking, be killed for its memory, or be ended by another's cancelling."""


class EngineClient:
    """`device.containers.engine.Engine` by way of a child process.

    Cancelled, a load or an export is over for certain: its child is ended, and what else was asked for is asked again
    of the next one. Anything else that is cancelled may still have its effect.

    Args:
        find: Tells the engine's socket, anew at each question: it may be installed later than the agent. Blocking.
        owner: Whose containers and images are ours.
        command: What is started; for tests.
        word_s: Longest wait for anything but an archive.
        archive_s: Likewise for one.
    """

    def __init__(
        self,
        find: Callable[[], Path],
        owner: str,
        *,
        command: Sequence[str] = python_command("device.containers.engine_child"),
        word_s: float = WORD_S,
        archive_s: float = ARCHIVE_S,
    ) -> None:
        self._find = find
        self._command = (*command, "--owner", owner)
        self._word_s = word_s
        self._archive_s = archive_s
        self._starting = asyncio.Lock()
        self._child: _Child | None = None

    async def view(self) -> EngineView:
        """As `Engine.view`."""
        said = await self._ask(ViewAsked(), self._word_s)
        assert isinstance(said, ViewSaid)
        return EngineView(
            life=said.life,
            version=said.version,
            folder=Path(said.folder),
            images=said.images,
            containers=said.containers,
        )

    async def load(self, image: Image, files: Mapping[Digest, Path]) -> None:
        """As `Engine.load`."""
        ask = LoadAsked(image=image, files={name: str(path) for name, path in files.items()})
        await self._ask(ask, self._archive_s, ends_when_cancelled=True)

    async def export(self, image: Digest, layers: Mapping[Digest, Path], lengths: Mapping[Digest, int]) -> None:
        """As `Engine.export`."""
        places = {name: str(path) for name, path in layers.items()}
        ask = ExportAsked(image=image, layers=places, lengths={name: lengths[name] for name in layers})
        await self._ask(ask, self._archive_s, ends_when_cancelled=True)

    async def start(self, wish: Wish) -> None:
        """As `Engine.start`."""
        await self._ask(StartAsked(wish=wish), self._word_s)

    async def stop(self, id: str, limit_s: float) -> None:
        """As `Engine.stop`."""
        await self._ask(StopAsked(id=id, limit_s=limit_s), limit_s + self._word_s)

    async def remove(self, id: str) -> None:
        """As `Engine.remove`."""
        await self._ask(RemoveAsked(id=id), self._word_s)

    async def drop_images(self, keep: Sequence[Digest]) -> None:
        """As `Engine.drop_images`."""
        await self._ask(DropAsked(keep=tuple(keep)), self._archive_s)

    async def log(self, id: str, since: str, limit_bytes: int) -> bytes:
        """As `Engine.log`; of more than a MiB the newest MiB."""
        said = await self._ask(LogAsked(id=id, since=since, limit_bytes=min(limit_bytes, LOG_BYTES)), self._word_s)
        assert isinstance(said, LogSaid)
        return said.data

    async def close(self) -> None:
        """As `Engine.close`."""
        async with self._starting:
            child, self._child = self._child, None
            if child is not None:
                await child.end()

    async def _ask(self, ask: Ask, limit_s: float, *, ends_when_cancelled: bool = False) -> Said:
        socket = await asyncio.to_thread(self._find)
        if not await asyncio.to_thread(is_there, socket):  # no child for an engine that is not there
            raise EngineAwayError(
                f"there is no engine at {socket}, or none that this user may speak to",
                hint="where it is another one by now, name it: `socket` of `[containers]` in device.toml",
            )
        for _ in range(_TRIES):
            child = await self._running(socket)
            try:
                async with asyncio.timeout(limit_s):
                    said = await child.ask(ask)
            except TimeoutError:
                await child.end()
                raise EngineAwayError(f"the engine child did not answer in {limit_s:.0f} s") from None
            except asyncio.CancelledError:
                if ends_when_cancelled:
                    await child.end()
                raise
            if isinstance(said, Failed):
                raise _error(said)
            if said is not None:
                return said
        raise EngineAwayError("the engine child died over the question")

    async def _running(self, socket: Path) -> "_Child":
        async with self._starting:
            if self._child is None or self._child.has_ended or self._child.socket != socket:
                if self._child is not None:
                    await self._child.end()
                self._child = await _Child.start(self._command, socket)
            return self._child


class _Child:
    """One engine child, and the questions that it owes an answer to."""

    def __init__(self, process: asyncio.subprocess.Process, socket: Path) -> None:
        self.socket = socket
        self._process = process
        self._numbers = itertools.count(1)
        self._owed: dict[int, asyncio.Future[Said | None]] = {}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, command: Sequence[str], socket: Path) -> "_Child":
        process = await asyncio.create_subprocess_exec(
            *(*command, "--socket", str(socket)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            start_new_session=True,  # a Ctrl-C meant for the agent is not the child's
        )
        return cls(process, socket)

    @property
    def has_ended(self) -> bool:
        return self._reading.done()

    async def ask(self, ask: Ask) -> Said | None:
        """What it says; None when it ended instead."""
        assert self._process.stdin is not None
        if self.has_ended:
            return None
        number = next(self._numbers)
        answer: asyncio.Future[Said | None] = asyncio.get_running_loop().create_future()
        self._owed[number] = answer
        try:
            with contextlib.suppress(ConnectionError):
                self._process.stdin.write(encode(Asked(number=number, ask=ask)) + b"\n")
                await self._process.stdin.drain()
            return await answer
        finally:
            self._owed.pop(number, None)

    async def end(self) -> None:
        """Kills it, if it lives, and waits until it is gone; whoever waits for it hears that it ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await cancel(self._reading)
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(ConnectionError):
            await self._process.stdin.wait_closed()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while (line := await self._process.stdout.readline()).endswith(b"\n"):
                answer = decode(line, Answer, limit=LINE_BYTES)
                if (owed := self._owed.get(answer.number)) is not None and not owed.done():
                    owed.set_result(answer.said)
        except (Refused, ValueError):
            pass  # nonsense, or a line without end: a child that speaks so is as good as ended
        finally:
            for owed in self._owed.values():
                if not owed.done():
                    owed.set_result(None)


def _error(failed: Failed) -> HeadlandError:
    match failed.kind:
        case "away":
            return EngineAwayError(failed.message, hint=failed.hint)
        case "engine":
            return EngineError(failed.message, hint=failed.hint)
        case "missing":
            return MissingLayersError(failed.layers)
        case "no-space":
            return NoSpaceError(failed.message, hint=failed.hint)
        case "refused":
            return Refused(failed.reason, failed.message, hint=failed.hint)
        case "state":
            return StateError(failed.message, hint=failed.hint)
