"""Fetches what a release needs by the signed plan, going on where the last attempt stopped.

One ranged request brings all that is missing of a payload; a drop costs the bytes of the open segment at most. Nothing
here decides whether a release may be installed: a blob that is not what was signed says that its source is bad.
"""

import asyncio
import random as chance
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Final, Protocol

from device.retry import persist
from device.store import Store
from device.transfer.rate import MinimumRate, RateCap
from device.transfer.spool import SegmentSpool, Spool, WholeSpool, unpack_whole
from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import is_digest
from protocol.objects import Payload, Step, TransferPlan
from protocol.release import Artifact
from protocol.settings import Settings
from protocol.transfer import SegmentIndex, parse_index

PROGRESS_BYTES: Final = 64 * limits.KIB  # a link that brings less between two drops does not renew our patience


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


class Transfer:
    """Blobs into the store.

    Args:
        source: The link, or a stick.
        store: Where they go.
        settings: Rates and patience.
        count: Told of received bytes, a segment or a stream at a time. Blocking: it is called in a thread.
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
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = chance.random,
    ) -> None:
        self._source = source
        self._store = store
        self._settings = settings
        self._count = count
        self._monotonic = monotonic
        self._sleep = sleep
        self._random = random
        self._cap = RateCap(settings.rate_cap_bytes_s, monotonic=monotonic, sleep=sleep)

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
        await self._receive(payload, spool, _nobody)
        return spool.content()

    async def fetch(
        self, plan: TransferPlan, artifacts: Sequence[Artifact], progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Brings every artifact that is missing into the store, one after the other; durable on return.

        Cancelling it loses nothing that was verified; the next call goes on from there.

        Args:
            plan: Signed.
            artifacts: What must be there afterwards.
            progress: Told how many bytes came, chunk by chunk.

        Raises:
            LinkError: The link is down or the server lacks a blob; `retryable` tells which.
            Refused: `HASH` and others: the source gives something that was not signed, or the plan does not fit.
            NoSpaceError: The disk is too small for the peak.
        """
        steps = {step.artifact: step for step in plan.steps}
        missing = await asyncio.to_thread(self._missing, artifacts)
        chosen = [(artifact, _fitting(artifact, steps.get(artifact.sha256))) for artifact in missing]
        await asyncio.to_thread(lambda: self._store.check_space(peak_bytes(self._store, missing)))
        for artifact, step in chosen:
            await self._fetch_one(artifact, step, progress)

    def _missing(self, artifacts: Iterable[Artifact]) -> list[Artifact]:
        return [a for a in artifacts if not self._store.has(a.sha256, a.length_bytes)]

    async def _fetch_one(self, artifact: Artifact, step: Step, progress: Callable[[int], None]) -> None:
        payload = step.payload
        assert payload is not None
        if step.index is None:
            whole = WholeSpool(payload, limits.UNINDEXED_PAYLOAD_BYTES)
            await self._receive(payload, whole, progress)
            part = await asyncio.to_thread(
                unpack_whole, whole.content(), self._store, artifact.sha256, artifact.length_bytes
            )
        else:
            index = await self._index(step.index, artifact.length_bytes, payload.length_bytes, progress)
            spool = await asyncio.to_thread(SegmentSpool, index, self._store, artifact.sha256)
            try:
                await self._receive(payload, spool, progress)
            finally:
                await asyncio.to_thread(spool.close)
            part = spool.path
        await asyncio.to_thread(self._store.adopt, part, artifact.sha256, artifact.length_bytes)
        if step.index is not None:
            await asyncio.to_thread(self._store.disk.unlink, self._store.part(_index_name(step.index)))

    async def _index(
        self, signed: Payload, output_bytes: int, payload_bytes: int, progress: Callable[[int], None]
    ) -> SegmentIndex:
        """The index: kept beside its part, so that it travels once."""
        path = self._store.part(_index_name(signed))
        kept = await asyncio.to_thread(lambda: path.read_bytes() if path.exists() else None)
        spool = WholeSpool(signed, limits.INDEX_BYTES)
        try:
            if kept is not None and len(kept) == signed.length_bytes:
                spool.take(kept)
        except Refused:
            spool.restart()  # torn by a cut
        if spool.wants < signed.length_bytes:
            await self._receive(signed, spool, progress)
            await asyncio.to_thread(self._store.disk.write, path, spool.content())
        return parse_index(spool.content(), output_bytes, payload_bytes)

    async def _receive(self, payload: Payload, spool: Spool, progress: Callable[[int], None]) -> None:
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
                    await self._stream(payload, spool, progress)
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

    async def _stream(self, payload: Payload, spool: Spool, progress: Callable[[int], None]) -> None:
        """One connection's worth."""
        floor = MinimumRate(self._settings.min_rate_bytes_s, self._settings.min_rate_over_s)
        first = spool.wants
        uncounted = 0
        try:
            async with aclosing(
                self._source.stream(f"/v1/blobs/{payload.sha256}", first=first, length=payload.length_bytes - first)
            ) as chunks:
                while True:
                    asked = self._monotonic()
                    chunk = await _next(chunks, floor.over_s)
                    if chunk is None:
                        return
                    floor.received(len(chunk), self._monotonic() - asked)
                    uncounted += len(chunk)
                    progress(len(chunk))
                    await asyncio.to_thread(spool.take, chunk)
                    if uncounted >= limits.MIB:
                        counted, uncounted = uncounted, 0
                        await asyncio.to_thread(self._count, counted)
                    await self._cap.take(len(chunk))
        finally:
            if uncounted:
                await asyncio.to_thread(self._count, uncounted)


def peak_bytes(store: Store, missing: Iterable[Artifact]) -> int:
    """What the disk must still take for these artifacts; parts that are here already count for themselves. Blocking."""
    need = 0
    for artifact in missing:
        part = store.part(artifact.sha256)
        here = part.stat().st_size if part.exists() else 0
        need += max(artifact.length_bytes - here, 0)
    return need


def part_names(plan: TransferPlan) -> frozenset[str]:
    """The parts that a fetch by this plan would go on from."""
    return frozenset(
        name
        for step in plan.steps
        for name in (step.artifact, *((_index_name(step.index),) if step.index is not None else ()))
    )


def _index_name(index: Payload) -> str:
    return f"{index.sha256}.index"


def _fitting(artifact: Artifact, step: Step | None) -> Step:
    """The step for a missing artifact, if it can be done here."""
    if step is None or step.method == "have" or step.payload is None:
        # The plan was made for what the device had when it asked; the next one will know better.
        raise LinkError(f"the plan brings nothing for artifact {artifact.sha256[:12]}", retryable=False)
    if step.method == "delta":
        raise LinkError(f"the plan patches artifact {artifact.sha256[:12]}; this agent applies none", retryable=False)
    if step.length_bytes != artifact.length_bytes:
        raise Refused(
            Reason.LENGTH,
            f"the plan gives artifact {artifact.sha256[:12]} {step.length_bytes} bytes, "
            f"the manifest {artifact.length_bytes}",
        )
    return step


async def _next(chunks: AsyncGenerator[bytes, None], patience_s: float) -> bytes | None:
    try:
        async with asyncio.timeout(patience_s):
            return await anext(chunks, None)
    except TimeoutError as error:
        raise LinkError(f"nothing came for {patience_s:.0f} s") from error


def _nobody(count: int) -> None:
    """Progress that nobody watches."""
