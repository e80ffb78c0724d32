"""The server of a play: the real one, put together by its own `serve`, with a plug that may be pulled.

Only its sockets and its clock are the play's: requests of machines and of people come to its two doors as the same
bytes that would come over HTTP. The managers sit beside it: they sign, push, start rollouts, and re-sign what runs out.
"""

import asyncio
import contextlib
import copy
import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from tuf.api.metadata import Targets
from yarl import URL

from protocol.errors import HeadlandError, LinkError
from protocol.ids import digest
from protocol.objects import ProductTerms
from server import app, sealing_keys
from server.founding import FirstAnswers, found
from server.http.devices import METADATA_FILE, DeviceDoor, DeviceServices
from server.storage.blobs import BlobStore
from server.storage.catalog import Catalog
from signing.metadata import parse, terms
from signing.repository import RepositoryKind, accept
from tests.fakes.managers import Managers
from tests.simulation.fleet.power import CURRENT, NEVER, Plug, PowerCut, context_of
from tests.simulation.fleet.releases import PRODUCT, Made
from tests.simulation.fleet.world import World, ended

DEVICES, PEOPLE = 0, 1  # in the order in which `serve` opens its doors
SETTINGS = """
[transfers]
compression_level = 1

[patches]
processes = 0
"""
HOUSEKEEPING_S = 7200.0


def prepare(state: Path, managers: Managers, now_ms: int) -> None:
    """`init`, with the online keys that the managers know."""
    (state / "keys").mkdir(parents=True)
    for repository, roles in managers.online.items():
        for role, signer in roles.items():
            (state / "keys" / f"{repository}.{role}.pem").write_bytes(signer.private_bytes)
    found(state, FirstAnswers("127.0.0.1", 0, ("farm.example",), "127.0.0.1", 0), lambda: now_ms, no_secret)
    managers.sealing_key = next(iter(sealing_keys.read_all(state / "keys")))
    managers.delegate_online("director", "clock")  # names it
    path = state / "server.toml"
    path.write_text(path.read_text() + SETTINGS)


def no_secret(name: str) -> str:
    raise AssertionError(f"nothing here asks for a {name}")


class House:
    """The server and its people.

    Args:
        state: Its folder, prepared.
        managers: Who sign.
        world: Time and log.
        poll_s: How often machines are asked to call.
    """

    def __init__(self, state: Path, managers: Managers, world: World, poll_s: float) -> None:
        self.state = state
        self.managers = copy.copy(managers)
        self.managers.online = {kind: dict(roles) for kind, roles in managers.online.items()}
        self.world = world
        settings = state / "server.toml"
        settings.write_text(re.sub(r"^poll_s = [0-9.]+", f"poll_s = {poll_s}", settings.read_text(), flags=re.M))
        self.released: dict[str, Made] = {}  # by version
        self.archive: dict[tuple[str, str], bytes] = {}
        """Every metadata file that was ever read: what a hostile server can say again."""
        self.crash_at = NEVER  # of the next life
        self.plug: Plug | None = None
        """Of the server that listens now."""
        self.services: DeviceServices
        self.doors: list[web.Application] = []
        self.chores: list[Chore] = []
        self._housekept_s = 0.0

    # Power

    async def drive(self) -> None:
        """Life after life, for as long as the play lasts."""
        while True:
            await self._live()
            await asyncio.sleep(self.world.chance.of("server/off").uniform(5, 3 * 3600))

    async def _live(self) -> None:
        gone = asyncio.Event()

        def cut(why: str) -> None:
            self.world.fault("server-crash", "server", why)
            self.plug = None
            self.world.loop.call_soon(gone.set)

        plug = Plug(self, self.crash_at, cut)
        self.crash_at = NEVER
        self.doors, self.chores = [], []
        task = self.world.loop.create_task(self._serve(plug), context=context_of(plug))
        cutting = self.world.loop.create_task(gone.wait())
        try:
            await asyncio.wait({task, cutting}, return_when=asyncio.FIRST_COMPLETED)
            if not plug.dead:
                await task
                raise AssertionError("the server ended")
        finally:
            self.plug = None
            plug.dead = True
            await ended(task, cutting, *plug.tasks)
            plug.bury(self.world.chance.of("server/cut"))

    async def _serve(self, plug: Plug) -> None:
        async with app.serve(self.state, self.world.now_ms, no_secret):
            for door in self.doors:
                door.freeze()
            self.plug = plug
            self._housekept_s = self.world.loop.time()
            self.world.log("server", "listens")
            await asyncio.Event().wait()

    async def up(self) -> None:
        """Until it listens."""
        while self.plug is None:  # noqa: ASYNC110  (it is virtual time that passes)
            await asyncio.sleep(60)

    # Requests

    async def ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], certificate: bytes | None
    ) -> tuple[int, bytes]:
        """One request of a machine, as its bytes came.

        Raises:
            LinkError: Nobody answers, or no longer.
        """
        return await self._ask(DEVICES, method, path, body, headers, certificate)

    async def _ask(
        self,
        door: int,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        certificate: bytes | None = None,
    ) -> tuple[int, bytes]:
        plug = self.plug
        if plug is None:
            raise LinkError("connection refused")
        handling = self._handle(door, method, path, body, headers, certificate)
        task = self.world.loop.create_task(handling, context=context_of(plug))
        try:
            # A machine that is cut off does not stop what the server has begun.
            return await asyncio.shield(task)
        except PowerCut:
            raise LinkError("the connection was reset") from None
        except asyncio.CancelledError:
            if task.cancelled() and plug.dead:
                raise LinkError("the connection was reset") from None
            raise

    async def _handle(
        self, door: int, method: str, path: str, body: bytes, headers: Mapping[str, str], certificate: bytes | None
    ) -> tuple[int, bytes]:
        if self.world.loop.time() - self._housekept_s >= HOUSEKEEPING_S:
            # What the server does by itself each minute or hour is done when somebody comes.
            self._housekept_s = self.world.loop.time()
            for chore in self.chores:
                await chore.do()
        request, written = _request(self.doors[door], method, path, body, headers, certificate)
        answer = await self.doors[door]._handle(request)
        await answer.prepare(request)
        await answer.write_eof()
        return answer.status, written.body()

    def metadata(self, kind: RepositoryKind, name: str) -> bytes | None:
        """One file of a repository, as `server.http.devices.send_metadata`; None: there is no such file.

        The keeper asks for it in the midst of a judgement, in which no time passes here: not by way of the door.

        Raises:
            LinkError: Nobody answers.
        """
        if self.plug is None:
            raise LinkError("connection refused")
        if METADATA_FILE.match(name) is None:
            return None
        found = context_of(self.plug).run(self._read, kind, name)
        if found is not None and name != "timestamp.json":
            self.archive[kind, name] = found
        return found

    def _read(self, kind: RepositoryKind, name: str) -> bytes | None:
        with self.services.catalog.read() as session:
            return session.repositories.served(kind, name)

    # People. Each waits for the server, and does it again when it crashed meanwhile.

    async def must(self, method: str, path: str, body: Any = None, *, data: bytes = b"", fine: int = 200) -> Any:
        """One request at the people's door."""
        headers = {"Content-Type": "application/json"}
        if body is not None:
            data = json.dumps(body).encode()
        while True:
            await self.up()
            token = json.loads((self.state / "operator.json").read_bytes())["token"]
            try:
                status, answer = await self._ask(
                    PEOPLE, method, path, data, {**headers, "Authorization": f"Bearer {token}"}
                )
            except LinkError:
                await asyncio.sleep(60)
                continue
            if status == 503:
                await asyncio.sleep(60)
                continue
            assert status in (200, 201, 204, fine), (path, status, answer[:500])
            return json.loads(answer) if answer else None

    async def push(self, what: str) -> None:
        """All that the managers have accepted themselves."""
        sets = {"image": self.managers.image.files(), "director": self.managers.director.files()}
        listed = [
            {"repository": kind, "name": name, "content": content.decode()}
            for kind, files in sets.items()
            for name, content in files.items()
        ]
        await self.must("POST", "/api/v1/publish", {"files": listed})
        self.world.log("people", what)

    async def put(self, made: Made) -> None:
        """The blobs of a release."""
        for name, data in {**made.release.artifacts, made.release.digest: made.release.manifest_bytes}.items():
            await self.must("PUT", f"/api/v1/blobs/{name}", data=data)

    async def prepare_payloads(self, of: Iterable[Made]) -> None:
        """So that a later release has its payloads at once: for the time before the plays."""
        names = [name for made in of for name in made.release.artifacts]
        catalog = Catalog(f"sqlite:///{self.state / 'catalog.db'}")
        with catalog.write() as session:
            session.payloads.want(names, self.world.now_ms())
        catalog.close()
        await self.make_payloads()

    async def make_payloads(self) -> None:
        while (await self.must("GET", "/api/v1/status"))["payloads_waiting"]:
            await self.up()
            plug = self.plug
            assert plug is not None
            for chore in self.chores:
                if "payloads" in chore.what:
                    task = self.world.loop.create_task(chore.do(), context=context_of(plug))
                    await asyncio.wait({task})

    async def release(self, made: Made, floor: int | None = None) -> None:
        """Lists it."""
        self.managers.now = self.world.now()
        release = made.release
        self.managers.release(release.version, release.counter, release.manifest_bytes, floor=floor)
        self.released[release.version] = made
        await self.push(f"released {release.version} ({made.kind})")
        await self.make_payloads()

    async def delist(self, version: str) -> None:
        self.managers.now = self.world.now()
        self.managers.delist(version)
        await self.push(f"delisted {version}")

    async def rollout(self, name: str, version: str, error_percent: float) -> None:
        phase = {"percent": 100, "error_percent": error_percent, "success_percent": 0}
        body = {"name": name, "product": PRODUCT, "release": version, "group": "all", "phases": [phase]}
        # 409: it was delisted meanwhile, or was created by a request whose answer was lost in a crash.
        await self.must("POST", "/api/v1/rollouts", body, fine=409)
        self.world.log("people", f"rollout {name} of {version}")

    async def halt(self, name: str) -> None:
        for rollout in (await self.must("GET", "/api/v1/rollouts"))["rollouts"]:
            if rollout["name"] == name and rollout["state"] != "halted":
                await self.must("POST", f"/api/v1/rollouts/{name}/halt", {}, fine=409)
                self.world.log("people", f"halted {name}")

    async def readmit(self, name: str) -> bool:
        """Vouches for a machine, if it was set apart. Returns whether it was."""
        if not (await self.must("GET", f"/api/v1/devices/{name}"))["set_apart"]:
            return False
        # 409: it was done by a request whose answer was lost in a crash.
        await self.must("POST", f"/api/v1/devices/{name}/readmit", {}, fine=409)
        self.world.fault("readmitted", "people", name)
        return True

    @property
    def floor(self) -> int:
        """The release counter below which the managers let no machine install."""
        return terms(self.managers.current_product(), ProductTerms, "").floor

    async def sign_anew(self) -> None:
        """All roles that would run out."""
        managers, floor = self.managers, self.floor
        managers.now = self.world.now()
        product = managers.current_product()
        files = {
            "targets.json": managers.sign(managers.make_image_targets(_version(managers.image.targets) + 1)),
            f"{PRODUCT}.json": managers.sign(managers.make_product(product.version + 1, dict(product.targets), floor)),
        }
        number = max(managers.image.roots) + 1
        files[f"{number}.root.json"] = managers.sign(managers.make_root("image", number))
        managers.image = accept("image", managers.image, files, managers.now)
        number = max(managers.director.roots) + 1
        files = {
            "targets.json": managers.sign(managers.make_director_targets(_version(managers.director.targets) + 1)),
            f"{number}.root.json": managers.sign(managers.make_root("director", number)),
        }
        managers.director = accept("director", managers.director, files, managers.now)
        await self.push("signed everything anew")

    async def rotate(self, kind: RepositoryKind, count: int, chain: Mapping[int, bytes]) -> None:
        """So many new roots, signed long ago."""
        managers = self.managers
        managers.now = self.world.now()
        current = managers.image if kind == "image" else managers.director
        first = max(current.roots) + 1
        files = {f"{number}.root.json": chain[number] for number in range(first, first + count)}
        accepted = accept(kind, current, files, managers.now)
        if kind == "image":
            managers.image = accepted
        else:
            managers.director = accepted
        await self.push(f"{count} new roots of {kind}")

    async def token(self, device: str) -> str:
        body = {"device": device, "product": PRODUCT, "groups": ["all"]}
        return str((await self.must("POST", "/api/v1/tokens", body))["token"])


class Chore:
    """What a server does by itself now and then: as `server.app._every` is told."""

    def __init__(self, _: float, what: str, threads: Any, work: Callable[[], bool]) -> None:
        self.what = what
        self._threads = threads
        self._work = work

    async def do(self) -> None:
        while await self._threads.run(self._work):
            pass


@contextlib.asynccontextmanager
async def tasks(*chores: Chore) -> AsyncIterator[None]:
    """In the place of `server.app._tasks`."""
    current().chores = list(chores)
    yield


def device_door(services: DeviceServices) -> DeviceDoor:
    """In the place of `server.app.DeviceDoor`, to see what stands behind it."""
    current().services = services
    return DeviceDoor(services)


async def listen(stack: Any, door: web.Application, host: str, port: int, context: Any) -> int:
    """In the place of `server.app._listen`."""
    current().doors.append(door)
    return 8443 + len(current().doors)


def current() -> House:
    """Whose code runs now."""
    plug = CURRENT.get()
    assert plug is not None
    house = plug.owner
    assert isinstance(house, House)
    return house


@contextlib.asynccontextmanager
async def running(house: House) -> AsyncIterator[None]:
    """The server lives its lives inside the block."""
    driving = house.world.loop.create_task(house.drive())
    driving.add_done_callback(house.world.failed)
    try:
        yield
    finally:
        await ended(driving)


def _version(data: bytes) -> int:
    return parse(data, Targets, "targets").signed.version


class AtOnce:
    """Blobs for the door without the threads of the library below: its reads come from outside of the play's time."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def _all(self, name: str) -> bytes | None:
        try:
            return b"".join(self._blobs.read_now(name, 1 << 20))
        except HeadlandError:
            return None

    async def length(self, name: str) -> int | None:
        await asyncio.sleep(0)
        found = self._all(name)
        return None if found is None else len(found)

    async def put(self, name: str, chunks: AsyncIterable[bytes], limit_bytes: int) -> int:
        whole = b"".join([chunk async for chunk in chunks])
        assert len(whole) <= limit_bytes
        return self._blobs.put_now(name, iter([whole]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    async def read(self, name: str, first: int, count: int) -> AsyncIterator[bytes]:
        found = self._all(name)
        assert found is not None
        assert digest(found) == name
        yield found[first : first + count]


class _Written:
    """What the door writes, instead of a socket."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.length: int | None = None
        self.output_size = 0
        self.buffer_size = 0

    async def write(self, chunk: Any, *_: Any, **__: Any) -> None:
        self._pieces.append(bytes(chunk))

    async def write_eof(self, chunk: bytes = b"") -> None:
        if chunk:
            self._pieces.append(bytes(chunk))

    async def write_headers(self, *_: Any) -> None:
        pass

    async def drain(self) -> None:
        pass

    def set_eof(self) -> None:
        pass

    def send_headers(self) -> None:
        pass

    def enable_chunking(self) -> None:
        pass

    def enable_compression(self, *_: Any, **__: Any) -> None:
        pass

    def body(self) -> bytes:
        return b"".join(self._pieces)


class _Transport:
    """Says whose certificate came."""

    def __init__(self, certificate: bytes | None) -> None:
        self._found = {
            "ssl_object": SimpleNamespace(getpeercert=lambda binary_form: certificate),
            "peername": ("10.0.0.9", 4000),
            "sslcontext": None,
        }

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._found.get(name, default)

    def is_closing(self) -> bool:
        return False


def _request(
    door: web.Application,
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    certificate: bytes | None,
) -> tuple[web.Request, _Written]:
    loop = asyncio.get_running_loop()
    named = CIMultiDict({"Host": "farm.example", "Content-Length": str(len(body)), **headers})
    raw = tuple((name.encode(), value.encode()) for name, value in named.items())
    message = RawRequestMessage(
        method, path, HttpVersion11, CIMultiDictProxy(named), raw, False, None, False, False, URL(path)
    )
    protocol: Any = SimpleNamespace(
        transport=_Transport(certificate),
        _reading_paused=False,
        pause_reading=lambda: None,
        resume_reading=lambda **_: None,
        writer=None,
        ssl_context=None,
        sockname=("10.0.0.1", 8443),
        peername=("10.0.0.9", 4000),
    )
    payload = StreamReader(protocol, 1 << 16, loop=loop)
    payload.feed_data(body)
    payload.feed_eof()
    written = _Written()
    task = asyncio.current_task()
    assert task is not None
    request = web.Request(message, payload, protocol, written, task, loop)  # type: ignore[arg-type]  # stand-ins
    return request, written
