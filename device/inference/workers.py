"""The processes that infer: they follow the record's release and never decide.

A release's workers come up beside those that serve and take over between two frames: each frame is inferred wholly by
one release, none is dropped. Where both need an accelerator that has one owner, frames wait while it changes hands;
they wait in the frame source, which is bounded, and the gap is measured.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping

from device.inference.canary_request import wall_limit_s
from device.inference.crew import Crew
from device.inference.dialogue import Order
from device.inference.endings import once_more_if_killed
from device.inference.frames import Frame
from device.inference.keeper import Backoff, CrewGone, Sleep
from device.inference.replies import FrameReply
from device.inference.spawning import worker_environment
from device.inference.worker_process import WorkerProcess
from device.update.ports import Health, ReleaseSet
from protocol.errors import Reason, Refused
from protocol.ids import Digest
from protocol.wire import Message

_log = logging.getLogger(__name__)


class ModelStatus(Message):
    """One model's worker, for `status`."""

    model_digest: Digest
    variant: str
    accelerator: str  # what really runs it; empty while no worker is up
    fallback: str = ""  # why that is not what the variant asked for
    pid: int | None = None
    load_ms: float = 0.0
    latency_p50_ms: float = 0.0
    latency_p95_ms: float = 0.0
    restarts: int = 0


class Swap(Message):
    """How the last change of release went. `gap_ms`: no worker took frames for so long; 0 when they overlapped."""

    old: Digest | None
    new: Digest | None
    gap_ms: float = 0.0


class WorkersStatus(Message):
    """What serves, for `status`. Counts are of this release, since it was last started."""

    manifest: Digest | None = None
    serving: bool = False
    models: dict[str, ModelStatus] = {}
    inferences: int = 0
    errors: int = 0
    unreadable: int = 0
    given_up: int = 0
    crashes: int = 0
    last_error: str = ""
    swap: Swap | None = None


class ProcessWorkers:
    """The half of `device.update.ports.Workers` that infers: `device.containers.whole` is all of it.

    Belongs to one event loop; `close` must be awaited.

    Args:
        clock: Seconds that only ever rise.
        threads: Of one inference on the CPU; 0 leaves it to the runtime.
        frame_limit_s: A frame that takes longer, or twenty times its latency bound if that is more, is a hang.
        environ: Of the agent.
        backoff: Of dead workers.
        sleep: Waits; tests hand in their own.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        threads: int = 1,
        frame_limit_s: float = 30.0,
        environ: Mapping[str, str] | None = None,
        backoff: Backoff | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._threads = threads
        self._frame_limit_s = frame_limit_s
        self._environ = worker_environment(os.environ if environ is None else environ)
        self._backoff = backoff or Backoff()
        self._sleep = sleep
        self._crew: Crew | None = None
        self._open = asyncio.Event()  # frames may enter `_crew`
        self._turn = asyncio.Lock()
        self._swap: Swap | None = None

    async def converge(
        self, release: ReleaseSet | None, *, before_switch: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """As in the port, for the workers.

        Args:
            release: None for none.
            before_switch: Awaited once the new workers are warm, while the old ones go on; before the accelerator
                that only one can have changes hands. When it raises, the old ones go on.
        """
        async with self._turn:
            old = self._crew
            if release is None:
                self._install(None, gap_ms=0.0)
                await self._let_go(old)
                return
            if old is not None and old.is_for(release):
                await self._until_serving(old)
                return
            new = Crew(
                release,
                threads=self._threads,
                start=self._start,
                backoff=self._backoff,
                clock=self._clock,
                sleep=self._sleep,
            )
            try:
                gap_ms = await self._bring_up(new, old, before_switch)
            except Refused as refused:
                await new.stop()
                if refused.reason is Reason.GOLDEN:
                    raise Refused(Reason.TRIAL_GOLDEN, refused.message) from refused
                raise
            except BaseException:
                await new.stop()
                raise
            self._install(new, gap_ms=gap_ms)
            await self._let_go(old)

    async def infer(self, frame: Frame) -> FrameReply:
        """One frame through every model of the release that serves when it enters; waits while none does.

        Calls may overlap; frames enter the workers in the order of the calls.
        """
        deaths: dict[str, int] = {}
        while True:
            while self._crew is None or not self._open.is_set():
                await self._open.wait()
            try:
                return await self._crew.infer(frame, deaths)
            except CrewGone:
                await asyncio.sleep(0)  # whatever state the crew is in, the loop stays free to change it

    def health(self) -> Health:
        """As in the port, of the workers alone."""
        crew = self._crew
        if crew is None:
            return Health(digest=None, serving=False)
        evidence = crew.evidence
        return Health(
            digest=crew.release.digest,
            serving=self._serves(crew),
            inferences=evidence.inferences,
            errors=evidence.errors,
            crashes=evidence.crashes,
            latency_ms=evidence.latency_ms(95),
        )

    def status(self) -> WorkersStatus:
        """Everything there is to show. Never blocks."""
        crew = self._crew
        if crew is None:
            return WorkersStatus(swap=self._swap)
        evidence = crew.evidence
        middle, high = evidence.latency_ms(50), evidence.latency_ms(95)
        models: dict[str, ModelStatus] = {}
        for name, keeper in crew.keepers.items():
            variant = crew.release.variants[name]
            process = keeper.process
            ready = process.ready if process else None
            models[name] = ModelStatus(
                model_digest=ready.model_digest if ready else variant.artifact.sha256,
                variant=variant.name,
                accelerator=ready.accelerator if ready else "",
                fallback=ready.fallback if ready else "",
                pid=process.pid if process else None,
                load_ms=ready.load_ms if ready else 0.0,
                latency_p50_ms=middle.get(name, 0.0),
                latency_p95_ms=high.get(name, 0.0),
                restarts=keeper.restarts,
            )
        return WorkersStatus(
            manifest=crew.release.digest,
            serving=self._serves(crew),
            models=models,
            inferences=evidence.inferences,
            errors=evidence.errors,
            unreadable=evidence.unreadable,
            given_up=evidence.given_up,
            crashes=evidence.crash_count,
            last_error=evidence.last_error,
            swap=self._swap,
        )

    async def close(self) -> None:
        """Ends every worker. Frames that wait go on waiting: their tasks are the caller's to cancel."""
        async with self._turn:
            crew, self._crew = self._crew, None
            self._open.clear()
            if crew is not None:
                await crew.stop()

    async def _bring_up(
        self, new: Crew, old: Crew | None, before_switch: Callable[[], Awaitable[None]] | None
    ) -> float:
        """Returns the gap in milliseconds during which no frame could enter."""
        clash = new.exclusive if old is not None and old.exclusive else frozenset[str]()
        await new.start(name for name in new.keepers if name not in clash)
        if before_switch is not None:
            await before_switch()
        if old is None or not clash:
            return 0.0
        began = self._clock()
        self._open.clear()
        try:
            await old.drained(self._drain_limit_s(old))
            await old.stop(old.exclusive)
            await new.start(name for name in new.keepers if name in clash)
        except BaseException:
            await new.stop()
            try:
                await old.start(name for name in old.keepers if not old.keepers[name].is_kept)
            except (Refused, OSError) as error:
                # Nobody would start it again: without it, the next convergence brings up whatever it is asked for.
                _log.warning("release %s does not come up again: %s", old.release.manifest.version, error)
                self._crew = None
                await old.stop()
            else:
                self._open.set()
            raise
        return (self._clock() - began) * 1000.0

    def _install(self, crew: Crew | None, *, gap_ms: float) -> None:
        """The switch: between two frames, as nothing here waits."""
        old = self._crew
        if crew is None and old is None:
            return
        self._swap = Swap(
            old=old.release.digest if old else None, new=crew.release.digest if crew else None, gap_ms=gap_ms
        )
        self._crew = crew
        # A release of config files only has no workers: frames wait, as before any release.
        if crew is None or not crew.keepers:
            self._open.clear()
        else:
            self._open.set()

    async def _let_go(self, crew: Crew | None) -> None:
        if crew is None:
            return
        crew.retire()
        await crew.drained(self._drain_limit_s(crew))
        await crew.stop()

    async def _until_serving(self, crew: Crew) -> None:
        """Waits for a worker that is being started again, as long as its first start may take."""
        deadline = self._clock() + wall_limit_s(list(crew.release.variants.values()))
        crashes = crew.evidence.crash_count
        while not crew.serving:
            if crew.evidence.crash_count > crashes or self._clock() > deadline:
                raise Refused(
                    Reason.MODEL_CRASH, f"its workers do not stay up: {', '.join(crew.evidence.crashes[-3:])}"
                )
            await self._sleep(0.05)

    def _serves(self, crew: Crew) -> bool:
        return crew.serving and (self._open.is_set() or not crew.keepers)

    def _drain_limit_s(self, crew: Crew) -> float:
        bounds = [variant.bounds.latency_ms for variant in crew.release.variants.values()]
        return self._frame_limit(max(bounds, default=0.0)) + 1.0

    def _frame_limit(self, latency_ms: float) -> float:
        return max(self._frame_limit_s, 20.0 * latency_ms / 1000.0)

    async def _start(self, order: Order) -> WorkerProcess:
        variant = next(variant for variant in order.model.variants if variant.name == order.variant)

        async def attempt() -> WorkerProcess:
            return await WorkerProcess.start(
                order,
                environ=self._environ,
                load_limit_s=wall_limit_s([variant]),
                frame_limit_s=self._frame_limit(variant.bounds.latency_ms),
            )

        return await once_more_if_killed(attempt, self._sleep)
