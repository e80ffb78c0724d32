"""The engine of this machine: found, and spoken to through its client once there is something to ask."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from device.containers.engine import Engine, EngineAwayError, EngineView, Wish
from device.containers.engine_client import EngineClient
from device.containers.owner import Owner
from protocol.container import Image
from protocol.ids import Digest


def open_engine(owner: Owner) -> Engine:
    """The engine. Nothing is started for it before the first question; at each it is known anew where it listens."""
    if not owner.name:
        return NoEngine("whose containers these are cannot be told: the first root or the enrolment is missing")
    return EngineClient(lambda: owner.socket, owner.name)


class NoEngine:
    """The engine of a machine that is to speak to none: always away.

    Args:
        why: None is spoken to.
    """

    def __init__(self, why: str) -> None:
        self._why = why

    async def view(self) -> EngineView:
        """As `Engine`."""
        self._refuse()

    async def load(self, image: Image, files: Mapping[Digest, Path]) -> None:
        """As `Engine`."""
        self._refuse()

    async def export(self, image: Digest, layers: Mapping[Digest, Path], lengths: Mapping[Digest, int]) -> None:
        """As `Engine`."""
        self._refuse()

    async def start(self, wish: Wish) -> None:
        """As `Engine`."""
        self._refuse()

    async def stop(self, id: str, limit_s: float) -> None:
        """As `Engine`."""
        self._refuse()

    async def remove(self, id: str) -> None:
        """As `Engine`."""
        self._refuse()

    async def drop_images(self, keep: Sequence[Digest]) -> None:
        """As `Engine`."""
        self._refuse()

    async def log(self, id: str, since: str, limit_bytes: int) -> bytes:
        """As `Engine`."""
        self._refuse()

    async def close(self) -> None:
        """As `Engine`."""

    def _refuse(self) -> NoReturn:
        raise EngineAwayError(self._why)
