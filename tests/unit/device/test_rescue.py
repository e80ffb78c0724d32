"""A damaged `state.db`: what `active` names goes on, and nothing is guessed about floors."""

import hashlib
import os

import pytest

from device.layout import Layout
from device.rescue import open_for_reading, open_state
from device.state_db import StateDb
from device.update.states import Held, UpdateRecord
from protocol.errors import StateError
from protocol.release import Artifact, Config, ReleaseManifest
from protocol.wire import encode

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
DIGEST = hashlib.sha256(MANIFEST).hexdigest()


@pytest.fixture
def layout(tmp_path):
    layout = Layout(tmp_path)
    layout.run.mkdir()
    folder = tmp_path / "sets" / DIGEST
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(MANIFEST)
    (tmp_path / "active").symlink_to(f"sets/{DIGEST}")
    state = StateDb(layout.state_db)
    state.write_record(UpdateRecord(committed=Held(digest="f" * 64, version="9.9.9", release_counter=99)))
    state.close()
    return layout


def damage(layout: Layout) -> None:
    data = layout.state_db.read_bytes()
    layout.state_db.write_bytes(os.urandom(len(data)))
    for suffix in ("-wal", "-shm"):
        layout.state_db.with_name(layout.state_db.name + suffix).unlink(missing_ok=True)


def test_a_whole_database_is_the_one_that_counts(layout):
    state, why = open_state(layout)
    assert why == ""
    assert state.record().committed.version == "9.9.9"
    state.close()
    assert not layout.rescue_db.exists()


def test_with_a_damaged_one_the_active_release_is_taken_up_and_the_file_is_kept(layout):
    damage(layout)
    bytes_before = layout.state_db.read_bytes()
    for _ in range(2):
        state, why = open_state(layout)
        assert "nothing is installed" in why
        record = state.record()
        assert record.active == record.committed.digest == DIGEST
        assert record.committed.version == "1.1.0"
        state.close()
    assert layout.state_db.read_bytes() == bytes_before
    reading = open_for_reading(layout)
    assert reading.record().active == DIGEST
    reading.close()


def test_pages_that_no_longer_hold_a_record_are_damage_too(layout):
    state = StateDb(layout.state_db)
    state.put("update/record", b"{ not a record")
    state.close()
    state, why = open_state(layout)
    assert why
    assert state.record().active == DIGEST
    state.close()


def test_without_an_active_release_there_is_nothing_to_serve_and_no_crash(layout):
    damage(layout)
    (layout.state / "active").unlink()
    state, why = open_state(layout)
    assert why
    assert state.record() == UpdateRecord()
    state.close()


def test_status_of_a_machine_with_neither_says_so(layout):
    damage(layout)
    with pytest.raises(StateError):
        open_for_reading(layout)
