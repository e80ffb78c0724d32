"""A server, its managers and machines over years of virtual time, in one thread: no sockets, no waiting, no chance.

The server's parts are those that `headland-server run` puts together, behind its own door for machines; handshakes are
real, between the TLS contexts of both, in memory. Machines have their own identity, clock, judge,
contact and renewal; what installs and infers is left out. The managers use their tool.

async with opened(tmp_path) as yard:
    tractor = await yard.enrol("tractor-1", Clockwork.RIGHT)
    await yard.pass_days(5)
    await tractor.visit()
"""

import asyncio
import hashlib
import itertools
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import msgspec
from aiohttp import StreamReader
from aiohttp.test_utils import make_mocked_request

from device import identity
from device.clock import Clock, Moment
from device.contact import Contact, Facts
from device.contact_loop import ContactLoop, News
from device.enrol import enrol
from device.layout import Layout
from device.link import Answer
from device.outbox.box import Outbox
from device.renewal import Renewal
from device.settings import ServerSettings
from device.state_db import StateDb
from device.store import Store
from device.transfer.patch_book import PatchBook
from device.trust.judge import Judge, Sources
from device.trust.keeper import StateFloors
from device.trust.port import Verdict
from protocol.errors import LinkError
from protocol.messages import Counters, Inventory, SignedFile, SyncAnswer
from server.app import open_parts
from server.ca import read_client
from server.founding import FirstAnswers, found
from server.http.devices import DeviceDoor
from server.http.tls import Front
from server.lifetimes import raise_alarms
from server.operations import read_status
from server.publish import PublishRequest
from server.standing import only_renewal
from signing import anchors
from signing.repository import RepositoryKind
from signing.server_client import Progress
from signing.trust_store import DirectorStore, ImageStore
from signing.workspace import ServerAccess
from tests.fakes.contact_machine import Manifests, Updates
from tests.fakes.managers_tool import ManagersTool

T = TypeVar("T")

START = datetime(2026, 5, 4, 8, 0, tzinfo=UTC)
DAY = timedelta(days=1)
PRODUCT = "pest-detector"
CPU = Inventory(agent="0.1.0", platform="linux-x86_64", accelerators=("cpu",))


class Clockwork(Enum):
    """What a machine's wall clock says."""

    RIGHT = "right"
    DEAD = "1970 at each start"
    FAST = "ten years ahead"


class InPlace:
    """`server.threads.Threads` without threads."""

    async def run(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return work(*args, **kwargs)


class Yard:
    """See the module. `now` is the true time, and the server's."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder = folder
        self.now = START
        self.state = folder / "server"
        self.state.mkdir()
        (self.state / "server.toml").write_text(settings)
        found(self.state, FirstAnswers("127.0.0.1", 0, ("localhost",), "127.0.0.1", 0), self.now_ms, _no_secret)
        self.parts = open_parts(self.state, self.now_ms, _no_secret)
        services = self.parts.device_services(InPlace(), self.now_ms)  # type: ignore[arg-type]  # the same methods
        self.door = DeviceDoor(services).application()
        self.door.freeze()
        self.tool = ManagersTool(folder)
        self.tool.now = self.now
        self.tool.operator_json.write_bytes((self.state / "operator.json").read_bytes())
        self.tool.app.connect = lambda access: _Office(self, access)
        self.machines: list[Machine] = []
        self.admitted: list[str] = []
        """Requests that were answered although the certificate should have been turned away: always empty."""

    def now_ms(self) -> int:
        return int(self.now.timestamp() * 1000)

    async def enrol(self, name: str, clockwork: Clockwork) -> "Machine":
        token = self.parts.enrolment.make_token(name, PRODUCT, ("all",), "https://localhost:1", "test")
        layout = Layout(self.folder / name)
        await enrol(layout, token, open_door=lambda url, tls: Line(self, tls))
        machine = await Machine.opened(self, layout, clockwork)
        self.machines.append(machine)
        return machine

    def pass_days(self, days: float) -> None:
        """Time goes on; the server does what its tasks do meanwhile."""
        self.now += days * DAY
        self.tool.now = self.now
        self.tasks()

    def tasks(self) -> None:
        """One round of what the server does by itself, but for `alarms`."""
        self.parts.certificates.refresh()
        self.parts.publisher.resign()

    def alarms(self) -> None:
        """The server looks whether anything has passed a mark of its life."""
        layout = self.parts.layout
        raise_alarms(self.parts.catalog, self.parts.certificates.now(), layout.tls, self.now_ms())

    def status(self) -> dict[str, Any]:
        parts = self.parts
        return read_status(parts.catalog, parts.certificates.now(), parts.layout.tls, self.now_ms())

    def events(self, kind: str) -> list[Any]:
        with self.parts.catalog.read() as session:
            return [event for event in session.events.after(0, 100_000) if event.kind == kind]

    async def answer(self, method: str, path: str, body: bytes, der: bytes | None, content_type: str) -> Answer:
        """One request at the machines' door, over a connection whose handshake traced `der` to a CA of ours."""
        connection = mock.Mock(spec=["getpeercert"], getpeercert=lambda binary_form: der)
        transport = mock.Mock(get_extra_info=lambda name, default=None: connection if name == "ssl_object" else default)
        payload = StreamReader(mock.Mock(_reading_paused=False), 1 << 20, loop=asyncio.get_running_loop())
        payload.feed_data(body)
        payload.feed_eof()
        headers = {"Content-Type": content_type, "Content-Length": str(len(body)), "Host": "localhost"}
        request = make_mocked_request(
            method, path, headers, app=self.door, payload=payload, transport=transport, protocol=mock.Mock()
        )
        response: Any = await self.door._handle(request)
        if response.status < 300 and der is not None and path != "/v1/renew":
            self._check_admitted(path, der)
        return Answer(response.status, bytes(response.body))

    def _check_admitted(self, path: str, der: bytes) -> None:
        certificate = read_client(der)
        with self.parts.catalog.read() as session:
            known = session.devices.standing(certificate.device)
        why = only_renewal(certificate, known, self.parts.certificates.now(), self.now)
        if why or certificate.not_after <= self.now:
            self.admitted.append(f"{self.now:%Y-%m-%d} {path}: {why}")

    def close(self) -> None:
        self.parts.patchmaker.stop()
        self.parts.catalog.close()


class Line:
    """A machine's connection: a handshake in memory at the first request, and after each `close`.

    Implements the doors of `device.contact`, `device.enrol` and `device.renewal`.
    """

    def __init__(self, yard: Yard, tls: ssl.SSLContext) -> None:
        self._yard = yard
        self._tls = tls
        self._shown: tuple[bytes | None] | None = None

    async def get(self, path: str, *, limit: int) -> Answer:
        return await self._ask("GET", path, b"", "application/json")

    async def post(self, path: str, body: bytes, *, limit: int, content_type: str = "application/json") -> Answer:
        return await self._ask("POST", path, body, content_type)

    async def renew(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        await self.close()

    async def close(self) -> None:
        self._shown = None

    async def _ask(self, method: str, path: str, body: bytes, content_type: str) -> Answer:
        if self._shown is None:
            self._shown = (shake_hands(self._tls, self._yard.parts.certificates.devices),)
        return await self._yard.answer(method, path, body, self._shown[0], content_type)


def shake_hands(client: ssl.SSLContext, front: Front) -> bytes | None:
    """TLS 1.3 in memory. Returns the client's certificate (DER) as the server sees it; None when it shows none.

    Raises:
        LinkError: Either side turned the other away.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    far = front.context.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    for side in itertools.islice(itertools.cycle((near, far)), 12):
        if side in done:
            continue
        try:
            side.do_handshake()
            done.add(side)
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            raise LinkError(f"the handshake failed: {error}") from error
    assert len(done) == 2, "twelve turns are enough for any handshake"
    return far.getpeercert(binary_form=True) or None


class Machine:
    """One machine. Made by `Yard.enrol`."""

    def __init__(self, yard: Yard, layout: Layout, clockwork: Clockwork, outbox: Outbox) -> None:
        self.yard = yard
        self.clockwork = clockwork
        self.who = identity.load(layout.identity)
        self.layout = layout
        self.name = self.who.enrolment.device
        self.state = StateDb(layout.state_db)
        self.outbox = outbox
        self.line = Line(yard, self.who.tls())
        self.verdicts: list[Verdict] = []
        self.updates = Updates()
        self._boots = 0
        self._booted = yard.now
        self._draws = itertools.count()
        self.clock = Clock(self.state, self.here)
        self.judge_ = self._judge()
        self.renewal = Renewal(
            self.who,
            self.line,
            self.state,
            now=self.clock.now,
            draw_token=self._draw,
            monotonic=self._seconds,
            on_renewed=self.close,
            open_bare=lambda tls: Line(self.yard, tls),
        )
        self.loop = ContactLoop(
            Contact(
                self.name,
                PRODUCT,
                door=self.line,
                trust=self,
                state=self.state,
                store=Store(layout.store, keep_free_bytes=0),
                outbox=outbox,
                manifests=Manifests(),
                updates=self.updates,
                clock=self.clock,
                facts=lambda: Facts(CPU, Counters(), self.clock.now().ms, self.clock.now().sure),
                draw_token=self._draw,
                patches=PatchBook(self.state, CPU.agent),
                trusts=lambda: anchors.marks(self.who.anchors()),
            ),
            _NoResults(),
            ServerSettings(),
            News(),
            renewal=self.renewal,
            monotonic=self._seconds,
            random=lambda: 0.5,
        )

    @classmethod
    async def opened(cls, yard: Yard, layout: Layout, clockwork: Clockwork) -> "Machine":
        draws = itertools.count()
        outbox = await Outbox.opened(
            layout.outbox_db,
            layout.state.name,
            budget_bytes=1 << 20,
            now_ms=lambda: 0,
            draw_token=lambda: f"{next(draws):032x}",
        )
        return cls(yard, layout, clockwork, outbox)

    def _seconds(self) -> float:
        return self.yard.now.timestamp()

    def here(self) -> Moment:
        """The machine's own clocks."""
        up_ms = int((self.yard.now - self._booted) / timedelta(milliseconds=1))
        wall = {
            Clockwork.RIGHT: self.yard.now_ms(),
            Clockwork.DEAD: up_ms,
            Clockwork.FAST: self.yard.now_ms() + 3650 * 86_400_000,
        }[self.clockwork]
        return Moment(boot_id=f"boot-{self._boots}", boot_ms=up_ms, wall_ms=wall)

    def restart(self) -> None:
        """Switched off and on: what was known of the time is gone."""
        self._boots += 1
        self._booted = self.yard.now
        self.judge_ = self._judge()

    async def visit(self) -> Verdict | None:
        """One visit as the agent makes it. Returns what it brought; None: no contact."""
        before = len(self.verdicts)
        await self.line.close()  # days have passed
        self.loop._news.sync_wanted = True
        await self.loop.visit()
        return self.verdicts[-1] if len(self.verdicts) > before else None

    def expires(self) -> datetime:
        return self.who.certificate().not_valid_after_utc

    # `device.trust.port.Trust`, without a process.

    async def judge(self, answer: SyncAnswer, nonce: str, asked_boot_s: float) -> Verdict:
        verdict = self.judge_.judge(answer, nonce, asked_boot_s)
        self.verdicts.append(verdict)
        return verdict

    async def receipts(self, texts: tuple[str, ...]) -> tuple[Any, ...]:
        return self.judge_.receipts(texts)

    async def close(self) -> None:
        self.judge_ = self._judge()

    def _judge(self) -> Judge:
        floors = StateFloors(self.state)
        trust, first = self.layout.state / "trust", self.layout.identity
        return Judge(
            device=self.name,
            product=PRODUCT,
            image=ImageStore(trust / "image", (first / "image.root.json").read_bytes(), floors, product=PRODUCT),
            director=DirectorStore(trust / "director", (first / "director.root.json").read_bytes(), floors),
            sources=Sources(image=_Served(self.yard, "image"), director=_Served(self.yard, "director")),
            facts=self.state,
            here=self.here,
        )

    def _draw(self) -> str:
        return hashlib.sha256(f"{self.name} {next(self._draws)}".encode()).hexdigest()[:32]


class _NoResults:
    async def run(self, go_on: Callable[[], bool] = lambda: True) -> int:
        return 0


@dataclass(frozen=True)
class _Served:
    """`signing.trust_store.Source` over what the server serves."""

    yard: Yard
    repository: RepositoryKind

    def read(self, name: str, limit_bytes: int) -> bytes:
        with self.yard.parts.catalog.read() as session:
            data = session.repositories.served(self.repository, name)
        if data is None:
            raise LinkError(f"no {name}", retryable=False, status=404)
        return data


@dataclass(frozen=True)
class _Office:
    """`signing.server_client.Operator` without a connection."""

    yard: Yard
    access: ServerAccess
    asked: list[str] = field(default_factory=list)

    def get(self, path: str, kind: type[T], query: Mapping[str, str] | None = None) -> T:
        answer: Any = {
            "/ca": lambda: msgspec.json.encode(
                {
                    "trust_pem": self.yard.parts.certificates.now().trusted_pem,
                    "links_pem": self.yard.parts.certificates.now().links_pem,
                }
            ),
            "/status": lambda: msgspec.json.encode(self.yard.status()),
            "/online-keys": self.yard.parts.layout.online_keys.read_bytes,
        }[path]()
        return msgspec.json.decode(answer, type=kind)

    def post(self, path: str, body: Any, kind: type[T]) -> T:
        raise AssertionError(path)

    def has_blob(self, sha256: str) -> bool:
        return True

    def put_blob(self, sha256: str, path: Path, progress: Progress) -> None:
        raise AssertionError(sha256)

    def publish(self, files: Mapping[RepositoryKind, Mapping[str, bytes]], *, again: bool = False) -> str:
        push = PublishRequest(
            files=tuple(
                SignedFile(repository=kind, name=name, content=data.decode())
                for kind, named in files.items()
                for name, data in named.items()
            ),
            again=again,
        )
        return self.yard.parts.publisher.publish(push, "managers").held

    def metadata(self, kind: RepositoryKind, name: str) -> bytes:
        return _Served(self.yard, kind).read(name, 1 << 24)

    def close(self) -> None:
        pass


@asynccontextmanager
async def opened(folder: Path, settings: str = "") -> AsyncIterator[Yard]:
    """A yard whose managers have published both repositories."""
    async with AsyncExitStack() as stack:
        yard = Yard(folder, settings)
        stack.callback(yard.close)
        yard.tool.begin()
        try:
            yield yard
        finally:
            for machine in yard.machines:
                await machine.outbox.close()
                machine.state.close()


def _no_secret(name: str) -> str:
    raise AssertionError(f"nothing here asks for a {name}")
