"""Frames on the real folder source, pump and outbox: each gives its results once, whatever a cut takes.

A file that is back after the cut is told by its mark, which is as durable as its rows.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from unittest import mock

from device.inference import folder_source
from device.inference.finding import Finding
from device.inference.folder_source import FolderSource
from device.inference.frames import Frame
from device.inference.pump import Pump
from device.inference.replies import FrameReply, ModelReply
from device.outbox import schema
from device.outbox.book import load
from device.outbox.box import Outbox
from protocol import limits
from protocol.release import Classify, ImagePreprocessing, Model
from protocol.results import ResultRow, Score
from protocol.wire import decode
from signing import durable
from tests.simulation.workload import REFUSED, Promises
from tests.simulation.workloads.start import started

LYING = ("1.png", "2-alarm.png", "3.png", "4.png", "5-alarm.png")
FORGET_AT = 2
MODELS = [
    Model(
        name=name,
        task=Classify(output="scores"),
        preprocessing=ImagePreprocessing(width=1, height=1),
        labels=("a",),
        variants=(),
    )
    for name in ("weeds", "pests")
]


class Workers:
    """Two models; the second one raises an alarm where the name asks for it."""

    async def infer(self, frame: Frame) -> FrameReply:
        findings = [
            Finding(scores=(Score(label="a", score=0.5),), alarm=alarm) for alarm in (False, "alarm" in frame.name)
        ]
        return FrameReply(
            "b" * 64,
            tuple(
                ModelReply(model, f"{number}" * 64, "cpu", "finding", 1.0, finding, "")
                for number, (model, finding) in enumerate(zip(MODELS, findings, strict=True))
            ),
        )


class Unwatched:
    """No watch is left: the folder is read, which a recording gets the same each time."""

    def schedule(self, *_: object, **__: object) -> None: ...

    def start(self) -> None:
        raise OSError("no watch is left")


class Filming:
    """See the module."""

    name = "frames"

    def prepare(self, home: Path) -> None:
        (home / "state").mkdir(mode=0o700)
        (home / "state/frames").mkdir()
        for name in LYING:
            show(home, name)

        async def make() -> None:
            await (await opened(home, "boot-0")).close()

        asyncio.run(make())

    def act(self, home: Path, promise: Promises) -> None:
        async def work() -> None:
            async with pumping(home, "boot-1"):
                await all_inferred(home)
                promise("all inferred")

        with started(home / "state"):
            asyncio.run(work())

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        async def work() -> None:
            async with pumping(home, "boot-2"):
                await all_inferred(home)

        with started(home / "state"):
            asyncio.run(work())

    def check(self, home: Path, promised: Sequence[str]) -> None:
        connection = schema.open_reader(home / "state/outbox.db")
        try:
            bodies = [bytes(body) for (body,) in connection.execute("SELECT body FROM rows")]
            marks = connection.execute("SELECT count(*) FROM frames").fetchone()[0]
            lost = sum(len(facts.lost) for facts in load(connection).lanes.values())
        finally:
            connection.close()
        rows = [decode(body, ResultRow, limit=limits.ROW_BYTES) for body in bodies]
        found = Counter((row.frame, row.model) for row in rows)
        assert found.total() + lost >= len(LYING) * len(MODELS), "a result is neither kept nor counted as lost"
        assert not lost or REFUSED in promised, "there was room for all"
        for name in LYING:
            counts = [found.pop((name, f"{number}" * 64), 0) for number in range(len(MODELS))]
            assert max(counts) <= 1, f"{name} gave its results twice: {counts}"
            assert lost or counts[0] == counts[1], f"{name}: only some of its results were kept"
            assert lost or counts[0] == 1, f"{name} gave no result"
        assert not found
        assert marks <= FORGET_AT, f"{marks} marks stay"


def show(home: Path, name: str) -> None:
    """The camera: each name has its content."""
    durable.write(home / "state/frames" / name, f"{name} ".encode() * 100 + b"IEND\xaeB`\x82")


@contextlib.asynccontextmanager
async def pumping(home: Path, boot: str) -> AsyncIterator[None]:
    """The machine infers."""
    async with contextlib.AsyncExitStack() as stack:
        box = await opened(home, boot)
        stack.push_async_callback(box.close)
        with mock.patch.object(folder_source, "Observer", Unwatched):
            source = FolderSource(home / "state/frames", box, rescan_s=0.02, forget_at=FORGET_AT)
            stack.push_async_callback(source.close)
            await source.start()
        pump = Pump(
            source=source, workers=Workers(), sink=box, alarms=[], now_ms=lambda: (5, True), clock=time.monotonic
        )
        running = asyncio.ensure_future(pump.run())
        try:
            yield
            assert not running.done(), running.exception()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def all_inferred(home: Path) -> None:
    """Until no frame lies there."""
    async with asyncio.timeout(60):
        while any((home / "state/frames").glob("*.png")):  # noqa: ASYNC110  (the disk rings no bell)
            await asyncio.sleep(0.005)


async def opened(home: Path, boot: str) -> Outbox:
    return await Outbox.opened(
        home / "state/outbox.db",
        "tractor-1",
        budget_bytes=1 << 24,
        now_ms=lambda: 5,
        draw_token=iter(f"{number:032x}" for number in range(1, 100)).__next__,
        boot=boot,
    )


def workloads() -> list[Filming]:
    return [Filming()]
