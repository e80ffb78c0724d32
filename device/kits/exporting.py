"""When results are written to sticks: once for each visit of a stick, when a person asks, and when an update that a kit
brought has ended, so that what came of it goes home on the same stick.

All of it is one task beside that of kits: a stick that hangs while it is written to holds up nothing else.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from device.kits.export import Exported
from device.kits.finding import Finder
from device.update.states import Ended, State, UpdateRecord
from protocol.errors import StateError
from protocol.kits import KITS_FOLDER, RESULTS_FOLDER, is_kit
from protocol.wire import Message

_log = logging.getLogger(__name__)

ASKED_S: Final = 150.0  # a person waits no longer; it goes on without them
_NO_UPDATE: Final = frozenset({State.IDLE, State.CLEANUP})
_ENDING: Final = frozenset({State.COMMIT, State.ROLLBACK})


class OneExport(Message, omit_defaults=False):
    """What came of one stick."""

    stick: str
    exported: Exported


class ExportsShown(Message, omit_defaults=False):
    """What came of what a person asked for: a sentence, and the numbers by stick."""

    sentence: str
    sticks: tuple[OneExport, ...] = ()


class Writer(Protocol):
    """As `device.kits.export.Export`."""

    async def to(self, stick: Path, device: int | None = None) -> Exported:
        """Writes what waits to a stick."""
        ...


class Updates(Protocol):
    """The update machine, as `device.update.updater.Updater`."""

    @property
    def record(self) -> UpdateRecord:
        """What runs, and what is under way."""
        ...


@dataclass
class _Order:
    device: int | None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    exported: Exported | None = None


class Exports:
    """Of one machine. Belongs to one event loop.

    Args:
        export: Writes.
        finder: Is told of folders that a person names.
        updates: How updates end.
    """

    def __init__(self, export: Writer, finder: Finder, updates: Updates) -> None:
        self._export = export
        self._finder = finder
        self._updates = updates
        self._here: dict[Path, int | None] = {}
        self._orders: dict[Path, _Order] = {}
        self._due = asyncio.Event()
        self._last: Ended | None = None
        self._writes: Path | None = None
        self._said: dict[Path, Exported] = {}

    def see(self, carriers: Mapping[Path, int]) -> None:
        """Takes note of the sticks that are there now, and of how the last update ended.

        Args:
            carriers: Where they are, and the number of the file system there: see `Finder.carriers`.
        """
        record = self._updates.record
        due = {root for root, device in carriers.items() if self._here.get(root, -1) not in (None, device)}
        if record.state not in _ENDING:
            due |= carriers.keys() if self._owes() else set()
            self._last = record.last
        last_said = next(reversed(self._said), None)
        self._said = {root: said for root, said in self._said.items() if root in carriers or root == last_said}
        self._here = dict(carriers)
        for root in sorted(due):
            self._order(root, carriers[root])

    async def run(self) -> None:
        """Writes what is due until it is cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            while self._orders:
                root = next(iter(self._orders))
                order = self._orders.pop(root)
                self._writes = root
                try:
                    order.exported = await self._export.to(root, order.device)
                finally:
                    self._writes = None
                    order.done.set()
                self._said.pop(root, None)
                self._said[root] = order.exported
                _log.info("results to %s: %s", root, order.exported.words)

    async def ask(self, path: Path | None = None) -> ExportsShown:
        """A person wants results written now.

        Args:
            path: A folder that counts as a stick from now on; None: every stick that is there.

        Raises:
            StateError: There is no stick, or it takes longer than anybody waits.
        """
        if path is not None:
            self._finder.add(path)
            self._here.setdefault(path, None)  # its visit begins with this
        roots = [path] if path is not None else sorted(self._here)
        if not roots:
            raise StateError(
                f"no stick with a folder {KITS_FOLDER} or {RESULTS_FOLDER} is plugged in",
                hint="name the folder to write to: headland-device kit export /media/STICK",
            )
        orders = [(root, self._order(root, None if path is not None else self._here[root])) for root in roots]
        try:
            async with asyncio.timeout(ASKED_S):
                for _, order in orders:
                    await order.done.wait()
        except TimeoutError as error:
            raise StateError("the stick is slow: it goes on being written to", hint=_LOOK) from error
        ended = {root: order.exported for root, order in orders if order.exported is not None}
        if len(ended) < len(orders):
            raise StateError("writing was broken off", hint="ask again")
        return ExportsShown(
            sentence=self._sentence(ended),
            sticks=tuple(OneExport(stick=str(root), exported=exported) for root, exported in ended.items()),
        )

    def sentence(self) -> str:
        """What was said last, for a person. Never blocks."""
        if self._writes is not None:
            return f"Results are being written to {self._writes}: leave it in."
        return self._sentence(self._said)

    def _owes(self) -> bool:
        """Whether an update that a kit brought has ended, and no stick was told yet."""
        last = self._updates.record.last
        return last is not None and is_kit(last.rollout) and last != self._last

    def _order(self, root: Path, device: int | None) -> _Order:
        order = self._orders.setdefault(root, _Order(device))
        self._due.set()
        return order

    def _sentence(self, said: Mapping[Path, Exported]) -> str:
        return " ".join(f"{root}: {one.words}{self._whether_to_pull(one)}." for root, one in said.items())

    def _whether_to_pull(self, exported: Exported) -> str:
        if exported.end == "gone":
            return ""
        record = self._updates.record
        is_on = record.offer is not None and is_kit(record.offer.rollout) and record.state not in _NO_UPDATE
        if is_on or self._owes() or self._orders:
            return ". An update from a kit is under way: leave the stick in, and what comes of it is written there too"
        return ". It is safe to pull the stick out"


_LOOK: Final = "headland-device kit list shows when it has ended"
