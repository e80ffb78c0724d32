"""The local link: `GET /v1/active` and `GET /v1/results` over the Unix socket of the machine.

For containers and other programs on the machine; the contract with them stands in `device/README.md`. It only tells.
What serves and what is inferred does not know of it: rows are handed over without waiting, and a client is bounded in
everything that it can take: connections at once, by process and in all, requests a second, bytes, and time.
"""

import asyncio
import contextlib
import logging
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from device.cancelling import cancel
from device.local.active import Board
from device.local.listening import listen, make_folder, remove
from device.local.readers import CrowdedError, Readers
from device.local.request import HEAD_BYTES, Request, TurnedAwayError, head_of, read_request
from device.threads import to_its_end
from protocol.ids import Digest, is_digest
from protocol.messages import ErrorAnswer
from protocol.results import LANES
from protocol.wire import encode

_log = logging.getLogger(__name__)

CONNECTIONS: Final = 64  # at once; the others wait in the kernel's queue
CONNECTIONS_OF_ONE: Final = 8  # process: one that forgets to close must not keep the others out
BURST: Final = 8  # connections that are taken on at once: each costs the loop about 0.3 ms, and alarms wait for that
BURST_S: Final = 0.125  # before the next so many
WAIT_S: Final = 300.0  # for a change, at most
STUCK_S: Final = 30.0  # a client that takes nothing for so long is let go
BEAT_S: Final = 1.0
PAUSE_S: Final = 1.0  # when the disk takes no socket, or the process has no descriptor left
LONGEST_PAUSE_S: Final = 60.0
JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
_PEER: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class LocalLink:
    """Serves the socket. Belongs to one event loop, in which it is made.

    Args:
        folder: That containers have mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.board = Board()  # is told what serves
        self.readers = Readers()  # are handed the rows
        self._folder = folder
        self._listener: socket.socket | None = None
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._of_process: Counter[int] = Counter()
        self._accepted_s: deque[float] = deque(maxlen=BURST)
        self._attending: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Makes the folder, so that it is there for containers before `run`, which makes it again if need be."""
        with contextlib.suppress(OSError):
            await asyncio.to_thread(make_folder, self._folder)

    async def run(self, frames: Callable[[], int]) -> None:
        """Serves until it is cancelled; may be run again then. While the disk takes no socket, it is tried again.

        Args:
            frames: How many frames were inferred so far. Never blocks.
        """
        tasks = {asyncio.create_task(self._beat(frames))}
        try:
            await self._accept(await self._listen())
        finally:
            if self._listener is not None:
                self._listener.close()
                self._listener = None
                await to_its_end(remove, self._folder)
            for task in tasks | self._attending:
                await cancel(task)

    async def _listen(self) -> socket.socket:
        wait_s = PAUSE_S
        while True:
            try:
                return await to_its_end(self._open)
            except OSError as error:
                if wait_s == PAUSE_S:
                    _log.warning("there is no local socket: %s", error)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_PAUSE_S)

    def _open(self) -> socket.socket:
        self._listener = listen(self._folder)
        return self._listener

    async def _beat(self, frames: Callable[[], int]) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            if len(self.readers):
                self.readers.beat(frames())

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._free.acquire()
            try:
                if len(self._accepted_s) == BURST:
                    await asyncio.sleep(max(0.0, self._accepted_s[0] + BURST_S - loop.time()))
                connection = await _next_connection(listener)
            except OSError as error:
                self._free.release()
                _log.warning("no reader can be taken on at the local socket: %s", error)
                await asyncio.sleep(PAUSE_S)
                continue
            except BaseException:
                self._free.release()
                raise
            self._accepted_s.append(loop.time())
            task = asyncio.create_task(self._attend(connection, process_of(connection)))
            self._attending.add(task)
            task.add_done_callback(self._gone)

    def _gone(self, task: "asyncio.Task[None]") -> None:
        self._attending.discard(task)
        self._free.release()
        if not task.cancelled() and task.exception() is not None:
            _log.error("a request at the local socket failed", exc_info=task.exception())

    async def _attend(self, connection: socket.socket, process: int) -> None:
        """One connection, to its end."""
        self._of_process[process] += 1
        is_one_too_many = self._of_process[process] > CONNECTIONS_OF_ONE
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=HEAD_BYTES)
            try:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    await self._converse(reader, writer, is_one_too_many=is_one_too_many)
                    writer.close()
                    await asyncio.wait_for(writer.wait_closed(), STUCK_S)
            finally:
                writer.transport.abort()
        finally:
            self._of_process[process] -= 1
            if not self._of_process[process]:
                del self._of_process[process]

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_one_too_many: bool
    ) -> None:
        try:
            request = await read_request(reader)
            if request is None:
                return
            if is_one_too_many:
                _write_error(writer, HTTPStatus.TOO_MANY_REQUESTS, f"at most {CONNECTIONS_OF_ONE} connections each")
                return
            answering = asyncio.create_task(self._answer(request, writer))
            leaving = asyncio.create_task(reader.read(1))
            both: list[asyncio.Task[Any]] = [answering, leaving]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    answering.result()
            finally:
                for task in both:
                    task.add_done_callback(_heard)
                    task.cancel()
                for task in both:
                    await cancel(task)
        except TurnedAwayError as refusal:
            _write_error(writer, refusal.status, str(refusal))

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        match request.path:
            case "/v1/active":
                after, wait_s = _waiting_for(request.query)
                await self._tell_active(writer, after, wait_s)
            case "/v1/results":
                await self._stream(writer, _lanes(request.query))
            case _:
                raise TurnedAwayError(HTTPStatus.NOT_FOUND, "there are /v1/active and /v1/results")

    async def _tell_active(self, writer: asyncio.StreamWriter, after: Digest | None, wait_s: float) -> None:
        active = await self.board.other_than(after, wait_s) if wait_s else self.board.active
        if active is None:
            raise TurnedAwayError(HTTPStatus.SERVICE_UNAVAILABLE, "the agent has just started: ask again")
        _write_whole(writer, HTTPStatus.OK, encode(active))

    async def _stream(self, writer: asyncio.StreamWriter, lanes: frozenset[str]) -> None:
        def send(line: bytes) -> bool:
            if writer.transport.is_closing() or writer.transport.get_write_buffer_size():
                return False
            writer.write(line)
            return True

        try:
            with self.readers.joined(lanes, send) as reader:
                writer.write(head_of(HTTPStatus.OK, LINES))
                while True:
                    writer.write(await reader.take())
                    await asyncio.wait_for(writer.drain(), STUCK_S)
        except CrowdedError:
            raise TurnedAwayError(HTTPStatus.SERVICE_UNAVAILABLE, "too many readers") from None


async def _next_connection(listener: socket.socket) -> socket.socket:
    """The next one that comes in. Cancelled, it leaves none behind, as `loop.sock_accept` may."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            comes = asyncio.Event()
            loop.add_reader(listener, comes.set)
            try:
                await comes.wait()
            finally:
                loop.remove_reader(listener)
        else:
            connection.setblocking(False)
            return connection


def process_of(connection: socket.socket) -> int:
    """The process that connected."""
    process: int = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
    return process


def _heard(task: "asyncio.Task[Any]") -> None:
    """Takes note of how a task ended that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def _write_whole(writer: asyncio.StreamWriter, status: HTTPStatus, body: bytes) -> None:
    writer.write(head_of(status, JSON, len(body) + 1) + body + b"\n")


def _write_error(writer: asyncio.StreamWriter, status: HTTPStatus, message: str) -> None:
    _write_whole(writer, status, encode(ErrorAnswer(error=message)))


def _only(query: dict[str, str], *names: str) -> None:
    for name in query:
        if name not in names:
            there = " and ".join(names)
            raise TurnedAwayError(HTTPStatus.BAD_REQUEST, f"an unknown parameter {name!r}: there is {there}")


def _waiting_for(query: dict[str, str]) -> tuple[Digest | None, float]:
    _only(query, "after", "wait_s")
    after = query.get("after") or None
    if after is not None and not is_digest(after):
        raise TurnedAwayError(HTTPStatus.BAD_REQUEST, "`after` is the sha256 of a manifest, or empty for none")
    try:
        wait_s = float(query.get("wait_s", "0"))
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s <= WAIT_S:
        raise TurnedAwayError(HTTPStatus.BAD_REQUEST, f"`wait_s` is a number from 0 to {WAIT_S:.0f}")
    return after, wait_s


def _lanes(query: dict[str, str]) -> frozenset[str]:
    _only(query, "lanes")
    lanes = frozenset(query.get("lanes", ",".join(LANES)).split(","))
    if not lanes <= set(LANES):
        raise TurnedAwayError(HTTPStatus.BAD_REQUEST, f"`lanes` are of {', '.join(LANES)}")
    return lanes
