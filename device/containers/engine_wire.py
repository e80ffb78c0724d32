"""What agent and engine child say to each other: one JSON object a line. Questions overlap; answers are numbered."""

from typing import Final, Literal

from device.containers.engine import HeldImage, Seen, Wish
from protocol.container import Image
from protocol.errors import Reason
from protocol.ids import Digest
from protocol.wire import Message

LINE_BYTES: Final = 16 * 1024 * 1024
"""A wish at its limits has two megabytes of text, each sign of it escaped at the worst."""
LOG_BYTES: Final = 1024 * 1024
"""The most of a log that is asked for."""


class ViewAsked(Message, tag="view", tag_field="ask"):
    """`Engine.view`."""


class LoadAsked(Message, tag="load", tag_field="ask"):
    """`Engine.load`; the files stay where they are."""

    image: Image
    files: dict[Digest, str]


class ExportAsked(Message, tag="export", tag_field="ask"):
    """`Engine.export`."""

    image: Digest
    layers: dict[Digest, str]
    lengths: dict[Digest, int]


class StartAsked(Message, tag="start", tag_field="ask"):
    """`Engine.start`."""

    wish: Wish


class StopAsked(Message, tag="stop", tag_field="ask"):
    """`Engine.stop`."""

    id: str
    limit_s: float


class RemoveAsked(Message, tag="remove", tag_field="ask"):
    """`Engine.remove`."""

    id: str


class DropAsked(Message, tag="drop", tag_field="ask"):
    """`Engine.drop_images`."""

    keep: tuple[Digest, ...]


class LogAsked(Message, tag="log", tag_field="ask"):
    """`Engine.log`."""

    id: str
    since: str
    limit_bytes: int


Ask = ViewAsked | LoadAsked | ExportAsked | StartAsked | StopAsked | RemoveAsked | DropAsked | LogAsked


class Asked(Message):
    """A question."""

    number: int
    ask: Ask


class ViewSaid(Message, tag="view", tag_field="said"):
    """To `ViewAsked`: as `EngineView`."""

    life: str
    version: str
    folder: str
    images: tuple[HeldImage, ...]
    containers: tuple[Seen, ...]


class LogSaid(Message, tag="log", tag_field="said"):
    """To `LogAsked`."""

    data: bytes


class DoneSaid(Message, tag="done", tag_field="said"):
    """To all others."""


class Failed(Message, tag="failed", tag_field="said"):
    """To any: the error that the port names.

    `away`: `EngineAwayError`. `engine`: `EngineError`. `missing`: `MissingLayersError`. `no-space`: `NoSpaceError`.
    `refused`: `Refused`. `state`: `StateError`.
    """

    kind: Literal["away", "engine", "missing", "no-space", "refused", "state"]
    message: str
    hint: str = ""
    reason: Reason = Reason.IMAGE
    layers: tuple[Digest, ...] = ()


Said = ViewSaid | LogSaid | DoneSaid | Failed


class Answer(Message):
    """What was said to the question of this number."""

    number: int
    said: Said
