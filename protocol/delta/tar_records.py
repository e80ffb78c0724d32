"""Times in the attributes that stand before a file in an archive (POSIX.1-2001 pax, type `x`): `30 mtime=1.5` and such.

Some writers give each file's times so, with parts of a second. They change at each build, and with them the lengths.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from protocol.delta.tar_blocks import BLOCK_BYTES, TYPE

ATTRIBUTES: Final = ord("x")
TIMES: Final = frozenset((b"mtime", b"atime", b"ctime"))
SECONDS_DIGITS: Final = 12
FRACTION_DIGITS: Final = 12


class Time(NamedTuple):
    """A time as it is written.

    Args:
        seconds: Since 1970.
        digits: Behind the point; 0: there is no point.
        fraction: The number that they make.
    """

    seconds: int
    digits: int
    fraction: int


def holds_times(head: bytes, size: int) -> bool:
    """Whether an entry with this header may hold times that are made anew."""
    return head[TYPE] == ATTRIBUTES and 0 < size <= BLOCK_BYTES


def read_records(content: bytes) -> list[tuple[bytes, bytes]] | None:
    """Keys and values, or None when something else would be written for them."""
    records = []
    at = 0
    while at < len(content):
        digits, space, _ = content[at : at + 5].partition(b" ")
        if not space or not digits.isdigit() or not 0 < int(digits) <= len(content) - at:
            return None
        key, equals, value = content[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        if not equals:
            return None
        records.append((key, value))
        at += int(digits)
    return records if write_records(records) == content else None


def write_records(records: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The attributes as they stand in an archive."""
    out = bytearray()
    for key, value in records:
        rest = len(key) + len(value) + 3  # space, equals sign, line feed
        length = rest + len(str(rest))
        length = rest + len(str(length))
        out += b"%d %s=%s\n" % (length, key, value)
    return bytes(out)


def read_time(value: bytes) -> Time | None:
    """A time, or None when it would be written otherwise."""
    seconds, point, fraction = value.partition(b".")
    if not seconds.isdigit() or len(seconds) > SECONDS_DIGITS or len(fraction) > FRACTION_DIGITS:
        return None
    if point and not fraction.isdigit():
        return None
    time = Time(int(seconds), len(fraction), int(fraction or b"0"))
    return time if write_time(time) == value else None


def write_time(time: Time) -> bytes:
    """The time as it stands in a record."""
    if not time.digits:
        return b"%d" % time.seconds
    return b"%d." % time.seconds + (b"%d" % time.fraction).rjust(time.digits, b"0")


def times_of(records: Sequence[tuple[bytes, bytes]] | None) -> list[Time]:
    """The times among records, in order."""
    times = (read_time(value) for key, value in records or () if key in TIMES)
    return [time for time in times if time is not None]


def with_times(records: Sequence[tuple[bytes, bytes]], times: Sequence[Time]) -> bytes:
    """The attributes with other times, as many as `times_of` found."""
    waiting = iter(times)
    return write_records(
        [
            (key, write_time(next(waiting)) if key in TIMES and read_time(value) is not None else value)
            for key, value in records
        ]
    )
