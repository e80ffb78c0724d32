"""Trouble with a committed container is told once for its image; a trial's goes another way."""

import itertools

import pytest

from device.containers.keeper import ContainerStatus, EngineStatus
from device.containers.troubles import AWAY_S, KIND, WELL_S, Troubles
from device.state_db import StateDb


def status(trouble: str = "", engine: str = "", *, trial: bool = False, image: str = "a") -> EngineStatus:
    one = ContainerStatus(image=image * 64, state="exited" if trouble else "running", trouble=trouble)
    return EngineStatus(version="fake 1.0", trial=trial, trouble=engine, containers={"gateway": one})


@pytest.fixture
def db(tmp_path):
    database = StateDb(tmp_path / "state.db")
    yield database
    database.close()


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def started(db: StateDb, clock: Clock) -> Troubles:
    numbers = itertools.count(len(db.pending_alerts(100)))
    return Troubles(db, lambda: f"{next(numbers):032x}", clock)


def see(troubles: Troubles, seen: EngineStatus) -> None:
    if troubles.changed(seen):
        troubles.tell(seen, 5)


def told(db: StateDb) -> list[str]:
    assert all((alert.kind, alert.at_ms) == (KIND, 5) for alert in db.pending_alerts(100))
    return [alert.detail for alert in db.pending_alerts(100)]


def test_each_kind_of_trouble_is_told_once_for_an_image_also_over_restarts(db):
    for _ in range(2):
        troubles = started(db, Clock())
        for one in ("", "exit 1", "", "exit 1", "unhealthy: one", "unhealthy: two"):
            see(troubles, status(one))
    assert told(db) == [
        f"container gateway, image {'a' * 12}: exit 1",
        f"container gateway, image {'a' * 12}: unhealthy: one",
    ]
    see(troubles, status("exit 1", image="b"))
    assert len(told(db)) == 3


def test_one_that_the_engine_refuses_to_start_is_told_of_though_it_is_not_there(db):
    refused = ContainerStatus(image="a" * 64, state="absent", trouble="container gateway cannot be started: port taken")
    see(started(db, Clock()), EngineStatus(version="fake 1.0", containers={"gateway": refused}))
    assert told(db) == [f"container gateway, image {'a' * 12}: container gateway cannot be started: port taken"]


def test_of_a_trial_nothing_is_told_here(db):
    see(started(db, Clock()), status("exit 1", trial=True))
    assert told(db) == []


def test_an_engine_is_told_of_only_when_it_is_away_for_long(db):
    clock = Clock()
    troubles = started(db, clock)
    for _ in range(2):
        see(troubles, status(engine="engine: away"))
        clock.now_s += AWAY_S - 1
        see(troubles, status(engine="engine: away"))
        see(troubles, status())
    assert told(db) == []
    see(troubles, status(engine="engine: away"))
    clock.now_s += AWAY_S + 1
    for _ in range(2):
        see(troubles, status(engine="engine: away"))
    assert told(db) == ["engine: away"]


def test_one_that_cannot_even_be_started_is_told_of(db):
    """The engine keeps nothing of it."""
    why = "container gateway cannot be started: port is already allocated"
    one = ContainerStatus(image="a" * 64, state="absent", trouble=why)
    see(started(db, Clock()), EngineStatus(version="fake 1.0", containers={"gateway": one}))
    assert told(db) == [f"container gateway, image {'a' * 12}: {why}"]


def test_one_that_the_machine_keeps_from_starting_is_told_of_as_the_engine_is(db):
    clock = Clock()
    troubles = started(db, clock)
    why = "container gateway needs /dev/apex_0, which is not there"
    one = ContainerStatus(image="a" * 64, state="absent", trouble=why)
    seen = EngineStatus(version="fake 1.0", trouble=f"engine: {why}", containers={"gateway": one})
    for _ in range(3):
        see(troubles, seen)
        clock.now_s += AWAY_S
    assert told(db) == [f"engine: {why}"]


def test_an_engine_that_was_well_for_long_is_told_of_again(db):
    clock = Clock()
    troubles = started(db, clock)
    for well_s, count in ((0, 1), (WELL_S - 1, 1), (WELL_S + 1, 2), (0, 2)):
        see(troubles, status())
        clock.now_s += well_s
        see(troubles, status())
        for _ in range(2):
            see(troubles, status(engine="engine: away"))
            clock.now_s += AWAY_S + 1
        see(troubles, status(engine="engine: away"))
        assert told(db) == ["engine: away"] * count
