"""An alarm's way through the agent's pump, with and without a crowd at the local socket.

The pump, the outbox and the socket are the agent's own; the models answer at once, so that what is seen is the agent.
Its crowd: as many streams as there may be, two of which read nothing, and a program that asks what serves without a
pause. `python -m scripts.device_bench.parts alarm FOLDER RATE SECONDS crowd|nobody`.
"""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from device.inference.finding import Finding
from device.inference.frames import Frame
from device.inference.pump import Pump
from device.inference.replies import FrameReply, ModelReply
from device.local.link import CONNECTIONS_OF_ONE, LocalLink
from device.local.listening import SOCKET
from device.local.readers import STREAMS
from device.outbox.box import Outbox
from protocol.release import Detect, ImagePreprocessing, Model
from protocol.results import Detection
from scripts.device_bench.agent import NAME
from scripts.device_bench.queues import BIG_BYTES

ALARM_EACH = 4  # frames
STUCK = 2
BOXES = tuple(Detection(label="aphid", score=0.5, box=(1.0, 2.0, 3.0, 4.0)) for _ in range(3))
MODEL = Model(
    name="pests",
    task=Detect(output="boxes", decoder="grid"),
    preprocessing=ImagePreprocessing(width=8, height=8),
    labels=("aphid",),
    variants=(),
)


class Clockwork:
    """Frames at a steady rate. Each is named by when it came."""

    dropped = 0

    def __init__(self, rate: float, count: int) -> None:
        self._gap_s = 1.0 / rate
        self._next_s = 0.0
        self._left = count
        self.done = asyncio.Event()
        self._open = 0

    async def take(self) -> Frame:
        if not self._left:
            await asyncio.Event().wait()
        self._left -= 1
        self._open += 1
        self._next_s = (self._next_s or time.perf_counter()) + self._gap_s
        await asyncio.sleep(max(0.0, self._next_s - time.perf_counter()))
        now_s = time.perf_counter()
        return Frame(f"{now_s:.9f}", "image/jpeg", b"x", now_s)

    async def finish(self, frame: Frame) -> None:
        self._open -= 1
        if not self._left and not self._open:
            self.done.set()

    def give_back(self, frame: Frame) -> None: ...


class Oracle:
    """Answers at once; each so many frames with an alarm."""

    def __init__(self) -> None:
        self._frames = 0

    async def infer(self, frame: Frame) -> FrameReply:
        self._frames += 1
        found = Finding(detections=BOXES, alarm=self._frames % ALARM_EACH == 0)
        return FrameReply("b" * 64, (ModelReply(MODEL, "a" * 64, "cpu", "finding", 1.0, found),))


class Horn:
    """Says how late it was blown, in milliseconds."""

    name = "horn"

    def __init__(self) -> None:
        self.late_ms: list[float] = []

    async def fire(self, row: bytes) -> None:
        self.late_ms.append((time.perf_counter() - float(json.loads(row)["frame"])) * 1000)

    def looked(self) -> None: ...

    async def close(self) -> None: ...


async def alarm(folder: str, rate: str, seconds: str, crowd: str) -> dict[str, Any]:
    """How late alarms are, here and at a reader, and how many frames went through."""
    count = int(float(rate) * float(seconds))
    box = await Outbox.opened(
        Path(folder) / "outbox.db", NAME, budget_bytes=BIG_BYTES, now_ms=lambda: 0, draw_token=lambda: "a" * 32
    )
    link, source, horn = LocalLink(Path(folder) / "link"), Clockwork(float(rate), count), Horn()
    link.board.show(None)
    serving = asyncio.create_task(link.run(lambda: 0))
    pump = Pump(
        source=source, workers=Oracle(), sink=box, alarms=(horn,), now_ms=lambda: (0, True),
        clock=time.perf_counter, show=link.readers.show,
    )  # fmt: skip
    while not (Path(folder) / "link" / SOCKET).exists():  # noqa: ASYNC110  (of a file)
        await asyncio.sleep(0.01)
    with _crowd(Path(folder) / "link") if crowd == "crowd" else contextlib.nullcontext([]) as said:
        if crowd == "crowd":
            while len(link.readers) < STREAMS:  # noqa: ASYNC110  (of other processes)
                await asyncio.sleep(0.01)
        pumping = asyncio.create_task(pump.run())
        began = time.perf_counter()
        await source.done.wait()
        took_s = time.perf_counter() - began
        for task in (pumping, serving):
            task.cancel()
        await asyncio.gather(pumping, serving, return_exceptions=True)
        await box.close()
    return {"late_ms": horn.late_ms, "frames_s": count / took_s, "reader_ms": said}


def stream(folder: str, count: str) -> dict[str, Any]:
    """So many readers in one process, until it is told to end: how late each alarm came, in milliseconds."""
    return asyncio.run(_streams(Path(folder), int(count)))


async def _streams(folder: Path, count: int) -> dict[str, Any]:
    late_ms: list[float] = []

    async def read() -> None:
        reader, writer = await asyncio.open_unix_connection(folder / SOCKET, limit=1 << 20)
        writer.write(b"GET /v1/results HTTP/1.1\r\n\r\n")
        while line := await reader.readline():
            now_s = time.perf_counter()
            if line.startswith(b'{"lane":"alarms"'):
                late_ms.append((now_s - float(json.loads(line)["row"]["frame"])) * 1000)
        writer.close()

    await asyncio.gather(*(read() for _ in range(count)))
    return {"late_ms": late_ms}


def stuck(folder: str, count: str) -> dict[str, Any]:
    """Readers that read nothing."""
    held = []
    for _ in range(int(count)):
        held.append(socket.socket(socket.AF_UNIX))
        held[-1].connect(f"{folder}/{SOCKET}")
        held[-1].sendall(b"GET /v1/results HTTP/1.1\r\n\r\n")
    signal.pause()
    return {}


def storm(folder: str, _: str) -> dict[str, Any]:
    """Asks what serves, again and again."""
    asked = 0
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(f"{folder}/{SOCKET}")
                one.sendall(b"GET /v1/active HTTP/1.1\r\n\r\n")
                asked += bool(one.recv(1000))
        except OSError:
            return {"asked": asked}


READERS = {"stream": stream, "stuck": stuck, "storm": storm}


@contextmanager
def _crowd(folder: Path) -> Iterator[list[float]]:
    """All of them; afterwards the list holds how late readers heard of alarms."""
    well = STREAMS - STUCK
    jobs: Sequence[tuple[str, int]] = (
        *(("stream", min(CONNECTIONS_OF_ONE, well - at)) for at in range(0, well, CONNECTIONS_OF_ONE)),
        ("stuck", STUCK),
        ("storm", 1),
    )
    command = [sys.executable, "-m", "scripts.device_bench.parts"]
    root = Path(__file__).resolve().parent.parent.parent
    children = [
        subprocess.Popen([*command, name, str(folder), str(count)], cwd=root, stdout=subprocess.PIPE)
        for name, count in jobs
    ]
    late_ms: list[float] = []
    try:
        yield late_ms
        for (name, _), child in zip(jobs, children, strict=True):
            if name == "stream":  # the socket is closed: it ends by itself
                late_ms += json.loads(child.communicate(timeout=30)[0])["late_ms"]
    finally:
        for child in children:
            child.kill()
            child.communicate()
