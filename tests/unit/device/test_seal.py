"""`state.seal`: what it holds, when it is written, and that one whole generation is always there."""

import contextlib
import errno

import pytest

from device import clock
from device.refusals import Refusal
from device.seal import Sealed, Seals, read
from device.state_db import StateDb
from device.update.memory import floors_of
from device.update.states import Held, UpdateRecord
from protocol.errors import Reason
from signing.durable import Disk
from tests.fakes.power import Fuse, PowerCut

OLD = Held(digest="aa" * 32, version="1.0.0", release_counter=1)
NEW = Held(digest="bb" * 32, version="1.1.0", release_counter=2)
REFUSAL = Refusal(manifest="cc" * 32, release="1.2.0", reason=Reason.GOLDEN, at_ms=5, detail="three of four differ")


class Recorder:
    """Counts what is written to the seal; a full disk after so many, when told so."""

    def __init__(self):
        self.written = []
        self.full_after = None

    def before(self, effect, path):
        if effect == "create":
            if len(self.written) == self.full_after:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.written.append(path.name)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def db(tmp_path, recorder):
    database = StateDb(tmp_path / "state.db", disk=Disk(recorder.before))
    recorder.written.clear()
    yield database
    database.close()


@pytest.fixture
def seals(tmp_path):
    return Seals(tmp_path / "state.db")


def commit(db, held=NEW, previous=OLD):
    db.write_record(UpdateRecord(active=held.digest, committed=held, previous=previous), floors=floors_of(held))


def test_a_commit_is_sealed_in_both_generations_before_anybody_hears_of_it(db, seals, recorder):
    commit(db)
    assert sorted(recorder.written) == ["state.seal.0", "state.seal.1"]
    for path in seals.paths:
        sealed = read(path)
        assert (sealed.committed, sealed.previous) == (NEW, OLD)
        assert sealed.floors == {"update/era": 0, "update/counter/0": 2}


def test_refusals_are_sealed_and_so_is_their_lifting(db, seals):
    db.write_record(UpdateRecord(), refusal=REFUSAL)
    assert [read(path).refusals for path in seals.paths] == [(REFUSAL,), (REFUSAL,)]
    db.lift_refusal("1.2.0")
    assert [read(path).refusals for path in seals.paths] == [(), ()]


def test_steps_that_change_nothing_of_it_write_no_seal(db, recorder):
    db.write_record(UpdateRecord(active=OLD.digest, committed=OLD))
    db.put("a fact", b"1")
    db.count("frames", 5)
    db.tell((), {"told": b"x"})
    assert recorder.written == []


def test_floors_that_rise_together_are_sealed_once_when_they_have_risen(db, seals, recorder):
    for number in range(20):
        db.raise_floor(f"image/role-{number}", 7)
    assert recorder.written == []
    db.seal()
    db.seal()
    assert len(recorder.written) == 1
    assert seals.newest().floors == {f"image/role-{number}": 7 for number in range(20)}


def test_the_floor_of_the_clock_is_sealed(db, seals):
    db.put(clock.KEY, b'{"floor_ms":1790000000000}')
    assert seals.newest().facts == {clock.KEY: '{"floor_ms":1790000000000}'}


def test_generations_take_turns_however_many_changes_lie_between(db, seals):
    before = 0
    for number in range(1, 8):
        for _ in range(number % 3 + 1):
            db.raise_floor("image/root", db.floor("image/root") + 1)
        db.seal()
        older, newest = sorted(read(path).serial for path in seals.paths)
        assert (older, newest) == (before, db.sealed().serial), "the newest is never the one that is written over"
        before = newest


def test_another_process_seals_what_is_newest(db, tmp_path, seals):
    other = StateDb(tmp_path / "state.db")
    db.raise_floor("image/root", 3)
    other.raise_floor("image/targets", 4)
    db.seal()
    other.seal()
    other.close()
    assert seals.newest().floors == {"image/root": 3, "image/targets": 4}


def test_a_refusal_stands_in_both_generations_although_another_process_seals_it_first(db, seals, tmp_path, monkeypatch):
    plain, others = StateDb.seal, []

    def later(self, *, both=False):
        if not others:
            others.append(StateDb(tmp_path / "state.db"))
            others[0].put("clock", b'{"floor_ms":1790000000000}')
        plain(self, both=both)

    monkeypatch.setattr(StateDb, "seal", later)
    with contextlib.ExitStack() as stack:
        db.write_record(UpdateRecord(), refusal=REFUSAL)
        stack.callback(others[0].close)
    assert [read(path).refusals for path in seals.paths] == [(REFUSAL,), (REFUSAL,)]


def test_what_another_process_seals_while_the_database_is_checked_is_no_damage(db, tmp_path, monkeypatch):
    """The keeper raises floors beside whoever asks for the status."""
    plain = StateDb.record

    def meanwhile(self):
        with contextlib.closing(StateDb(tmp_path / "state.db")) as keeper:
            keeper.raise_floor("image/root", 7)
            keeper.seal()
        return plain(self)

    monkeypatch.setattr(StateDb, "record", meanwhile)
    db.check()


def test_a_changed_byte_anywhere_leaves_the_other_generation(db, seals):
    db.raise_floor("image/root", 1)
    db.seal()
    commit(db)
    db.raise_floor("image/root", 2)
    db.seal()
    older, newest = sorted(seals.paths, key=lambda path: read(path).serial)
    whole = newest.read_bytes()
    for at in range(len(whole)):
        newest.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read(newest) is None
        assert seals.newest() == read(older)
        newest.write_bytes(whole[:at])
        assert seals.newest() == read(older)
    assert seals.newest().committed == NEW
    db.raise_floor("image/root", 3)
    newest.write_bytes(b"")
    db.seal()
    assert read(newest) is not None, "the damaged one is the one that is replaced"


@pytest.mark.parametrize("both", [False, True])
def test_a_cut_while_it_is_written_leaves_the_old_or_the_new(tmp_path, both):
    old = Sealed(format=1, schema=1, serial=4, committed=OLD)
    new = Sealed(format=1, schema=1, serial=5, committed=NEW)
    at, ended = 0, False
    while not ended:
        path = tmp_path / str(at)
        path.mkdir()
        Seals(path / "state.db").write(old, both=True)
        fuse = Fuse(at)
        try:
            Seals(path / "state.db", Disk(fuse.before)).write(new, both=both)
            ended = True
        except PowerCut:
            pass
        assert Seals(path / "state.db").newest() in ((old, new) if not ended else (new,))
        at += 1
    assert at > 5


@pytest.mark.parametrize("room", [0, 1])
def test_a_full_disk_stops_no_commit_and_the_seal_is_brought_up_later(db, seals, recorder, room):
    recorder.full_after = room
    commit(db)
    assert db.record().committed == NEW
    assert "No space" in db.seal_trouble
    assert seals.newest().committed == (NEW if room else None)
    recorder.full_after = None
    db.seal()
    assert db.seal_trouble == ""
    assert [read(path).committed for path in seals.paths] == [NEW, NEW]


def test_a_database_that_went_back_leaves_the_seal_that_shows_it(db, seals, tmp_path):
    commit(db, OLD, None)
    old = (tmp_path / "state.db").read_bytes(), (tmp_path / "state.db-wal").read_bytes()
    db.put("clock", b'{"floor_ms":1790000000000}')
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "state.db").write_bytes(old[0])
    (tmp_path / "back" / "state.db-wal").write_bytes(old[1])
    for path in seals.paths:
        (tmp_path / "back" / path.name).write_bytes(path.read_bytes())
    ahead = seals.newest()
    with contextlib.closing(StateDb(tmp_path / "back" / "state.db")) as back:
        back.seal(both=True)
    assert Seals(tmp_path / "back" / "state.db").newest() == ahead


def test_only_the_owner_may_read_it(db, seals):
    commit(db)
    assert all(path.stat().st_mode & 0o077 == 0 for path in seals.paths)
