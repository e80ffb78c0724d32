"""A release as a whole: the processes that infer and the containers beside them, changed in one transaction.

The update record names one release; both follow it. What a frame comes to carries the name of the release only while
the set is complete: the release's workers serve, each of its containers runs as it was signed, and nothing else of ours
runs. While one release turns into another, or something of it is missing, results are made and alarms fire as ever, and
name the model alone.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from device.containers.aim import make_aim
from device.containers.engine import EngineAwayError
from device.containers.keeper import ContainerKeeper, EngineStatus
from device.inference.frames import Frame
from device.inference.replies import FrameReply
from device.inference.workers import WorkersStatus
from device.update.ports import Health, ReleaseSet
from protocol.errors import Refused, StateError
from protocol.ids import Digest

_log = logging.getLogger(__name__)


class ModelWorkers(Protocol):
    """The processes that infer: `device.inference.workers.ProcessWorkers`, which see."""

    async def converge(
        self, release: ReleaseSet | None, *, before_switch: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Makes `release` the one that serves."""
        ...

    async def infer(self, frame: Frame) -> FrameReply:
        """One frame through every model."""
        ...

    def health(self) -> Health:
        """Of the workers alone."""
        ...

    def status(self) -> WorkersStatus:
        """All there is to show."""
        ...

    async def close(self) -> None:
        """Ends every worker."""
        ...


@dataclass
class _Counts:
    """Of the frames that name a release: what is counted for it and what is said of it are one."""

    inferences: int = 0
    errors: int = 0


class WholeSet:
    """Implements `device.update.ports.Workers`. Belongs to one event loop; `close` must be awaited.

    Args:
        workers: Infer.
        containers: Run beside them.
    """

    def __init__(self, workers: ModelWorkers, containers: ContainerKeeper) -> None:
        self._workers = workers
        self._containers = containers
        self._aim: tuple[ReleaseSet | None, bool] | None = None  # what was brought up last, and whether on trial
        self._specs: dict[Digest, frozenset[Digest]] = {}  # what runs beside the workers of a release
        self._counts: dict[Digest, _Counts] = {}  # since a release was brought up
        self._turn = asyncio.Lock()

    async def converge(self, release: ReleaseSet | None, *, trial: bool = False) -> None:
        """As in the port."""
        async with self._turn:
            await self._containers.recall()
            again = self._aim == (release, trial)
            self._know(release, again=again)
            if trial and release is not None and not again and self._serves_another(release):
                await self._change(release)
            else:
                await self._workers.converge(release)
                if not again:
                    self._containers.aim(release, trial=trial)
                elif trial:
                    await self._containers.look()
            self._aim = (release, trial)

    async def infer(self, frame: Frame) -> FrameReply:
        """One frame through every model of the release that serves when it enters; waits while none does.

        The reply names no release when the set was not complete from the frame's entry to its answer.
        """
        before = self._containers.whole()
        reply = await self._workers.infer(frame)
        after = self._containers.whole()
        if before is None or before != after or reply.manifest is None or self._specs.get(reply.manifest) != after[1]:
            return replace(reply, manifest=None)
        if counts := self._counts.get(reply.manifest):
            counts.inferences += sum(one.kind in ("finding", "error") for one in reply.replies)
            counts.errors += sum(one.kind == "error" for one in reply.replies)
        return reply

    def health(self) -> Health:
        """As in the port."""
        health = self._workers.health()
        counts = self._counts.get(health.digest or "", _Counts())
        health = replace(health, inferences=counts.inferences, errors=counts.errors)
        if not self._containers.is_concerned:
            return health
        whole = self._containers.whole()
        complete = whole is not None and health.digest is not None and whole[1] == self._specs.get(health.digest)
        return replace(
            health,
            serving=health.serving and complete and self._containers.is_well(),
            faults=self._containers.faults(),
            late=self._containers.lags(),
            hindered=self._containers.hindered(),
        )

    def status(self) -> WorkersStatus:
        """Of the processes that infer. Never blocks."""
        return self._workers.status()

    def engine_status(self) -> EngineStatus | None:
        """Of the containers; None where there are none. Never blocks."""
        return self._containers.status()

    async def close(self) -> None:
        """Ends every worker. Containers run on: what is to run is looked at again at the next start."""
        await self._containers.close()
        await self._workers.close()

    async def _change(self, release: ReleaseSet) -> None:
        """The transaction: workers are warm, then containers are up, then the workers switch, then what is left goes.

        Until the switch all can be taken back; an engine that ends over it is followed forward, as what it runs is
        made right when it is back, whichever release that is.
        """
        old = self._aim[0] if self._aim is not None else None

        async def containers_come_up() -> None:
            try:
                await self._containers.bring_up(release)
            except EngineAwayError as error:
                _log.warning("the workers go ahead of their containers: %s", error)

        try:
            await self._workers.converge(release, before_switch=containers_come_up)
        except (Refused, StateError, OSError):
            await self._containers.bring_back(old)
            raise
        self._containers.switched()

    def _serves_another(self, release: ReleaseSet) -> bool:
        return self._workers.health().digest not in (None, release.digest)

    def _know(self, release: ReleaseSet | None, *, again: bool) -> None:
        """Before its workers can answer. Those of the release that serves may have frames inside."""
        if release is not None:
            last = self._workers.health().digest
            if not again:
                self._counts = {release.digest: _Counts()}
            self._specs = {name: specs for name, specs in self._specs.items() if name == last}
            self._specs[release.digest] = make_aim(release, 0.0).specs
