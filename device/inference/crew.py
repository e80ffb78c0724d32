"""The workers of one release, one a model: every frame that enters goes to each, and comes out whole or not at all."""

import asyncio
from collections.abc import Callable, Iterable

from device.inference.backends import mode_of
from device.inference.dialogue import Order
from device.inference.evidence import Evidence
from device.inference.frames import Frame
from device.inference.keeper import Backoff, GivenUp, Keeper, Sleep, Start, Ticket
from device.inference.replies import FrameReply, ModelReply
from device.update.ports import ReleaseSet
from protocol.release import ImagePreprocessing, Model


class Crew:
    """See the module. Belongs to one event loop; `stop` must be awaited.

    Args:
        release: What the workers are started from.
        threads: Of one inference on the CPU.
        start: Spawns a worker.
        backoff: Of dead workers.
        clock: Seconds that only ever rise.
        sleep: Waits.
    """

    def __init__(
        self,
        release: ReleaseSet,
        *,
        threads: int,
        start: Start,
        backoff: Backoff,
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self.release = release
        self.evidence = Evidence(release.variants)
        self._keepers: dict[str, Keeper] = {}
        self._exclusive: set[str] = set()
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()
        for model in release.manifest.models:
            variant = release.variants[model.name]
            artifacts = [variant.artifact, *(part for g in variant.golden for part in (g.input, g.expected))]
            order = Order(
                model=model,
                variant=variant.name,
                files={one.sha256: str(release.files[one.sha256]) for one in artifacts if one.sha256 in release.files},
                threads=threads,
                goldens="all",
                limit_memory=variant.accelerator == "cpu",
            )
            self._keepers[model.name] = Keeper(
                order, start=start, evidence=self.evidence, backoff=backoff, clock=clock, sleep=sleep
            )
            if mode_of(variant.runtime, variant.accelerator) == "exclusive":
                self._exclusive.add(model.name)

    @property
    def keepers(self) -> dict[str, Keeper]:
        """By model name."""
        return self._keepers

    @property
    def exclusive(self) -> frozenset[str]:
        """The models whose accelerator has one owner at a time."""
        return frozenset(self._exclusive)

    @property
    def serving(self) -> bool:
        """Every worker is alive and warm."""
        return all(keeper.process is not None for keeper in self._keepers.values())

    def is_for(self, release: ReleaseSet) -> bool:
        """Whether these are the workers of this release, in these variants."""
        mine = {name: variant.name for name, variant in self.release.variants.items()}
        return self.release.digest == release.digest and mine == {n: v.name for n, v in release.variants.items()}

    async def start(self, models: Iterable[str]) -> None:
        """Brings the workers of these models up, one after the other: small machines load one at a time.

        Raises:
            Refused: One does not come up; the others keep running until `stop`.
        """
        for model in models:
            await self._keepers[model].start()

    async def infer(self, frame: Frame, deaths: dict[str, int]) -> FrameReply:
        """One frame through every model that takes its kind.

        Args:
            frame: An image goes to models of images, arrays to models of tensors.
            deaths: Workers that this frame has ended so far, by model; kept up to date.

        Raises:
            CrewGone: These workers serve no longer, and not every model had answered: the frame goes to the next
                release as if this one had never seen it.
        """
        self._inside += 1
        self._empty.clear()
        try:
            pairs = [pair for pair in self._keepers.items() if takes(pair[1].order.model, frame)]
            if len(pairs) == 1:
                replies = [await self._one(*pairs[0], frame, deaths)]
            else:
                tasks = [asyncio.ensure_future(self._one(*pair, frame, deaths)) for pair in pairs]
                try:
                    replies = list(await asyncio.gather(*tasks))
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._empty.set()
        self._count(replies)
        return FrameReply(self.release.digest, tuple(replies))

    def retire(self) -> None:
        """Sends the frames that wait for a worker on to the next release."""
        for keeper in self._keepers.values():
            keeper.retire()

    async def drained(self, limit_s: float) -> bool:
        """Waits until no frame is inside; False when that took longer than `limit_s`."""
        try:
            await asyncio.wait_for(self._empty.wait(), limit_s)
        except TimeoutError:
            return False
        return True

    async def stop(self, models: Iterable[str] | None = None) -> None:
        """Ends the workers of these models, or of all. Safe to repeat."""
        names = list(self._keepers if models is None else models)
        await asyncio.gather(*(self._keepers[name].stop() for name in names))

    async def _one(self, name: str, keeper: Keeper, frame: Frame, deaths: dict[str, int]) -> ModelReply:
        model = keeper.order.model
        ticket = Ticket(frame, deaths.get(name, 0))
        try:
            answer, served_by = await keeper.infer(ticket)
        except GivenUp:
            return ModelReply(
                model, self.release.variants[name].artifact.sha256, "", "given-up", message="crashed twice"
            )
        finally:
            deaths[name] = ticket.deaths
        return ModelReply(
            model=model,
            model_digest=served_by.model_digest,
            accelerator=served_by.accelerator,
            kind=answer.kind,
            latency_ms=answer.latency_ms,
            finding=answer.finding if answer.kind == "finding" else None,
            message=answer.message,
        )

    def _count(self, replies: list[ModelReply]) -> None:
        evidence = self.evidence
        for reply in replies:
            match reply.kind:
                case "finding":
                    evidence.inferred(reply.model.name, reply.latency_ms)
                case "error":
                    evidence.failed(reply.model.name, reply.latency_ms, reply.message)
                case "unreadable":
                    evidence.unreadable += 1
                case "given-up":
                    evidence.given_up += 1


def takes(model: Model, frame: Frame) -> bool:
    """Whether a model's preprocessing takes this kind of frame."""
    return isinstance(model.preprocessing, ImagePreprocessing) == (frame.media_type != "application/x-npz")
