"""The seal, and what it is for: a machine whose `state.db` is lost at the very worst moment, and making it anew."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from device import clock
from device.damage import kept
from device.layout import Layout
from device.refusals import Refusal
from device.repair.examine import CHECKS, examine
from device.repair.fault import Place
from device.rescue import KIND, open_state
from device.seal import Seals
from device.state_db import StateDb
from device.update.memory import floors_of
from device.update.states import Held, UpdateRecord
from protocol.errors import Reason
from protocol.wire import encode
from tests.fakes.updates import Release, noise
from tests.simulation.workload import Promises, leftovers

OLD = Release("1.0.0", 1, noise(100, 1))
NEW = Release("1.1.0", 2, noise(100, 2))
BAD = Release("1.2.0", 3, noise(100, 3))
FLOORS = {"image/root": 4, "image/timestamp/k1": 1_790_000_000, "image/timestamp/k2": 1_790_000_000}
CLOCK_MS = 1_790_000_000_000
GARBAGE = noise(40_000, 4)
AT_A_START = {name: CHECKS[name] for name in ("leftovers", "state-database", "seals")}


def enrolled(state: Path) -> None:
    """Makes the folder of a machine that once had a database: one that lacks it now has lost it."""
    (state / "identity").mkdir(parents=True, mode=0o700)
    (state / "identity/enrolment.json").write_text("{}")


def held(release: Release) -> Held:
    return Held(digest=release.digest, version=release.version, release_counter=release.counter)


def commit(db: StateDb, new: Release, old: Release | None) -> None:
    previous = held(old) if old is not None else None
    record = UpdateRecord(active=new.digest, committed=held(new), previous=previous)
    db.write_record(record, floors=floors_of(held(new)))


def opened(state: Path) -> StateDb:
    """As an agent that starts opens it."""
    layout, numbers = Layout(state), itertools.count(1)

    def draw() -> str:
        return f"{next(numbers):032x}"

    examine(Place(layout, draw, keep_free_bytes=0), mend=True, checks=AT_A_START)
    found = open_state(layout, draw_token=draw)
    assert found.isolated == "", found.isolated
    return found.state


class Sealing:
    """A machine changes what is sealed; the power goes, and takes the whole database with it."""

    name = "sealed"

    def prepare(self, home: Path) -> None:
        enrolled(home / "state")
        db = StateDb(home / "state/state.db")
        commit(db, OLD, None)
        db.close()

    def act(self, home: Path, promise: Promises) -> None:
        db = StateDb(home / "state/state.db")
        commit(db, NEW, OLD)
        promise("committed")
        for name, value in FLOORS.items():
            db.raise_floor(name, value)
        db.seal()
        promise("floors")
        record = db.record()
        refusal = Refusal(manifest=BAD.digest, release=BAD.version, reason=Reason.GOLDEN, at_ms=1)
        db.write_record(record, refusal=refusal)
        promise("refused")
        db.put(clock.KEY, encode(clock.ClockRecord(floor_ms=CLOCK_MS)))
        promise("clock")
        db.lift_refusal(BAD.version)
        promise("lifted")
        db.close()

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        for name in ("state.db", "state.db-wal", "state.db-shm"):
            (home / "state" / name).unlink(missing_ok=True)
        opened(home / "state").close()

    def check(self, home: Path, promised: Sequence[str]) -> None:
        db = StateDb(home / "state/state.db", create=False)
        try:
            db.check()
            committed = db.record().committed
            assert committed in (held(OLD), held(NEW))
            if "committed" in promised:
                assert committed == held(NEW), "what was committed is taken back"
            assert {name: db.floor(name) for name in floors_of(committed)} == floors_of(committed)
            if "floors" in promised:
                assert db.floors("image/") == FLOORS, "a floor fell"
            if "clock" in promised:
                assert clock.load(db).floor_ms == CLOCK_MS, "time fell"
            if "refused" in promised and "lifted" not in promised and len(promised) < 4:
                assert [refusal.release for refusal in db.refusals()] == [BAD.version], "a refusal is forgotten"
            if "lifted" in promised:
                assert db.refusals() == (), "a refusal came back"
            assert not db.is_recovering
        finally:
            db.close()
        assert leftovers(home / "state") == []


class Rebuilding:
    """A damaged database is made anew.

    Args:
        name: Of the workload.
        is_sealed: From its seal; else from what `active` names.
    """

    def __init__(self, name: str, *, is_sealed: bool) -> None:
        self.name = name
        self.is_sealed = is_sealed

    def prepare(self, home: Path) -> None:
        state = home / "state"
        enrolled(state)
        folder = state / "sets" / NEW.digest
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(NEW.manifest_bytes)
        (state / "sets/active").symlink_to(NEW.digest)
        db = StateDb(state / "state.db")
        commit(db, NEW, OLD)
        for name, value in FLOORS.items():
            db.raise_floor(name, value)
        db.seal()
        db.close()
        (state / "state.db").write_bytes(GARBAGE)
        if not self.is_sealed:
            for path in Seals(state / "state.db").paths:
                path.unlink()

    def act(self, home: Path, promise: Promises) -> None:
        db = opened(home / "state")
        promise("opened")
        db.close()

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        opened(home / "state").close()

    def check(self, home: Path, promised: Sequence[str]) -> None:
        path = home / "state/state.db"
        db = StateDb(path, create=False)
        try:
            db.check()
            record = db.record()
            assert record.committed == held(NEW)
            assert record.active == NEW.digest
            assert record.previous == (held(OLD) if self.is_sealed else None)
            assert db.floors("image/") == (FLOORS if self.is_sealed else {})
            assert {name: db.floor(name) for name in floors_of(held(NEW))} == floors_of(held(NEW))
            assert db.is_recovering is not self.is_sealed, "a machine without its floors knows that"
            assert [alert.kind for alert in db.pending_alerts(10)] == [KIND], "it is told, once"
            newest = Seals(path).newest()
            assert newest is not None
            assert newest == db.sealed()
        finally:
            db.close()
        assert [file.read_bytes() for file in kept(path)] == [GARBAGE], "the damaged file is kept"
        assert leftovers(home / "state") == []


def workloads() -> tuple[Sealing, Rebuilding, Rebuilding]:
    return Sealing(), Rebuilding("rebuilt", is_sealed=True), Rebuilding("rebuilt-from-link", is_sealed=False)
