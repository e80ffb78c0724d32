"""Frames, and where they come from."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from protocol import limits

FrameType = Literal["image/jpeg", "image/png", "application/x-npz"]

FRAME_BYTES: Final = 64 * limits.MIB  # a raw frame of the largest size, as PNG, fits
SUFFIXES: Final[dict[str, FrameType]] = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".npz": "application/x-npz",
}

Mark = tuple[str, str]
"""What a frame is known by once its rows are durable: its name as plain text, and the hash of its content."""


@dataclass(frozen=True)
class Frame:
    """One frame, as the camera or the sensor wrote it.

    Args:
        name: Of the frame, in its source; part of each result row.
        media_type: What the bytes claim to be.
        data: At most `FRAME_BYTES`.
        arrived_s: When the source saw it, by the clock that the source was given.
        mark: See `mark_of`; None for a frame that cannot come again after a cut.
    """

    name: str
    media_type: FrameType
    data: bytes
    arrived_s: float
    mark: Mark | None = None


def mark_of(name: str, data: bytes) -> Mark:
    """The mark of a frame: a name may be used again for another content."""
    return plain_of(name), hashlib.blake2b(data, digest_size=16).hexdigest()


def plain_of(name: str) -> str:
    """A frame's name as text that can be kept anywhere, for it may be any bytes."""
    return quote_from_bytes(os.fsencode(name))


def name_of(mark: Mark) -> str:
    """The frame's name in its source."""
    return os.fsdecode(unquote_to_bytes(mark[0]))


class DoneFrames(Protocol):
    """Which frames have all their rows: kept with the rows, so that no cut falls between the two."""

    @property
    def done_frames(self) -> Mapping[str, str]:
        """All marks. Never blocks."""
        ...

    def is_done(self, frame: Mark) -> bool:
        """Whether all rows of the frame are durable. Never blocks."""
        ...

    async def forget_frames(self, frames: Sequence[Mark]) -> None:
        """Lets go of the marks of frames that cannot come back.

        Raises:
            StateError: The disk did not take it: they stay.
        """
        ...


class FrameSource(Protocol):
    """Gives frames in order. One task takes them; `finish` may come later, from another.

    `finish` and `give_back` know a frame by its name; its bytes may be gone by then.
    """

    async def take(self) -> Frame:
        """The next frame; waits for one. A frame that was taken is not given again in this life of the source."""
        ...

    async def finish(self, frame: Frame) -> None:
        """Every result of the frame is durable, or given up and counted: the source may let go of it.

        A frame that was taken and not finished when the power went is given again, unless it is marked as done.
        """
        ...

    def give_back(self, frame: Frame) -> None:
        """The frame was taken and will not be finished by whoever took it: it is given again."""
        ...

    @property
    def dropped(self) -> int:
        """Frames that were let go before anybody took them, since the source was made."""
        ...

    async def close(self) -> None:
        """Ends what watches. A waiting `take` is cancelled by its caller."""
        ...
