"""The server's clock, as an argument."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

NowMs = Callable[[], int]
"""Milliseconds since 1970 UTC."""


def system_now_ms() -> int:
    """The machine's wall clock; servers keep it right with NTP."""
    return time.time_ns() // 1_000_000


def as_datetime(now_ms: int) -> datetime:
    """The same moment, aware, cut to whole seconds as TUF writes them."""
    return datetime.fromtimestamp(now_ms // 1000, UTC)
