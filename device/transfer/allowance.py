"""How much processor time a patch may take: what a slow machine needs for an honest one, and not hours for a silly one.

The codec bounds the memory of a patch, and the work of each number in it; but a small patch may say many numbers. So
time is counted against what the groups give. It is processor time, for the machine may be busy with other things.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from protocol.delta.patch import GroupHeader
from protocol.errors import Reason, Refused
from protocol.limits import MIB

START_S: Final = 60.0  # for any patch
STREAM_MIB_S: Final = (
    24.0  # a fast core takes up to a second or four for a MiB of changed code: slow ones ten times that
)
OUTPUT_MIB_S: Final = 1.0  # copies


class Allowance:
    """What is left of a patch's time. For the main thread of a process; it uses SIGPROF.

    Args:
        start_s: Seconds of processor time for any patch.
        stream_mib_s: And for each MiB of streams.
        output_mib_s: And for each MiB of output.
    """

    def __init__(
        self, start_s: float = START_S, stream_mib_s: float = STREAM_MIB_S, output_mib_s: float = OUTPUT_MIB_S
    ) -> None:
        self._stream_byte_s, self._output_byte_s = stream_mib_s / MIB, output_mib_s / MIB
        self._end_s = time.process_time() + start_s
        self._is_sending = self._is_over = False
        signal.signal(signal.SIGPROF, self._ring)

    @contextmanager
    def spent_on(self, header: GroupHeader | None) -> Iterator[None]:
        """Lets a group be applied, in its time.

        Args:
            header: Of the group; None when it cannot be read.

        Raises:
            Refused: `LIMIT`: it took too long.
        """
        if header is not None:
            self._end_s += self._output_byte_s * header.output_bytes
            self._end_s += self._stream_byte_s * sum(stream.length_bytes for stream in header.streams)
        self._is_over = False
        # At least a tick: 0 would mean no limit.
        signal.setitimer(signal.ITIMER_PROF, max(self._end_s - time.process_time(), 0.01))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """What is done in here is not broken off in the middle."""
        self._is_sending = True
        try:
            yield
        finally:
            self._is_sending = False
        if self._is_over:
            raise _too_long()

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if not self._is_sending:
            raise _too_long()
        self._is_over = True


def _too_long() -> Refused:
    return Refused(Reason.LIMIT, "it takes more processor time than any patch of its size")
