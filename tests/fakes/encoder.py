"""An encoder whose patches are bytes of a chosen length, made at once: the server looks at their measure only."""

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from server.delta.process import Beat, InterruptedEncodingError, Made


class FakeEncoder:
    """Implements `server.delta.process.Encoder`.

    Attributes:
        payload: Gives the payload for an attempt, counted from 1.
        index: Whether there is one.
        hold: While it is set, an encoding goes on without an end, and beats.
        error: What it ends with instead.
        made: What was asked for: bytes of the old and of the new file.
    """

    def __init__(self) -> None:
        self.payload: Callable[[int], bytes] = lambda attempt: b"patch"
        self.index = False
        self.hold = threading.Event()
        self.error: Exception | None = None
        self.made: list[tuple[bytes, bytes]] = []

    def __call__(self, old: Path, new: Path, payload: Path, index: Path, beat: Beat) -> Made:
        base, result = old.read_bytes(), new.read_bytes()
        self.made.append((base, result))
        while self.hold.is_set():
            if not beat():
                raise InterruptedEncodingError
            time.sleep(0.005)
        if self.error is not None:
            raise self.error
        data = self.payload(self.made.count((base, result)))
        payload.write_bytes(data)
        if self.index:
            index.write_bytes(b"index of " + data[:16])
        return Made(
            base=sha256(base),
            result=sha256(result),
            payload=sha256(data),
            payload_bytes=len(data),
            index=sha256(index.read_bytes()) if self.index else None,
            index_bytes=index.stat().st_size if self.index else 0,
        )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
