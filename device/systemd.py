"""Words to systemd: that the agent is up, that it lives, that it stops. Silent where systemd does not listen."""

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends to the socket that systemd names.

    Args:
        environ: Of the agent; `NOTIFY_SOCKET` and `WATCHDOG_USEC` are read once.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET", "")
        limit_us = environ.get("WATCHDOG_USEC", "")
        self.watchdog_s: float | None = int(limit_us) / 1e6 if limit_us.isdigit() and int(limit_us) else None

    def ready(self) -> None:
        """The agent is up: inference has been taken up as far as it can be."""
        self._send(b"READY=1")

    def alive(self) -> None:
        """The agent's loop goes round; without this for `watchdog_s`, systemd starts it again."""
        self._send(b"WATCHDOG=1")

    def stopping(self) -> None:
        """A stop was asked for and is under way."""
        self._send(b"STOPPING=1")

    def _send(self, words: bytes) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # A notification that is lost costs a restart at worst; it must never stop inference.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(words, address)
