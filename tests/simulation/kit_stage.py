"""A stick with a kit that real managers signed, and machines that are told of it: found, copied, judged by the keeper's
own judge, planned, and fetched into a real store. What follows FETCH is not played here.

stage = Stage(folder)
with stage.machine("one") as machine:
    said = await machine.plug()                # one try, whatever the stick does meanwhile
    assert machine.is_ready() or said          # or a word for the person beside it
"""

import asyncio
import contextlib
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from device.kits.shown import KitState
from device.transfer.purse import Unlimited
from device.trust.port import ROSTER, KitVerdict, Roster
from protocol.errors import LinkError, Refused
from protocol.ids import digest
from protocol.kits import Technician
from protocol.wire import decode
from tests.fakes.field import Field, ms
from tests.fakes.kit_yard import KitYard
from tests.fakes.kits import listed, make_kit
from tests.fakes.updates import Release, noise

NOW: Final = datetime(2026, 11, 1, 12, tzinfo=UTC)
MODEL_BYTES: Final = 2_300_000  # three segments, and more than one read of the stick


class Stage:
    """The managers, a machine that had a contact before all of this, and a stick that brings more.

    Args:
        folder: For everything.
        model_bytes: Of the release on the stick.
    """

    def __init__(self, folder: Path, *, model_bytes: int = MODEL_BYTES) -> None:
        self.folder = folder
        self.field = Field(folder / "before", NOW)
        house = self.field.house
        self.runs = listed(house, Release("1.0.0", 1, noise(2_000, 1)))
        self.field.contact()
        self.field.passes(days=1)
        self.brings = listed(house, Release("1.1.0", 2, noise(model_bytes, 2)))
        for repository in ("image", "director"):
            house.rotate_online(repository, "timestamp")
        house.rotate_online("director", "clock")  # new top targets
        house.era(0)  # likewise
        expires_ms = ms(self.field.now) + 30 * 86_400_000
        house.technicians(Technician(name="eva", public_key="1" * 64, expires_ms=expires_ms, may_force=True))
        self.stick = folder / "stick"
        self.kit = make_kit(self.stick, house, [self.brings], created=self.field.now)

    @contextlib.contextmanager
    def machine(self, name: str, stick: Path | None = None) -> Iterator["Machine"]:
        """One as it was before, the stick beside it; gone afterwards."""
        machine = Machine(self, self.folder / name, stick or self.stick)
        try:
            yield machine
        finally:
            machine.yard.state.close()
            shutil.rmtree(machine.folder)

    def twin(self, folder: Path, *, is_new: bool = False) -> Field:
        """The trust of such a machine; `is_new`: of one that has nothing but its first roots."""
        field = Field(folder, self.field.now)
        for name in ("house", "first_roots", "built_ms", "boot_ms"):
            setattr(field, name, getattr(self.field, name))
        if not is_new:
            for repository in ("image", "director"):
                shutil.copytree(self.field.folder / repository, folder / repository)
            field.floors._values = dict(self.field.floors._values)
            field.notes.values = dict(self.field.notes.values)
        return field

    def outcomes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is trusted once the kit was taken: all of it, or all but the list of technicians. A list that is missing
        or damaged stops no update: it is only nobody who may force, until a whole one comes."""
        found = []
        for name in ("all", "no list"):
            field = self.twin(self.folder / name)
            copy = field.folder / "kits" / self.kit.name
            shutil.copytree(self.kit, copy)
            if found:
                next(copy.glob("director/*.technicians.json")).unlink()
            assert field.bring(copy).complaint is None
            found.append(trusted_by(field))
            shutil.rmtree(field.folder)
        return found[0], found[1]

    @property
    def wanted(self) -> set[str]:
        """What lies in the store once it is ready to be installed."""
        return set(self.brings.artifacts)


@dataclass(frozen=True)
class Told:
    """What a person is told after one try. `kits`: states and sentences; `fetch`: why not all of it came."""

    kits: tuple[tuple[KitState, str], ...]
    troubles: tuple[str, ...]
    fetch: str

    @property
    def words(self) -> tuple[str, ...]:
        """All that says that something is wrong."""
        good = (KitState.APPLYING, KitState.READING)
        said = [line for state, line in self.kits if state not in good]
        return tuple(word for word in (*said, *self.troubles, self.fetch) if word)


class Machine:
    """See the module. Made by `Stage.machine`."""

    def __init__(self, stage: Stage, folder: Path, stick: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.field = stage.twin(folder / "trust")
        self.verdicts: list[KitVerdict] = []
        self.yard = KitYard(folder, trust=self, sleep=lambda _: asyncio.sleep(0))  # type: ignore[arg-type]  # as Trust
        self.yard.updates.commit(stage.runs)
        self.yard.finder.add(stick)
        self._stick = stick

    async def judge_kit(self, folder: str) -> KitVerdict:
        """As `device.trust.port.Trust`: what the keeper does, without its process."""
        verdict = await asyncio.to_thread(self.field.bring, Path(folder))
        self.verdicts.append(verdict)
        return verdict

    async def plug(self) -> Told:
        """One look at the stick, and one fetch when it is good."""
        await self.yard.kits._turn()
        shown = self.yard.kits.shown()
        fetch = ""
        if self.yard.under_way() is not None:
            fetch = await self._fetch()
        return Told(tuple((kit.state, kit.sentence) for kit in shown.kits), shown.troubles, fetch)

    async def replug(self) -> None:
        """It goes, and is there again when the machine looks next, as if a person asked for that: anew."""
        self.yard.finder._by_hand.clear()
        await self.yard.kits._turn()
        for entry in self.yard.kits._entries.values():
            entry.trusted = None
        self.yard.finder.add(self._stick)

    async def _fetch(self) -> str:
        (*_, (assignment, _)) = self.yard.updates.offered
        artifacts = self.stage.brings.manifest.artifacts()
        try:
            await self.yard.fetcher.fetch(assignment.plan, artifacts, lambda _: None, Unlimited(lambda _: None))
        except (LinkError, Refused) as error:
            return error.message
        return ""

    def is_ready(self) -> bool:
        """Whether what was offered is what was signed, and all of it is in the store."""
        offer = self.yard.under_way()
        return (
            offer is not None
            and offer.release.digest == self.stage.brings.digest
            and self.stored() == self.stage.wanted
            and not list((self.yard.store.folder / "parts").iterdir())
        )

    def stored(self) -> set[str]:
        """What is in the store; all of it is what its name says."""
        found = set()
        for path in (self.yard.store.folder / "sha256").iterdir():
            assert digest(path.read_bytes()) == path.name
            found.add(path.name)
        return found

    def trusted(self) -> dict[str, Any]:
        """As `trusted_by`."""
        return trusted_by(self.field)

    def check(self, before: dict[str, Any], after: Collection[dict[str, Any]]) -> None:
        """What holds whatever a stick did: nothing but what was signed was offered, kept or believed, and nothing of
        the stick is open or lies about.

        Args:
            before: What was trusted.
            after: What may be trusted once the kit was taken.
        """
        assert self.stored() <= self.stage.wanted
        offer = self.yard.under_way()
        assert offer is None or offer.release.digest == self.stage.brings.digest
        trusted = self.trusted()
        assert trusted == before or trusted in after, "neither what was trusted nor all that the kit brings"
        assert offer is None or trusted in after
        assert not self.yard.copies.exists() or not list(self.yard.copies.iterdir())
        assert not open_below(self._stick)


def trusted_by(field: Field) -> dict[str, Any]:
    """All that a machine's trust keeps, but for the number of its list of technicians: that one is its own."""
    kept = field.trusted()
    if ROSTER in kept:
        kept[ROSTER] = replace(decode(kept[ROSTER], Roster, limit=1 << 20), version=0)
    return kept


def open_below(folder: Path) -> list[str]:
    """Open files of this process below a folder."""
    found = []
    for number in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            path = number.readlink()
            if path.is_relative_to(folder):
                found.append(str(path))
    return found
