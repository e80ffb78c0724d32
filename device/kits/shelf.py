"""What lies on the sticks at hand as a source of blobs, for `device.transfer.fetch.Transfer`.

A blob is named by its hash, so any stick that has it will do: a second copy of the kit, or another kit. Where a stick
gave bytes that turned out wrong it is not asked for this blob again as long as it stays plugged in.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from device.kits.finding import Found
from device.kits.folder import GoneError, MissingError, Stick, read_part
from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import Digest, is_digest
from protocol.kits import BLOBS_FOLDER, KITS_FOLDER, PART_BYTES, KitId

READ_BYTES: Final = 4 * limits.MIB
"""At once: each read opens the file anew, and a yanked stick costs so much at most."""
HINT: Final = "plug in another copy of the kit; `headland kit verify` tells a good one"
PREFIX: Final = "/v1/blobs/"


@dataclass(frozen=True)
class _Place:
    stick: Stick
    kit: KitId


class Shelf:
    """Implements `device.transfer.fetch.Source`. Belongs to one event loop."""

    def __init__(self) -> None:
        self._places: tuple[_Place, ...] = ()
        self._bad: dict[tuple[_Place, Digest], None] = {}
        self._lacking: dict[Digest, None] = {}
        self._last: dict[Digest, _Place] = {}

    def show(self, found: Iterable[Found]) -> None:
        """What is at hand now. What was said of a stick that went is forgotten: it may come back mended."""
        places = tuple(dict.fromkeys(_Place(one.stick, one.kit) for one in found))
        if set(places) != set(self._places):
            self._lacking.clear()
        self._places = places
        self._bad = {key: None for key in self._bad if key[0] in places}
        self._last = {name: place for name, place in self._last.items() if place in places}

    def forget(self) -> None:
        """A person wants all of it tried again."""
        self._bad.clear()
        self._lacking.clear()

    def lacking(self) -> frozenset[Digest]:
        """Blobs that were asked for and that no stick at hand gives as they should be."""
        return frozenset(self._lacking)

    def doubt(self, blob: Digest) -> bool:
        """What was read last of a blob was not what was signed.

        Returns:
            Whether another stick is at hand that may have it whole.
        """
        place = self._last.pop(blob, None)
        if place is not None:
            self._bad[place, blob] = None
        return any((other, blob) not in self._bad for other in self._places)

    async def stream(self, path: str, *, first: int, length: int) -> AsyncGenerator[bytes, None]:
        """As `Source.stream`.

        Raises:
            LinkError: No stick is at hand, or it went in the middle. Not retryable: none that is has the blob.
            Refused: `METADATA`: what lies there is no file.
        """
        blob = path.removeprefix(PREFIX)
        assert is_digest(blob)
        place, ahead = await self._open(blob, first, min(length, READ_BYTES))
        self._last[blob] = place
        end = first + length
        try:
            while True:
                try:
                    data = await ahead
                except MissingError as error:  # a moment ago it was there
                    raise GoneError(f"the stick at {place.stick.root} is gone") from error
                if not data:
                    raise Refused(Reason.LENGTH, f"{_named(blob)} on {place.stick.root} is cut short")
                first += len(data)
                # The next piece is read while this one is hashed and written.
                ahead = asyncio.ensure_future(_read(place, blob, first, min(end - first, READ_BYTES)))
                yield data
                if first >= end:
                    return
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _open(self, blob: Digest, first: int, length: int) -> "tuple[_Place, asyncio.Future[bytes]]":
        """The first stick that gives the blob's first piece."""
        if not self._places:
            raise GoneError("the stick is gone: plug it in again")
        gone: LinkError | None = None
        for place in self._places:
            if (place, blob) in self._bad:
                continue
            reading = asyncio.ensure_future(_read(place, blob, first, length))
            try:
                await asyncio.wait({reading})
            except asyncio.CancelledError:
                reading.cancel()
                raise
            error = reading.exception()
            if error is None:
                return place, reading
            if isinstance(error, Refused):
                self._bad[place, blob] = None
            elif not isinstance(error, LinkError):
                raise error
            elif error.retryable:
                gone = error
            elif not await _is_there(place):
                gone = GoneError(f"the stick at {place.stick.root} is gone: plug it in again")
        if gone is not None:
            raise gone
        self._lacking[blob] = None
        if any(bad == blob for _, bad in self._bad):
            raise LinkError(f"{_named(blob)} is damaged on every stick at hand", retryable=False, hint=HINT)
        raise LinkError(f"{_named(blob)} is on no stick at hand", retryable=False, hint=HINT)


async def _is_there(place: _Place) -> bool:
    """Whether the kit is: an unmounted stick leaves an empty folder behind."""
    try:
        return place.kit in await place.stick.kits()
    except (LinkError, Refused):
        return False


async def _read(place: _Place, blob: Digest, first: int, length: int) -> bytes:
    if not length:
        return b""
    return await place.stick.do(partial(_read_blob, kit=place.kit, blob=blob, first=first, length=length))


def _read_blob(root: int, kit: KitId, blob: Digest, first: int, length: int) -> bytes:
    """From the whole file, or from the part of it that holds `first`. Blocking."""
    folder = (KITS_FOLDER, kit, BLOBS_FOLDER)
    try:
        return read_part(root, (*folder, blob), first, length)
    except FileNotFoundError:
        part, at = divmod(first, PART_BYTES)
        return read_part(root, (*folder, f"{blob}.{part}"), at, min(length, PART_BYTES - at))


def _named(blob: Digest) -> str:
    return f"blob {blob[:12]}"
