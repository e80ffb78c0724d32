"""Readers of results as they are made: each has a bounded buffer, and one that is slow loses rows and is told.

Handing a row to them never waits. An alarm is in the socket of each reader that keeps up before the call returns, and
goes before results that wait; results are sent together some times a second, so that they cost the agent's loop little
however many there are.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Final

from device.inference.pump import ALARMS, Rows
from protocol.limits import KIB
from protocol.results import LANES
from protocol.wire import Message, encode

_log = logging.getLogger(__name__)

STREAMS: Final = 16  # readers at once
HELD_BYTES: Final = 512 * KIB  # for one reader; more than two of the longest rows
HELD_ROWS: Final = 1024  # likewise
TAKE_BYTES: Final = 64 * KIB  # at once, so that a slow reader is seen to go on
GATHER_S: Final = 0.02  # results of so long are sent together


class Dropped(Message):
    """A line of the stream: so many rows of this lane are missing here. The server gets them all the same."""

    dropped: int
    lane: str


class Beat(Message):
    """A line of the stream, each second: frames that every model answered since the agent started."""

    frames: int


class CrowdedError(Exception):
    """There are as many readers as there may be."""


class Reader:
    """One reader's buffer.

    Args:
        lanes: That it wants.
        send: Sends a line if nothing waits to be sent, and tells whether it did. Never blocks.
    """

    def __init__(self, lanes: Collection[str], send: Callable[[bytes], bool]) -> None:
        self.lanes = frozenset(lanes)
        self._send = send
        self._waiting: dict[str, deque[bytes]] = {lane: deque() for lane in LANES if lane in self.lanes}
        self._dropped = dict.fromkeys(self._waiting, 0)
        self._beat = b""
        self._held_bytes = 0
        self._news = asyncio.Event()
        self._alarm = asyncio.Event()
        self._is_slow = False

    def put(self, lane: str, line: bytes) -> None:
        """Keeps a line for the reader; the oldest go when there are too many, alarms last. Never blocks."""
        if lane == ALARMS and not self._waiting[lane] and self._send(line):
            return
        self._waiting[lane].append(line)
        self._held_bytes += len(line)
        while self._held_bytes > HELD_BYTES or sum(map(len, self._waiting.values())) > HELD_ROWS:
            full = next(name for name in reversed(self._waiting) if self._waiting[name])
            self._held_bytes -= len(self._waiting[full].popleft())
            self._dropped[full] += 1
            if not self._is_slow:
                _log.warning("a reader of the local socket is too slow: it loses rows, which the outbox has")
            self._is_slow = True
        self._news.set()
        if lane == ALARMS:
            self._alarm.set()

    def beat(self, line: bytes) -> None:
        """As `put`, for what only the newest counts of."""
        self._beat = line
        self._news.set()

    async def take(self) -> bytes:
        """Waits for lines, and returns some: alarms first."""
        await self._news.wait()
        if not self._alarm.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._alarm.wait(), GATHER_S)
        pieces = [encode(Dropped(dropped=n, lane=lane)) + b"\n" for lane, n in self._dropped.items() if n]
        self._dropped = dict.fromkeys(self._waiting, 0)
        room = TAKE_BYTES
        for queue in self._waiting.values():
            while queue and room > 0:
                pieces.append(queue.popleft())
                room -= len(pieces[-1])
                self._held_bytes -= len(pieces[-1])
        if not any(self._waiting.values()):
            pieces.append(self._beat)
            self._beat = b""
            self._news.clear()
        if not self._waiting.get(ALARMS):
            self._alarm.clear()
        return b"".join(pieces)


class Readers:
    """All readers. Belongs to one event loop."""

    def __init__(self) -> None:
        self._readers: list[Reader] = []

    def __len__(self) -> int:
        return len(self._readers)

    def show(self, rows: Rows) -> None:
        """Hands rows to every reader that wants their lane. Never blocks, never fails."""
        if not self._readers:
            return
        for lane, row in rows:
            line = b'{"lane":"%s","row":%s}\n' % (lane.encode(), row)
            for reader in self._readers:
                if lane in reader.lanes:
                    reader.put(lane, line)

    def beat(self, frames: int) -> None:
        """Tells all of them how many frames were inferred so far. Never blocks."""
        line = encode(Beat(frames=frames)) + b"\n"
        for reader in self._readers:
            reader.beat(line)

    @contextlib.contextmanager
    def joined(self, lanes: Collection[str], send: Callable[[bytes], bool]) -> Iterator[Reader]:
        """A reader from now on, until the end of the context.

        Args:
            lanes: That it wants.
            send: As `Reader`.

        Raises:
            CrowdedError: There are `STREAMS` of them.
        """
        if len(self._readers) >= STREAMS:
            raise CrowdedError
        reader = Reader(lanes, send)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)
