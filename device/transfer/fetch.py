"""Fetches what a release needs by the signed plan, going on where the last attempt stopped.

One ranged request brings all that is missing of a payload; a drop costs the bytes of the open segment at most. A purse
judges what would still travel before each request and while it runs. Nothing here decides whether a release may be
installed: a blob that is not what was signed says that its source is bad, and a patch that gives no result is noted
and never replaced by something else that was not planned.
"""

import asyncio
import errno
import logging
import random as chance
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from device.retry import persist
from device.store import NoSpaceError, Store
from device.threads import to_its_end
from device.transfer import patching
from device.transfer.applier import ApplierEndedError, Appliers, in_process
from device.transfer.elsewhere import Elsewhere, Nowhere
from device.transfer.finished import adopt_finished
from device.transfer.holding import held_bytes, index_path, payload_held, peak_bytes
from device.transfer.patch_book import NoNotes, Notes
from device.transfer.patching import Patch, PatchFailedError, PatchSpool
from device.transfer.purse import Purse, Unlimited, Way
from device.transfer.rate import LinkRate, MinimumRate, RateCap
from device.transfer.reserving import release, reserve
from device.transfer.rest import rest_path
from device.transfer.spool import SegmentSpool, Spool, WholeSpool, unpack_whole
from protocol import limits
from protocol.artifact import Artifact
from protocol.delta.patch import CODEC, PatchIndex, parse_patch_index
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import Digest, is_digest
from protocol.messages import FailedPatch
from protocol.objects import Payload, Step, TransferPlan
from protocol.settings import Settings
from protocol.transfer import parse_index

LOG: Final = logging.getLogger("headland.transfer")
PROGRESS_BYTES: Final = 64 * limits.KIB  # a link that brings less between two drops does not renew our patience
COUNTED_BYTES: Final = 256 * limits.KIB  # a kill forgets so many that were received: what a cut costs anyway


class TransferSettings(Settings):
    """Table `[transfer]` of the settings.

    Args:
        rate_cap_bytes_s: Downloads take no more than this; 0 does not limit.
        min_rate_bytes_s: A download slower than this is dropped and tried again later.
        min_rate_over_s: Judged over so many seconds.
        attempts: Drops in a row without progress before the update pauses.
        first_retry_s: The first wait; it doubles.
        longest_retry_s: The longest wait.
    """

    rate_cap_bytes_s: float = 0.0
    min_rate_bytes_s: float = 64.0
    min_rate_over_s: float = 60.0
    attempts: int = 6
    first_retry_s: float = 0.5
    longest_retry_s: float = 20.0


class Source(Protocol):
    """Where blobs come from."""

    def stream(self, path: str, *, first: int, length: int) -> AsyncGenerator[bytes, None]:
        """Bytes of an immutable resource, as `device.link.Link.stream`."""
        ...


@dataclass(frozen=True)
class _Toll:
    """Who pays for a payload.

    Args:
        purse: Pays.
        way: Of the step that the payload belongs to.
        later_bytes: What travels after this payload.
    """

    purse: Purse
    way: Way
    later_bytes: int = 0


class Transfer:
    """Blobs into the store.

    Args:
        source: The link, or a stick.
        store: Where they go.
        settings: Rates and patience.
        count: Told of received bytes that no purse pays for, a segment or a stream at a time. Blocking: it is called
            in a thread.
        notes: What is known of patches.
        appliers: Make what applies patches.
        elsewhere: What else on this machine holds bases of patches.
        sync_bytes: What of a payload with an index a power cut may cost; at least a segment. More is for a source
            whose bytes are free: to sync takes longer than to read from a stick again.
        monotonic: Seconds that never go back.
        sleep: Waits so many seconds.
        random: Draws from 0 to 1.
    """

    def __init__(
        self,
        source: Source,
        store: Store,
        settings: TransferSettings,
        *,
        count: Callable[[int], None],
        notes: Notes | None = None,
        appliers: Appliers | None = None,
        elsewhere: Elsewhere | None = None,
        sync_bytes: int = 0,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = chance.random,
    ) -> None:
        self._source = source
        self._store = store
        self._settings = settings
        self._unlimited = Unlimited(count)
        self._notes = notes or NoNotes()
        self._appliers = appliers or in_process()
        self._elsewhere = elsewhere or Nowhere()
        self._sync_bytes = sync_bytes
        self._monotonic = monotonic
        self._sleep = sleep
        self._random = random
        self._cap = RateCap(settings.rate_cap_bytes_s, monotonic=monotonic, sleep=sleep)
        self._rate = LinkRate()

    @property
    def link_rate_kib_s(self) -> int:
        """What the link was good for lately, up to the cap; 0 when nothing was measured yet."""
        cap = int(self._settings.rate_cap_bytes_s) // limits.KIB
        return min(self._rate.kib_s, cap) if cap else self._rate.kib_s

    async def small(self, payload: Payload, limit: int) -> bytes:
        """A blob that is read whole: a manifest.

        Args:
            payload: Its hash and length, signed.
            limit: The most bytes that are read.

        Raises:
            LinkError: It did not come, in spite of several attempts.
            Refused: `HASH`, `LENGTH`: the source gives something else.
        """
        spool = WholeSpool(payload, limit)
        await self._receive(payload, spool, _nobody, _Toll(self._unlimited, "full"))
        return spool.content()

    async def fetch(
        self,
        plan: TransferPlan,
        artifacts: Sequence[Artifact],
        progress: Callable[[int], None] = lambda _: None,
        purse: Purse | None = None,
    ) -> None:
        """Brings every artifact that is missing into the store, one after the other; durable on return.

        Cancelling it loses nothing that was verified; the next call goes on from there.

        Args:
            plan: Signed.
            artifacts: What must be there afterwards.
            progress: Told how many bytes came, chunk by chunk.
            purse: Pays for all of it; without one the bytes are only counted.

        Raises:
            LinkError: The link is down or the server lacks a blob; `retryable` tells which.
            Refused: `HASH` and others: the source gives something that was not signed, or the plan does not fit.
            PatchFailedError: A patch of the plan gives no result here. Nothing is fetched in its place.
            OverBudgetError: More would travel than may; before the first byte, or as soon as it shows.
            NoSpaceError: The disk is too small for the peak, or what was set aside for it.
            StateError: What holds a base of a patch does not give it now.
        """
        steps = {step.artifact: step for step in plan.steps}
        purse = purse or self._unlimited
        await to_its_end(adopt_finished, self._store, artifacts, purse)
        missing = await asyncio.to_thread(self._missing, artifacts)
        chosen = [(artifact, _fitting(artifact, steps.get(artifact.sha256))) for artifact in missing]
        prices, ahead = await asyncio.to_thread(self._prepare, [step for _, step in chosen], purse)
        reserved: list[Path] = []
        try:
            await to_its_end(lambda: reserved.extend(reserve(self._store, [step for _, step in chosen], ahead)))
            for number, (artifact, step) in enumerate(chosen):
                toll = _Toll(purse, "delta" if step.method == "delta" else "full", sum(prices[number + 1 :]))
                later = {other.base for _, other in chosen[number + 1 :]}
                if step.base is not None:
                    await self._elsewhere.get({step.base, *(base for base in ahead if base in later)})
                await self._fetch_one(artifact, step, progress, toll)
                if step.base is not None and step.base not in later:
                    await self._elsewhere.give_up(step.base)
        finally:
            await to_its_end(release, self._store, reserved)

    def _missing(self, artifacts: Iterable[Artifact]) -> list[Artifact]:
        return [a for a in artifacts if not self._store.has(a.sha256, a.length_bytes)]

    def _prepare(self, steps: Sequence[Step], purse: Purse) -> tuple[list[int], Mapping[Digest, int]]:
        """Judges the whole before the first byte travels.

        Returns:
            What each step still takes over the air; and the lengths of bases that are brought all at once, which an
            engine gives for the price of one: where there is no room for that, they come one by one.
        """
        for step in steps:
            if step.method == "delta":
                self._refuse_failed(_patch(step))
        prices = [step.travels_bytes() - sum(held_bytes(self._store, step).values()) for step in steps]
        purse.check(sum(prices))
        brought = self._to_bring(steps)
        try:
            self._store.check_space(peak_bytes(self._store, steps, brought, at_once=True))
        except NoSpaceError:
            self._store.check_space(peak_bytes(self._store, steps, brought))
            return prices, {}
        return prices, brought

    def _to_bring(self, steps: Sequence[Step]) -> dict[Digest, int]:
        """Lengths of the bases that do not lie in the store."""
        found = {step.base: self._elsewhere.length_bytes(step.base) for step in steps if step.base is not None}
        return {
            base: length for base, length in found.items() if length is not None and not self._store.can_count_on(base)
        }

    def _refuse_failed(self, patch: Patch) -> None:
        failed = self._notes.has_failed(patch.artifact, patch.base, patch.payload.sha256, patch.lifted_ms)
        if failed is not None:
            name = patch.payload.sha256[:12]
            raise PatchFailedError(patch, failed.reason, f"patch {name} gave no result here before")

    async def _fetch_one(self, artifact: Artifact, step: Step, progress: Callable[[int], None], toll: _Toll) -> None:
        payload, hashed = step.payload, None
        assert payload is not None
        if step.method == "delta":
            await self._patch_one(step, progress, toll)
            return
        if step.index is None:
            whole = WholeSpool(payload, limits.UNINDEXED_PAYLOAD_BYTES)
            await self._receive(payload, whole, progress, toll)
            part = await to_its_end(unpack_whole, whole.content(), self._store, artifact.sha256, artifact.length_bytes)
        else:
            data = await self._index(step, progress, toll)
            index = await asyncio.to_thread(parse_index, data, artifact.length_bytes, payload.length_bytes)
            spool = await to_its_end(SegmentSpool, index, payload, self._store, artifact.sha256, self._sync_bytes)
            try:
                await self._receive(payload, spool, progress, toll)
            finally:
                await asyncio.to_thread(spool.close)
            part, hashed = spool.path, spool.digest
        await to_its_end(self._store.adopt, part, artifact.sha256, artifact.length_bytes, hashed)
        if step.index is not None:
            await asyncio.to_thread(self._store.disk.unlink, index_path(self._store, step.index))
            await asyncio.to_thread(self._store.disk.unlink, rest_path(self._store, payload))

    async def _patch_one(self, step: Step, progress: Callable[[int], None], toll: _Toll) -> None:
        patch = _patch(step)
        try:
            await self._apply(patch, step, progress, toll)
        except PatchFailedError as failed:
            await to_its_end(self._judge_failure, failed)
            raise
        except ApplierEndedError:
            self._notes.note_end()
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                await to_its_end(self._look_at_base, patch)
            raise
        await asyncio.to_thread(patching.forget, self._store, patch.payload)
        if step.index is not None:
            await asyncio.to_thread(self._store.disk.unlink, index_path(self._store, step.index))

    async def _apply(self, patch: Patch, step: Step, progress: Callable[[int], None], toll: _Toll) -> None:
        """Fetches a patch and applies it meanwhile; the result is in the store on return."""
        index = None
        if step.index is not None:
            data = await self._index(step, progress, toll)
            index = await asyncio.to_thread(_patch_index, patch, data)
        spent = _Speed()
        spool = PatchSpool(patch, index, self._store, self._appliers, spent.add)
        try:
            await asyncio.to_thread(spool.open)
            await self._receive(patch.payload, spool, progress, toll)
            await asyncio.to_thread(spool.finish)
        finally:
            await asyncio.to_thread(spool.close)
        await to_its_end(self._adopt_result, patch, spool, toll.purse)
        await asyncio.to_thread(self._notes.note_speed, spent.output_bytes, spent.took_s)

    def _adopt_result(self, patch: Patch, spool: PatchSpool, purse: Purse) -> None:
        purse.promise(patch.artifact, patch.length_bytes, patch.saves_bytes)
        try:
            self._store.adopt(spool.path, patch.artifact, patch.length_bytes)
        except Refused as refused:
            purse.settle(self._store.has)
            raise _failed(patch, refused) from refused
        purse.settle(self._store.has)

    def _judge_failure(self, failed: PatchFailedError) -> None:
        """Remembers a failure, unless it is the base's: a disk may have changed that after it was hashed.

        Raises:
            LinkError: The base is not what it was. Nothing is known of the patch.
        """
        patch = failed.patch
        is_sound = self._store.is_whole(patch.base)
        if is_sound:
            # Noted before anything is deleted: whatever a cut leaves of it is not gone on from.
            self._notes.note_failure(
                FailedPatch(
                    artifact=patch.artifact,
                    base=patch.base,
                    payload=patch.payload.sha256,
                    reason=failed.reason,
                    lifted_ms=patch.lifted_ms,
                )
            )
        patching.forget(self._store, patch.payload)
        if not is_sound:
            self._store.doubt(patch.base)
            raise patching.baseless(patch) from failed

    def _look_at_base(self, patch: Patch) -> None:
        """A base that the disk does not read any more would stop its patch for ever.

        Raises:
            LinkError: It is not what it was.
        """
        if not self._store.is_whole(patch.base):
            self._store.doubt(patch.base)
            raise patching.baseless(patch)

    async def _index(self, step: Step, progress: Callable[[int], None], toll: _Toll) -> bytes:
        """The index, hashed: kept beside its part, so that it travels once."""
        signed, payload = step.index, step.payload
        assert signed is not None
        assert payload is not None
        path = index_path(self._store, signed)
        kept = await asyncio.to_thread(_read, path)
        spool = WholeSpool(signed, limits.INDEX_BYTES)
        try:
            if kept is not None and len(kept) == signed.length_bytes:
                spool.take(kept)
        except Refused:
            spool.restart()  # torn by a cut
        if spool.wants < signed.length_bytes:
            held = await asyncio.to_thread(payload_held, self._store, step)
            later = toll.later_bytes + payload.length_bytes - held
            await self._receive(signed, spool, progress, _Toll(toll.purse, toll.way, later))
            await to_its_end(self._store.disk.write, path, spool.content())
        return spool.content()

    async def _receive(self, payload: Payload, spool: Spool, progress: Callable[[int], None], toll: _Toll) -> None:
        """Fills the spool, over as many connections as it takes."""
        assert is_digest(payload.sha256)
        settings = self._settings
        furthest = spool.wants
        suspects = set[int]()

        def position() -> int:
            nonlocal furthest
            furthest = max(furthest, spool.wants)
            return furthest

        async def attempt() -> None:
            while spool.wants < payload.length_bytes:
                began = spool.wants
                try:
                    await self._stream(payload, spool, progress, toll)
                except LinkError:
                    if spool.wants < payload.length_bytes:
                        raise  # else the link dropped after the last byte, which is no failure
                except Refused as refused:
                    spool.restart()
                    # Bytes that came over two connections may be of two minds (a cache, a server that was restored):
                    # a second look in one piece tells whether the source is bad.
                    if refused.reason is not Reason.HASH or spool.wants >= began or spool.wants in suspects:
                        raise
                    suspects.add(spool.wants)

        if payload.length_bytes == 0:
            await asyncio.to_thread(spool.take, b"")
        await persist(
            attempt,
            attempts=settings.attempts,
            random=self._random,
            sleep=self._sleep,
            first_s=settings.first_retry_s,
            longest_s=settings.longest_retry_s,
            progress=position,
            step=PROGRESS_BYTES,
        )

    async def _stream(self, payload: Payload, spool: Spool, progress: Callable[[int], None], toll: _Toll) -> None:
        """One connection's worth."""
        floor = MinimumRate(self._settings.min_rate_bytes_s, self._settings.min_rate_over_s)
        first = spool.wants
        uncounted = 0

        def pay(count: int) -> None:
            if count:
                toll.purse.spend(count, toll.way)
            toll.purse.check(toll.later_bytes + payload.length_bytes - spool.wants)

        await asyncio.to_thread(pay, 0)
        LOG.info("payload %s: from byte %d of %d", payload.sha256[:12], first, payload.length_bytes)
        try:
            async with aclosing(
                self._source.stream(f"/v1/blobs/{payload.sha256}", first=first, length=payload.length_bytes - first)
            ) as chunks:
                while True:
                    asked = self._monotonic()
                    chunk = await _next(chunks, floor.over_s)
                    if chunk is None:
                        return
                    waited_s = self._monotonic() - asked
                    floor.received(len(chunk), waited_s)
                    self._rate.received(len(chunk), waited_s)
                    uncounted += len(chunk)
                    progress(len(chunk))
                    await asyncio.to_thread(spool.take, chunk)
                    if uncounted >= COUNTED_BYTES:
                        counted, uncounted = uncounted, 0
                        await asyncio.to_thread(pay, counted)
                    await self._cap.take(len(chunk))
        finally:
            if uncounted:
                await asyncio.to_thread(toll.purse.spend, uncounted, toll.way)


class _Speed:
    """How long applying took. Only the patch's own thread adds."""

    def __init__(self) -> None:
        self.output_bytes = 0
        self.took_s = 0.0

    def add(self, output_bytes: int, took_s: float) -> None:
        self.output_bytes += output_bytes
        self.took_s += took_s


def _fitting(artifact: Artifact, step: Step | None) -> Step:
    """The step for a missing artifact, if it can be done here."""
    if step is None or step.method == "have" or step.payload is None:
        # The plan was made for what the device had when it asked; the next one will know better.
        raise LinkError(f"the plan brings nothing for artifact {artifact.sha256[:12]}", retryable=False)
    if step.method == "delta" and (step.base is None or step.codec != CODEC):
        raise LinkError(
            f"the plan patches artifact {artifact.sha256[:12]} by codec {step.codec}; this agent applies {CODEC}",
            retryable=False,
        )
    if step.length_bytes != artifact.length_bytes:
        raise Refused(
            Reason.LENGTH,
            f"the plan gives artifact {artifact.sha256[:12]} {step.length_bytes} bytes, "
            f"the manifest {artifact.length_bytes}",
        )
    if step.index is None and step.payload.length_bytes > limits.UNINDEXED_PAYLOAD_BYTES:
        raise Refused(Reason.LENGTH, f"a payload of {step.payload.length_bytes} bytes without an index")
    return step


def _patch(step: Step) -> Patch:
    assert step.base is not None
    assert step.payload is not None
    return Patch(
        artifact=step.artifact,
        length_bytes=step.length_bytes,
        base=step.base,
        payload=step.payload,
        lifted_ms=step.lifted_ms,
        saves_bytes=max(step.full_bytes - step.travels_bytes(), 0),
    )


def _patch_index(patch: Patch, data: bytes) -> PatchIndex:
    """The index: what the plan signed and cannot be read is as good as a patch that cannot be applied."""
    try:
        return parse_patch_index(data, patch.length_bytes, patch.payload.length_bytes)
    except Refused as refused:
        raise _failed(patch, refused) from refused


def _read(path: Path) -> bytes | None:
    """A small file; None when there is none, or none that the disk reads: then it is fetched again."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _failed(patch: Patch, refused: Refused) -> PatchFailedError:
    return PatchFailedError(patch, refused.reason, f"patch {patch.payload.sha256[:12]}: {refused.message}")


async def _next(chunks: AsyncGenerator[bytes, None], patience_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(patience_s):
            return await anext(chunks, None)
    except TimeoutError as error:
        raise LinkError(f"nothing came for {patience_s:.0f} s") from error


def _nobody(count: int) -> None:
    """Progress that nobody watches."""
