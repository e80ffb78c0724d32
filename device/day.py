"""One day of a budget, on a machine whose wall clock cannot be believed. Pure.

A new day begins when sure time (a signed statement of this boot) shows a later date, or when the machine was on for 24
hours since the day began, by a clock that only counts (CLOCK_BOOTTIME). Unsure time begins no day: a wall clock that
jumps gives no fresh budget, whichever way it jumps, and a machine that never learns the time waits a day of its own.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from protocol.ids import Count
from protocol.wire import Message

DAY_MS: Final = 86_400_000


class Day(Message):
    """The day that is being counted.

    Args:
        date: Days since 1970-01-01 UTC; None while it is not known, as the time was never sure in it.
        boot_id: The boot in which it was last looked at.
        boot_ms: CLOCK_BOOTTIME then.
        lasted_ms: How long the machine was on since the day began, as far as it was looked at.
    """

    date: Count | None = None
    boot_id: str = ""
    boot_ms: Count = 0
    lasted_ms: Count = 0


@dataclass(frozen=True)
class Instant:
    """What is known of the time.

    Args:
        boot_id: Names this boot.
        boot_ms: CLOCK_BOOTTIME.
        sure_ms: Verified time; None when it is unsure.
    """

    boot_id: str
    boot_ms: int
    sure_ms: int | None


def look(day: Day, now: Instant) -> tuple[Day, bool]:
    """The day as it is now, and whether it is a new one."""
    date = None if now.sure_ms is None else now.sure_ms // DAY_MS
    # Of a boot in between nothing is known but that it took time: counting none of it only makes the day longer.
    passed = now.boot_ms - day.boot_ms if now.boot_id == day.boot_id else now.boot_ms
    lasted = day.lasted_ms + max(passed, 0)
    later = date is not None and day.date is not None and date > day.date
    if later or lasted >= DAY_MS or not day.boot_id:
        return Day(date=date, boot_id=now.boot_id, boot_ms=now.boot_ms), True
    known = date if day.date is None else day.date  # learnt in the middle of a day: that gives no fresh one
    return msgspec.structs.replace(day, date=known, boot_id=now.boot_id, boot_ms=now.boot_ms, lasted_ms=lasted), False
