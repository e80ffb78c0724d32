"""What a machine learnt of patches, in `state.db`: which gave no result here, and how fast they are applied.

That a patch gave no result may be a fault of what applied it. So the record holds for the agent that wrote it: another
version forgets it and tries once. A person may lift it as well: on the server, which says so in the plan, or here.
"""

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from device.state_db import StateDb
from protocol import limits
from protocol.errors import Refused
from protocol.ids import Digest, Millis, Version
from protocol.messages import FailedPatch
from protocol.wire import Message, decode, encode

FAILED: Final = "patches/failed"
RATE: Final = "patches/rate"
ENDS: Final = 5  # in a row from outside: with the pauses in between, that is no passing want of memory
DIGITS: Final = 8  # of a digest name it
KEPT: Final = 256  # the oldest go: should such a patch be offered again, it fails again
RATE_OUTPUT_BYTES: Final = limits.MIB  # what less output tells of speed is chance
SAME_RATE: Final = (0.7, 3.0)  # within this times what is told, a new measurement is the same: the inventory stays


class Notes(Protocol):
    """What a transfer asks and tells. All methods block."""

    def has_failed(self, artifact: Digest, base: Digest, payload: Digest, lifted_ms: Millis) -> FailedPatch | None:
        """How this patch failed here before; the server is told of it once more. None when it may be tried.

        Args:
            artifact: Its result.
            base: What it is made from.
            payload: Its bytes.
            lifted_ms: When a person last let it be tried again, as the plan says; a failure from before does not count.
        """
        ...

    def note_failure(self, patch: FailedPatch) -> None:
        """Remembers a patch that gave no result; durable on return."""
        ...

    def note_speed(self, output_bytes: int, took_s: float) -> None:
        """Takes note of an applied patch."""
        ...

    def note_end(self) -> None:
        """What applied a patch was ended from outside."""
        ...


class NoNotes:
    """For transfers without a state: nothing is remembered."""

    def has_failed(self, artifact: Digest, base: Digest, payload: Digest, lifted_ms: Millis) -> FailedPatch | None:
        """As `Notes`."""
        return None

    def note_failure(self, patch: FailedPatch) -> None:
        """As `Notes`."""

    def note_speed(self, output_bytes: int, took_s: float) -> None:
        """As `Notes`."""

    def note_end(self) -> None:
        """As `Notes`."""


class _Failed(Message):
    patch: FailedPatch
    agent: str = ""
    told: bool = False
    lifted: bool = False  # a technician did; it stays until the server knows


class PatchBook:
    """Implements `Notes`. Blocking; safe to share between threads.

    Args:
        state: Where it is kept.
        agent: The version that applies patches now: what failed under another one is forgotten.
    """

    def __init__(self, state: StateDb, agent: Version) -> None:
        self._state = state
        self._agent = agent
        self._ends = 0

    def has_failed(self, artifact: Digest, base: Digest, payload: Digest, lifted_ms: Millis) -> FailedPatch | None:
        """As `Notes`."""
        for known in self._read():
            patch = known.patch
            if known.lifted or patch.lifted_ms < lifted_ms or _which(patch) != (artifact, base, payload):
                continue
            if known.told:  # the server offers it all the same: it may have lost its memory
                self._replace(known, msgspec.structs.replace(known, told=False))
            return patch
        return None

    def note_failure(self, patch: FailedPatch) -> None:
        """As `Notes`."""

        def add(known: list[_Failed]) -> list[_Failed]:
            others = [failed for failed in known if _which(failed.patch) != _which(patch)]
            return [*others, _Failed(patch=patch, agent=self._agent)][-KEPT:]

        self._change(add)

    def failed(self) -> tuple[FailedPatch, ...]:
        """All that failed and is not tried again, oldest first."""
        return tuple(known.patch for known in self._read() if not known.lifted)

    def untold(self) -> tuple[FailedPatch, ...]:
        """What the next contact tells of, oldest first."""
        found = (known.patch for known in self._read() if not known.told and not known.lifted)
        return tuple(found)[: limits.FAILED_PATCHES]

    def lifted(self) -> tuple[Digest, ...]:
        """The payloads of which the next contact tells that they may be offered again."""
        return tuple(known.patch.payload for known in self._read() if known.lifted)[: limits.FAILED_PATCHES]

    def lift(self, name: str) -> tuple[FailedPatch, ...]:
        """A technician lets patches be tried again.

        Args:
            name: The beginning of a payload's or a result's digest, 8 digits or more.

        Returns:
            What was lifted; empty when nothing has this name.
        """
        found: list[FailedPatch] = []

        def mark(known: list[_Failed]) -> list[_Failed]:
            found[:] = [failed.patch for failed in known if not failed.lifted and _is_named(failed.patch, name)]
            return [
                msgspec.structs.replace(failed, lifted=True) if failed.patch in found else failed for failed in known
            ]

        self._change(mark)
        return tuple(found)

    def mark_told(self, patches: tuple[FailedPatch, ...], lifted: tuple[Digest, ...] = ()) -> None:
        """The server was told of these."""
        if patches or lifted:
            self._change(
                lambda known: [
                    msgspec.structs.replace(failed, told=True) if failed.patch in patches else failed
                    for failed in known
                    if not (failed.lifted and failed.patch.payload in lifted)
                ]
            )

    def note_speed(self, output_bytes: int, took_s: float) -> None:
        """As `Notes`."""
        self._ends = 0
        if output_bytes < RATE_OUTPUT_BYTES or took_s <= 0:
            return
        measured = output_bytes / took_s / limits.KIB
        told = self.rate_kib_s()
        if told and SAME_RATE[0] * told <= measured < SAME_RATE[1] * told:
            return
        self._state.put(RATE, str(1 << max(int(measured).bit_length() - 1, 0)).encode())

    def note_end(self) -> None:
        """As `Notes`."""
        self._ends += 1

    @property
    def can_apply(self) -> bool:
        """Whether the server should plan patches: a machine that kills each applier would wait for ever."""
        return self._ends < ENDS

    def rate_kib_s(self) -> int:
        """Output of the applier, down to a power of two; 0 when it was not measured yet."""
        found = self._state.get(RATE)
        return int(found) if found is not None and found.isdigit() else 0

    def _read(self) -> list[_Failed]:
        return self._decode(self._state.get(FAILED))

    def _change(self, make: Callable[[list[_Failed]], list[_Failed]]) -> None:
        self._state.change(FAILED, lambda found: encode(make(self._decode(found))))

    def _replace(self, old: _Failed, new: _Failed) -> None:
        self._change(lambda known: [new if failed == old else failed for failed in known])

    def _decode(self, found: bytes | None) -> list[_Failed]:
        if found is None:
            return []
        try:
            known = decode(found, list[_Failed], limit=limits.MIB)
        except Refused:
            return []
        return [failed for failed in known if failed.agent == self._agent]


def _is_named(patch: FailedPatch, name: str) -> bool:
    return len(name) >= DIGITS and (patch.payload.startswith(name) or patch.artifact.startswith(name))


def _which(patch: FailedPatch) -> tuple[Digest, Digest, Digest]:
    return patch.artifact, patch.base, patch.payload
