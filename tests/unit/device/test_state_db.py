"""What state.db promises: one step is one transaction, floors never fall, another process may look."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from device.refusals import Refusal
from device.seal import Sealed, Seals
from device.state_db import STATUSES_KEPT, StateDb
from device.update.states import State, UpdateRecord
from protocol.errors import Reason, StateError
from protocol.messages import Alert, UpdateStatus

DIGEST = "ab" * 32


def status(number: int) -> UpdateStatus:
    return UpdateStatus(id=f"{number:032x}", manifest=DIGEST, rollout="spring", state="fetch", at_ms=number)


@pytest.fixture
def db(tmp_path: Path):
    database = StateDb(tmp_path / "state.db")
    yield database
    database.close()


def test_every_connection_survives_power_cuts_by_its_settings(db, tmp_path):
    again = StateDb(tmp_path / "state.db")
    for database in (db, again):
        connection = database._connection
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    again.close()


def test_only_the_owner_may_read_the_file(db, tmp_path):
    assert (tmp_path / "state.db").stat().st_mode & 0o077 == 0


def test_values_and_the_record_come_back_after_reopening(db, tmp_path):
    assert db.get("token") is None
    assert db.record() == UpdateRecord()
    db.put("token", b"\x00\xff")
    db.put("token", b"new")
    db.write_record(UpdateRecord(active=DIGEST))
    db.close()
    again = StateDb(tmp_path / "state.db")
    assert again.get("token") == b"new"
    assert again.record() == UpdateRecord(active=DIGEST)
    again.remove("token")
    assert again.get("token") is None
    again.close()


def test_a_floor_never_falls_and_is_found_by_its_prefix(db):
    assert db.floor("image/timestamp") == 0
    db.raise_floor("image/timestamp", 7)
    db.raise_floor("image/timestamp", 5)
    db.raise_floor("image_timestamp", 3)
    assert db.floor("image/timestamp") == 7
    assert db.floors("image/") == {"image/timestamp": 7}


def test_one_step_is_one_transaction(db, monkeypatch):
    def fail(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("device.state_db._add_refusal", fail)
    refusal = Refusal(manifest=DIGEST, release="1.2.0", reason=Reason.GOLDEN, at_ms=1)
    with pytest.raises(StateError, match="disk is full"):
        db.write_record(
            UpdateRecord(state=State.FETCH),
            floors={"update/era": 4},
            statuses=[status(1)],
            facts={"update/plan": b"x"},
            refusal=refusal,
        )
    assert db.record() == UpdateRecord()
    assert db.floor("update/era") == 0
    assert db.pending_statuses(10) == ()
    assert db.get("update/plan") is None
    db.put("after", b"the connection still works")


def test_refusals_are_kept_once_and_lifted_by_version_or_digest(db):
    other = "cd" * 32
    db.write_record(UpdateRecord(), refusal=Refusal(manifest=DIGEST, release="1.2.0", reason=Reason.GOLDEN, at_ms=1))
    db.write_record(UpdateRecord(), refusal=Refusal(manifest=DIGEST, release="1.2.0", reason=Reason.HASH, at_ms=2))
    db.write_record(
        UpdateRecord(), refusal=Refusal(manifest=other, release="1.2.1", reason=Reason.TRIAL_CRASH, at_ms=3)
    )
    assert [(r.manifest, r.reason) for r in db.refusals()] == [(DIGEST, Reason.GOLDEN), (other, Reason.TRIAL_CRASH)]
    assert db.lift_refusal("1.9.9") == ()
    assert db.lift_refusal("cd") == ()
    assert [r.release for r in db.lift_refusal("1.2.0")] == ["1.2.0"]
    assert [r.release for r in db.lift_refusal(other[:8])] == ["1.2.1"]
    assert db.refusals() == ()


def test_statuses_are_told_in_order_once_and_bounded(db):
    for number in (1, 2, 3, 2):
        db.tell([status(number)], {})
    assert [s.at_ms for s in db.pending_statuses(2)] == [1, 2]
    db.drop_statuses([status(1).id, "unknown"])
    assert [s.at_ms for s in db.pending_statuses(9)] == [2, 3]
    with db._transaction():
        for number in range(4, STATUSES_KEPT + 10):
            db._connection.execute("INSERT INTO statuses (id, body) VALUES (?, ?)", (f"{number:032x}", b"{}"))
    db.tell([status(999_999)], {})
    assert db._connection.execute("SELECT count(*) FROM statuses").fetchone() == (STATUSES_KEPT,)


def test_alerts_are_kept_once_until_dropped(db):
    alert = Alert(id="0" * 32, kind="stale-metadata", at_ms=1, reason=Reason.EXPIRED)
    db.add_alert(alert)
    db.add_alert(alert)
    assert db.pending_alerts(10) == (alert,)
    db.drop_alerts([alert.id])
    assert db.pending_alerts(10) == ()


def test_counters_add_up_over_threads(db):
    threads = [threading.Thread(target=lambda: [db.count("bytes_received", 3) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.counters() == {"bytes_received": 240}


def test_a_damaged_file_is_named_and_not_replaced(tmp_path):
    path = tmp_path / "state.db"
    path.write_bytes(b"this is no database, whatever its name says" * 200)
    with pytest.raises(StateError, match=r"state\.db"):
        StateDb(path)
    assert path.read_bytes().startswith(b"this is no database")


def test_a_newer_agents_file_is_left_alone(db, tmp_path):
    db._connection.execute("PRAGMA user_version = 99")
    Seals(tmp_path / "state.db").write(Sealed(format=1, schema=99, serial=9), both=True)
    with pytest.raises(StateError, match="newer agent"):
        StateDb(tmp_path / "state.db")


def test_another_process_reads_and_raises_floors_meanwhile(db, tmp_path):
    program = (
        "import sys, pathlib; from device.state_db import StateDb;"
        "db = StateDb(pathlib.Path(sys.argv[1]));"
        "[db.raise_floor('image/timestamp', n) for n in range(100)];"
        "print(db.get('who').decode(), 'sqlite_utils' in sys.modules)"
    )
    db.put("who", b"agent")
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "state.db")], stdout=subprocess.PIPE) as child:
        for number in range(100):
            db.raise_floor("director/timestamp", number)
        out, _ = child.communicate(timeout=30)
    assert out.split() == [b"agent", b"False"]
    assert db.floors() == {"image/timestamp": 99, "director/timestamp": 99}
