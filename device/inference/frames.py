"""Frames, and where they come from."""

from dataclasses import dataclass
from typing import Final, Literal, Protocol

from protocol import limits

FrameType = Literal["image/jpeg", "image/png", "application/x-npz"]

FRAME_BYTES: Final = 64 * limits.MIB  # a raw frame of the largest size, as PNG, fits
SUFFIXES: Final[dict[str, FrameType]] = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".npz": "application/x-npz",
}


@dataclass(frozen=True)
class Frame:
    """One frame, as the camera or the sensor wrote it.

    Args:
        name: Of the frame, in its source; part of each result row.
        media_type: What the bytes claim to be.
        data: At most `FRAME_BYTES`.
        arrived_s: When the source saw it, by the clock that the source was given.
    """

    name: str
    media_type: FrameType
    data: bytes
    arrived_s: float


class FrameSource(Protocol):
    """Gives frames in order. One task takes them; `finish` may come later, from another.

    `finish` and `give_back` know a frame by its name; its bytes may be gone by then.
    """

    async def take(self) -> Frame:
        """The next frame; waits for one. A frame that was taken is not given again in this life of the source."""
        ...

    async def finish(self, frame: Frame) -> None:
        """Every result of the frame is durable, or given up and counted: the source may let go of it.

        A frame that was taken and not finished when the power went is given again.
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
