"""What time it is, on a machine whose wall clock cannot be believed (DESIGN.md section 3, "Time").

Pure decisions first: `read`, `learn`, `checkpoint`. The shell, `Clock`, reads CLOCK_BOOTTIME and keeps the record in
the state database. A time statement verified in this boot makes the time *sure*: CLOCK_BOOTTIME, which counts through
suspend, carries it on, and the wall clock is not asked. Without one the time is *unsure*: good for order and for logs;
inference goes on, online installs wait.

Verifying time statements is the keeper's work (`device.trust`); it writes what it learnt, the agent reads it here.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec

from device.day import Instant
from protocol.errors import Refused
from protocol.ids import Count, Millis
from protocol.wire import Message, decode, encode

BUILT_MS: Final = 1_767_225_600_000
"""2026-01-01: it was never earlier than the year in which this version of the agent was made. The year, not the day:
build machines' clocks are off too, and a floor ahead of true time would lock a machine out."""

CHECKPOINT_MS: Final = 3_600_000
"""How far the floor may lag behind sure time: an hour spares the flash, and what a cut forgets is bounded by it."""

DRIFT_MS: Final = 5_000
"""A running anchor that a new statement contradicts by more is replaced; less is the network's delay."""

ALARM_MS: Final = 86_400_000
"""A wall clock further than this from the signed time is worth a person's look."""

KEY: Final = "clock"
"""Where the record stands in the state database."""

_RECORD_BYTES: Final = 16_384


class Anchor(Message):
    """Where time was pinned in one boot: at `boot_ms` of CLOCK_BOOTTIME it was `time_ms`."""

    boot_id: str
    boot_ms: Count
    time_ms: Millis


class ClockRecord(Message):
    """What is kept.

    floor_ms: Time never reads below it. Rises with verified time and its checkpoints, never with the wall clock.
    keyids: Of the clock role that the floor was learnt under: only their rotation lowers it.
    """

    floor_ms: Millis = 0
    anchor: Anchor | None = None
    keyids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Moment:
    """What the machine's own clocks say, read together.

    Args:
        boot_id: Names this boot.
        boot_ms: CLOCK_BOOTTIME.
        wall_ms: The wall clock, for what it is worth.
    """

    boot_id: str
    boot_ms: int
    wall_ms: int


@dataclass(frozen=True)
class Reading:
    """The time. `sure` when a statement was verified in this boot."""

    ms: int
    sure: bool


class Facts(Protocol):
    """The part of the state database that the clock needs."""

    def get(self, key: str) -> bytes | None:
        """The value, or None."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Sets the value, durable on return."""
        ...


class Kept(Facts, Protocol):
    """What the agent's clock needs besides: the keeper, a process of its own, writes the same record."""

    def change(self, key: str, make: Callable[[bytes | None], bytes | None]) -> None:
        """Sets the value to what `make` gives for it, unless that is None; nobody else writes in between."""
        ...


def floor_ms(record: ClockRecord, built_ms: int = BUILT_MS) -> int:
    """When it certainly is later than that."""
    return max(record.floor_ms, built_ms)


def read(record: ClockRecord, moment: Moment, built_ms: int = BUILT_MS) -> Reading:
    """The time by the record: sure by the anchor of this boot, else the later of floor and wall clock, unsure."""
    floor = floor_ms(record, built_ms)
    anchor = record.anchor
    if anchor is not None and anchor.boot_id == moment.boot_id and moment.boot_ms >= anchor.boot_ms:
        return Reading(max(floor, anchor.time_ms + moment.boot_ms - anchor.boot_ms), sure=True)
    return Reading(max(floor, moment.wall_ms), sure=False)


def learn(
    record: ClockRecord,
    signed_ms: int,
    asked_boot_ms: int,
    moment: Moment,
    *,
    keyids: Sequence[str],
    threshold: int,
    built_ms: int = BUILT_MS,
) -> ClockRecord:
    """Takes in a verified time statement.

    It is pinned to the moment of asking, so that time is never behind the true one; it is ahead by at most what the
    answer took, and a statement older than 60 seconds is never taken. A statement that agrees with running sure time
    changes nothing until a checkpoint is due.

    Args:
        record: So far.
        signed_ms: What was signed.
        asked_boot_ms: CLOCK_BOOTTIME just before the request was sent.
        moment: Now.
        keyids: Of the clock role now.
        threshold: Of the clock role now.
        built_ms: The agent's build date.

    Returns:
        The same object when nothing needs to be written.
    """
    rotated = bool(record.keyids) and len(set(record.keyids) & set(keyids)) < threshold
    floor = built_ms if rotated else max(record.floor_ms, built_ms)
    before = read(record, moment, built_ms)
    now = max(floor, signed_ms + moment.boot_ms - asked_boot_ms)
    settled = (
        before.sure
        and not rotated
        and tuple(sorted(keyids)) == record.keyids
        and abs(before.ms - now) <= DRIFT_MS
        and now - floor < CHECKPOINT_MS
    )
    if settled:
        return record
    time_ms = max(floor, signed_ms)
    return ClockRecord(
        floor_ms=time_ms,
        anchor=Anchor(boot_id=moment.boot_id, boot_ms=asked_boot_ms, time_ms=time_ms),
        keyids=tuple(sorted(keyids)),
    )


def checkpoint(record: ClockRecord, moment: Moment, built_ms: int = BUILT_MS) -> ClockRecord:
    """Raises the floor to sure time, when it lags behind by `CHECKPOINT_MS` or more; else the same object."""
    reading = read(record, moment, built_ms)
    if not reading.sure or reading.ms - record.floor_ms < CHECKPOINT_MS:
        return record
    return msgspec.structs.replace(record, floor_ms=reading.ms)


def wall_is_off(moment: Moment, sure_ms: int) -> bool:
    """Whether the wall clock is further than a day from sure time."""
    return abs(moment.wall_ms - sure_ms) > ALARM_MS


def now_here() -> Moment:
    """This machine's clocks."""
    return Moment(boot_id=_boot_id(), boot_ms=int(boot_seconds() * 1000), wall_ms=time.time_ns() // 1_000_000)


def boot_seconds() -> float:
    """CLOCK_BOOTTIME in seconds: since the boot, counting through suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock:
    """The agent's clock. `reload` after each contact; `keep` now and then.

    Args:
        facts: The state database.
        here: Reads the machine's clocks.
        built_ms: The agent's build date.
    """

    def __init__(self, facts: Kept, here: Callable[[], Moment] = now_here, built_ms: int = BUILT_MS) -> None:
        self._facts = facts
        self._here = here
        self._built_ms = built_ms
        self._record = load(facts)

    def now(self) -> Reading:
        """The time. Never blocks."""
        return read(self._record, self._here(), self._built_ms)

    def floor_ms(self) -> int:
        """What time is at least, whatever the wall clock says. Never blocks."""
        return max(self._record.floor_ms, self._built_ms)

    def instant(self) -> Instant:
        """What is known of the time, for what must not believe the wall clock. Never blocks."""
        moment = self._here()
        reading = read(self._record, moment, self._built_ms)
        return Instant(moment.boot_id, moment.boot_ms, reading.ms if reading.sure else None)

    def at_least_ms(self) -> int:
        """Sure time; where there is none, the floor, whatever the wall clock says. Never blocks."""
        reading = read(self._record, self._here(), self._built_ms)
        return reading.ms if reading.sure else floor_ms(self._record, self._built_ms)

    def boot_s(self) -> float:
        """CLOCK_BOOTTIME in seconds: for durations, and what `Trust.judge` is told of the asking."""
        return self._here().boot_ms / 1000

    def reload(self) -> None:
        """Takes over what the keeper learnt. Blocks for one read of the database."""
        self._record = load(self._facts)

    def keep(self) -> None:
        """Makes sure time a floor when that is due (hourly), of what the keeper knows by then. Blocks."""

        def make(data: bytes | None) -> bytes | None:
            known = _parse(data)
            self._record = checkpoint(known, self._here(), self._built_ms)
            return encode(self._record) if self._record is not known else None

        self._facts.change(KEY, make)


def load(facts: Facts) -> ClockRecord:
    """The kept record; an empty one when there is none, or none that can be read: the time is unsure then."""
    return _parse(facts.get(KEY))


def _parse(data: bytes | None) -> ClockRecord:
    if data is None:
        return ClockRecord()
    try:
        return decode(data, ClockRecord, limit=_RECORD_BYTES)
    except Refused:
        return ClockRecord()


@functools.cache  # the time is asked for each frame, and a process ends with its boot
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
