"""The clock that a server goes by: the computer's, for as long as it does not jump.

What is signed by a wrong clock is not taken back: machines keep the time that a server states as a floor (DESIGN.md
section 3), and a CA that begins in ten years is refused by people's tools until then. So a clock that jumps further
than any pause explains is *doubted*: the server counts on from the time that it knew, and a person says which is right
(`headland-server believe-clock`). A clock that comes back by itself is believed at once.
"""

import threading
from typing import Final

from server.clock import NowMs
from server.storage.catalog import Session

DAY_MS: Final = 86_400_000
RUNNING_MS: Final = 7 * DAY_MS
"""A jump while it runs: a computer that slept over a holiday. Machines that were told a time so far ahead are right
again when what was signed last expires."""
STOPPED_MS: Final = 30 * DAY_MS
"""Between two runs, and until its clock was believed for an hour: one without a battery is set after the start, by
NTP, and shows until then when it was stopped, or 1970."""
SETTLED_MS: Final = 3_600_000
BORN_MS: Final = 1_767_225_600_000
"""2026-01-01: a clock that shows less was not set yet, as after a start without a battery, and is no knowledge."""


def after_a_stop(wall_ms: int, known_ms: int) -> int:
    """What is believed where nobody has looked at the clock since `known_ms`."""
    return wall_ms if known_ms < BORN_MS or abs(wall_ms - known_ms) <= STOPPED_MS else known_ms


class SteadyClock:
    """`NowMs` that follows no jump. Safe to use from several threads.

    Args:
        wall: The computer's clock.
        known_ms: When this server ran last; 0: never.
    """

    def __init__(self, wall: NowMs, known_ms: int) -> None:
        self._wall = wall
        self._lock = threading.Lock()
        now_ms = wall()
        self._known_ms = after_a_stop(now_ms, known_ms)
        self._off_ms = now_ms - self._known_ms
        self._jump_ms = self._off_ms
        self._settled_ms = self._known_ms + SETTLED_MS

    def __call__(self) -> int:
        """The time that is believed, milliseconds since 1970 UTC."""
        with self._lock:
            wall_ms = self._wall()
            starting = self._known_ms < self._settled_ms
            reach_ms = STOPPED_MS if starting else RUNNING_MS
            if self._known_ms < BORN_MS or abs(wall_ms - self._known_ms) <= reach_ms:
                self._off_ms = 0
            elif abs(wall_ms - self._off_ms - self._known_ms) > RUNNING_MS:
                self._off_ms = self._jump_ms = wall_ms - self._known_ms
            self._known_ms = wall_ms - self._off_ms
            if starting:
                settled_ms = self._known_ms + SETTLED_MS
                self._settled_ms = settled_ms if self._off_ms else min(settled_ms, self._settled_ms)
            return self._known_ms

    @property
    def off_ms(self) -> int:
        """How far the computer's clock is ahead of what is believed; 0: it is believed."""
        return self._off_ms

    def take_jump(self) -> int:
        """How far it jumped since this was asked last, also where it came back; 0: it did not."""
        with self._lock:
            jump_ms, self._jump_ms = self._jump_ms, 0
            return jump_ms

    def believe(self, told_ms: int) -> None:
        """Follows the computer's clock, if it shows about the time that a person said is right."""
        with self._lock:
            wall_ms = self._wall()
            if abs(wall_ms - told_ms) <= RUNNING_MS:
                self._known_ms, self._off_ms = wall_ms, 0


def known(session: Session) -> int:
    """The time that a server on this catalog believed last; 0: none ran yet."""
    return session.facts.number("known_ms")


def keep(session: Session, clock: SteadyClock) -> None:
    """Takes a person's word, keeps the time for the next start, and notes a jump. In a `write`, each minute."""
    told_ms = session.facts.number("clock_told_ms")
    if told_ms:
        clock.believe(told_ms)
        session.facts.put("clock_told_ms", 0)
    now_ms, jump_ms = clock(), clock.take_jump()
    session.facts.put("known_ms", now_ms)
    session.facts.put("clock_off_ms", clock.off_ms)
    if jump_ms:
        days = f"{abs(jump_ms) / DAY_MS:.0f} days {'ahead' if jump_ms > 0 else 'back'}"
        stands = "until a person says `headland-server believe-clock`" if clock.off_ms else "and it came back"
        session.events.add(now_ms, "clock-jumped", detail=f"the computer's clock jumped {days}: not followed, {stands}")


def tell(session: Session, wall_ms: int) -> None:
    """A person's word that the computer's clock is right: for a server that runs, and for the next start."""
    session.facts.put("known_ms", wall_ms)
    session.facts.put("clock_told_ms", wall_ms)
    session.facts.put("clock_off_ms", 0)
    session.events.add(wall_ms, "clock-believed", detail="by the operator of the server")
