"""The local socket: what serves, and results as they are made, for programs that change nothing and hold up nobody."""

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from device.inference.finding import Finding
from device.inference.frames import Frame
from device.inference.pump import Pump
from device.inference.replies import FrameReply, ModelReply
from device.local import link, listening, readers, request
from device.local.link import LocalLink
from device.local.listening import SOCKET
from device.local.readers import Readers
from device.update.ports import ReleaseSet
from tests.fakes.local_reader import LocalReader, ask
from tests.fakes.updates import Release, noise

ONE = Release("1.0.0", 1, noise(1000, 1))
TWO = Release("1.1.0", 2, noise(1000, 2))


def as_set(release):
    variants = {model.name: model.variants[0] for model in release.manifest.models}
    return ReleaseSet(digest=release.digest, manifest=release.manifest, variants=variants, files={})


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.frames = 0
        self.link = LocalLink(folder)
        self.board, self.readers = self.link.board, self.link.readers

    @asynccontextmanager
    async def served(self):
        task = asyncio.create_task(self.link.run(lambda: self.frames))
        try:
            await self.until((self.folder / SOCKET).exists)
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, condition) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110  (of files and of what tells nobody)
                await asyncio.sleep(0.002)

    async def show(self, release) -> None:
        await asyncio.to_thread(self.board.show, as_set(release) if release else None)
        await asyncio.sleep(0)

    @asynccontextmanager
    async def reading(self, target="/v1/results"):
        before = len(self.readers)
        async with LocalReader(self.folder, target) as reader:
            await reader.head()
            await self.until(lambda: len(self.readers) == before + 1)
            yield reader


@pytest.fixture
async def bench(tmp_path):
    made = Bench(tmp_path / "run" / "link")
    with blockbuster_ctx(scanned_modules=["device"]):
        async with made.served():
            yield made


def row(number, pad=0):
    return b'{"frame":"%d%s"}' % (number, b"x" * pad)


# What serves


async def test_what_serves_is_told_with_files_below_the_mount(bench):
    await bench.show(ONE)
    status, said = await ask(bench.folder, "/v1/active")
    model, config = ONE.manifest.models[0], ONE.manifest.configs[0]
    assert status == 200
    assert said == {
        "manifest": ONE.digest,
        "release": "1.0.0",
        "folder": ONE.digest,
        "models": [
            {
                "name": "pests",
                "sha256": model.variants[0].artifact.sha256,
                "path": f"{ONE.digest}/models/pests",
            }
        ],
        "configs": [
            {"name": config.name, "sha256": config.artifact.sha256, "path": f"{ONE.digest}/config/{config.name}"}
        ],
    }
    await bench.show(None)
    status, said = await ask(bench.folder, "/v1/active")
    assert (status, said["manifest"], said["models"]) == (200, None, [])


async def test_before_the_agent_knows_what_serves_it_does_not_say_that_nothing_does(bench):
    status, said = await ask(bench.folder, "/v1/active")
    assert (status, said) == (503, {"error": "the agent has just started: ask again"})
    async with LocalReader(bench.folder, f"/v1/active?after={ONE.digest}&wait_s=20") as reader:
        await asyncio.sleep(0.02)
        await bench.show(TWO)
        assert (await reader.answer())["manifest"] == TWO.digest


async def test_who_waits_for_a_change_hears_of_it_at_once_and_of_none_at_the_end_of_its_wait(bench):
    await bench.show(ONE)
    async with LocalReader(bench.folder, f"/v1/active?after={ONE.digest}&wait_s=20") as reader:
        await asyncio.sleep(0.02)
        await bench.show(ONE)
        await asyncio.sleep(0.02)
        assert not reader.reader._buffer, "no change, no word"
        await bench.show(TWO)
        assert (await reader.answer())["manifest"] == TWO.digest
    status, said = await ask(bench.folder, f"/v1/active?after={ONE.digest}&wait_s=20")
    assert (status, said["manifest"]) == (200, TWO.digest)
    status, said = await ask(bench.folder, f"/v1/active?after={TWO.digest}&wait_s=0.05")
    assert (status, said["manifest"]) == (200, TWO.digest)
    async with LocalReader(bench.folder, f"/v1/active?after={TWO.digest}&wait_s=20") as reader:
        await bench.show(None)
        assert (await reader.answer())["manifest"] is None
    async with LocalReader(bench.folder, "/v1/active?after=&wait_s=20") as reader:
        await asyncio.sleep(0.02)
        await bench.show(ONE)
        assert (await reader.answer())["manifest"] == ONE.digest


# Results


async def test_rows_come_as_they_are_made_byte_by_byte_and_alarms_before_what_waits(bench):
    async with bench.reading() as both, bench.reading("/v1/results?lanes=alarms") as alarms:
        bench.readers.show([("results", row(1)), ("alarms", row(2)), ("results", row(3))])
        assert await both.reader.readline() == b'{"lane":"alarms","row":' + row(2) + b"}\n"
        assert [(await both.line())["row"]["frame"] for _ in range(2)] == ["1", "3"]
        assert (await alarms.line())["row"] == {"frame": "2"}
        bench.readers.show([("results", row(4))])
        bench.readers.show([("alarms", row(5))])
        assert (await alarms.line())["row"] == {"frame": "5"}


async def test_each_second_a_reader_hears_how_many_frames_were_inferred(bench, monkeypatch):
    monkeypatch.setattr(link, "BEAT_S", 0.02)
    async with bench.reading() as reader:
        assert await reader.line() == {"frames": 0}
        bench.frames = 7
        for _ in range(3):
            said = await reader.line()
        assert said == {"frames": 7}


async def test_a_slow_reader_loses_the_oldest_results_then_alarms_and_is_told_how_many(monkeypatch):
    monkeypatch.setattr(readers, "HELD_ROWS", 5)
    everyone = Readers()

    async def lines():
        return [json.loads(line) for line in (await asyncio.wait_for(reader.take(), 10)).splitlines()]

    with everyone.joined({"alarms", "results"}, lambda line: False) as reader:
        for number in range(10):
            everyone.show([("alarms" if number < 3 else "results", row(number))])
        first, *rest = await lines()
        assert first == {"dropped": 5, "lane": "results"}
        assert [line["row"]["frame"] for line in rest] == ["0", "1", "2", "8", "9"]
        for number in range(20, 28):
            everyone.show([("alarms", row(number))])
        first, *rest = await lines()
        assert first == {"dropped": 3, "lane": "alarms"}
        assert [line["row"]["frame"] for line in rest] == ["23", "24", "25", "26", "27"]
        everyone.show([("results", row(30))])
        assert [line["row"]["frame"] for line in await lines()] == ["30"]


async def test_a_reader_that_reads_nothing_holds_up_nobody_and_takes_little(bench):
    target = "/v1/results?lanes=alarms"
    async with bench.reading(target) as stuck, bench.reading(target) as well:
        stuck.writer.transport.pause_reading()
        for number in range(300):
            bench.readers.show([("alarms", row(number, pad=20_000))])
            while "row" not in (said := await well.line()):
                pass  # a second is over
            assert said["row"]["frame"].startswith(str(number)), "the other one misses nothing"
        held = sum(reader._held_bytes for reader in bench.readers._readers)
        assert held <= readers.HELD_BYTES
        stuck.writer.transport.resume_reading()
        numbers, dropped = [], 0
        while len(numbers) + dropped < 300:
            said = await stuck.line()
            if "dropped" in said:
                dropped += said["dropped"]
            elif "row" in said:
                numbers.append(int(said["row"]["frame"].rstrip("x")))
        assert dropped > 100
        assert numbers == sorted(numbers)
        assert len(numbers) + dropped == 300, "each row came or was counted"


async def test_a_reader_that_takes_nothing_for_long_is_let_go(bench, monkeypatch):
    monkeypatch.setattr(link, "STUCK_S", 0.1)
    async with bench.reading() as stuck:
        stuck.writer.transport.pause_reading()

        def fill():
            bench.readers.show([("results", row(1, pad=60_000))])
            return len(bench.readers) == 0

        await bench.until(fill)
        await bench.until(lambda: not bench.link._attending)


async def test_a_reader_that_goes_makes_room_for_the_next(bench, monkeypatch):
    monkeypatch.setattr(readers, "STREAMS", 2)
    async with bench.reading(), bench.reading():
        assert (await ask(bench.folder, "/v1/results"))[0] == 503
    await bench.until(lambda: len(bench.readers) == 0)
    async with LocalReader(bench.folder, f"/v1/active?after={ONE.digest}&wait_s=300"):
        await bench.until(lambda: len(bench.link._attending) == 1)
    await bench.until(lambda: not bench.link._attending)
    async with bench.reading():
        pass


async def test_an_alarm_is_at_the_reader_before_its_row_is_enqueued(bench):
    enqueued, heard = [], bytearray()
    alarm = ModelReply(ONE.manifest.models[0], ONE.digest, "cpu", "finding", 1.0, Finding(alarm=True), "")

    class Workers:
        async def infer(self, frame):
            return FrameReply(ONE.digest, (alarm,))

    class Frames:
        dropped = 0

        def __init__(self):
            self.names = [f"{number}.jpg" for number in range(50)]

        async def take(self):
            if not self.names:
                await asyncio.Event().wait()
            return Frame(self.names.pop(0), "image/jpeg", b"x", 0.0, None)

        async def finish(self, frame): ...

        def give_back(self, frame): ...

    class Outbox:
        async def enqueue_all(self, rows, *, done_frames=()):
            with contextlib.suppress(BlockingIOError):
                heard.extend(client.recv(100_000))
            enqueued.append(b'"row":' + rows[0][1] in heard)
            return [0]

    pump = Pump(
        source=Frames(), workers=Workers(), sink=Outbox(), alarms=(), now_ms=lambda: (1, True),
        clock=lambda: 0.0, show=bench.readers.show,
    )  # fmt: skip
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, str(bench.folder / SOCKET))
        client.send(b"GET /v1/results HTTP/1.1\r\n\r\n")
        await bench.until(lambda: len(bench.readers) == 1)
        await asyncio.sleep(0.05)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        for number in range(5):  # not a turn of the loop later: on a busy one that may be long
            bench.readers.show([("alarms", row(number))])
            assert client.recv(1000) == b'{"lane":"alarms","row":' + row(number) + b"}\n"
        task = asyncio.create_task(pump.run())
        await bench.until(lambda: len(enqueued) == 50 or task.done())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert enqueued == [True] * 50


# What it does not do


@pytest.mark.parametrize(
    ("method", "target", "more", "status"),
    [
        ("POST", "/v1/active", "Content-Length: 0\r\n", 405),
        ("PUT", "/v1/results", "", 405),
        ("DELETE", "/v1/active", "", 405),
        ("GET", "/v1/active", "Content-Length: 5\r\n", 413),
        ("GET", "/v1/active", "Transfer-Encoding: chunked\r\n", 413),
        ("GET", "/v1/../etc/passwd", "", 404),
        ("GET", "/", "", 404),
        ("GET", "/v1/results?lanes=alarms,secrets", "", 400),
        ("GET", "/v1/results?since=0", "", 400),
        ("GET", "/v1/active?wait_s=1e9", "", 400),
        ("GET", "/v1/active?wait_s=nan", "", 400),
        ("GET", "/v1/active?wait_s=-1", "", 400),
        ("GET", "/v1/active?after=latest", "", 400),
        ("GET", "/v1/active?wait_s=1&wait_s=2", "", 400),
        ("GET", "/v1/active?" + "a=1&" * 20, "", 400),
        ("GET", "http://elsewhere/v1/active", "", 400),
        ("GET", "/v1/active", "X-Long: " + "x" * request.HEAD_BYTES + "\r\n", 431),
        ("get", "/v1/active", "", 400),
    ],
)
async def test_what_is_no_question_is_turned_away_in_words(bench, method, target, more, status):
    await bench.show(ONE)
    found, said = await ask(bench.folder, target, method=method, more=more)
    assert found == status
    assert said.keys() == {"error"}
    assert (await ask(bench.folder, "/v1/active"))[0] == 200


async def test_noise_is_turned_away_and_nothing_is_left_of_it(bench):
    await bench.show(ONE)
    for data in (b"", b"\r\n\r\n", b"\x00\xff" * 4000, b"GET /v1/active HTTP/9.9\r\n\r\n", noise(100_000, 3)):
        reader, writer = await asyncio.open_unix_connection(bench.folder / SOCKET)
        writer.write(data)
        writer.write_eof()
        try:
            said = await asyncio.wait_for(reader.read(), 10)
        except ConnectionResetError:  # more was sent than was read
            said = b""
        assert said == b"" or said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
        writer.transport.abort()
    await bench.until(lambda: not bench.link._attending)
    assert (await ask(bench.folder, "/v1/active"))[0] == 200


async def test_who_connects_and_is_silent_is_let_go(bench, monkeypatch):
    monkeypatch.setattr(request, "HEAD_S", 0.05)
    reader, writer = await asyncio.open_unix_connection(bench.folder / SOCKET)
    writer.write(b"GET /v1/act")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.transport.abort()


async def test_a_process_that_forgets_to_close_keeps_no_other_out(bench):
    await bench.show(ONE)
    held = [LocalReader(bench.folder, f"/v1/active?after={ONE.digest}&wait_s=300") for _ in range(8)]
    for one in held:
        await one.__aenter__()
    await bench.until(lambda: len(bench.link._attending) == 8)
    assert (await ask(bench.folder, "/v1/active"))[0] == 429
    other = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(b'GET /v1/active HTTP/1.1\\r\\n\\r\\n'); print(s.recv(100).split()[1].decode())"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-S", "-c", other, bench.folder / SOCKET],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout == "200\n", done.stderr
    for one in held:
        await one.__aexit__()
    await bench.until(lambda: not bench.link._attending)
    assert (await ask(bench.folder, "/v1/active"))[0] == 200


async def test_beyond_so_many_connections_the_next_one_waits_for_its_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(link, "CONNECTIONS", 2)
    bench = Bench(tmp_path / "run" / "link")
    target = f"/v1/active?after={ONE.digest}&wait_s=300"
    async with bench.served():
        await bench.show(ONE)
        async with LocalReader(bench.folder, target), LocalReader(bench.folder, target) as second:
            await bench.until(lambda: len(bench.link._attending) == 2)
            async with LocalReader(bench.folder, "/v1/active") as third:
                await asyncio.sleep(0.05)
                assert len(bench.link._attending) == 2
                assert not third.reader._buffer, "no answer yet"
                await second.__aexit__()
                assert (await third.answer())["manifest"] == ONE.digest


async def test_requests_beyond_the_pace_wait(bench, monkeypatch):
    """Each costs the loop that fires alarms a little."""
    await bench.show(ONE)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for _ in range(4 * link.BURST + 1):
        assert (await ask(bench.folder, "/v1/active"))[0] == 200
    assert loop.time() - began_s >= 4 * link.BURST_S


# The socket


async def test_every_user_may_connect_and_none_may_change_the_folder(tmp_path):
    umask = os.umask(0o077)
    try:
        bench = Bench(tmp_path / "run" / "link")
        async with bench.served():
            assert stat.S_IMODE(bench.folder.stat().st_mode) == 0o755
            assert stat.S_IMODE((bench.folder / SOCKET).stat().st_mode) == 0o666
            assert [path.name for path in bench.folder.iterdir()] == [SOCKET]
    finally:
        os.umask(umask)


async def test_a_mount_made_before_shows_the_socket_of_the_next_agent(tmp_path):
    folder = tmp_path / "run" / "link"
    bench = Bench(folder)
    async with bench.served():
        mounted = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # as a mount: the folder itself, not its name
    (folder / ".tmp-half").write_bytes(b"")  # a start that was cut off
    assert not (folder / SOCKET).exists(), "an end in order"
    with socket.socket(socket.AF_UNIX) as left:  # and one that is none
        left.bind(str(folder / SOCKET))
    before = (folder / SOCKET).stat().st_ino
    bench = Bench(folder)
    try:
        await bench.show(TWO)
        async with bench.served():
            await bench.until(lambda: (folder / SOCKET).stat().st_ino != before)
            with socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, f"/proc/self/fd/{mounted}/{SOCKET}")
            assert sorted(path.name for path in folder.iterdir()) == [SOCKET]
    finally:
        os.close(mounted)


async def test_a_deep_state_folder_has_its_socket_all_the_same(tmp_path):
    folder = tmp_path.joinpath(*(["a-very-long-name-of-a-folder"] * 10), "run", "link")
    assert len(str(folder / SOCKET)) > 250
    bench = Bench(folder)
    async with bench.served():
        await bench.show(ONE)
        assert (await ask(folder, "/v1/active"))[0] == 200


async def test_a_disk_that_takes_no_socket_is_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(link, "PAUSE_S", 0.01)
    tries = []

    def full(folder):
        tries.append(folder)
        if len(tries) < 4:
            raise OSError(28, "No space left on device")
        return listening.listen(folder)

    monkeypatch.setattr(link, "listen", full)
    bench = Bench(tmp_path / "run" / "link")
    async with bench.served():
        await bench.show(ONE)
        assert (await ask(bench.folder, "/v1/active"))[0] == 200
    assert len([one for one in caplog.records if "no local socket" in one.message]) == 1
