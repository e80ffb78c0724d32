"""Takes frames, has them inferred, fires alarms, and hands result rows to the outbox; whatever else fails.

Three things go on at once, so that the workers never wait: a frame is read, another is inferred, the rows of a third
become durable. The order is kept: rows reach the sink in the order of the frames. Alarms do not wait for the rows
before them, only for their own frame's inference.

When the sink fails (a full disk, a damaged database), inference and alarms go on; rows wait in a bounded queue and are
tried again. Beyond that bound the oldest are given up, those without an alarm first. They are counted, and the count is
kept and told to the server. Their frames go as well: left to the source, they would pile up where there is no room,
and a machine wants to know what is before it now.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

from device.inference.alarms import FIRE_S, AlarmSink
from device.inference.frames import Frame, FrameSource, Mark
from device.inference.latency import Latencies
from device.inference.replies import FrameReply, ModelReply
from protocol import limits
from protocol.release import Anomaly, Classify, Detect
from protocol.results import ResultRow
from protocol.wire import Message, encode

_log = logging.getLogger(__name__)

_TASKS: Final[dict[type, Literal["classify", "detect", "anomaly"]]] = {
    Classify: "classify",
    Detect: "detect",
    Anomaly: "anomaly",
}
ALARMS: Final = "alarms"
_TOLD_EACH: Final = 1000  # results given up; the first one too
_WINDOW: Final = 2  # one frame in the worker, one on its way to it: the worker never waits for the agent
_BATCH: Final = 64  # frames whose rows may share a transaction of the outbox
_KEEP_S: Final = 10.0  # rows on their way to a slow disk, when the pump ends
_RETRY_S: Final = (0.05, 0.2, 1.0, 5.0)  # the last one again and again

Rows = Sequence[tuple[str, bytes]]
"""Lane and bytes of each."""


class Sink(Protocol):
    """Where rows become durable: the outbox."""

    async def enqueue_all(self, rows: Rows, *, done_frames: Sequence[Mark] = ()) -> list[int]:
        """Makes rows durable, or none of them, and returns the number of each in its lane. Calls may overlap; they
        number in their order.

        Args:
            rows: Lane (`alarms` or `results`) and JSON of a `ResultRow` of each; kept byte by byte.
            done_frames: What has all its rows with these: marked in the same transaction.
        """
        ...


class Infers(Protocol):
    """What the pump needs of the workers."""

    async def infer(self, frame: Frame) -> FrameReply:
        """See `ProcessWorkers.infer`."""
        ...


class PumpNumbers(Message):
    """Counted since the pump was made."""

    frames_inferred: int = 0  # every model answered it
    frames_unkept: int = 0  # of these, those whose rows wait to become durable: a cut has them inferred again
    frames_dropped: int = 0  # before anybody took them, given up, or unfit for every model
    frames_unreadable: int = 0
    results_produced: int = 0  # rows that are durable
    results_given_up: int = 0  # rows that the sink would not take, or never could
    inference_errors: int = 0
    alarms_fired: int = 0
    alarm_failures: int = 0  # sinks that did not take an alarm
    alarm_last_ms: float = 0.0  # from the frame's arrival until every sink had taken its alarm
    alarm_p50_ms: float = 0.0
    alarm_p99_ms: float = 0.0


@dataclass(frozen=True)
class _Inferred:
    frame: Frame
    rows: Rows
    answered: bool  # by every model


class Pump:
    """See the module. Belongs to one event loop.

    Args:
        source: Of frames.
        workers: That infer.
        sink: For rows.
        alarms: Fired before the row is enqueued.
        show: Handed all rows of a frame at once, before any alarm is fired. Never blocks.
        now_ms: Milliseconds since 1970 and whether they are sure.
        clock: Seconds that only ever rise, the same that the source was given.
        backlog: Frames whose rows may wait for the sink.
    """

    def __init__(
        self,
        *,
        source: FrameSource,
        workers: Infers,
        sink: Sink,
        alarms: Sequence[AlarmSink],
        now_ms: Callable[[], tuple[int, bool]],
        clock: Callable[[], float],
        show: Callable[[Rows], None] = lambda _: None,
        backlog: int = 256,
    ) -> None:
        self._source = source
        self._workers = workers
        self._sink = sink
        self._alarms = alarms
        self._show = show
        self._now_ms = now_ms
        self._clock = clock
        self._backlog = backlog
        self._latency = Latencies(4096)
        self._counts: dict[str, int] = {}
        self._open: dict[str, Frame] = {}  # taken, and not yet finished
        self._keeping: set[asyncio.Task[None]] = set()
        self._failing: set[str] = set()  # sinks and the like whose failure was told already

    async def run(self) -> None:
        """Pumps until it is cancelled; may be run again then. Frames without durable rows go back to the source."""
        running: asyncio.Queue[asyncio.Task[_Inferred]] = asyncio.Queue()
        written: deque[_Inferred] = deque()
        news = asyncio.Event()
        parts = [
            asyncio.create_task(part)
            for part in (self._feed(running), self._keep_order(running, written, news), self._write(written, news))
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()  # only a bug ends one of them, and then the others must not go on without it
        finally:
            left: list[asyncio.Task[Any]] = [*parts]
            while not running.empty():
                left.append(running.get_nowait())
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            try:
                # Rows on their way to the disk get there all the same: given back now, their frames would have them
                # twice.
                if self._keeping:
                    await asyncio.wait(self._keeping, timeout=_KEEP_S)
            finally:
                for task in self._keeping:
                    task.cancel()
                for frame in self._open.values():
                    self._source.give_back(frame)
                self._open.clear()

    def numbers(self) -> PumpNumbers:
        """The counts so far. Never blocks."""
        counts = dict(self._counts)
        counts["frames_dropped"] = counts.get("frames_dropped", 0) + self._source.dropped
        return PumpNumbers(
            **counts,
            alarm_last_ms=self._latency.last,
            alarm_p50_ms=self._latency.percentile(50),
            alarm_p99_ms=self._latency.percentile(99),
        )

    async def _feed(self, running: "asyncio.Queue[asyncio.Task[_Inferred]]") -> None:
        window = asyncio.Semaphore(_WINDOW)
        while True:
            await window.acquire()
            frame = await self._source.take()
            self._open[frame.name] = _bare(frame)
            running.put_nowait(asyncio.create_task(self._infer(frame, window)))

    async def _infer(self, frame: Frame, window: asyncio.Semaphore) -> _Inferred:
        at_ms, sure = self._now_ms()
        try:
            reply = await self._workers.infer(frame)
        finally:
            window.release()
        rows: list[tuple[str, bytes]] = []
        for one in reply.replies:
            if one.finding is None:
                continue
            row = encode(_row(one, reply, frame, at_ms, sure))
            rows.append((ALARMS if one.finding.alarm else "results", row))
        self._show(rows)
        await self._raise_alarms([row for lane, row in rows if lane == ALARMS], frame)
        travels = [(lane, row) for lane, row in rows if len(row) <= limits.ROW_BYTES]
        if len(travels) < len(rows):
            # No sink would ever take one: those behind it would wait for it for ever.
            if "length" not in self._failing:
                _log.error("frame %s: rows of more than %d bytes are given up", frame.name, limits.ROW_BYTES)
            self._failing.add("length")
            self._give_up(len(rows) - len(travels))
        answered = self._tally(frame, reply)
        return _Inferred(_bare(frame), tuple(travels), answered)

    async def _raise_alarms(self, rows: Sequence[bytes], frame: Frame) -> None:
        if not rows or not self._alarms:
            return
        for row in rows:
            await asyncio.gather(*(self._fire(sink, row) for sink in self._alarms))
            self._count("alarms_fired")
        self._latency.add((self._clock() - frame.arrived_s) * 1000.0)

    async def _fire(self, sink: AlarmSink, row: bytes) -> None:
        try:
            await asyncio.wait_for(sink.fire(row), FIRE_S)
        except (OSError, TimeoutError) as error:
            self._count("alarm_failures")
            if sink.name not in self._failing:
                _log.warning("alarm %s does not take alarms: %s", sink.name, str(error) or type(error).__name__)
            self._failing.add(sink.name)
        else:
            self._failing.discard(sink.name)

    def _tally(self, frame: Frame, reply: FrameReply) -> bool:
        """Counts the frame; tells whether every model answered it."""
        answered = False
        kinds = {one.kind for one in reply.replies}
        if not kinds:
            self._count("frames_dropped")
            _log.warning("frame %s: no model of the release takes %s", frame.name, frame.media_type)
        elif "given-up" in kinds:
            self._count("frames_dropped")
        elif "unreadable" in kinds:
            self._count("frames_unreadable")
            _log.warning("frame %s is unreadable: %s", frame.name, next(r.message for r in reply.replies if r.message))
        else:
            answered = True
            for sink in self._alarms:
                sink.looked()
            self._count("frames_inferred")
            self._count("frames_unkept")
        self._count("inference_errors", sum(one.kind == "error" for one in reply.replies))
        return answered

    async def _keep_order(
        self, running: "asyncio.Queue[asyncio.Task[_Inferred]]", written: deque[_Inferred], news: asyncio.Event
    ) -> None:
        """Frames may be inferred in another order over a swap; rows leave in the order of the frames."""
        while True:
            task = await running.get()
            try:
                done = await task
            except asyncio.CancelledError:
                task.cancel()
                raise
            if len(written) >= self._backlog:
                lost = next((one for one in written if all(lane != ALARMS for lane, _ in one.rows)), written[0])
                written.remove(lost)
                self._give_up(len(lost.rows))
                await self._finish(lost)
            written.append(done)
            news.set()

    async def _write(self, written: deque[_Inferred], news: asyncio.Event) -> None:
        failures = 0
        while True:
            while not written:
                news.clear()
                await news.wait()
            batch = [written.popleft() for _ in range(min(len(written), _BATCH))]
            failed = await self._enqueue(batch)
            if not failed:
                failures = 0
                continue
            written.extendleft(reversed(failed))
            await asyncio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
            failures += 1

    async def _enqueue(self, batch: Sequence[_Inferred]) -> list[_Inferred]:
        """Makes the rows of these frames durable, and tells which frames still have rows to write."""
        tasks = [asyncio.create_task(self._keep(one)) for one in batch]
        for task in tasks:
            self._keeping.add(task)
            task.add_done_callback(self._kept)
        await asyncio.wait(tasks)
        failed: list[_Inferred] = []
        for one, task in zip(batch, tasks, strict=True):
            outcome = task.exception()
            if outcome is not None:
                failed.append(one)
                if "sink" not in self._failing:
                    _log.error("results cannot be kept: %s", outcome)
                self._failing.add("sink")
            else:
                await self._finish(one)
        return failed

    async def _keep(self, one: _Inferred) -> None:
        if one.rows:
            mark = one.frame.mark
            await self._sink.enqueue_all(one.rows, done_frames=() if mark is None else (mark,))
            self._count("results_produced", len(one.rows))
            self._failing.discard("sink")

    def _kept(self, task: "asyncio.Task[None]") -> None:
        self._keeping.discard(task)
        if not task.cancelled():
            task.exception()  # heard, also where the pump has ended

    async def _finish(self, one: _Inferred) -> None:
        if one.answered:
            self._count("frames_unkept", -1)
        await self._source.finish(one.frame)
        self._open.pop(one.frame.name, None)

    def _give_up(self, rows: int) -> None:
        before = self._counts.get("results_given_up", 0)
        self._count("results_given_up", rows)
        now = self._counts["results_given_up"]
        # Where nothing can be written, the log is the only one to tell of it.
        if now > before and (not before or now // _TOLD_EACH > before // _TOLD_EACH):
            _log.error("%d results were given up since the agent started", now)

    def _count(self, what: str, more: int = 1) -> None:
        self._counts[what] = self._counts.get(what, 0) + more


def _bare(frame: Frame) -> Frame:
    """Without its bytes: hundreds may wait for a disk."""
    return replace(frame, data=b"")


def _readable(name: str) -> str:
    """The name as text that can travel: it may be any bytes, and must not end the inference of all other frames."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _row(one: ModelReply, reply: FrameReply, frame: Frame, at_ms: int, sure: bool) -> ResultRow:
    assert one.finding is not None
    return ResultRow(
        at_ms=at_ms,
        model=one.model_digest,
        manifest=reply.manifest,
        frame=_readable(frame.name),
        task=_TASKS[type(one.model.task)],
        accelerator=one.accelerator,
        latency_ms=round(one.latency_ms, 3),
        scores=one.finding.scores,
        detections=one.finding.detections,
        anomaly=one.finding.anomaly,
        alarm=one.finding.alarm,
        sure_of_time=sure,
    )
