"""Tells systemd how we are: `READY=1`, `WATCHDOG=1`, `STOPPING=1`. Nothing happens where nobody listens."""

import contextlib
import socket
from collections.abc import Mapping


class Notifier:
    """Speaks sd_notify's datagrams.

    Args:
        environment: `NOTIFY_SOCKET` and `WATCHDOG_USEC` as systemd sets them.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        usec = environment.get("WATCHDOG_USEC", "")
        self.watchdog_s = int(usec) / 1_000_000 if usec.isdigit() else None
        """How often systemd wants to hear `WATCHDOG=1` at least, in seconds; None when it does not watch."""

    def say(self, state: str) -> None:
        """Sends a line; a datagram to a local socket, which does not wait."""
        if not self._address:
            return
        # A leading @ is Linux's abstract namespace.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(state.encode(), address)
