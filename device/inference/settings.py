"""What a person may set about inference, in `device.toml`."""

from typing import Annotated

import msgspec

from protocol.settings import Settings

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class CommandAlarm(Settings, tag="command", tag_field="kind"):
    """Runs a program for each alarm, the row as one line of JSON on its standard input. No shell is involved."""

    argv: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    limit_s: Seconds = 10.0  # then it is killed


class FileAlarm(Settings, tag="file", tag_field="kind"):
    """Writes `1` at an alarm and `0` once none came for `hold_s`: a GPIO line's `value`, or what looks like one."""

    path: str
    hold_s: Seconds = 1.0


class SocketAlarm(Settings, tag="socket", tag_field="kind"):
    """Sends each alarm's row as one line of JSON to a Unix socket, a datagram or a stream."""

    path: str
    stream: bool = False


AlarmSettings = CommandAlarm | FileAlarm | SocketAlarm


class InferenceSettings(Settings):
    """The table `[inference]`; alarms are `[[inference.alarms]]`, each with its `kind`."""

    frames: str = ""  # the folder that frames come into; empty is STATE/frames
    waiting_frames: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = (
        1000  # more than that, and the oldest are dropped
    )
    keep_frames: bool = False  # move frames into `done/` beside them instead of deleting them; nothing clears it
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 1  # of one inference on the CPU; 0 leaves it to the runtime
    frame_limit_s: Seconds = 30.0  # an inference that takes longer is a hang
    alarms: tuple[AlarmSettings, ...] = ()
