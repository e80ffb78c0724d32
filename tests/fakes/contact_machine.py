"""A machine without processes: real outbox, store and state, and a server in memory that believes unsigned objects."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from device.contact import Contact, Facts
from device.drain import Drain
from device.outbox.box import Outbox
from device.state_db import StateDb
from device.store import Store
from device.transfer.patch_book import PatchBook
from device.trust.port import Terms
from protocol.ids import digest
from protocol.messages import Counters, Inventory, SignedFile, VersionReport
from protocol.objects import AssignmentBody, Payload, TransferPlan
from tests.fakes.sync_server import FakeServer
from tests.fakes.trust import FakeTrust

DEVICE = "tractor-1"
MANIFEST = b'{"a": "manifest"}'


class Manifests:
    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.error: Exception | None = None

    async def small(self, payload: Payload, limit: int) -> bytes:
        self.fetched.append(payload.sha256)
        if self.error is not None:
            raise self.error
        return MANIFEST


class Updates:
    def __init__(self) -> None:
        self.offers: list[tuple] = []
        self.learnt: list[Terms] = []
        self.withdrawn = 0
        self.link_up = 0

    async def offer(self, assignment, manifest_bytes, terms, may_install):
        self.offers.append((assignment, manifest_bytes, terms, may_install))

    async def learn(self, terms):
        self.learnt.append(terms)

    def withdraw(self):
        self.withdrawn += 1

    def link_is_up(self):
        self.link_up += 1

    def report(self) -> VersionReport:
        return VersionReport(state="idle")


class Timepiece:
    def __init__(self) -> None:
        self.reloads = 0

    def boot_s(self) -> float:
        return 12.5

    def reload(self) -> None:
        self.reloads += 1


class Machine:
    """A device without processes: real outbox, store and state, and a server in memory."""

    def __init__(
        self, folder: Path, outbox: Outbox, key: ec.EllipticCurvePrivateKey, server: FakeServer | None, first_token: int
    ) -> None:
        self.server = server or FakeServer(key.public_key())
        self.trust = FakeTrust()
        self.state = StateDb(folder / "state.db")
        self.store = Store(folder / "store", keep_free_bytes=0)
        self.outbox = outbox
        self.manifests = Manifests()
        self.updates = Updates()
        self.clock = Timepiece()
        self.inventory = Inventory(agent="0.1.0", platform="linux-x86_64", accelerators=("cpu",))
        self.parts: dict[str, int] = {}
        self.in_engine: tuple[str, ...] = ()
        self._tokens = (f"{number:032x}" for number in itertools.count(first_token + 1000))
        self.drain = Drain(outbox, self.server, self.trust, key)
        self.book = PatchBook(self.state, self.inventory.agent)
        self.contact = self.restarted()

    def restarted(self) -> Contact:
        self.contact = Contact(
            DEVICE,
            "pest-detector",
            door=self.server,
            trust=self.trust,
            state=self.state,
            store=self.store,
            outbox=self.outbox,
            manifests=self.manifests,
            updates=self.updates,
            clock=self.clock,
            facts=lambda: Facts(
                self.inventory,
                Counters(bytes_received=7),
                1_800_000_000_000,
                sure_of_time=False,
                link="cellular",
                link_rate_kib_s=90,
                parts=self.parts,
            ),
            draw_token=lambda: next(self._tokens),
            patches=self.book,
            shelf=self,
            held=self.held,
        )
        return self.contact

    async def held(self) -> tuple[str, ...]:
        return self.in_engine

    def find(self, wanted: Sequence[str]) -> tuple[SignedFile, ...]:
        """Of the signed files, this machine has the targets."""
        return tuple(
            SignedFile(repository="image", name="targets.json", content="{}")
            for name in wanted
            if name == "image/targets.json"
        )

    async def meets(self) -> None:
        await self.contact.make()


@asynccontextmanager
async def opened(
    folder: Path,
    *,
    server: FakeServer | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
    first_token: int = 1,
    budget_bytes: int = 1 << 24,
) -> AsyncIterator[Machine]:
    """A machine on `folder`; what lies there is taken up."""
    tokens = (f"{number:032x}" for number in itertools.count(first_token))
    box = await Outbox.opened(
        folder / "outbox.db", DEVICE, budget_bytes=budget_bytes, now_ms=lambda: 5, draw_token=lambda: next(tokens)
    )
    machine = Machine(folder, box, key or ec.generate_private_key(ec.SECP256R1()), server, first_token)
    try:
        yield machine
    finally:
        await box.close()
        machine.state.close()


def assignment() -> AssignmentBody:
    return AssignmentBody(
        device=DEVICE,
        product="pest-detector",
        rollout="summer",
        release="1.0.0",
        manifest=Payload(sha256=digest(MANIFEST), length_bytes=len(MANIFEST)),
        plan=TransferPlan(steps=(), full_bytes=0),
    )
