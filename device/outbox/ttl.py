"""Rows that are too old: how old they surely are, on a machine whose clock cannot be believed.

Rows carry no time. Now and then it is noted how far a lane was numbered at a moment of this boot; rows below that
number are at least as old as the moment. How long ago it was is told by CLOCK_BOOTTIME within a boot, by verified time
across boots, and else by how long the machine has been up since. So nothing goes early, whatever the wall clock says: a
machine that never learns the time drops nothing for age but what one boot outlives.
"""

from typing import Final

from device.day import Instant
from device.outbox.book import Draft
from device.outbox.keys import seal
from device.outbox.room import Policies, record_loss
from device.outbox.schema import sealed
from protocol.spans import Spans

NOTES_A_LIFE: Final = 16  # a row goes by a sixteenth of its life late
NOTES_KEPT: Final = 64  # of a lane; with more, each second one is forgotten
CHUNK_ROWS: Final = 1000  # of one transaction: new rows do not wait for more

_COLUMNS: Final = "epoch, lane, next_seq, boot_id, boot_ms, sure_ms"
Moment = tuple[int, str, int, str, int, int | None]


def note(draft: Draft, policies: Policies, now: Instant) -> None:
    """Notes how far the lanes with a time to live are numbered, and what verified time says of earlier notes."""
    for lane, policy in policies.items():
        if not policy.ttl_s:
            continue
        moments = _moments(draft, lane)
        if now.sure_ms is not None:
            for moment in moments:
                if moment[3] == now.boot_id and moment[5] is None:
                    _put(draft, (*moment[:5], now.sure_ms - (now.boot_ms - moment[4])))
        next_seq = draft.lane(draft.current, lane).next_seq
        newest = moments[-1] if moments else None
        if not next_seq or (newest is not None and newest[:3] >= (draft.current, lane, next_seq)):
            continue
        apart_ms = policy.ttl_s * 1000 / NOTES_A_LIFE
        if newest is not None and newest[3] == now.boot_id and now.boot_ms - newest[4] < apart_ms:
            continue
        _put(draft, (draft.current, lane, next_seq, now.boot_id, now.boot_ms, now.sure_ms))
        if len(moments) >= NOTES_KEPT:
            _forget(draft, moments[1::2])


def expire(draft: Draft, policies: Policies, now: Instant, now_ms: int) -> bool:
    """Counts rows that outlived their lane's time as lost, a chunk of them. Returns whether more are to go."""
    for lane, policy in policies.items():
        if not policy.ttl_s:
            continue
        moments = _moments(draft, lane)
        old = [moment for moment in moments if age_ms(moment, now) > policy.ttl_s * 1000]
        if not old:
            continue
        epoch, _, next_seq, *_ = old[-1]
        for number in sorted(number for number in draft.epochs if number <= epoch):
            facts = draft.lane(number, lane)
            end = next_seq if number == epoch else facts.next_seq
            gone: Spans = facts.queued.within(0, end - 1).head(CHUNK_ROWS)
            if gone:
                record_loss(draft, (number, lane), gone, "ttl", now_ms)
                return True
        _forget(draft, old[:-1])
    return False


def age_ms(moment: Moment, now: Instant) -> int:
    """How long ago a moment surely was."""
    _, _, _, boot_id, boot_ms, sure_ms = moment
    lasted = now.boot_ms - boot_ms if boot_id == now.boot_id else now.boot_ms
    if now.sure_ms is None or sure_ms is None:
        return lasted
    return max(lasted, now.sure_ms - sure_ms)


def _moments(draft: Draft, lane: str) -> list[Moment]:
    """In their order."""
    query = f"SELECT {_COLUMNS}, seal FROM moments WHERE lane = ? ORDER BY epoch, next_seq"  # noqa: S608  (fixed)
    return [
        (epoch, name, next_seq, boot_id, boot_ms, sure_ms)
        for epoch, name, next_seq, boot_id, boot_ms, sure_ms in sealed(draft.connection, query, (lane,))
    ]


def _put(draft: Draft, moment: Moment) -> None:
    draft.connection.execute(
        f"INSERT OR REPLACE INTO moments({_COLUMNS}, seal) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608  (fixed)
        (*moment, seal(*moment)),
    )


def _forget(draft: Draft, moments: list[Moment]) -> None:
    draft.connection.executemany(
        "DELETE FROM moments WHERE epoch = ? AND lane = ? AND next_seq = ?", [moment[:3] for moment in moments]
    )
