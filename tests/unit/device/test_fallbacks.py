"""A fall-back from the accelerator is told once, to the server too, and again when it comes back for another reason."""

import itertools

import pytest

from device.fallbacks import KEY, KIND, Fallbacks
from device.inference.workers import ModelStatus, WorkersStatus
from device.state_db import StateDb
from protocol.errors import StateError

WHY = "onnxruntime lacks CUDAExecutionProvider"


def status(fallback: str = "", accelerator: str = "cpu", *, serving: bool = True) -> WorkersStatus:
    model = ModelStatus(model_digest="a" * 64, variant="gpu", accelerator=accelerator, fallback=fallback)
    return WorkersStatus(manifest="b" * 64, serving=serving, models={"pests": model})


@pytest.fixture
def db(tmp_path):
    database = StateDb(tmp_path / "state.db")
    yield database
    database.close()


def started(db: StateDb) -> Fallbacks:
    numbers = itertools.count(len(db.pending_alerts(100)))
    return Fallbacks(db, lambda: f"{next(numbers):032x}")


def see(fallbacks: Fallbacks, seen: WorkersStatus) -> None:
    if fallbacks.changed(seen):
        fallbacks.tell(seen, 5)


def test_it_is_told_once_also_over_restarts(db):
    for _ in range(3):
        fallbacks = started(db)
        for seen in (status(serving=False), status(accelerator=""), status(WHY), status(WHY)):
            see(fallbacks, seen)
    [alert] = db.pending_alerts(10)
    assert (alert.kind, alert.at_ms) == (KIND, 5)
    assert alert.detail == f"pests, variant gpu, runs on cpu: {WHY}"


def test_without_one_nothing_is_told_and_nothing_is_written(db):
    fallbacks = started(db)
    assert not fallbacks.changed(status(accelerator="cuda"))
    assert db.pending_alerts(10) == ()


def test_it_is_told_again_when_it_was_gone_or_has_another_reason(db):
    fallbacks = started(db)
    for seen in (status(WHY), status(accelerator="cuda"), status(WHY), status("could not be initialised")):
        see(fallbacks, seen)
    assert [alert.detail.rpartition(": ")[2] for alert in db.pending_alerts(10)] == [
        WHY,
        WHY,
        "could not be initialised",
    ]


def test_what_the_alert_costs_when_the_disk_is_full_is_no_more_than_another_try(db, monkeypatch):
    fallbacks = started(db)
    monkeypatch.setattr(db, "put", lambda key, value: (_ for _ in ()).throw(StateError("the disk is full")))
    with pytest.raises(StateError):
        fallbacks.tell(status(WHY), 5)
    assert fallbacks.changed(status(WHY))


def test_what_another_version_of_the_agent_kept_ends_no_start(db):
    db.put(KEY, b'{"why":[1]}')
    see(started(db), status(WHY))
    assert len(db.pending_alerts(9)) == 1
