"""A bad link: a TCP proxy that really drops connections, caps bandwidth and counts every byte, one link a machine."""

import argparse
import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

CHUNK_BYTES = 16 * 1024


@dataclass
class Counts:
    """What passed since the link was made, in bytes on the wire (TLS included)."""

    to_machine: int = 0
    to_server: int = 0
    connections: int = 0
    dropped: int = 0
    refused: int = 0


@dataclass(eq=False)
class Link:
    """One machine's way to the server. All methods may be called from any thread."""

    name: str
    proxy: "Proxy"
    port: int = 0
    counts: Counts = field(default_factory=Counts)
    up: bool = True
    rate_bytes_s: float | None = None
    _cuts: list[int] = field(default_factory=list)
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _carried: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def down(self) -> None:
        """Out of range: what is open is reset, what comes is reset."""
        self.up = False
        self.drop()

    def back(self) -> None:
        """In range again."""
        self.up = True

    def cap(self, rate_bytes_s: float | None) -> None:
        """Limits what goes to the machine."""
        self.rate_bytes_s = rate_bytes_s

    def drop(self) -> None:
        """Resets all open connections, now."""
        self.proxy.run(self._drop())

    def cut_after(self, *to_machine_bytes: int) -> None:
        """Resets all connections each time that many more bytes have gone to the machine, number after number."""
        total = self.counts.to_machine
        self._cuts.clear()
        for step in to_machine_bytes:
            total += step
            self._cuts.append(total)

    @property
    def cuts_left(self) -> int:
        return len(self._cuts)

    def carried(self) -> tuple[int, ...]:
        """What each connection took to the machine so far, in the order in which they were made; ended ones too."""
        return tuple(self._carried)

    def most_since(self, before: tuple[int, ...]) -> int:
        """The most that a single connection took to the machine since `carried` was `before`."""
        now = self.carried()
        earlier = before + (0,) * (len(now) - len(before))
        return max((count - then for count, then in zip(now, earlier, strict=True)), default=0)

    async def _drop(self) -> None:
        for writer in list(self._open):
            _reset(writer)
            self.counts.dropped += 1
        self._open.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.up:
            self.counts.refused += 1
            _reset(writer)
            return
        self.counts.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.proxy.server_port)
        except OSError:
            _reset(writer)
            return
        self._open.add(writer)
        number = len(self._carried)
        self._carried.append(0)
        try:
            await asyncio.gather(self._carry(reader, far_writer, None), self._carry(far_reader, writer, number))
        finally:
            self._open.discard(writer)
            writer.close()
            far_writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int | None) -> None:
        """One way of a connection: to the machine if it has a number."""
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                if number is not None:
                    if self._cuts and self.counts.to_machine + len(chunk) >= self._cuts[0]:
                        self._cuts.pop(0)
                        await self._drop()
                        return
                    if self.rate_bytes_s:
                        await asyncio.sleep(len(chunk) / self.rate_bytes_s)
                    self.counts.to_machine += len(chunk)
                    self._carried[number] += len(chunk)
                else:
                    self.counts.to_server += len(chunk)
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


class Proxy:
    """All links, in a thread with a loop of its own."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.links: dict[str, Link] = {}
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()

    def link(self, name: str, port: int = 0) -> Link:
        """A new link; the system chooses its port unless one is given."""
        link = Link(name, self)
        server = self.run(asyncio.start_server(link.serve, "127.0.0.1", port))
        link.port = server.sockets[0].getsockname()[1]
        self._servers.append(server)
        self.links[name] = link
        return link

    def run(self, task: Coroutine[Any, Any, Any]) -> Any:
        """Runs `task` in the proxy's loop and waits for it."""
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(timeout=10)

    def close(self) -> None:
        for link in self.links.values():
            link.down()
        self.run(_end(self._servers))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection as a lost link does: no goodbye."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):  # it has ended by itself
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _end(servers: list[asyncio.Server]) -> None:
    """Nothing is accepted any more; what was reset has time to end."""
    for server in servers:
        server.close()
    if still := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(still, timeout=5)


def main() -> None:
    """Good links, for a demo that was asked to keep running: `proxy.py SERVER_PORT PORT...`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("server_port", type=int)
    parser.add_argument("ports", type=int, nargs="+")
    arguments = parser.parse_args()
    proxy = Proxy(arguments.server_port)
    for port in arguments.ports:
        proxy.link(str(port), port)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == "__main__":
    main()
