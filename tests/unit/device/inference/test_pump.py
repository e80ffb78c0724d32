"""From frames to durable rows: alarms first, order kept, and nothing stops it."""

import asyncio
import os
import time
from collections.abc import Callable

import msgspec
import pytest

from device.inference import pump
from device.inference.finding import Finding
from device.inference.frames import Frame, Mark
from device.inference.pump import Pump
from device.inference.replies import FrameReply, ModelReply
from protocol import limits
from protocol.errors import Reason, Refused
from protocol.release import Classify, ImagePreprocessing, Model
from protocol.results import ResultRow, Score

MODEL = Model(
    name="light",
    task=Classify(output="scores"),
    preprocessing=ImagePreprocessing(width=1, height=1),
    labels=("a",),
    variants=(),
)
DIGEST, MANIFEST = "a" * 64, "b" * 64


def said(kind: str = "finding", *, alarm: bool = False) -> ModelReply:
    finding = Finding(scores=(Score(label="a", score=0.5),), alarm=alarm) if kind == "finding" else None
    return ModelReply(MODEL, DIGEST, "cpu", kind, 1.5, finding, "" if finding else "why")


class Frames:
    """A source that gives what the test puts in."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Frame] = asyncio.Queue()
        self.finished: list[str] = []
        self.given_back: list[str] = []
        self.dropped = 0

    def put(self, *names: str) -> None:
        for name in names:
            self.queue.put_nowait(Frame(name, "image/png", b"x", time.monotonic(), (name, "x")))

    async def take(self) -> Frame:
        return await self.queue.get()

    async def finish(self, frame: Frame) -> None:
        self.finished.append(frame.name)

    def give_back(self, frame: Frame) -> None:
        self.given_back.append(frame.name)

    async def close(self) -> None: ...


class Brains:
    """Workers that say what the test wants; a frame named `slow` takes longer."""

    def __init__(self, reply: Callable[[str], tuple[ModelReply, ...]] = lambda name: (said(alarm="alarm" in name),)):
        self.reply = reply

    async def infer(self, frame: Frame) -> FrameReply:
        await asyncio.sleep(0.05 if "slow" in frame.name else 0)
        return FrameReply(MANIFEST, self.reply(frame.name))


class Rows:
    """A sink that can be made to fail or to hang."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ResultRow]] = []
        self.done: list[Mark] = []
        self.broken = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def enqueue_all(self, rows, *, done_frames=()) -> list[int]:
        await self.gate.wait()
        if self.broken:
            raise OSError(28, "No space left on device")
        self.rows += [(lane, msgspec.json.decode(row, type=ResultRow)) for lane, row in rows]
        self.done += done_frames
        return list(range(len(rows)))

    @property
    def names(self) -> list[str]:
        return [row.frame for _, row in self.rows]


class Horn:
    name = "horn"

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.looks = 0
        self.error: Exception | None = None

    async def fire(self, row: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.heard.append(msgspec.json.decode(row, type=ResultRow).frame)

    def looked(self) -> None:
        self.looks += 1

    async def close(self) -> None: ...


class Bench:
    def __init__(self, **options) -> None:
        self.frames, self.brains, self.rows, self.horn = Frames(), Brains(), Rows(), Horn()
        self.pump = Pump(
            source=self.frames,
            workers=self.brains,
            sink=self.rows,
            alarms=[self.horn],
            now_ms=lambda: (1234, False),
            clock=time.monotonic,
            **options,
        )
        self.task: asyncio.Task | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self.pump.run())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                assert self.task is None or not self.task.done(), self.task.exception()
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def bench():
    made = Bench(backlog=4)
    yield made
    await made.stop()


async def test_rows_say_what_made_them_and_keep_the_frames_order(bench):
    bench.start()
    bench.frames.put("1-slow", "2", "3-slow", "4")
    await bench.until(lambda: len(bench.frames.finished) == 4)
    assert bench.rows.names == bench.frames.finished == ["1-slow", "2", "3-slow", "4"]
    lane, row = bench.rows.rows[0]
    assert lane == "results"
    assert row == ResultRow(
        at_ms=1234, model=DIGEST, manifest=MANIFEST, frame="1-slow", task="classify", accelerator="cpu",
        latency_ms=1.5, scores=(Score(label="a", score=0.5),), sure_of_time=False,
    )  # fmt: skip
    numbers = bench.pump.numbers()
    assert (numbers.frames_inferred, numbers.results_produced, numbers.frames_dropped) == (4, 4, 0)


async def test_a_frame_whose_name_is_no_text_is_one_as_any_other(bench):
    bench.start()
    name = os.fsdecode(b"1-\xff\xfe.jpg")
    bench.frames.put(name, "2-b\u00e4ume.jpg")
    await bench.until(lambda: len(bench.frames.finished) == 2)
    assert bench.rows.names == ["1-\\xff\\xfe.jpg", "2-b\u00e4ume.jpg"]
    assert bench.frames.finished[0] == name


async def test_whoever_looks_on_has_all_rows_of_a_frame_before_an_alarm_fires_and_a_row_is_enqueued():
    shown = []
    bench = Bench(show=lambda rows: shown.append((rows, list(bench.horn.heard), list(bench.rows.names))))
    bench.brains.reply = lambda name: (said(alarm="alarm" in name), said())
    bench.start()
    try:
        bench.frames.put("1-alarm", "2")
        await bench.until(lambda: len(bench.frames.finished) == 2)
    finally:
        await bench.stop()
    (first, *before), (second, *_) = shown
    assert before == [[], []]
    assert [lane for lane, _ in first] == ["alarms", "results"]
    assert [lane for lane, _ in second] == ["results", "results"]


async def test_an_alarm_fires_before_its_row_is_enqueued_and_waits_for_no_disk(bench):
    bench.rows.gate.clear()
    bench.start()
    bench.frames.put("1", "2", "3-alarm")
    await bench.until(lambda: bench.horn.heard == ["3-alarm"])
    assert bench.rows.rows == []
    assert bench.frames.finished == []
    bench.rows.gate.set()
    await bench.until(lambda: len(bench.frames.finished) == 3)
    assert [lane for lane, _ in bench.rows.rows] == ["results", "results", "alarms"]
    numbers = bench.pump.numbers()
    assert numbers.alarms_fired == 1
    assert 0 < numbers.alarm_last_ms == numbers.alarm_p50_ms == numbers.alarm_p99_ms < 1000


async def test_a_failing_alarm_is_counted_and_stops_nothing(bench):
    bench.horn.error = OSError("nobody listens")
    bench.start()
    bench.frames.put("1-alarm", "2-alarm")
    await bench.until(lambda: len(bench.rows.rows) == 2)
    assert bench.pump.numbers().alarm_failures == 2


async def test_a_full_disk_stops_neither_inference_nor_alarms_and_heals(bench):
    bench.rows.broken = True
    bench.start()
    bench.frames.put("1", "2", "3-alarm")
    await bench.until(lambda: bench.pump.numbers().frames_inferred == 3 and bench.horn.heard == ["3-alarm"])
    assert bench.frames.finished == []
    bench.rows.broken = False
    await bench.until(lambda: len(bench.frames.finished) == 3)
    assert sorted(bench.rows.names) == ["1", "2", "3-alarm"]
    assert bench.pump.numbers().results_given_up == 0


async def test_when_the_sink_fails_for_long_the_oldest_rows_are_given_up_counted_and_told(bench, caplog):
    bench.rows.gate.clear()
    bench.start()
    for number in range(12):
        bench.frames.put(str(number))
        await bench.until(lambda number=number: bench.pump.numbers().frames_inferred > number)
    bench.rows.gate.set()
    await bench.until(lambda: len(bench.frames.finished) == 12)
    numbers = bench.pump.numbers()
    assert numbers.results_given_up > 0
    assert numbers.results_produced + numbers.results_given_up == 12 == numbers.frames_inferred
    assert [record.args for record in caplog.records if "given up" in record.msg] == [(1,)], "then each 1000th"


async def test_results_are_given_up_before_alarms(bench):
    bench.rows.broken = True
    bench.start()
    for number in range(12):
        bench.frames.put(f"{number:02}-alarm" if number in (0, 3) else f"{number:02}")
        await bench.until(lambda number=number: bench.pump.numbers().frames_inferred > number)
    bench.rows.broken = False
    await bench.until(lambda: len(bench.frames.finished) == 12)
    assert bench.pump.numbers().results_given_up > 0
    assert {"00-alarm", "03-alarm"} <= set(bench.rows.names)


async def test_a_row_that_is_too_long_to_travel_fires_its_alarm_is_counted_and_holds_up_no_other(bench, monkeypatch):
    monkeypatch.setattr(limits, "ROW_BYTES", 400)

    async def enqueue_all(rows, *, done_frames=(), take=bench.rows.enqueue_all):
        if any(len(row) > limits.ROW_BYTES for _, row in rows):
            raise Refused(Reason.LIMIT, "as the outbox does")
        return await take(rows, done_frames=done_frames)

    monkeypatch.setattr(bench.rows, "enqueue_all", enqueue_all)
    bench.start()
    bench.frames.put(f"{'long' * 100}-alarm", "short")
    await bench.until(lambda: len(bench.frames.finished) == 2)
    assert bench.rows.names == ["short"]
    assert len(bench.horn.heard) == 1
    numbers = bench.pump.numbers()
    assert (numbers.frames_inferred, numbers.results_produced, numbers.results_given_up) == (2, 1, 1)


async def test_frames_without_a_finding_are_counted_by_their_kind(bench):
    kinds = {"bad": "unreadable", "err": "error", "dead": "given-up"}
    bench.brains.reply = lambda name: () if name == "unfit" else (said(kinds.get(name, "finding")),)
    bench.frames.dropped = 5
    bench.start()
    bench.frames.put("bad", "err", "dead", "unfit", "good")
    await bench.until(lambda: len(bench.frames.finished) == 5)
    numbers = bench.pump.numbers()
    assert numbers.frames_unreadable == 1
    assert numbers.inference_errors == 1
    assert numbers.frames_dropped == 5 + 2
    assert numbers.frames_inferred == 2
    assert bench.rows.names == ["good"]


async def test_every_model_has_its_row_and_the_frame_is_finished_once(bench):
    bench.brains.reply = lambda name: (said(), said(alarm=True), said("error"))
    bench.start()
    bench.frames.put("1")
    await bench.until(lambda: bench.frames.finished == ["1"])
    assert [lane for lane, _ in bench.rows.rows] == ["results", "alarms"]
    assert bench.rows.done == [("1", "x")]


async def test_a_frame_whose_rows_were_not_taken_is_not_done(bench):
    bench.rows.broken = True
    bench.start()
    bench.frames.put("1")
    await bench.until(lambda: bench.pump.numbers().frames_inferred == 1)
    assert bench.rows.done == []
    bench.rows.broken = False
    await bench.until(lambda: bench.rows.done == [("1", "x")])


async def test_frames_whose_rows_are_on_their_way_to_the_disk_go_back_only_once_those_are_there(bench):
    bench.rows.gate.clear()
    bench.start()
    bench.frames.put("1")
    await bench.until(lambda: bench.pump.numbers().frames_inferred == 1)
    await asyncio.sleep(0.02)
    bench.task.cancel()
    await asyncio.wait([bench.task], timeout=0.05)
    assert bench.frames.given_back == []
    bench.rows.gate.set()
    await asyncio.wait([bench.task], timeout=5)
    assert (bench.rows.done, bench.frames.given_back) == ([("1", "x")], ["1"])


async def test_what_is_not_durable_goes_back_to_the_source_when_the_pump_ends(bench, monkeypatch):
    monkeypatch.setattr(pump, "_KEEP_S", 0.01)
    bench.rows.gate.clear()
    bench.start()
    bench.frames.put("1", "2")
    await bench.until(lambda: bench.pump.numbers().frames_inferred == 2)
    await bench.stop()
    assert bench.frames.given_back == ["1", "2"]
    assert bench.frames.finished == []
    bench.rows.gate.set()
    bench.start()
    bench.frames.put("1", "2")
    await bench.until(lambda: bench.frames.finished == ["1", "2"])


async def test_a_bug_in_the_workers_ends_the_pump_aloud(bench):
    def reply(name: str) -> tuple[ModelReply, ...]:
        raise AssertionError("a bug")

    bench.brains.reply = reply
    bench.start()
    bench.frames.put("1", "2", "3")
    with pytest.raises(AssertionError):
        await asyncio.wait_for(bench.task, 5)
