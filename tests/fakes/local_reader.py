"""A program on the machine, as the local socket sees it."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any, Self

from device.local.listening import SOCKET


class LocalReader:
    """One connection. Use it as a context.

    Args:
        folder: That holds the socket; as long a path as may be.
        target: What is asked for.
        method: Of HTTP.
        more: Behind the first line of the request.
    """

    def __init__(self, folder: Path, target: str, *, method: str = "GET", more: str = "") -> None:
        self._folder = folder
        self._asks = f"{method} {target} HTTP/1.1\r\nHost: headland\r\n{more}\r\n".encode()
        self.status = 0

    async def __aenter__(self) -> Self:
        at = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)
        try:
            self.reader, self.writer = await asyncio.open_unix_connection(f"/proc/self/fd/{at}/{SOCKET}")
        finally:
            os.close(at)
        self.writer.write(self._asks)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        await asyncio.sleep(0)

    async def answer(self) -> Any:
        """The status is set and the body returned."""
        await self.head()
        body = await asyncio.wait_for(self.reader.read(), 10)
        return json.loads(body)

    async def head(self) -> None:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        self.status = int(head.split()[1])

    async def line(self) -> Any:
        """The next line of a stream; None at its end."""
        data = await asyncio.wait_for(self.reader.readline(), 10)
        return json.loads(data) if data else None


async def ask(folder: Path, target: str, **more: str) -> tuple[int, Any]:
    """One whole request: its status and what is answered."""
    async with LocalReader(folder, target, **more) as reader:
        body = await reader.answer()
        return reader.status, body
