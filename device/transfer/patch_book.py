"""What a machine learnt of patches, in `state.db`: which gave no result here, and how fast they are applied.

That a patch gave no result may be a fault of what applied it. So the record holds for the agent that wrote it: another
version forgets it and tries once. A person may lift it as well: on the server, which says so in the plan, or here.
"""

import threading
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


class PatchBook:
    """Implements `Notes`. Blocking; safe to share between threads.

    Args:
        state: Where it is kept.
        agent: The version that applies patches now: what failed under another one is forgotten.
    """

    def __init__(self, state: StateDb, agent: Version) -> None:
        self._state = state
        self._agent = agent
        self._lock = threading.Lock()
        self._ends = 0

    def has_failed(self, artifact: Digest, base: Digest, payload: Digest, lifted_ms: Millis) -> FailedPatch | None:
        """As `Notes`."""
        with self._lock:
            known = self._read()
            for number, failed in enumerate(known):
                patch = failed.patch
                if patch.lifted_ms >= lifted_ms and _which(patch) == (artifact, base, payload):
                    if failed.told:  # the server offers it all the same: it may have lost its memory
                        known[number] = msgspec.structs.replace(failed, told=False)
                        self._write(known)
                    return patch
        return None

    def note_failure(self, patch: FailedPatch) -> None:
        """As `Notes`."""
        with self._lock:
            known = [failed for failed in self._read() if _which(failed.patch) != _which(patch)]
            self._write([*known, _Failed(patch=patch, agent=self._agent)][-KEPT:])

    def failed(self) -> tuple[FailedPatch, ...]:
        """All that failed and is not tried again, oldest first."""
        with self._lock:
            return tuple(failed.patch for failed in self._read())

    def untold(self) -> tuple[FailedPatch, ...]:
        """What the next contact tells of, oldest first."""
        with self._lock:
            return tuple(failed.patch for failed in self._read() if not failed.told)[: limits.FAILED_PATCHES]

    def mark_told(self, patches: tuple[FailedPatch, ...]) -> None:
        """The server was told of these."""
        if not patches:
            return
        with self._lock:
            self._write(
                [
                    msgspec.structs.replace(failed, told=True) if failed.patch in patches else failed
                    for failed in self._read()
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
        found = self._state.get(FAILED)
        if found is None:
            return []
        try:
            known = decode(found, list[_Failed], limit=limits.MIB)
        except Refused:
            return []
        return [failed for failed in known if failed.agent == self._agent]

    def _write(self, known: list[_Failed]) -> None:
        self._state.put(FAILED, encode(known))


def _which(patch: FailedPatch) -> tuple[Digest, Digest, Digest]:
    return patch.artifact, patch.base, patch.payload
