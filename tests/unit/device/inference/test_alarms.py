"""Alarm sinks: a program, a line that is raised, a socket."""

import asyncio
import socket
import sys
import threading
import time

import pytest

from device.inference import alarms
from device.inference.alarms import make_sinks
from device.inference.settings import CommandAlarm, FileAlarm, InferenceSettings, SocketAlarm
from protocol.errors import SettingsError
from protocol.settings import parse_settings

ROW = b'{"frame":"a.png","alarm":true}'


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (files and processes tell nobody)
            await asyncio.sleep(0.01)


@pytest.fixture
async def sink_of():
    made = []

    def make(settings):
        (sink,) = make_sinks([settings])
        made.append(sink)
        return sink

    yield make
    for sink in made:
        await sink.close()


async def test_a_program_gets_the_row_as_one_line(sink_of, tmp_path):
    out = tmp_path / "out"
    copy = f"import sys, pathlib; pathlib.Path({str(out)!r}).write_text(sys.stdin.read())"
    sink = sink_of(CommandAlarm(argv=(sys.executable, "-c", copy)))
    await sink.fire(ROW)
    await until(lambda: out.exists() and out.read_bytes() == ROW + b"\n")


async def test_a_program_holds_nobody_up_and_is_ended_in_time(sink_of, tmp_path):
    sink = sink_of(CommandAlarm(argv=("sleep", "60"), limit_s=0.3))
    began = time.monotonic()
    for _ in range(4):
        await sink.fire(ROW)
    assert time.monotonic() - began < 2
    with pytest.raises(OSError, match="still running"):
        await sink.fire(ROW)
    await asyncio.sleep(0.6)
    await sink.fire(ROW)


async def test_a_program_that_is_not_there_is_an_error(sink_of):
    with pytest.raises(OSError, match="no-such"):
        await sink_of(CommandAlarm(argv=("/no-such-program",))).fire(ROW)


async def test_a_line_is_raised_held_and_lowered(sink_of, tmp_path):
    line = tmp_path / "value"
    sink = sink_of(FileAlarm(path=str(line), hold_s=0.3))
    await sink.fire(ROW)
    assert line.read_text() == "1"
    await asyncio.sleep(0.2)
    await sink.fire(ROW)
    await asyncio.sleep(0.2)
    assert line.read_text() == "1"
    await until(lambda: line.read_text() == "0")


async def test_a_line_that_is_up_when_parts_are_taken_up_anew_stays_up_until_frames_are_inferred_again(
    sink_of, tmp_path
):
    line = tmp_path / "value"
    settings = FileAlarm(path=str(line), hold_s=0.2)
    before = sink_of(settings)
    await before.fire(ROW)
    await before.close()
    after = sink_of(settings)
    await asyncio.sleep(0.3)
    assert line.read_text() == "1", "between the two nobody looked out"
    after.looked()
    await until(lambda: line.read_text() == "0")


async def test_a_line_that_is_being_lowered_at_the_close_is_not_lowered_after_it(sink_of, tmp_path, monkeypatch):
    sink = sink_of(FileAlarm(path=str(tmp_path / "value"), hold_s=0.01))
    begun, goes_on, write = threading.Event(), threading.Event(), sink._write

    def slow_write(value: bytes) -> None:
        if value == b"0":
            begun.set()
            assert goes_on.wait(10)
        write(value)

    monkeypatch.setattr(sink, "_write", slow_write)
    await sink.fire(ROW)
    assert await asyncio.to_thread(begun.wait, 10)
    closing = asyncio.create_task(sink.close())
    assert not (await asyncio.wait([closing], timeout=0.05))[0]
    goes_on.set()
    await closing
    assert (tmp_path / "value").read_text() == "0"


async def test_a_line_that_a_killed_agent_left_up_stays_up_until_frames_are_inferred_and_none_raises_it(
    sink_of, tmp_path
):
    line = tmp_path / "value"
    line.write_text("1")
    sink = sink_of(FileAlarm(path=str(line), hold_s=0.3))
    await asyncio.sleep(0.4)
    assert line.read_text() == "1", "nobody looks out: the machine stands still"
    sink.looked()
    await asyncio.sleep(0)
    assert line.read_text() == "1"
    await until(lambda: line.read_text() == "0")
    line.write_text("1")
    sink.looked()
    await asyncio.sleep(0.4)
    assert line.read_text() == "1", "frames lower only what a life before raised"


async def test_a_line_that_could_not_be_lowered_is_lowered_later(sink_of, tmp_path, monkeypatch):
    monkeypatch.setattr(alarms, "_LOWER_AGAIN_S", 0.01)
    line = tmp_path / "value"
    sink = sink_of(FileAlarm(path=str(line), hold_s=0.01))
    write, failing = sink._write, [3]

    def failing_write(value: bytes) -> None:
        if value == b"0" and failing[0]:
            failing[0] -= 1
            raise OSError("the line does not move")
        write(value)

    monkeypatch.setattr(sink, "_write", failing_write)
    await sink.fire(ROW)
    await until(lambda: line.read_text() == "0")
    assert failing == [0]


@pytest.mark.parametrize("errs", [False, True])
async def test_a_line_that_a_slow_disk_raises_after_its_time_is_lowered_too(sink_of, tmp_path, monkeypatch, errs):
    line, goes_on = tmp_path / "value", threading.Event()
    sink = sink_of(FileAlarm(path=str(line), hold_s=0.01))
    write = sink._write

    def slow_write(value: bytes) -> None:
        assert value == b"0" or goes_on.wait(10)
        write(value)
        if errs and value == b"1":
            raise OSError("written, and said to be not")

    monkeypatch.setattr(sink, "_write", slow_write)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sink.fire(ROW), 0.05)
    goes_on.set()
    await until(lambda: line.exists() and line.read_text() == "0")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_socket_gets_a_line_and_its_listener_may_come_and_go(sink_of, tmp_path, stream):
    path = str(tmp_path / "s")
    sink = sink_of(SocketAlarm(path=path, stream=stream))
    with pytest.raises(OSError):
        await sink.fire(ROW)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        if stream:
            listener.listen()
        await sink.fire(ROW)
        listener.settimeout(5)
        if stream:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1000) == ROW + b"\n"
        else:
            assert listener.recv(1000) == ROW + b"\n"


def test_settings_name_sinks_by_their_kind():
    text = """
frames = "/data/frames"
[[alarms]]
kind = "command"
argv = ["/usr/bin/stop"]
[[alarms]]
kind = "file"
path = "/sys/class/gpio/gpio7/value"
[[alarms]]
kind = "socket"
path = "/run/stop.sock"
stream = true
"""
    settings = parse_settings(text, InferenceSettings, source="device.toml")
    assert settings.alarms == (
        CommandAlarm(argv=("/usr/bin/stop",)),
        FileAlarm(path="/sys/class/gpio/gpio7/value"),
        SocketAlarm(path="/run/stop.sock", stream=True),
    )
    with pytest.raises(SettingsError, match="line 8: unknown key 'pth'"):
        parse_settings(text.replace('path = "/sys', 'pth = "/sys'), InferenceSettings, source="device.toml")
