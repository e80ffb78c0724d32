"""Bytes over the air: what was spent, on which release, today, and whether more may travel.

The signed budget of an assignment and the machine's own limits hold together: the smaller one decides. Everything is
kept in `state.db` as the bytes are counted, in one transaction with the totals, so a cut neither forgets what was
spent nor counts it twice.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

from device.day import Day, Instant, look
from device.state_db import StateDb
from device.totals import BYTES, DELTA, FULL, SAVED
from device.transfer.purse import OverBudgetError, Way
from protocol import limits
from protocol.errors import Refused
from protocol.ids import Count, Digest, Length, Name
from protocol.messages import TransferBytes
from protocol.objects import Budget
from protocol.wire import Message, decode, encode

KEY: Final = "accounts"
PROMISE: Final = "accounts/promise"
KEPT_OR_BROKEN: Final = b""
RELEASES_KEPT: Final = 64
KEEP_MS: Final = 3_600_000  # of a day in which nothing travels, a cut forgets an hour at most


class Ledger(Message):
    """What was spent.

    Args:
        day: The one that is being counted.
        day_bytes: In it, by kind of link.
        releases: By manifest, the one that was spent on last at the end.
    """

    day: Day = Day()
    day_bytes: dict[Name, Count] = {}
    releases: dict[Digest, TransferBytes] = {}


class Promise(Message):
    """What is saved once an artifact is in the store.

    Args:
        release: Its manifest.
        artifact: That a patch brings.
        length_bytes: Of it.
        saves_bytes: What compressed full would have taken more.
    """

    release: Digest
    artifact: Digest
    length_bytes: Length
    saves_bytes: Count


class Counting(Protocol):
    """As `device.totals.Totals`."""

    def count(self, more: Mapping[str, int], facts: Mapping[str, bytes]) -> None:
        """Adds to running totals and sets facts, in one transaction. Blocking."""
        ...


class Accounts:
    """The machine's accounts. Safe to share between threads; what blocks says so.

    Args:
        state: Where they are kept.
        totals: Of all updates.
        link: Kind of the link that everything comes over.
        own: The machine's own limits.
        now: What is known of the time.
    """

    def __init__(
        self, state: StateDb, totals: Counting, *, link: Name, own: Budget, now: Callable[[], Instant]
    ) -> None:
        self._state = state
        self._totals = totals
        self._link = link
        self._own = own
        self._now = now
        self._lock = threading.Lock()
        self._ledger = read_ledger(state)

    @property
    def is_limited(self) -> bool:
        """Whether the machine's own limits bear on its link. The server does not know them."""
        return self._own.release_bytes is not None or self._link in self._own.day_bytes

    def of(self, release: Digest) -> TransferBytes:
        """What the release took so far. Never blocks."""
        return self._ledger.releases.get(release, TransferBytes())

    def purse(self, release: Digest, budget: Budget) -> "ReleasePurse":
        """Pays for one release.

        Args:
            release: Its manifest.
            budget: Signed in the assignment.
        """
        return ReleasePurse(self, release, budget)

    def check(self, release: Digest, budget: Budget, needs_bytes: int) -> None:
        """As `device.transfer.purse.Purse.check`. Blocking."""
        with self._lock:
            ledger = self._today()
            if ledger.day.lasted_ms - self._ledger.day.lasted_ms >= KEEP_MS or ledger.day.date != self._ledger.day.date:
                self._state.put(KEY, encode(ledger))
                self._ledger = ledger
        if needs_bytes <= 0:
            return
        spent = ledger.releases.get(release, TransferBytes())
        accounts = (
            (
                "the release",
                _smallest(self._own.release_bytes, budget.release_bytes),
                spent.delta_bytes + spent.full_bytes,
            ),
            (
                f"a day over {self._link}",
                _smallest(self._own.day_bytes.get(self._link), budget.day_bytes.get(self._link)),
                ledger.day_bytes.get(self._link, 0),
            ),
        )
        for whose, limit, used in accounts:
            if limit is not None and needs_bytes > limit - used:
                raise OverBudgetError(
                    f"{needs_bytes:,} bytes would travel; of the {limit:,} for {whose} {used:,} are spent",
                    needs_bytes,
                )

    def spend(self, release: Digest, count: int, way: Way) -> None:
        """As `device.transfer.purse.Purse.spend`. Blocking."""
        with self._lock:
            ledger = self._today()
            before = ledger.releases.get(release, TransferBytes())
            if way == "delta":
                after = msgspec.structs.replace(before, delta_bytes=before.delta_bytes + count)
            else:
                after = msgspec.structs.replace(before, full_bytes=before.full_bytes + count)
            today = {**ledger.day_bytes, self._link: ledger.day_bytes.get(self._link, 0) + count}
            name = DELTA if way == "delta" else FULL
            self._keep(_with(ledger, release, after, today), {BYTES: count, name: count})

    def promise(self, promise: Promise) -> None:
        """As `device.transfer.purse.Purse.promise`. Blocking."""
        with self._lock:
            self._state.put(PROMISE, encode(promise))

    def settle(self, is_here: Callable[[Digest, int], bool]) -> None:
        """As `device.transfer.purse.Purse.settle`, for whichever release it was. Blocking."""
        with self._lock:
            promise = _read_promise(self._state)
            if promise is None:
                return
            if not is_here(promise.artifact, promise.length_bytes):
                self._state.put(PROMISE, KEPT_OR_BROKEN)
                return
            ledger = self._today()
            before = ledger.releases.get(promise.release, TransferBytes())
            after = msgspec.structs.replace(before, saved_bytes=before.saved_bytes + promise.saves_bytes)
            ledger = _with(ledger, promise.release, after, ledger.day_bytes)
            self._totals.count({SAVED: promise.saves_bytes}, {KEY: encode(ledger), PROMISE: KEPT_OR_BROKEN})
            self._ledger = ledger

    def _today(self) -> Ledger:
        day, fresh = look(self._ledger.day, self._now())
        return msgspec.structs.replace(self._ledger, day=day, day_bytes={} if fresh else self._ledger.day_bytes)

    def _keep(self, ledger: Ledger, more: Mapping[str, int]) -> None:
        self._totals.count(more, {KEY: encode(ledger)})
        self._ledger = ledger


class ReleasePurse:
    """Implements `device.transfer.purse.Purse`: the accounts of one release under its budget."""

    def __init__(self, accounts: Accounts, release: Digest, budget: Budget) -> None:
        self._accounts = accounts
        self._release = release
        self._budget = budget

    def check(self, needs_bytes: int) -> None:
        """As `Purse`."""
        self._accounts.check(self._release, self._budget, needs_bytes)

    def spend(self, count: int, way: Way) -> None:
        """As `Purse`."""
        self._accounts.spend(self._release, count, way)

    def promise(self, artifact: Digest, length_bytes: int, saves_bytes: int) -> None:
        """As `Purse`."""
        self._accounts.promise(
            Promise(release=self._release, artifact=artifact, length_bytes=length_bytes, saves_bytes=saves_bytes)
        )

    def settle(self, is_here: Callable[[Digest, int], bool]) -> None:
        """As `Purse`."""
        self._accounts.settle(is_here)


def read_ledger(state: StateDb) -> Ledger:
    """The kept ledger; an empty one when there is none or it cannot be read. Blocking."""
    found = state.get(KEY)
    if found is None:
        return Ledger()
    try:
        return decode(found, Ledger, limit=limits.MIB)
    except Refused:
        return Ledger()


def _read_promise(state: StateDb) -> Promise | None:
    found = state.get(PROMISE)
    if not found:
        return None
    try:
        return decode(found, Promise, limit=limits.KIB)
    except Refused:
        return None


def _smallest(*limits_bytes: int | None) -> int | None:
    return min((limit for limit in limits_bytes if limit is not None), default=None)


def _with(ledger: Ledger, release: Digest, spent: TransferBytes, today: dict[Name, Count]) -> Ledger:
    others = {name: bytes_ for name, bytes_ in ledger.releases.items() if name != release}
    kept = list({**others, release: spent}.items())[-RELEASES_KEPT:]
    return msgspec.structs.replace(ledger, day_bytes=today, releases=dict(kept))
