"""Puts the facts that are known here before the rules: may an offer be installed, may a release be activated now."""

import asyncio

from device.containers.engine import EngineAwayError, EngineError
from device.containers.stock import Stock
from device.trust.port import Terms
from device.update import rules
from device.update.hardware import Hardware
from device.update.memory import Memory
from device.update.releases import Library
from device.update.states import Offer, UpdateRecord
from device.update.world import World
from protocol.errors import Refused, StateError
from protocol.ids import Digest, Token
from protocol.kits import PermitTerms
from protocol.objects import AssignmentBody


class Judge:
    """Of one machine. Blocking.

    Args:
        memory: Terms, floors, refusals.
        hardware: Who this is.
        world: Time and signals.
    """

    def __init__(self, memory: Memory, hardware: Hardware, world: World) -> None:
        self._memory = memory
        self._hardware = hardware
        self._world = world

    def offer(
        self,
        assignment: AssignmentBody,
        manifest_bytes: bytes,
        terms: Terms,
        record: UpdateRecord,
        forced: Token | None = None,
    ) -> rules.Accepted | rules.Later | Refused:
        """The install rule: see `rules.judge_offer`. A refusal is returned, not raised."""
        if self._memory.is_recovering():
            return rules.Later("recovery: state.db and its seal were lost; the server is still to tell what ran here")
        # Read before the `try`: what cannot be read here is no verdict on the release.
        floor, refused, delisted = self._memory.floor(), self._memory.refused(), self._memory.delisted()
        try:
            verdict = rules.judge_offer(
                assignment,
                manifest_bytes,
                terms,
                self._hardware.machine,
                floor=floor,
                record=record,
                refused=refused,
                delisted=delisted,
                forced=forced,
                permit=self._permit(assignment.manifest.sha256, terms),
            )
        except Refused as refusal:
            return refusal
        if isinstance(verdict, rules.Accepted) and verdict.manifest.containers and not self._world.has_engine():
            return rules.Later(f"engine: release {verdict.manifest.version} has containers; no engine listens here")
        return verdict

    def activation(self, offer: Offer, record: UpdateRecord) -> rules.Later | None:
        """The second look: see `rules.look_again`.

        Raises:
            Refused: It may not be activated any more.
        """
        terms = self._memory.terms()
        if terms is None:
            return rules.Later("trust: no terms of the product are known")
        now_ms, sure = self._world.now()
        return rules.look_again(
            offer,
            terms,
            floor=self._memory.floor(),
            record=record,
            refused=self._memory.refused(),
            now_ms=now_ms,
            sure_of_time=sure,
            signals_off=self._world.signals_off(),
            permit=self._permit(offer.release.digest, terms),
        )

    def _permit(self, release: Digest, terms: Terms) -> PermitTerms | None:
        now_ms, sure = self._world.now()
        time = rules.Time(now_ms, sure, self._world.time_floor_ms())
        return rules.permit_for(release, terms, self._hardware.machine.device, self._memory.floor(), time)


async def without_engine(name: Digest, library: Library, stock: Stock) -> rules.Later | None:
    """Why a release has to wait for its engine; what that holds is known where it need not.

    One without containers waits as well while those of the release before may run: nobody could tell when its set is
    whole, and its trial would come to no verdict.

    Args:
        name: Of the release.
        library: Has its manifest.
        stock: Looks at the engine.
    """
    try:
        manifest = await asyncio.to_thread(library.manifest, name)
    except (Refused, StateError):  # whoever goes on finds that
        return None
    if not manifest.containers and not await asyncio.to_thread(stock.may_run):
        return None
    try:
        await stock.look()
    except (EngineAwayError, EngineError) as error:
        since = "" if manifest.containers else "; what it ran before may run until the machine is started anew"
        return rules.Later(f"engine: {error.message}{since}")
    return None
