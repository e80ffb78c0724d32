"""A damaged `state.db`: what it must never lose comes back from the seal, and nothing is guessed about floors."""

import contextlib
import errno
import hashlib
import itertools
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from device import clock
from device.damage import KEPT_FILES, StateDamagedError, kept, set_aside
from device.layout import Layout
from device.recovery import FLOORS_DUE
from device.refusals import Refusal
from device.rescue import REBUILT, open_for_reading, open_state, read_rebuilt, why_unusable
from device.seal import Seals, read
from device.state_db import StateDb
from device.update.memory import Memory, floors_of
from device.update.rules import Floor
from device.update.states import Held, State, UpdateRecord
from protocol.artifact import Artifact
from protocol.errors import Reason, StateError
from protocol.messages import Alert, UpdateStatus
from protocol.release import Config, ReleaseManifest
from protocol.wire import encode
from signing.durable import Disk
from tests.fakes.power import Fuse, PowerCut

MANIFEST = encode(
    ReleaseManifest(
        format=1,
        product="pest-detector",
        version="1.1.0",
        release_counter=5,
        created_ms=1,
        models=(),
        configs=(
            Config(name="c", artifact=Artifact(sha256="0" * 64, length_bytes=1, media_type="application/octet-stream")),
        ),
    )
)
LINKED = Held(digest=hashlib.sha256(MANIFEST).hexdigest(), version="1.1.0", release_counter=5)
OLD = Held(digest="aa" * 32, version="9.9.8", release_counter=98)
COMMITTED = Held(digest="bb" * 32, version="9.9.9", release_counter=99)
REFUSAL = Refusal(manifest="cc" * 32, release="9.9.7", reason=Reason.GOLDEN, at_ms=5, detail="one of four differs")
FLOORS = {"image/root": 3, "image/timestamp/k1": 1_790_000_000, "update/era": 0, "update/counter/0": 99}
CLOCK = encode(clock.ClockRecord(floor_ms=1_790_000_000_000))


def tokens():
    numbers = itertools.count(1)
    return lambda: f"{next(numbers):032x}"


def opened(layout, **more):
    return open_state(layout, draw_token=tokens(), **more)


@pytest.fixture
def layout(tmp_path):
    layout = Layout(tmp_path / "machine")
    folder = layout.state / "sets" / LINKED.digest
    folder.mkdir(parents=True)
    layout.run.mkdir()
    (folder / "manifest.json").write_bytes(MANIFEST)
    layout.active.symlink_to(LINKED.digest)
    state = StateDb(layout.state_db)
    live(state)
    state.close()
    return layout


def live(state):
    """A machine that was in use: an old release refused, one committed, an update under way, words to tell."""
    state.write_record(UpdateRecord(), refusal=REFUSAL)
    state.write_record(
        UpdateRecord(state=State.IDLE, active=COMMITTED.digest, committed=COMMITTED, previous=OLD),
        floors=floors_of(COMMITTED),
    )
    for name in ("image/root", "image/timestamp/k1"):
        state.raise_floor(name, FLOORS[name])
    state.put(clock.KEY, CLOCK)
    state.put("contact", b'{"sync_token":"%032d"}' % 7, seal=True)
    state.tell([UpdateStatus(id="0" * 32, manifest=OLD.digest, rollout="spring", state="fetch", at_ms=5)], {})
    state.add_alert(Alert(id="1" * 32, kind="stale-metadata", at_ms=5))
    state.count("frames_inferred", 12)


def holds(state):
    """What must be there after any damage that left the seal."""
    record = state.record()
    assert (record.active, record.committed, record.previous) == (COMMITTED.digest, COMMITTED, OLD)
    assert {name: state.floor(name) for name in FLOORS} == FLOORS
    assert state.refusals() == (REFUSAL,)
    assert clock.load(state).floor_ms == 1_790_000_000_000


def logs(layout):
    return [layout.state_db.with_name(f"state.db{suffix}") for suffix in ("-wal", "-shm")]


def unseal(layout):
    for path in Seals(layout.state_db).paths:
        path.unlink()


def garbage(layout):
    layout.state_db.write_bytes(random.Random(20261123).randbytes(layout.state_db.stat().st_size))


def truncated(layout):
    data = layout.state_db.read_bytes()
    layout.state_db.write_bytes(data[: len(data) // 2])


def torn(layout):
    data = layout.state_db.read_bytes()
    layout.state_db.write_bytes(data[:-100])


def emptied(layout):
    layout.state_db.write_bytes(b"")


def deleted(layout):
    layout.state_db.unlink()


def overwritten(layout):
    data = bytearray(layout.state_db.read_bytes())
    data[4096:8192] = bytes(4096)
    layout.state_db.write_bytes(data)


def other_record(layout):
    change(layout, "UPDATE facts SET value = '{}' WHERE key = 'update/record'")


def lower_floor(layout):
    change(layout, "UPDATE floors SET value = 98 WHERE name = 'update/counter/0'")


def lost_floor(layout):
    change(layout, "DELETE FROM floors WHERE name = 'image/root'")


def lost_refusal(layout):
    change(layout, "DELETE FROM refusals")


def lost_table(layout):
    change(layout, "DROP TABLE floors")


def change(layout, statement):
    connection = sqlite3.connect(layout.state_db)
    connection.execute(statement)
    connection.commit()
    connection.close()


DAMAGES = [
    garbage,
    truncated,
    torn,
    emptied,
    deleted,
    overwritten,
    other_record,
    lower_floor,
    lost_floor,
    lost_refusal,
    lost_table,
]


def test_a_whole_database_is_the_one_that_counts(layout):
    found = opened(layout)
    assert found.isolated == ""
    holds(found.state)
    assert found.state.counters() == {"frames_inferred": 12}
    assert read_rebuilt(found.state) is None
    found.state.close()
    assert kept(layout.state_db) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_the_damage_it_is_rebuilt_from_its_seal_and_reported(layout, damage):
    damage(layout)
    before = layout.state_db.read_bytes() if layout.state_db.exists() else b""
    found = opened(layout)
    assert found.isolated == "", "a machine with its floors may go on meeting the server"
    holds(found.state)
    assert not found.state.is_recovering
    assert found.state.get("contact") is None, "no token is shown that may have been used"
    assert found.state.get(FLOORS_DUE) is not None, "the keeper raises them to the stored metadata"
    rebuilt = read_rebuilt(found.state)
    assert rebuilt.source == "seal"
    (alert,) = found.state.pending_alerts(10)
    assert alert.kind == "state-damaged"
    assert alert.detail == rebuilt.line()
    if before or damage is emptied:
        (file,) = kept(layout.state_db)
        assert file.name == rebuilt.kept
        assert file.read_bytes() == before
    found.state.close()
    again = opened(layout)
    holds(again.state)
    assert len(again.state.pending_alerts(10)) == 1, "a rebuilt database is whole"
    again.state.close()


def test_no_flipped_bit_anywhere_lowers_a_floor_or_changes_what_runs(layout):
    whole = layout.state_db.read_bytes()
    draw = random.Random(20261123)
    # The header and the beginnings of pages, where the structure is; and wherever anything stands.
    spots = [*range(100), *(page + at for page in range(0, len(whole), 4096) for at in range(0, 24, 3))]
    spots += draw.sample([at for at, byte in enumerate(whole) if byte], 800)
    damaged = 0
    for at in spots:
        for log in logs(layout):
            log.unlink(missing_ok=True)
        layout.state_db.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        state = None
        try:
            state = StateDb(layout.state_db, create=False)
            state.check()
            holds(state)
        except StateDamagedError:  # and so it is rebuilt, as after every other damage
            damaged += 1
        finally:
            if state is not None:
                state.close()
    assert len(spots) // 2 < damaged < len(spots)


@pytest.mark.parametrize("loss", ["deleted", "emptied", "torn", "garbage"])
def test_a_lost_log_is_seen_by_the_seal_and_no_used_token_is_shown(tmp_path, loss):
    layout = Layout(tmp_path / "machine")
    layout.run.mkdir(parents=True)
    state = StateDb(layout.state_db)
    state.put("contact", b"an old token")
    state.close()  # all of it is in the database now, and its log is gone
    state = StateDb(layout.state_db)
    live(state)
    state.put("contact", b"a newer token", seal=True)
    cut = tmp_path / "cut"
    shutil.copytree(layout.state, cut)  # the power goes: nothing is written back
    state.close()
    layout = Layout(cut)
    log = logs(layout)[0]
    data = log.read_bytes()
    match loss:
        case "deleted":
            log.unlink()
        case "emptied":
            log.write_bytes(b"")
        case "torn":
            log.write_bytes(data[: len(data) // 3])
        case "garbage":
            log.write_bytes(bytes(len(data)))
    found = opened(layout)
    holds(found.state)
    assert found.state.get("contact") is None
    assert "went back" in read_rebuilt(found.state).why
    found.state.close()


def test_a_cut_log_that_lost_nothing_of_what_was_sealed_is_no_damage(layout, tmp_path):
    state = StateDb(layout.state_db)
    state.count("frames_inferred", 1)
    cut = tmp_path / "cut"
    shutil.copytree(layout.state, cut, symlinks=True)
    state.close()
    layout = Layout(cut)
    log = logs(layout)[0]
    log.write_bytes(log.read_bytes()[:-50])
    found = opened(layout)
    assert read_rebuilt(found.state) is None
    holds(found.state)
    found.state.close()


def test_one_damaged_generation_of_the_seal_is_enough_to_rebuild_from(layout):
    paths = Seals(layout.state_db).paths
    for path in paths:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        garbage(layout)
        found = opened(layout)
        record = found.state.record()
        assert (record.committed, record.previous) == (COMMITTED, OLD), "a commit is in both"
        assert found.state.refusals() == (REFUSAL,)
        found.state.close()


def test_a_seal_that_is_missing_or_behind_is_written_anew_from_a_whole_database(layout):
    state = StateDb(layout.state_db)
    state.raise_floor("image/root", 4)
    state.close()
    found = opened(layout)
    assert Seals(layout.state_db).newest().floors["image/root"] == 4
    found.state.close()
    unseal(layout)
    found = opened(layout)
    assert read_rebuilt(found.state) is None
    assert Seals(layout.state_db).newest().committed == COMMITTED
    found.state.close()


def test_a_cut_before_every_effect_of_rebuilding_and_of_that_again_comes_to_the_same(layout, tmp_path):
    garbage(layout)
    template = tmp_path / "template"
    shutil.copytree(layout.state, template, symlinks=True)

    def cut_at(folder, at):
        fuse = Fuse(at)
        try:
            opened(Layout(folder), disk=Disk(fuse.before)).state.close()
        except PowerCut:
            return True, fuse.effects
        return False, fuse.effects

    def ends_well(folder):
        found = opened(Layout(folder))
        holds(found.state)
        assert len([a for a in found.state.pending_alerts(10) if a.kind == "state-damaged"]) == 1
        assert [file.read_bytes() for file in kept(Layout(folder).state_db)] == [
            (template / "state.db").read_bytes()
        ], "the damaged file is kept, once"
        found.state.close()

    first, states = 0, 0
    while True:
        folder = tmp_path / "once"
        shutil.copytree(template, folder, symlinks=True)
        cut, effects = cut_at(folder, first)
        for second in itertools.count(first % 3, 3):
            twice = tmp_path / "twice"
            shutil.copytree(folder, twice, symlinks=True)
            again, _ = cut_at(twice, second)
            ends_well(twice)
            states += 1
            shutil.rmtree(twice)
            if not again:
                break
        shutil.rmtree(folder)
        first += 1
        if not cut:
            break
    assert len(effects) >= 10
    assert states > 40


def test_a_start_seals_both_generations_where_a_cut_came_between_them(layout):
    seals = Seals(layout.state_db)
    before = seals.paths[0].read_bytes()
    newer = Held(digest="dd" * 32, version="10.0.0", release_counter=100)
    with contextlib.closing(StateDb(layout.state_db)) as state:
        state.write_record(UpdateRecord(active=newer.digest, committed=newer), floors=floors_of(newer))
    seals.paths[0].write_bytes(before)
    opened(layout).state.close()
    assert [read(path).committed for path in seals.paths] == [newer, newer]


def test_what_another_version_of_the_agent_said_of_a_rebuild_is_no_error(layout):
    with contextlib.closing(StateDb(layout.state_db)) as state:
        state.put(REBUILT, b'{"at_ms":5}')
        assert read_rebuilt(state) is None


def test_a_log_that_a_cut_left_behind_never_meets_the_new_database(layout, tmp_path):
    state = StateDb(layout.state_db)
    state.raise_floor("image/root", 4)
    state.seal()
    shutil.copy(logs(layout)[0], tmp_path / "log")
    state.close()
    layout.state_db.unlink()
    shutil.copy(tmp_path / "log", logs(layout)[0])  # the rename of the database was durable, that of its log was not
    found = opened(layout)
    assert found.state.floor("image/root") == 4
    assert read_rebuilt(found.state) is not None
    found.state.close()
    assert kept(layout.state_db)[0].with_name("state.damaged-1.db-wal").exists()


def test_without_a_seal_what_active_names_goes_on_and_nothing_is_installed(layout):
    unseal(layout)
    garbage(layout)
    found = opened(layout)
    assert found.isolated == "", "the server is to tell what ran here"
    record = found.state.record()
    assert record.active == record.committed.digest == LINKED.digest
    assert Memory(found.state).floor() == Floor(era=0, counter=5)
    assert found.state.is_recovering
    assert read_rebuilt(found.state).source == "link"
    found.state.close()
    # The seal that it has now must not make it forget that it does not know its floors.
    garbage(layout)
    again = opened(layout)
    assert read_rebuilt(again.state).source == "seal"
    assert again.state.is_recovering
    again.state.close()


def test_a_manifest_that_is_not_what_the_link_names_is_not_believed(layout):
    unseal(layout)
    garbage(layout)
    path = layout.active / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"1.1.0", b"9.1.0"))
    found = opened(layout)
    assert found.state.record() == UpdateRecord()
    assert read_rebuilt(found.state).source == "nothing"
    assert found.state.is_recovering
    found.state.close()


def test_without_an_active_release_there_is_nothing_to_serve_and_no_crash(layout):
    unseal(layout)
    garbage(layout)
    layout.active.unlink()
    found = opened(layout)
    assert found.state.record() == UpdateRecord()
    found.state.close()


def test_a_disk_that_takes_nothing_leaves_inference_and_nothing_else(layout):
    garbage(layout)
    before = layout.state_db.read_bytes()

    def full(effect, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    found = opened(layout, disk=Disk(full))
    assert "no server is spoken to" in found.isolated
    assert found.state.is_in_memory
    holds(found.state)
    found.state.close()
    assert layout.state_db.read_bytes() == before
    assert why_unusable(layout) == "", "now it could be rebuilt"


def test_one_who_only_looks_sees_what_the_next_start_will_make_of_it(layout):
    garbage(layout)
    before = layout.state_db.read_bytes()
    state = open_for_reading(layout)
    holds(state)
    state.close()
    assert layout.state_db.read_bytes() == before
    assert kept(layout.state_db) == []


def test_one_who_only_looks_writes_no_seal(layout):
    """It may be another user, whose file the agent could not replace."""
    with contextlib.closing(StateDb(layout.state_db)) as state:
        state.raise_floor("image/root", 4)  # not sealed yet
    before = [path.read_bytes() for path in Seals(layout.state_db).paths]
    open_for_reading(layout).close()
    assert why_unusable(layout) == ""
    assert [path.read_bytes() for path in Seals(layout.state_db).paths] == before


def test_a_machine_with_neither_database_nor_seal_says_so(layout):
    unseal(layout)
    deleted(layout)
    with pytest.raises(StateError, match="missing"):
        open_for_reading(layout)


def test_a_newer_agents_database_is_no_damage(layout):
    change(layout, "PRAGMA user_version = 2")
    unseal(layout)
    found = opened(layout)
    assert "newer agent" in found.isolated
    found.state.close()
    assert kept(layout.state_db) == []


def test_a_few_damaged_files_are_kept_with_their_logs_and_older_ones_go(tmp_path):
    path = tmp_path / "state.db"
    for number in range(KEPT_FILES + 3):
        path.write_bytes(b"%d" % number)
        path.with_name("state.db-wal").write_bytes(b"log %d" % number)
        set_aside(path)
    assert [file.read_bytes() for file in kept(path)] == [b"3", b"4", b"5"]
    assert len(list(tmp_path.iterdir())) == 2 * KEPT_FILES
    assert set_aside(path) is None


def test_what_is_set_aside_is_told_older_from_newer_by_its_number_whatever_the_clock(tmp_path, monkeypatch):
    """Ten years ahead for three of them, and right again: the one with the newest rows must not be the first to go."""
    path = tmp_path / "outbox.db"
    for number in range(KEPT_FILES + 1):
        year_s = 2_100_000_000 if number < KEPT_FILES else 1_790_000_000
        monkeypatch.setattr("time.time", lambda year_s=year_s: year_s)
        path.write_bytes(b"%d" % number)
        os.utime(path, (year_s, year_s))
        newest = set_aside(path)
    assert newest.read_bytes() == b"3"
    assert [file.read_bytes() for file in kept(path)] == [b"1", b"2", b"3"]


def test_logs_that_a_cut_left_behind_follow_their_database(tmp_path):
    """Rows that go on from a page of the file to one of the log are found by the two together."""
    path = tmp_path / "outbox.db"

    def cut(effect: str, at: Path) -> None:
        if effect == "rename" and at.name.endswith("-wal"):
            raise PowerCut

    for number in range(2):
        path.write_bytes(b"%d" % number)
        path.with_name("outbox.db-wal").write_bytes(b"log %d" % number)
        with pytest.raises(PowerCut):
            set_aside(path, Disk(cut))
        set_aside(path)
    assert [file.read_bytes() for file in kept(path)] == [b"0", b"1"]
    assert [file.with_name(f"{file.name}-wal").read_bytes() for file in kept(path)] == [b"log 0", b"log 1"]


def test_damage_that_shows_itself_later_is_told_to_who_can_mend_it(layout):
    told = []
    found = opened(layout, on_damage=told.append)
    change(layout, "UPDATE facts SET value = 'x' WHERE key = 'contact'")
    assert told == []
    with pytest.raises(StateDamagedError):
        found.state.get("contact")
    assert "contact" in told[0]
    found.state.close()
