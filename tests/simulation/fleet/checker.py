"""What must hold of every machine after every step, and of all when calm weather has come: I1 to I10 of ATTACKS.md.

It reads what lies on the disk, on connections of its own, and asks no code of the product whose word it would have to
believe. After each transaction: what never falls (I4), what may follow what (I6). After each cut, and every few hours:
pointer and files (I1, I2), rows (I3), disk (I7), the trust store (I10). At the end: all of it, and that everybody has
the best release that it may have, each end told once (I5, I9), each row at the server once.
"""

import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device.clock import KEY as CLOCK_KEY
from device.clock import ClockRecord, Reading
from device.clock import read as read_clock
from device.trust.port import Verdict
from device.update.ports import ReleaseSet
from device.update.states import NEXT, State, UpdateRecord
from protocol import limits
from protocol.errors import Reason, Refused
from protocol.messages import UpdateStatus
from protocol.objects import TECHNICIANS
from protocol.release import parse_manifest
from protocol.selection import needed_artifacts, select_variants
from protocol.wire import decode
from server.rollouts import NO_EVIDENCE
from signing.trust_store import DirectorStore, ImageStore, MemoryFloors
from tests.simulation.fleet.engine import images_of, specs_of
from tests.simulation.fleet.kit_checker import KitChecker
from tests.simulation.fleet.power import _REAL_CONNECT, Plug
from tests.simulation.fleet.releases import GOOD, PRODUCT, RULES, Made
from tests.simulation.fleet.world import World

if TYPE_CHECKING:
    from tests.simulation.fleet.machine import LostRange, Machine

MAY_FOLLOW = frozenset((before, after) for (before, _), after in NEXT.items()) | {(state, state) for state in State}
"""As the table stands when this is imported: a fault that is planted in it later is seen."""

AGE_MS = limits.TIME_STATEMENT_AGE_S * 1000
DISK_BYTES = 20 * limits.MIB  # three releases of the largest kind, parts of one, 300 roots twice, the outbox's budget
EVIDENCE = frozenset(
    {
        Reason.GOLDEN,
        Reason.TRIAL_GOLDEN,
        Reason.TRIAL_CRASH,
        Reason.TRIAL_ERRORS,
        Reason.TRIAL_LATENCY,
        Reason.TRIAL_CONTAINER,
        Reason.MODEL_LOAD,
    }
)
WATCHED = (
    "SELECT name, value FROM floors",
    "SELECT manifest FROM refusals",
    f"SELECT key, value FROM facts WHERE key IN ('update/record', '{CLOCK_KEY}')",
)
"""What is looked at in `state.db` after each transaction."""
FAILED = ("refused", "rolled-back")
FINAL = ("committed", *FAILED)
COUNTER = "update/counter/0"


class BrokenError(AssertionError):
    """An invariant does not hold."""


@dataclass
class Known:
    """What was seen of one machine so far."""

    rows: tuple[tuple[Any, ...], ...] = ()
    floors: dict[str, int] = field(default_factory=dict)
    clock: ClockRecord = field(default_factory=ClockRecord)
    record: UpdateRecord = field(default_factory=UpdateRecord)
    refused: set[str] = field(default_factory=set)
    digests: dict[tuple[int, int, int], str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    tries: Counter[tuple[str, str]] = field(default_factory=Counter)
    ends: set[tuple[str, str, str, str]] = field(default_factory=set)
    kills: Counter[tuple[int, int]] = field(default_factory=Counter)
    offers: int = 0
    evidence: set[str] = field(default_factory=set)


class Checker:
    """Looks at everything in one play.

    Args:
        world: Time and log.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._known: dict[str, Known] = {}
        self._at_server: dict[str, list[str]] = {}
        self._last_row = 0
        self._held: dict[str, tuple[Plug, int, sqlite3.Connection]] = {}
        self.steps = 0
        self.kits = KitChecker(self._demand)

    def state_of(self, machine: "Machine") -> State:
        """As its record says."""
        return self._known.setdefault(machine.name, Known()).record.state

    def has_given_up(self, machine: "Machine", manifest: str) -> bool:
        """Whether it ended a release unfinished more often than the release has it tried again."""
        tried = self._known.setdefault(machine.name, Known()).record.tried
        return any(one.release == manifest and one.count > RULES.max_retries for one in tried)

    # After each transaction

    def committed(self, machine: "Machine", database: str) -> None:
        self.steps += 1
        if database == "state.db":
            self._state(machine)

    def _state(self, machine: "Machine") -> None:
        known = self._known.setdefault(machine.name, Known())
        with self._state_db(machine) as db:
            rows = tuple(tuple(db.execute(query)) for query in WATCHED)
        if rows == known.rows:
            return
        known.rows = rows
        floors = {str(name): int(value) for name, value in rows[0]}
        refused = {str(name) for (name,) in rows[1]}
        facts = {str(key): bytes(value) for key, value in rows[2]}
        for name, value in known.floors.items():
            self._demand(floors.get(name, 0) >= value, machine, f"I4: floor {name} fell from {value}")
        clock = decode(facts[CLOCK_KEY], ClockRecord, limit=limits.MIB) if CLOCK_KEY in facts else ClockRecord()
        self._clock(machine, known.clock, clock)
        self._demand(refused >= known.refused, machine, "I6: a refusal was forgotten")
        wrongly = [name for name in refused - known.refused if self._is_good(machine, name)]
        self._demand(not wrongly, machine, "a good release is remembered as refused")
        if "update/record" in facts:
            record = decode(facts["update/record"], UpdateRecord, limit=limits.MIB)
            self._record(machine, known, record, refused, floors)
            self.kits.stepped(machine, known.record, record, known.floors, clock)
            known.record = record
        known.floors, known.clock, known.refused = floors, clock, refused

    @contextmanager
    def _state_db(self, machine: "Machine") -> Iterator[sqlite3.Connection]:
        """While the agent holds the database open itself, one connection stays open to it until the end of the life:
        to be the last that closes would fold the log into the file, which is the product's to do."""
        path, plug = machine.layout.state_db, machine.plug
        if plug is None or plug.dead or machine.parts is None:
            with _reading(path) as connection:
                yield connection
            return
        held = self._held.get(machine.name)
        if held is None or held[:2] != (plug, path.stat().st_ino):
            held = plug, path.stat().st_ino, _open(path)
            self._held[machine.name] = held
            plug.keep(held[2])
        yield held[2]

    def _clock(self, machine: "Machine", before: ClockRecord, after: ClockRecord) -> None:
        rotated = not set(before.keyids) & set(after.keyids)
        self._demand(
            rotated or after.floor_ms >= before.floor_ms, machine, f"I4: time fell from {before.floor_ms} by itself"
        )
        late = self._world.now_ms() + AGE_MS
        self._demand(after.floor_ms <= late, machine, "a wall clock left a trace: the floor of time is in the future")

    def _record(
        self, machine: "Machine", known: Known, record: UpdateRecord, refused: set[str], floors: dict[str, int]
    ) -> None:
        before = known.record
        step = (before.state, record.state)
        if step[0] is not step[1]:
            name = record.offer.release.version if record.offer is not None else ""
            self._world.log(machine.name, f"{step[0]} -> {step[1]} {name} {record.paused[:40]}".rstrip())
            machine.stepped(record.state)
        self._demand(step in MAY_FOLLOW, machine, f"a state was skipped: {step[0]} -> {step[1]}")
        if record.committed is not None:
            counter = floors.get(f"update/counter/{record.committed.era}", 0)
            self._demand(counter >= record.committed.release_counter, machine, "I4: committed above its floor")
            kind = machine.air.house.released[record.committed.version].kind
            self._demand(kind in GOOD, machine, f"a release that is {kind} was kept")
        if step == (State.TRIAL, State.COMMIT) and machine.sees_engine and record.committed is not None:
            ran = machine.engine.running()
            wanted = specs_of(self._made(machine, record.committed.digest))
            self._demand(ran == wanted, machine, f"a verdict on a mixed set: there ran {ran}")
        if before.last != record.last and record.last is not None and step[0] is not step[1]:
            self._world.seen[f"ended-{record.last.reason or record.last.outcome}"] += 1
        if before.last != record.last and record.last is not None and record.last.reason in EVIDENCE:
            known.evidence.add(record.last.release.digest)
        if before.last != record.last and record.last is not None:
            ended = record.last
            known.ends.add((ended.rollout, ended.release.digest, ended.outcome, ended.reason or ""))
            self._demand(
                not _speaks_against(ended.outcome, ended.reason) or not self._is_good(machine, ended.release.digest),
                machine,
                f"a good release was {ended.outcome}: {ended.reason} {ended.detail}",
            )
        self._demand(known.evidence <= refused, machine, "I6: what was refused on evidence is not remembered")
        if record.state is State.TRIAL and record.offer is not None:
            name = record.offer.release.digest
            self._demand(name not in known.refused, machine, "I6: a refused release is on trial again")
            if step[0] is not State.TRIAL:
                offer = name, record.offer.rollout
                known.tries[offer] += 1
                # A trial that gave way to another release is not counted by the machine.
                most = record.offer.trial.max_retries + len(machine.air.house.released)
                self._demand(known.tries[offer] <= most, machine, f"I6: it flaps: {known.tries[offer]} trials")
            else:
                self._demand(
                    (record.healthy_s, record.inferences) >= (before.healthy_s, before.inferences),
                    machine,
                    f"a trial of {before.healthy_s:.0f} healthy seconds has {record.healthy_s:.0f} after a start",
                )
        if record.state is State.FETCH and before.offer != record.offer:
            known.offers += 1

    def killed(self, machine: "Machine") -> None:
        """A release took it down."""
        record = self._known[machine.name].record
        assert record.offer is not None
        attempt = self._known[machine.name].offers, record.retries
        kills = self._known[machine.name].kills
        kills[attempt] += 1
        most = record.offer.trial.max_failed_starts + 1
        self._demand(kills[attempt] <= most, machine, f"I5: one attempt took it down {kills[attempt]} times")

    # When a machine lost power, and before it starts

    def cut(self, machine: "Machine") -> None:
        self._disk(machine)
        self._trust(machine)

    def booted(self, machine: "Machine") -> None:
        """Power is on; nothing has run yet."""
        self._state(machine)

    def looked(self, machine: "Machine") -> None:
        """It has been on for a while."""
        self._disk(machine)
        record = self._known[machine.name].record
        workers = machine.workers
        self._demand(workers is not None, machine, "I8: no inference five minutes after the start")
        assert workers is not None
        if record.committed is not None and record.state not in (State.TRIAL, State.ROLLBACK, State.COMMIT):
            serving = workers.digest
            self._demand(serving == record.active, machine, "I8: the workers do not serve what the record names")

    def _disk(self, machine: "Machine") -> None:
        self.steps += 1
        known = self._known.setdefault(machine.name, Known())
        state = machine.layout.state
        # I1, I2
        for name in {known.record.active} | {_link(state / "sets/active")} - {None}:
            if name is not None:
                self._release(machine, known, name)
        link = _link(state / "sets/active")
        self._demand(
            link is None or link in _named(known.record), machine, "I1: `active` names what the record does not"
        )
        self._rows(machine)
        used = sum(found.st_size for _, found in _files(state))
        self._demand(used <= DISK_BYTES, machine, f"I7: {used} bytes on the disk")

    def _release(self, machine: "Machine", known: Known, name: str) -> None:
        store = machine.layout.store / "sha256"
        self._demand((store / name).exists(), machine, "I1: the manifest of a release is gone")
        data = (store / name).read_bytes()
        self._demand(hashlib.sha256(data).hexdigest() == name, machine, "I1: a manifest is not what it was")
        manifest = parse_manifest(data)
        from tests.simulation.fleet.machine import INVENTORY

        for artifact in needed_artifacts(manifest, select_variants(manifest, INVENTORY), {}):
            self._demand(
                _is_whole(known, store / artifact.sha256, artifact.sha256),
                machine,
                f"I1: {manifest.version} is not whole",
            )
        folder = machine.layout.state / "sets" / name
        if folder.is_dir():
            wanted = {artifact.sha256 for artifact in manifest.artifacts()} | {name}
            for path, _ in _files(folder):
                found = _digest(known, path)
                self._demand(found in wanted, machine, f"I2: {path.name} in the set of {manifest.version}")

    def _rows(self, machine: "Machine") -> None:
        """I3: what was promised is here, or at the server, or counted as lost."""
        if not machine.promised:
            return
        with _reading(machine.layout.outbox_db) as db:
            here = {bytes(body).decode() for (body,) in db.execute("SELECT body FROM rows")}
            told: list[LostRange] = db.execute(
                'SELECT token, lane, "first", "last" FROM losses JOIN epochs ON losses.epoch = epochs.no'
            ).fetchall()
        there = self._server_rows(machine)
        gone = self._gone(machine, machine.promised.keys() - here - there.keys(), told)
        self._demand(not gone, machine, f"I3: promised rows are gone: {_heads(gone)}")

    def _gone(self, machine: "Machine", missing: Collection[str], told: "Iterable[LostRange]" = ()) -> list[str]:
        """Of these promised rows those that are not told as lost, by their own numbers: neither in `told`, nor at the
        server, which keeps what the machine may forget."""
        gone = [row for row in missing if not machine.promised[row].is_in(told)]
        if not gone:
            return []
        with _reading(machine.air.house.state / "catalog.db") as db:
            kept: list[LostRange] = db.execute(
                'SELECT epoch, lane, "first", "last" FROM lost_ranges WHERE device = ?', (machine.name,)
            ).fetchall()
        return [row for row in gone if not machine.promised[row].is_in(kept)]

    def _server_rows(self, machine: "Machine") -> Counter[str]:
        house = machine.air.house
        with _reading(house.state / "catalog.db") as db:
            for row, device, body in db.execute(
                "SELECT id, device, body FROM results WHERE id > ? ORDER BY id", (self._last_row,)
            ):
                self._at_server.setdefault(str(device), []).append(bytes(body).decode())
                self._last_row = int(row)
        return Counter(self._at_server.get(machine.name, []))

    def _trust(self, machine: "Machine") -> None:
        """I10. And versions never fall, except under other keys, of which these plays have none."""
        known = self._known.setdefault(machine.name, Known())
        state = machine.layout.state
        roots = {kind: (state / "identity" / f"{kind}.root.json").read_bytes() for kind in ("image", "director")}
        image = ImageStore(state / "trust" / "image", roots["image"], MemoryFloors(), product=PRODUCT)
        director = DirectorStore(state / "trust" / "director", roots["director"], MemoryFloors())
        try:
            found = image.stored(), director.stored()
            versions = {f"image/{role}": number for role, number in image.versions().items()}
            versions |= {f"director/{role}": number for role, number in director.versions().items()}
        except Refused as error:
            self._demand(False, machine, f"I10: the trust store does not load: {error}")
            raise
        self._demand(None not in found or not known.versions, machine, "I10: the trust store is empty")
        for role, number in known.versions.items():
            # A list of technicians may be missing until the next refresh: nobody may force then.
            least = number if role != f"director/{TECHNICIANS}" or role in versions else 0
            self._demand(versions.get(role, 0) >= least, machine, f"I4: {role} fell from {number}")
        known.versions |= versions

    # In between

    def serves(self, machine: "Machine", release: ReleaseSet) -> None:
        """Workers took a release up."""
        known = self._known[machine.name]
        allowed = _named(known.record)
        self._demand(release.digest in allowed, machine, f"I2: {release.manifest.version} serves without a record")
        self._world.log(machine.name, f"serves {release.manifest.version}")

    def judged(self, machine: "Machine", verdict: Verdict) -> None:
        """The keeper has judged an answer."""
        self.steps += 1
        complaints = sorted({f"{one.what}/{one.reason}" for one in verdict.complaints})
        self._world.log(machine.name, f"judged: {'may install' if verdict.may_install else 'waits'} {complaints}")
        for complaint in complaints:
            self._world.seen[f"judged-{complaint.partition('/')[2]}"] += 1
        known = self._known[machine.name]
        reading: Reading = read_clock(known.clock, machine.here())
        true_ms = self._world.now_ms()
        if reading.sure:
            off_ms = reading.ms - true_ms
            self._demand(-1000 <= off_ms <= AGE_MS, machine, f"sure time is {off_ms} ms off")
        if verdict.may_install:
            self._demand(reading.sure, machine, "it may install by a time that is not sure")
            for name, expires in _expiries(machine.layout.state / "trust").items():
                self._demand(
                    expires > datetime.fromtimestamp(true_ms / 1000, UTC),
                    machine,
                    f"{name} has expired, and was let in",
                )

    def labelled(self, machine: "Machine", label: str | None, before: Mapping[str, Any]) -> None:
        """A frame was inferred, and its result names this release; nothing happened to the engine that nobody saw."""
        if label is None:
            return
        made = self._made(machine, label)
        self._world.seen["labelled"] += 1
        self._world.seen["labelled-with-containers"] += bool(made.release.containers)
        for ran in (before, machine.engine.running()):
            self._demand(ran == specs_of(made), machine, f"I1: a row names {made.release.version}, and there ran {ran}")

    def _made(self, machine: "Machine", manifest: str) -> Made:
        (made,) = (made for made in machine.air.house.released.values() if made.release.digest == manifest)
        return made

    # When calm weather has been for a while

    def final(self, machines: "list[Machine]", shown: dict[str, Any]) -> None:
        """Everything has settled.

        Args:
            machines: All of them.
            shown: What the server shows to people: `rollouts`, `releases`, `devices`.
        """
        listed = {one["version"] for one in shown["releases"] if one["listed"]}
        devices = {one["device"]: one for one in shown["devices"]}
        for machine in machines:
            self._disk(machine)
            self._trust(machine)
            record = self._known[machine.name].record
            self._best(machine, record, shown["rollouts"], listed)
            self._tidy(machine, record)
            self._whole(machine, record)
            self._told(machine)
            self._counted(machine, devices[machine.name])
            with _reading(machine.air.house.state / "catalog.db") as db:
                self.kits.final(machine, db)

    def _best(self, machine: "Machine", record: UpdateRecord, rollouts: Any, listed: set[str]) -> None:
        released = machine.air.house.released
        committed = record.committed
        self._demand(committed is not None, machine, "nothing is committed")
        assert committed is not None
        self._demand(record.active == committed.digest, machine, "what is active is not what is committed")
        halted = [
            one["name"]
            for one in rollouts
            if one["state"] == "halted" and one["release"] in listed and released[one["release"]].kind in GOOD
        ]
        self._demand(not halted, machine, f"rollouts of good releases were halted, and by nobody: {halted}")
        offered = {
            one["release"]
            for one in rollouts
            if one["state"] == "active" and one["release"] in listed and released[one["release"]].kind in GOOD
        }
        counters = [released[version].release.counter for version in offered]
        best = max((counter for counter in counters if counter >= machine.air.house.floor), default=0)
        # Where the managers let it go back it stays, until there is a newer one than it had.
        went_back = bool(self.kits.used.get(machine.name)) and self._known[machine.name].floors.get(COUNTER, 0) >= best
        self._demand(
            committed.release_counter >= best or went_back,
            machine,
            f"it ends on {committed.version}; the best that it may have is {best}.0.0",
        )

    def _tidy(self, machine: "Machine", record: UpdateRecord) -> None:
        """Nothing is left behind by updates and cuts."""
        state = machine.layout.state
        parts = list((state / "store" / "parts").iterdir())
        self._demand(not parts, machine, "I7: parts of a download stay")
        kept = {held.digest for held in (record.committed, record.previous) if held is not None}
        manifests = [parse_manifest((state / "store" / "sha256" / name).read_bytes()) for name in sorted(kept)]
        wanted = kept | {artifact.sha256 for manifest in manifests for artifact in manifest.artifacts()}
        here = {path.name for path in (state / "store" / "sha256").iterdir()}
        self._demand(here <= wanted, machine, f"I7: {len(here - wanted)} files in the store that nothing names")
        sets = {path.name for path in (state / "sets").iterdir()} - {"active"}
        self._demand(sets <= kept, machine, f"I7: {len(sets - kept)} sets of releases that nothing names")
        left = list(state.rglob(".tmp-*"))
        self._demand(not left, machine, f"I7: temporary files stay in {sorted(path.parent.name for path in left)}")

    def _whole(self, machine: "Machine", record: UpdateRecord) -> None:
        """Exactly the containers of what is committed run, and the engine holds nothing else of ours."""
        assert record.committed is not None
        wanted = specs_of(self._made(machine, record.committed.digest))
        ran = machine.engine.running()
        self._demand(ran == wanted, machine, f"I1: {record.committed.version} is committed, and there run {ran}")
        self._demand(len(machine.engine.made) == len(wanted), machine, "I7: a container stays that nothing names")
        held = [one for one in (record.committed, record.previous) if one is not None]
        images = {image for one in held for image in images_of(self._made(machine, one.digest))}
        self._demand(machine.engine.marked <= images, machine, "I7: an image stays in the engine that nothing names")

    def _told(self, machine: "Machine") -> None:
        """I9."""
        ends: Counter[tuple[str, str]] = Counter()
        said = []
        told = set()
        with _reading(machine.air.house.state / "catalog.db") as db:
            for (body,) in db.execute("SELECT body FROM statuses WHERE device = ?", (machine.name,)):
                status = decode(str(body).encode(), UpdateStatus, limit=limits.MIB)
                told.add((status.rollout, status.manifest, status.outcome or "", status.reason or ""))
                # What says nothing against the release is no end of it: the next contact may mend it.
                if status.outcome in FINAL and status.reason not in NO_EVIDENCE:
                    ends[status.rollout, status.manifest] += 1
                    said.append(f"{status.rollout} {status.outcome} {status.reason}")
                self._demand(
                    not _speaks_against(status.outcome, status.reason) or not self._is_good(machine, status.manifest),
                    machine,
                    f"a good release was told to be {status.outcome}: {status.reason}",
                )
        # A release of which content was lost is installed once more.
        often = 1 + machine.engine.images_lost + len(self.kits.used.get(machine.name, ()))
        doubled = [rollout for (rollout, _), count in ends.items() if count > often]
        self._demand(not doubled, machine, f"I9: told more than once as final: {doubled}: {said}")
        unheard = sorted(self._known[machine.name].ends - told)
        self._demand(not unheard, machine, f"I9: ended, and never told: {unheard}")

    def _counted(self, machine: "Machine", shown: dict[str, Any]) -> None:
        """Produced = ingested + lost, each once."""
        there = self._server_rows(machine)
        doubled = [row for row, count in there.items() if count > 1]
        self._demand(not doubled, machine, f"I3: rows came twice: {_heads(doubled)}")
        produced = machine.parts.outbox.produced() if machine.parts is not None else 0
        self._demand(not shown["set_apart"], machine, f"it was taken for a clone: {shown['set_apart']}")
        with _reading(machine.air.house.state / "catalog.db") as db:
            why = db.execute(
                "SELECT what, detail FROM events WHERE kind = 'clone' AND device = ? ORDER BY what", (machine.name,)
            ).fetchall()
        # Somebody may have vouched for it since. Each copy gives one reason by its token, and perhaps one by its rows.
        most = max(Counter(what for what, _ in why).values(), default=0)
        self._demand(most <= machine.air.copies, machine, f"it was taken for a clone: {why}")
        lost = sum(shown["lost"].values())
        ingested = sum(there.values())
        self._world.seen["rows"] += ingested
        self._world.seen["rows-lost"] += lost
        self._demand(produced == ingested + lost, machine, f"I3: {produced} produced, {ingested} there, {lost} lost")
        gone = self._gone(machine, machine.promised.keys() - there.keys())
        self._demand(not gone, machine, f"I3: promised rows never came, and are not told as lost: {_heads(gone)}")

    def _is_good(self, machine: "Machine", manifest: str) -> bool:
        return any(
            made.release.digest == manifest and made.kind in GOOD for made in machine.air.house.released.values()
        )

    def _demand(self, holds: object, machine: "Machine", what: str) -> None:
        if not holds:
            # Noted before it is raised, for it is raised in the midst of the product, which may catch it.
            broken = BrokenError(f"{machine.name}: {what}")
            self._world.break_off(broken)
            raise broken


def _speaks_against(outcome: str | None, reason: Reason | None) -> bool:
    """Whether this end of an update says that the release is bad."""
    return outcome in FAILED and reason not in NO_EVIDENCE


def _heads(rows: Iterable[str]) -> list[str]:
    return sorted(row[:60] for row in rows)[:3]


def _open(path: Path) -> sqlite3.Connection:
    return _REAL_CONNECT(f"file:{path}?mode=ro", uri=True, timeout=1)


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    connection = _open(path)
    try:
        yield connection
    finally:
        connection.close()


def _named(record: UpdateRecord) -> set[str]:
    held = (record.committed, record.previous, record.offer.release if record.offer is not None else None)
    return {one.digest for one in held if one is not None} | ({record.active} if record.active else set())


def _link(path: Path) -> str | None:
    try:
        return path.readlink().name
    except OSError:
        return None


def _files(folder: str | Path) -> Iterator[tuple[Path, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path), entry.stat(follow_symlinks=False)


def _is_whole(known: Known, path: Path, name: str) -> bool:
    try:
        return _digest(known, path) == name
    except OSError:
        return False


def _digest(known: Known, path: Path) -> str:
    """Hashed once for each time that the file changed."""
    found = path.stat()
    stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
    if stamp not in known.digests:
        known.digests[stamp] = hashlib.sha256(path.read_bytes()).hexdigest()
    return known.digests[stamp]


def _expiries(trust: Path) -> dict[str, datetime]:
    found = {}
    for kind in ("image", "director"):
        for path in (trust / kind).glob("*.json"):
            signed = json.loads(path.read_bytes())["signed"]
            if path.stem == TECHNICIANS:
                continue  # a list that has expired stops nothing but forcing
            found[f"{kind}/{path.stem}"] = datetime.fromisoformat(signed["expires"].replace("Z", "+00:00"))
    return found
