"""Faults planted in the product: each must turn a play red. Each comes with the story in which it cannot hide.

They are patched in for the length of one play, at the place where the product would have them.
"""

import asyncio
import contextlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import msgspec

from device import clock, state_db
from device.contact import Contact
from device.containers import reconcile
from device.containers.keeper import ContainerKeeper
from device.containers.stock import Stock
from device.outbox import losses
from device.outbox.box import Outbox
from device.update import states, trial, watching
from device.update.serving import Serving
from device.update.states import Event, State
from device.update.telling import Teller
from server import sync_token
from server.ingest import Ingest
from server.storage.catalog import Session
from signing.trust_store import NEVER as NEVER_EXPIRED
from signing.trust_store import TrustStore
from tests.simulation.fleet.faults import Ills
from tests.simulation.fleet.power import Plug
from tests.simulation.fleet.story import Act, Story
from tests.simulation.fleet.world import DAY_S


@dataclass(frozen=True)
class Planted:
    """A fault, its story, and a word of what the checker must say."""

    plant: Callable[[], contextlib.AbstractContextManager[Any]]
    story: Story
    says: str


def _story(*acts: Act, days: float = 2.0, **ills: Any) -> Story:
    return Story(("tractor",), days * DAY_S, Ills(**ills), acts, 6 * 3600.0)


def _release(kind: str, number: int = 2, at_days: float = 0.1) -> Act:
    return Act(at_days * DAY_S, "release", (number, kind, 100.0, None))


def _copied_often(**ills: Any) -> Story:
    """Thirteen times in five days, and readmitted three hours later."""
    times = (
        (0.35 * number + after, kind) for number in range(1, 14) for after, kind in ((0, "copied"), (0.12, "readmit"))
    )
    return _story(*(Act(at_days * DAY_S, kind, ("tractor",)) for at_days, kind in times), days=5, **ills)


def floor_not_persisted() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(state_db, "_raise_floor", lambda *_: None)


@contextlib.contextmanager
def no_start_counter() -> Iterator[None]:
    with mock.patch.dict(states.RESUME, {State.CHECK: states._go_on, State.TRIAL: states._go_on}):
        yield


@contextlib.contextmanager
def state_skipped() -> Iterator[None]:
    with mock.patch.dict(states.NEXT, {(State.FETCH, Event.FETCHED): State.WAIT}):
        yield


def refusal_forgotten() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(state_db, "_add_refusal", lambda *_: None)


def promise_before_sync() -> contextlib.AbstractContextManager[Any]:
    real = Outbox.enqueue_all
    later: set[asyncio.Task[Any]] = set()

    async def enqueue_all(self: Outbox, rows: Any, **more: Any) -> list[int]:
        async def soon() -> None:
            await asyncio.sleep(5)
            await real(self, rows, **more)

        task = asyncio.get_running_loop().create_task(soon())
        later.add(task)
        task.add_done_callback(later.discard)
        return [0 for _ in rows]

    return mock.patch.object(Outbox, "enqueue_all", enqueue_all)


def receipt_before_commit() -> contextlib.AbstractContextManager[Any]:
    """The server receipts, and then crashes before the commit, every second time."""
    real = Ingest._keep
    count = itertools.count()

    def keep(self: Ingest, body: Any, losses: Any) -> Any:
        if next(count) % 2:
            return real(self, body, losses)
        catalog: Any = self._catalog

        @contextlib.contextmanager
        def write() -> Iterator[Session]:
            with catalog._writing, catalog._writer() as connection, connection.begin() as transaction:
                yield Session(connection)
                transaction.rollback()

        with mock.patch.object(catalog, "write", write):
            return real(self, body, losses)

    return mock.patch.object(Ingest, "_keep", keep)


def wall_clock_believed() -> contextlib.AbstractContextManager[Any]:
    def read(record: Any, moment: clock.Moment, built_ms: int = clock.BUILT_MS) -> clock.Reading:
        return clock.Reading(max(record.floor_ms, built_ms, moment.wall_ms), sure=True)

    return mock.patch.object(clock, "read", read)


def expiry_not_judged() -> contextlib.AbstractContextManager[Any]:
    real = TrustStore.refresh

    def refresh(self: TrustStore, source: Any, now: Any, roles: Any = (), **more: Any) -> Any:
        return real(self, source, NEVER_EXPIRED, roles, **more)

    return mock.patch.object(TrustStore, "refresh", refresh)


@contextlib.contextmanager
def contact_not_kept() -> Iterator[None]:
    """The id of a contact is sent before it is kept: a lost answer looks like a second machine."""
    real = Contact._prepare

    def prepare(self: Contact, *arguments: Any) -> Any:
        with mock.patch.object(self._state, "put", lambda *_, **__: None):
            return real(self, *arguments)

    with mock.patch.object(Contact, "_prepare", prepare):
        yield


def late_contact_doubted() -> contextlib.AbstractContextManager[Any]:
    """Of the contacts that it answered the server remembers the last one only."""
    real = sync_token.judge

    def judge(device: Any, *arguments: Any) -> sync_token.Standing:
        return real(replace(device, recent={}), *arguments)

    return mock.patch.object(sync_token, "judge", judge)


def readmitted_doubted() -> contextlib.AbstractContextManager[Any]:
    """A repetition is known by the number just before the last: after a readmission numbers jump."""
    real = sync_token.judge

    def judge(device: Any, shown: int | None, *arguments: Any) -> sync_token.Standing:
        said = real(device, shown, *arguments)
        jumped = said is sync_token.Standing.RETRY and shown is not None and shown < device.token_counter - 1
        return sync_token.Standing.CLONE if jumped else said

    return mock.patch.object(sync_token, "judge", judge)


def workers_do_not_follow() -> contextlib.AbstractContextManager[Any]:
    """Workers take up a release on trial, and nothing after a start."""

    async def follow(self: Serving, record: Any) -> None:
        await asyncio.sleep(0)

    return mock.patch.object(Serving, "follow", follow)


def no_sync_of(is_meant: Callable[[int], bool]) -> contextlib.AbstractContextManager[Any]:
    """The product never says fsync to such files."""
    real = Plug.synced

    def synced(self: Plug, fd: int) -> None:
        if not is_meant(os.fstat(fd).st_mode):
            real(self, fd)

    return mock.patch.object(Plug, "synced", synced)


def loss_not_counted() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(losses, "add", lambda *_: None)


def loss_of_others() -> contextlib.AbstractContextManager[Any]:
    """As many rows are told as lost as were given up, but the ones behind them."""
    real = losses.add

    def add(connection: Any, new: losses.LossRow) -> None:
        real(connection, replace(new, first=new.first + 1, last=new.last + 1))

    return mock.patch.object(losses, "add", add)


def good_refused() -> contextlib.AbstractContextManager[Any]:
    """A trial takes seconds for milliseconds: the good release is too slow, and its rollout is halted."""
    real = trial.find_evidence

    def find_evidence(health: Any, watched: Any, rules: Any, bounds: Any) -> Any:
        shorter = {
            model: msgspec.structs.replace(bound, latency_ms=bound.latency_ms / 1000) for model, bound in bounds.items()
        }
        return real(health, watched, rules, shorter)

    return mock.patch.object(watching, "find_evidence", find_evidence)


def end_told_twice() -> contextlib.AbstractContextManager[Any]:
    real = Teller.of_step

    def of_step(self: Teller, *arguments: Any, **more: Any) -> Any:
        said = real(self, *arguments, **more)
        return (*said, *(msgspec.structs.replace(status, id=self._new_id()) for status in said))

    return mock.patch.object(Teller, "of_step", of_step)


def end_never_told() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(Teller, "of_step", lambda *_, **__: ())


def trial_begins_anew() -> contextlib.AbstractContextManager[Any]:
    """What a start before had shown of a trial is forgotten: an ignition key turned often is a trial without end."""
    real = states.RESUME[State.TRIAL]

    def resume(record: states.UpdateRecord) -> states.UpdateRecord:
        return msgspec.structs.replace(real(record), healthy_s=0.0, inferences=0, errors=0)

    return mock.patch.dict(states.RESUME, {State.TRIAL: resume})


def tried_for_ever() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(states, "is_worn_out", lambda *_: False)


CUT_OFTEN = _story(_release("good"), _release("good", 3, 0.6), ignition=True, power=True)


def labels_while_mixed() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(ContainerKeeper, "whole", lambda self: (0, self._aim.specs))


def others_stay() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(reconcile, "strangers", lambda *_: [])


def images_stay() -> contextlib.AbstractContextManager[Any]:
    async def stay(*_: Any) -> bool:
        return True

    return mock.patch.object(Stock, "drop_images", stay)


ENGINE_KILLED = _story(_release("contained"), _release("contained-sick", 3, 0.8), engine=True, days=3)

PLANTED = {
    "a label while the set is mixed": Planted(labels_while_mixed, ENGINE_KILLED, "a row names"),
    "containers of another release stay": Planted(others_stay, ENGINE_KILLED, "there r"),
    "images of a release that went stay": Planted(images_stay, ENGINE_KILLED, "I7: an image stays"),
    "workers do not follow": Planted(workers_do_not_follow, _story(ignition=True), "I8"),
    "an end told twice": Planted(end_told_twice, _story(_release("good")), "I9"),
    "an end never told": Planted(end_never_told, _story(_release("good")), "I9: ended, and never told"),
    "a trial begins anew": Planted(trial_begins_anew, CUT_OFTEN, "after a start"),
    "tried for ever": Planted(tried_for_ever, _story(_release("kills-trial")), "I6: it flaps"),
    "floor not persisted": Planted(floor_not_persisted, _story(_release("good")), "I4"),
    "no start counter": Planted(no_start_counter, _story(_release("kills-trial")), "I5"),
    "no start counter in the check": Planted(no_start_counter, _story(_release("kills-check")), "I5"),
    "state skipped": Planted(state_skipped, _story(_release("good")), "a state was skipped"),
    "refusal forgotten": Planted(refusal_forgotten, _story(_release("golden")), "I6"),
    "refusal forgotten after a trial": Planted(refusal_forgotten, _story(_release("crash")), "I6"),
    "promise before sync": Planted(promise_before_sync, _story(ignition=True, days=3), "I3"),
    "loss not counted": Planted(loss_not_counted, _story(bulky=True, away=0.6, days=3), "I3"),
    "other rows are told as lost": Planted(loss_of_others, _story(bulky=True, away=0.6, days=3), "I3: promised rows"),
    "a good release refused": Planted(good_refused, _story(_release("good")), "a good release"),
    "receipt before commit": Planted(receipt_before_commit, _story(), "I3"),
    "wall clock believed": Planted(
        wall_clock_believed, _story(_release("good"), clocks=("plus-ten-years",)), "a wall clock left a trace"
    ),
    "expiry not judged": Planted(
        expiry_not_judged,
        _story(Act(0.5 * DAY_S, "attack", ("tractor", "frozen", 20 * DAY_S)), days=12),
        "has expired, and was let in",
    ),
    "no fsync of file": Planted(lambda: no_sync_of(stat.S_ISREG), CUT_OFTEN, "I4"),
    "no fsync of folder": Planted(lambda: no_sync_of(stat.S_ISDIR), CUT_OFTEN, "I1"),
    "a late contact is doubted": Planted(late_contact_doubted, _story(twice=0.9), "it was taken for a clone"),
    "a readmitted machine is doubted": Planted(
        readmitted_doubted, _copied_often(answer_lost=0.35), "it was taken for a clone"
    ),
    "contact id not kept": Planted(contact_not_kept, _story(answer_lost=0.5), "it was taken for a clone"),
}
"""By name."""
