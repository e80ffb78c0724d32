"""What must hold of kits, whoever carries them: no step back without a permit, and each permit once; nothing is begun
that a machine knows to be revoked, expired or for others; nobody forces but who may; and what was forced is told once.

It goes by what the people of the play did, and by the metadata that lies on the machine's disk.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from device.clock import ClockRecord
from device.clock import read as read_clock
from device.update.states import Held, State, UpdateRecord
from protocol.kits import PERMIT_DAYS, is_kit
from protocol.objects import TECHNICIANS
from tests.simulation.fleet.field import Field, Made

if TYPE_CHECKING:
    from tests.simulation.fleet.machine import Machine

THRESHOLD: Final = 2  # managers who sign a kit
LATE_MS: Final = 3_600_000  # between the judgement of an offer and what came of it, at most

Demand = Callable[[object, "Machine", str], None]


class KitChecker:
    """Of one play.

    Args:
        demand: Ends the play where something does not hold.
    """

    def __init__(self, demand: Demand) -> None:
        self._demand = demand
        self.field: Field | None = None
        self.used: dict[str, set[int]] = {}
        """When the permits were made that a machine used up."""
        self._wrongly_forced: set[str] = set()

    def stepped(
        self, machine: "Machine", before: UpdateRecord, record: UpdateRecord, floors: dict[str, int], clock: ClockRecord
    ) -> None:
        """The record of a machine is another.

        Args:
            machine: Whose.
            before: As it was.
            record: As it is.
            floors: As they were before that.
            clock: What the machine knows of time.
        """
        world, offer = machine.world, record.offer
        old, new = before.committed, record.committed
        if new is not None and old is not None and old != new:
            world.seen["kit-committed"] += before.offer is not None and is_kit(before.offer.rollout)
            if new.release_counter < old.release_counter:
                self._back(machine, before, new.digest)
            floor = floors.get(f"update/counter/{new.era}", 0)
            is_back = new.release_counter < max(old.release_counter, floor)
            by_permit = before.offer is not None and before.offer.permit_ms in self.used.get(machine.name, ())
            self._demand(not is_back or by_permit, machine, f"a step back to {new.version} without a permit")
        if offer is not None and before.offer != offer and self.field is not None:
            if is_kit(offer.rollout) and (before.offer is None or before.offer.rollout != offer.rollout):
                self._begun(machine, record, clock)
            if offer.forced is not None:
                self._forced(machine, offer.forced, offer.release)

    def _back(self, machine: "Machine", before: UpdateRecord, manifest: str) -> None:
        """It went back: it must have a permit for that, which was not used yet."""
        permit_ms = before.offer.permit_ms if before.offer is not None else 0
        permits = [] if self.field is None else self.field.permits
        used = self.used.setdefault(machine.name, set())
        holds = any(
            permit.device == machine.name
            and permit.manifest == manifest
            and permit.created_ms == permit_ms
            and permit.expires_ms - permit.created_ms <= PERMIT_DAYS * 86_400_000
            for permit in permits
        )
        self._demand(holds, machine, "a step back without a permit")
        self._demand(permit_ms not in used, machine, "a permit was good twice")
        used.add(permit_ms)
        machine.world.fault("stepped-back", machine.name)

    def _begun(self, machine: "Machine", record: UpdateRecord, clock: ClockRecord) -> None:
        assert record.offer is not None
        assert self.field is not None
        offer, released = record.offer, machine.air.house.released
        machine.world.seen["kit-begun"] += 1
        makers = self._makers(machine)
        reading = read_clock(clock, machine.here())

        def speaks_against(made: Made) -> str:
            if made.machines is not None and machine.name not in made.machines:
                return "it is for others"
            if len(made.signers & makers) < THRESHOLD:
                return "its signers may sign no kit any more, and the machine knows that"
            if reading.sure and made.expires_ms < machine.world.now_ms() - LATE_MS:
                return "it has expired"
            return ""

        found = [
            made
            for made in self.field.kits
            if made.kit == offer.rollout
            and any(released[f"{counter}.0.0"].release.digest == offer.release.digest for counter in made.counters)
        ]
        why = {speaks_against(made) for made in found}
        self._demand(found, machine, f"{offer.rollout} holds no {offer.release.version}")
        self._demand("" in why, machine, f"{offer.rollout} was begun: {sorted(why)}")

    def _makers(self, machine: "Machine") -> frozenset[str]:
        """Who may sign kits, by the newest director that the machine trusts."""
        assert self.field is not None
        version = _version(machine, "targets")
        return [names for since, names in self.field.makers if since <= version][-1]

    def _forced(self, machine: "Machine", request: str, release: Held) -> None:
        assert self.field is not None
        who, person, manifest = self.field.asked.get(request, ("", "nobody", ""))
        machine.world.seen["force-begun"] += 1
        known = self.field.lists.get(_version(machine, TECHNICIANS), {})
        entry = known.get(person)
        may = (
            who == machine.name
            and entry is not None
            and entry.may_force
            and (entry.machines is None or machine.name in entry.machines)
            and machine.world.now_ms() < entry.expires_ms + LATE_MS
        )
        self._demand(may, machine, f"{person} may not force, and did")
        self._demand(manifest == release.digest, machine, f"another was to be forced, and forced is {release.version}")

    def waits(self, machine: "Machine", record: UpdateRecord, offered: Collection[int]) -> None:
        """A kit is under way, and nobody has brought a stick for days.

        Args:
            machine: Whose.
            record: As it is.
            offered: Counters of good releases that the server rolls out, and that the machine has not given up.
        """
        if record.state is State.FETCH and machine.parts is not None:
            floor = machine.parts.state.floor("update/counter/0")
            better = [counter for counter in offered if counter > floor]
            self._demand(not better, machine, f"it waits for a stick, and the server has {better}")

    def final(self, machine: "Machine", catalog: sqlite3.Connection) -> None:
        """Everything has settled."""
        if self.field is None:
            return
        left = list(machine.layout.kits.iterdir()) if machine.layout.kits.is_dir() else []
        self._demand(not left, machine, "I7: copies of kits stay")
        told = {str(name) for (name,) in catalog.execute("SELECT id FROM forces WHERE device = ?", (machine.name,))}
        asked = {request for request, (who, _, _) in self.field.asked.items() if who == machine.name}
        self._demand(told <= asked, machine, "a force was told that nobody asked for")
        lost = sorted(self.field.forced & asked - told)
        self._demand(not lost, machine, f"{len(lost)} forces were carried out, and never told")
        events: Counter[str] = Counter(
            str(detail)
            for (detail,) in catalog.execute(
                "SELECT detail FROM events WHERE kind = 'forced' AND device = ?", (machine.name,)
            )
        )
        self._demand(events.total() == len(told), machine, f"{len(told)} forces, and {events.total()} events of them")


def _version(machine: "Machine", role: str) -> int:
    path = machine.layout.state / "trust" / "director" / f"{role}.json"
    return int(json.loads(path.read_bytes())["signed"]["version"]) if path.is_file() else 0
