"""Where the machine's page listens.

What serves it is loaded when a browser comes for the first time: an idle agent does not carry it.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from device.desk.pairing import PageSettings, Pairing
from device.desk.port import Desk
from device.desk.socket import somebody
from protocol.ids import Name

if TYPE_CHECKING:
    from device.desk.door import PageDoor

_log = logging.getLogger(__name__)

BACKLOG: Final = 16
RETRY_S: Final = 30.0  # a port that another program has may be free later


class PageSocket:
    """Serves the page. Belongs to one event loop.

    Args:
        settings: Where.
        pairing: Who may.
        desk: What there is to ask.
        names: The technicians' by their public keys.
    """

    def __init__(
        self,
        settings: PageSettings,
        pairing: Pairing,
        desk: Desk,
        names: Callable[[], Awaitable[dict[str, Name]]],
    ) -> None:
        self._settings = settings
        self._pairing = pairing
        self._desk = desk
        self._names = names
        self._trouble = ""

    @property
    def trouble(self) -> str:
        """Why there is no page although the settings want one; empty when all is well."""
        return self._trouble

    async def run(self) -> None:
        """Serves until cancelled. A port that cannot be had is tried again: a machine without a page still works."""
        if not self._settings.listen:
            await asyncio.Future()
        with await self._listen() as listener:
            _log.info("the machine's page: %s", self._settings.url())
            await somebody(listener)
            door = await asyncio.to_thread(self._door)
            await door.serve(listener)

    def _door(self) -> "PageDoor":
        """Blocking: what it loads takes a moment, in which alarms must not wait."""
        from device.desk.door import PageDoor
        from device.desk.routes import answer_errors, lending_route, routes_of

        routes = (*routes_of(self._desk, takes_paths=False), lending_route(self._desk, self._names))
        return PageDoor(self._settings, self._pairing, routes, [answer_errors])

    async def _listen(self) -> socket.socket:
        while True:
            try:
                listener = _open(*self._settings.address())
            except (OSError, OverflowError) as error:
                self._trouble = f"the page cannot listen on {self._settings.listen}: {error}"
                _log.warning("%s", self._trouble)
                await asyncio.sleep(RETRY_S)
            else:
                self._trouble = ""
                return listener


def _open(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of an agent that ended a moment ago
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
