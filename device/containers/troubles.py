"""Tells the server, once for each, that a container of the committed release does not run as it should.

It is started again and again all the same, and nothing is rolled back: what was committed had been healthy here. What
was told is kept by image, so that a container that ends each hour is told of once; another release may tell anew. Of an
engine it is told once, and again only after it was well for long.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from device.containers.keeper import EngineStatus
from device.state_db import StateDb
from protocol import limits
from protocol.errors import Refused
from protocol.ids import Millis, Token
from protocol.messages import Alert
from protocol.wire import Message, decode, encode

KEY: Final = "container-troubles-told"
KIND: Final = "container"
ENGINE: Final = "engine"
AWAY_S: Final = 300.0  # an engine may be started after the agent, and be restarted for an upgrade of its own
WELL_S: Final = 3600.0  # an engine without trouble for so long is told of again


class _Told(Message):
    kinds: dict[str, tuple[str, ...]] = {}  # of trouble, by image digest, or `engine`


class Troubles:
    """Remembers what was told. `changed` never blocks; `tell` does.

    Args:
        state: Where alerts wait for the next contact.
        draw_token: 128 random bits in hexadecimal, for the ids of alerts.
        clock: Seconds that only ever rise.
    """

    def __init__(self, state: StateDb, draw_token: Callable[[], Token], clock: Callable[[], float]) -> None:
        self._state = state
        self._draw_token = draw_token
        self._clock = clock
        self._engine_since_s: float | None = None
        self._well_since_s: float | None = None
        self._tells_engine_again = False
        self._told: dict[str, tuple[str, ...]] = {}
        kept = state.get(KEY)
        with contextlib.suppress(Refused):  # written by another version of the agent: then it is told once more
            self._told = {} if kept is None else dict(decode(kept, _Told, limit=limits.SYNC_BYTES).kinds)

    def changed(self, status: EngineStatus | None) -> bool:
        """Whether there is something to tell."""
        now_s = self._clock()
        if status is None or not status.trouble:
            self._engine_since_s = None
            self._well_since_s = now_s if self._well_since_s is None else self._well_since_s
            self._tells_engine_again |= now_s - self._well_since_s > WELL_S
        else:
            self._well_since_s = None
            self._engine_since_s = now_s if self._engine_since_s is None else self._engine_since_s
        return status is not None and not status.trial and any(True for _ in self._new(status))

    def tell(self, status: EngineStatus, at_ms: Millis) -> None:
        """Queues an alert for each trouble that is new; durable on return.

        Args:
            status: Of a committed release.
            at_ms: The time for the alerts, sure or not.

        Raises:
            StateError: The disk is full; it may be called again.
        """
        known = {ENGINE, *(one.image for one in status.containers.values())}
        told = {what: kinds for what, kinds in self._told.items() if what in known}
        for what, kind, detail in list(self._new(status)):
            self._state.add_alert(Alert(id=self._draw_token(), kind=KIND, at_ms=at_ms, detail=detail[:2000]))
            told[what] = (*(one for one in told.get(what, ()) if one != kind), kind)
            self._tells_engine_again &= what != ENGINE
        # After the alerts: a cut in between tells one of them twice, never not at all.
        self._state.put(KEY, encode(_Told(kinds=told)))
        self._told = told

    def _new(self, status: EngineStatus) -> Iterator[tuple[str, str, str]]:
        away_s = 0.0 if self._engine_since_s is None else self._clock() - self._engine_since_s
        if away_s > AWAY_S and (self._tells_engine_again or ENGINE not in self._told):
            yield ENGINE, ENGINE, status.trouble
        for name, one in sorted(status.containers.items()):
            kind = one.trouble.partition(":")[0][:100]
            # What the machine keeps from being started is the engine's trouble, and told as that.
            is_told_so = one.state == "absent" and bool(status.trouble)
            if kind and not is_told_so and kind not in self._told.get(one.image, ()):
                yield one.image, kind, f"container {name}, image {one.image[:12]}: {one.trouble}"
