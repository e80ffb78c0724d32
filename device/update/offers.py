"""Offers of the server and of field kits: which goes before which, and those that the loop has not taken up yet.

The server and each kit bring updates in any order, and know nothing of each other.
"""

from dataclasses import dataclass, replace
from typing import Final

import msgspec

from device.update.states import Offer, State, UpdateRecord
from protocol.ids import Digest, Name, Token
from protocol.kits import is_kit
from protocol.objects import AssignmentBody

UNDER_WAY: Final = frozenset({State.IDLE, State.FETCH, State.CHECK, State.WAIT, State.ACTIVATE, State.TRIAL})
"""States in which the record's offer is still to be installed; in IDLE it is tried again."""
FORCIBLE: Final = UNDER_WAY - {State.TRIAL}
"""States in which something is left to force."""
SERVER: Final = "server"


@dataclass(frozen=True)
class Waiting:
    """An offer that passed the install rule and waits to be taken up."""

    assignment: AssignmentBody
    manifest: bytes
    forced: Token | None = None


class Offers:
    """What waits: the server's newest offer, and one of each kit. In memory: whoever made one repeats it."""

    def __init__(self) -> None:
        self._waiting: dict[Name, Waiting] = {}

    def put(self, waiting: Waiting) -> None:
        """In the place of what the same one offered before; the same release stays forced."""
        source = source_of(waiting.assignment.rollout)
        before = self._waiting.get(source)
        if before is not None and before.assignment.manifest == waiting.assignment.manifest:
            waiting = replace(waiting, forced=waiting.forced or before.forced)
        self._waiting[source] = waiting

    def drop(self, source: Name) -> bool:
        """The server, or a kit, offers nothing now. Tells whether something waited."""
        return self._waiting.pop(source, None) is not None

    def next(self) -> Waiting | None:
        """One that waits."""
        return next(iter(self._waiting.values()), None)

    def done(self, waiting: Waiting) -> None:
        """It was taken up, or will not be; a newer one of the same source stays."""
        source = source_of(waiting.assignment.rollout)
        if self._waiting.get(source) is waiting:
            del self._waiting[source]

    def another(self, release: Digest) -> bool:
        """Whether anything but this release waits."""
        return any(waiting.assignment.manifest.sha256 != release for waiting in self._waiting.values())

    def force(self, release: Digest, request: Token) -> bool:
        """Whatever brings this release is forced once it is taken up, by its first request. Tells whether it waits at
        all."""
        found = {key: one for key, one in self._waiting.items() if one.assignment.manifest.sha256 == release}
        self._waiting |= {key: replace(one, forced=request) for key, one in found.items() if one.forced is None}
        return bool(found)


def source_of(rollout: Name) -> Name:
    """Who offers under this name: `SERVER`, or the kit itself."""
    return rollout if is_kit(rollout) else SERVER


def is_same(one: Offer, other: Offer) -> bool:
    """Whether two offers are one and the same, forced or not."""
    return msgspec.structs.replace(one, forced=None) == msgspec.structs.replace(other, forced=None)


def goes_before(comes: Offer, record: UpdateRecord, *, waits_for_stick: bool) -> bool:
    """Whether an offer that may be installed takes the place of what is under way.

    The server's newest word replaces its last one, whatever that was. Between server and kits, and between kits, the
    higher release wins, and what is under way goes on when it is the same one: but what a stick brings costs nothing,
    so a kit takes a download over from the server; and a FETCH that waits for its stick gives way to anything, for
    nobody knows whether the stick comes back. That somebody forced an offer changes nothing here.

    Args:
        comes: Passed the install rule.
        record: What is under way.
        waits_for_stick: It is a kit's FETCH, and its stick is not there.
    """
    current = record.offer
    if current is None or record.state not in UNDER_WAY or waits_for_stick:
        return True
    if not is_kit(current.rollout) and not is_kit(comes.rollout):
        return True
    new, old = ((offer.release.era, offer.release.release_counter) for offer in (comes, current))
    if new != old:
        return new > old
    return record.state is State.FETCH and is_kit(comes.rollout) and not is_kit(current.rollout)
