"""Faults planted in what has to do with kits, as those of `planted.py`: each must turn a play with technicians red."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from tuf.api.metadata import Targets

from device.clock import Reading
from device.kits import assembling, forcing
from device.kits.choosing import Chooser, UnfitError
from device.kits.shown import KitState
from device.update import memory, offers, rules, updater
from protocol.kits import ForceRequest, KitBody
from protocol.wire import decode
from signing.metadata import parse, terms
from signing.trust.director import DirectorView
from signing.trust.kits import SignedKit
from tests.simulation.fleet.faults import Ills
from tests.simulation.fleet.field import Visit
from tests.simulation.fleet.planted import Planted, receipt_before_commit
from tests.simulation.fleet.story import Act, Story
from tests.simulation.fleet.world import DAY_S

NOW = (100, 110)
"""A window of ten minutes: what asks for it waits, and may be forced."""


def story(*acts: Act, days: float = 3.0, **ills: Any) -> Story:
    """One machine, and technicians."""
    listed = Act(0.0, "list", ("all",))
    return Story(("tractor",), days * DAY_S, Ills(**ills), (listed, *acts), 6 * 3600.0)


def release(number: int, at_days: float, kind: str = "good") -> Act:
    """By kit only."""
    return Act(at_days * DAY_S, "release", (number, kind, None, None))


def kit(number: int, *counters: int, at_days: float, days: float = 30.0, window: Any = None, only: bool = False) -> Act:
    """`only`: for this one machine."""
    return Act(at_days * DAY_S, "kit", (number, counters, days, ("tractor",) if only else None, window))


def visit(*kits: int, at_days: float, **more: Any) -> Act:
    """With the newest kits of these numbers."""
    return Act(at_days * DAY_S, "visit", ("tractor", Visit(kits, **more)))


def permit(counter: int, at_days: float) -> Act:
    """To go back to this release."""
    return Act(at_days * DAY_S, "permit", ("tractor", counter, 20.0))


def permit_kept() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(updater, "floors_of", lambda held, _: memory.floors_of(held))


@contextlib.contextmanager
def older_taken() -> Iterator[None]:
    def check(self: Chooser, _: Any, one: Any, refused: Any, **__: Any) -> None:
        committed = self._machine.record.committed
        if committed is not None and committed.digest == one.release.manifest.sha256:
            raise UnfitError(KitState.INSTALLED, "it runs here")

    with mock.patch.object(rules, "_is_below", lambda *_: False), mock.patch.object(Chooser, "_check", check):
        yield


def anybody_forces() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(
        assembling, "may_force", lambda signed, _, **__: decode(signed.request, ForceRequest, limit=1 << 14)
    )


@contextlib.contextmanager
def another_forced() -> Iterator[None]:
    """Whatever is offered next is forced by the last request."""
    real, last = updater.Updater.offer, []

    async def offer(self: Any, *arguments: Any, forced: Any = None) -> Any:
        last.extend([forced] if forced is not None else [])
        return await real(self, *arguments, forced=last[-1] if last else None)

    with mock.patch.object(updater.Updater, "offer", offer):
        yield


def force_not_kept() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(forcing, "keep_force", lambda *_: None)


@contextlib.contextmanager
def expired_taken() -> Iterator[None]:
    real = Chooser.choose

    async def choose(self: Chooser, *arguments: Any, **more: Any) -> Any:
        with mock.patch.object(self, "_now", lambda: Reading(ms=0, sure=False)):
            return await real(self, *arguments, **more)

    with mock.patch.object(SignedKit, "check", lambda *_, **__: None), mock.patch.object(Chooser, "choose", choose):
        yield


def anybody_signs() -> contextlib.AbstractContextManager[Any]:
    def verify_kit(self: DirectorView, text: bytes) -> SignedKit:
        signed = parse(text, Targets, "the kit").signed
        return SignedKit(terms(signed, KitBody, "the kit"), signed.expires, tuple(sorted(self.kit_signers[0])))

    return mock.patch.object(DirectorView, "verify_kit", verify_kit)


def waits_for_ever() -> contextlib.AbstractContextManager[Any]:
    real = offers.goes_before
    return mock.patch.object(
        updater, "goes_before", lambda comes, record, **_: real(comes, record, waits_for_stick=False)
    )


BACK = (
    release(2, 0.1),
    kit(1, 2, at_days=0.2),
    visit(1, at_days=0.3),
    kit(2, 1, at_days=0.8, only=True),
    visit(2, at_days=1.0),
)
FORCED = (release(2, 0.1), kit(1, 2, at_days=0.2, window=NOW))
PULLED = Act(0.3 * DAY_S, "visit", ("tractor", Visit((1,), left=26, home_s=None)))

PLANTED_KITS = {
    "a permit is good twice": Planted(
        permit_kept,
        story(
            *BACK[:3],
            permit(1, 0.7),
            *BACK[3:],
            release(3, 1.5),
            kit(1, 3, at_days=1.6),
            visit(1, at_days=1.7),
            kit(2, 1, at_days=2.2, only=True),
            visit(2, at_days=2.3),
        ),
        "a permit was good twice",
    ),
    "no permit is asked for": Planted(older_taken, story(*BACK), "a step back"),
    "anybody forces": Planted(anybody_forces, story(*FORCED, visit(1, at_days=0.3, forces="otto")), "may not force"),
    "a force goes on to the next release": Planted(
        another_forced,
        story(
            *FORCED,
            visit(1, at_days=0.3, forces="eva"),
            release(3, 1.0),
            kit(1, 3, at_days=1.1, window=NOW),
            visit(1, at_days=1.2),
        ),
        "and forced is",
    ),
    "a force is not kept": Planted(force_not_kept, story(*FORCED, visit(1, at_days=0.3, forces="eva")), "never told"),
    "an expired kit is begun": Planted(
        expired_taken, story(release(2, 0.1), kit(1, 2, at_days=0.2, days=0.5), visit(1, at_days=1.5)), "was begun"
    ),
    "a revoked kit is begun": Planted(
        anybody_signs,
        story(
            release(2, 0.1),
            kit(1, 2, at_days=0.2),
            Act(0.3 * DAY_S, "makers", (("carol", "bob"),)),
            visit(1, at_days=1.5),
        ),
        "was begun",
    ),
    "what waits for a stick holds up the server": Planted(
        waits_for_ever,
        story(release(2, 0.1, "large"), kit(1, 2, at_days=0.2), PULLED, Act(1.0 * DAY_S, "rollout", (2,))),
        "waits for a stick",
    ),
    "a receipt by stick before the commit": Planted(
        receipt_before_commit,
        story(visit(at_days=0.5), visit(at_days=1.5), visit(at_days=2.5), away=1.0),
        "I3",
    ),
}
"""By name."""
