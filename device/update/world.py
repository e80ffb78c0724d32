"""What the updater asks of everything around it: time, chance, signals, blobs; and its intervals."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from device.retry import backoff_s
from device.transfer.purse import Purse
from device.update.signals import Signals
from protocol.artifact import Artifact
from protocol.ids import Digest
from protocol.messages import Inventory, TransferBytes
from protocol.objects import Budget, Payload, TransferPlan
from protocol.settings import Settings


class UpdateSettings(Settings):
    """Table `[update]` of the settings.

    Args:
        first_backoff_s: The first wait after a pause or an unfinished update; it doubles.
        longest_backoff_s: The longest wait.
        look_s: How often a waiting release looks whether its conditions hold.
        watch_s: How often a trial looks at its workers.
    """

    first_backoff_s: float = 5.0
    longest_backoff_s: float = 900.0
    look_s: float = 2.0
    watch_s: float = 1.0

    def backoff_s(self, failures: int, chance: float) -> float:
        """How long to wait after so many failures in a row: see `device.retry.backoff_s`."""
        return backoff_s(failures, chance, first_s=self.first_backoff_s, longest_s=self.longest_backoff_s)


class Fetcher(Protocol):
    """What brings blobs: `device.transfer.Transfer`, which see."""

    async def small(self, payload: Payload, limit: int) -> bytes:
        """A blob that is read whole."""
        ...

    async def fetch(
        self, plan: TransferPlan, artifacts: Sequence[Artifact], progress: Callable[[int], None], purse: Purse
    ) -> None:
        """Every missing artifact into the store, as far as the purse pays for it."""
        ...


class Treasury(Protocol):
    """What pays for updates: `device.accounts.Accounts`, which see."""

    def purse(self, release: Digest, budget: Budget) -> Purse:
        """Pays for one release."""
        ...

    def of(self, release: Digest) -> TransferBytes:
        """What a release took so far."""
        ...

    def settle(self, is_here: Callable[[Digest, int], bool]) -> None:
        """Counts what a patch saved whose result came just before a cut."""
        ...


async def _unchanged(known: Inventory) -> Inventory:
    return known


async def _no_room(need_bytes: int) -> int:
    """Nobody else keeps anything here."""
    return 0


@dataclass(frozen=True)
class World:
    """Time, chance, signals and hardware.

    Args:
        now: Milliseconds of trusted time, and whether they are sure. Blocking.
        new_id: 128 fresh random bits in hexadecimal.
        random: Draws from 0 to 1.
        time_floor_ms: What time is at least, whatever the wall clock says.
        signals_off: Machine signals that are known to be off. Blocking.
        sleep: Waits so many seconds.
        monotonic: Seconds that never go back.
        notify: Called when there is something to tell the server.
        probe: Looks what hardware is there now; gets what is known, which stands when it cannot look. Takes seconds.
        make_room: Asks the others on this disk to give back so many bytes, of what they keep only for as long as there
            is room; returns what they gave.
        has_engine: Whether this machine has a container engine, running or not. Blocking.
    """

    now: Callable[[], tuple[int, bool]]
    new_id: Callable[[], str]
    random: Callable[[], float]
    time_floor_ms: Callable[[], int]
    signals_off: Signals = tuple
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    monotonic: Callable[[], float] = time.monotonic
    notify: Callable[[], None] = lambda: None
    probe: Callable[[Inventory], Awaitable[Inventory]] = _unchanged
    make_room: Callable[[int], Awaitable[int]] = _no_room
    has_engine: Callable[[], bool] = lambda: True
