"""Forcing: the machine asks, a technician signs, and what is forced is kept until the server was told.

A challenge lives in memory only, for `CHALLENGE_S`, and is good for one request. What it names was on offer when it
was given: a kit that fits, or what the server has under way. Who asks for the same soon after gets the same: nobody who
asks often takes away what another is about to sign.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from device.kits.forces import drop_forces, keep_force
from device.kits.shown import KitShown
from device.state_db import StateDb
from device.update.offers import FORCIBLE
from device.update.states import UpdateRecord
from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.ids import DeviceId, Digest, Millis, Name, ProductName, Token, Version
from protocol.kits import CHALLENGE_S, ForceRequest, KitId, is_kit
from protocol.messages import Alert, SignedForce
from protocol.wire import Message, decode

_log = logging.getLogger(__name__)

CHALLENGES: Final = 16  # at once; the oldest goes


class Challenge(Message, omit_defaults=False):
    """What a technician is to sign with a name and a reason: see `protocol.kits.ForceRequest`."""

    id: Token
    at_ms: Millis
    device: DeviceId
    product: ProductName
    release: Version
    manifest: Digest
    offer: Name


class Forced(Message, omit_defaults=False):
    """What came of a request."""

    offer: Name
    release: Version
    technician: Name


class Kits(Protocol):
    """As `device.kits.life.Kits`."""

    def choice_of(self, offer: str) -> tuple[Version, Digest] | None:
        """What this machine would take of a kit."""
        ...

    async def force(self, kit: KitId, release: Digest, request: Token) -> KitShown:
        """Has a release of a kit installed, forced."""
        ...


class Updates(Protocol):
    """As `device.update.updater.Updater`."""

    @property
    def record(self) -> UpdateRecord:
        """What is under way."""
        ...

    async def force(self, release: Digest, request: Token) -> None:
        """Forces what is under way."""
        ...


class Forcing:
    """Of one machine. Belongs to one event loop.

    Args:
        device: Which.
        product: That it follows.
        kits: What they offer.
        updates: What is under way.
        state: Keeps what was forced.
        judge: Whether a technician may: the request, if so; else it raises `Refused`. Blocks.
        draw_token: 128 random bits.
        now_ms: By the machine's clock, sure or not.
        monotonic: Seconds that never go back.
    """

    def __init__(
        self,
        *,
        device: DeviceId,
        product: ProductName,
        kits: Kits,
        updates: Updates,
        state: StateDb,
        judge: Callable[[SignedForce, Challenge], ForceRequest],
        draw_token: Callable[[], Token],
        now_ms: Callable[[], Millis],
        monotonic: Callable[[], float],
    ) -> None:
        self._device = device
        self._product = product
        self._kits = kits
        self._updates = updates
        self._state = state
        self._judge = judge
        self._draw_token = draw_token
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._given: dict[Token, tuple[float, Challenge]] = {}
        self._alone = asyncio.Lock()

    async def challenge(self, offer: Name) -> Challenge:
        """Asks for a technician's signature.

        Args:
            offer: A kit, or the rollout whose release is under way.

        Raises:
            StateError: Nothing of that name can be forced now.
        """
        found = self._find(offer)
        if found is None:
            raise StateError(
                f"{offer} offers nothing that could be forced now", hint="headland-device kit list shows what there is"
            )
        at_ms = await asyncio.to_thread(self._now_ms)
        self._forget_old()
        soon_s = self._monotonic() + CHALLENGE_S / 2  # so much is left for whoever signs
        for ends_s, known in self._given.values():
            if ends_s >= soon_s and (known.offer, known.release, known.manifest) == (offer, *found):
                return known
        given = Challenge(
            id=self._draw_token(),
            at_ms=at_ms,
            device=self._device,
            product=self._product,
            release=found[0],
            manifest=found[1],
            offer=offer,
        )
        while len(self._given) >= CHALLENGES:
            del self._given[next(iter(self._given))]
        self._given[given.id] = (self._monotonic() + CHALLENGE_S, given)
        return given

    async def force(self, signed: SignedForce) -> Forced:
        """Carries a technician's request out. It is durable, and told to the server, before anything is done.

        Raises:
            Refused: The technician may not, or it is not what this machine asked for.
            StateError: What was asked for is not on offer any more.
        """
        async with self._alone:
            return await self._force(signed)

    async def _force(self, signed: SignedForce) -> Forced:
        asked = decode(signed.request, ForceRequest, limit=limits.FORCE_REQUEST_BYTES)
        self._forget_old()
        if asked.id not in self._given:
            raise Refused(
                Reason.TOKEN,
                "this machine did not ask for that, or it was ten minutes ago, or it was used",
                hint="ask this machine anew, and sign what it says",
            )
        _, challenge = self._given[asked.id]
        request = await asyncio.to_thread(self._judge, signed, challenge)
        if self._find(challenge.offer) != (challenge.release, challenge.manifest):
            raise StateError(f"{challenge.offer} does not offer release {challenge.release} any more")
        await asyncio.to_thread(self._keep, signed, request)
        del self._given[asked.id]
        _log.warning("forced by %s: %s of %s: %s", request.technician, request.release, request.offer, request.reason)
        if self._is_under_way(challenge):
            try:
                await self._updates.force(challenge.manifest, challenge.id)
            except StateError:  # its trial has begun since
                await asyncio.to_thread(self._drop, signed, request)
                raise
        if is_kit(challenge.offer):
            await self._kits.force(challenge.offer, challenge.manifest, challenge.id)
        return Forced(offer=request.offer, release=request.release, technician=request.technician)

    def _keep(self, signed: SignedForce, request: ForceRequest) -> None:
        keep_force(self._state, signed)
        detail = f"{request.technician} forced release {request.release} of {request.offer}: {request.reason}"
        self._state.add_alert(Alert(id=request.id, kind="forced", at_ms=self._now_ms(), detail=detail[:2000]))

    def _drop(self, signed: SignedForce, request: ForceRequest) -> None:
        drop_forces(self._state, (signed,))
        self._state.drop_alerts((request.id,))

    def _find(self, offer: Name) -> tuple[Version, Digest] | None:
        """What an offer brings that can be forced: of what is on trial, or was, nothing is left to force."""
        record = self._updates.record
        current = record.offer
        if is_kit(offer):
            found = self._kits.choice_of(offer)
        elif current is not None and current.rollout == offer:
            found = (current.release.version, current.release.digest)
        else:
            return None
        is_it = found is not None and current is not None and current.release.digest == found[1]
        return None if is_it and record.state not in FORCIBLE else found

    def _is_under_way(self, challenge: Challenge) -> bool:
        current = self._updates.record.offer
        return current is not None and current.release.digest == challenge.manifest

    def _forget_old(self) -> None:
        now_s = self._monotonic()
        self._given = {token: one for token, one in self._given.items() if one[0] > now_s}
