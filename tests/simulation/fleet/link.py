"""The air between one machine and the server: the same bytes as over HTTP, and all that can happen to them on the way.

A hostile server stands in it too: it can hold back what is newer, or say again what it said before.
"""

import asyncio
import contextvars
import random
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from device.link import Answer, refusal
from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from protocol.messages import SyncAnswer, SyncRequest
from protocol.wire import decode, encode
from server import sync_token
from signing.repository import RepositoryKind
from tests.simulation.fleet.faults import Fate, Ills, draw_fate
from tests.simulation.fleet.house import House
from tests.simulation.fleet.power import CURRENT
from tests.simulation.fleet.world import World

SYNC = "/v1/sync"


class Air:
    """Of one machine; it outlives its boots.

    Args:
        name: Of the machine.
        world: Time, chance, log.
        house: The server.
        ills: What may happen.
    """

    def __init__(self, name: str, world: World, house: House, ills: Ills) -> None:
        self.name = name
        self.world = world
        self.house = house
        self.ills = ills
        self.certificate: Any = lambda: None
        self.attack: str | None = None
        self.on_read: Any = lambda: None
        self._chance = world.chance.of(f"{name}/link")
        self._heard: list[SyncAnswer] = []
        self._held: SyncAnswer | None = None
        self._shown: SyncAnswer | None = None
        self._asked = 0  # requests that reached the server
        self._answered: list[str] = []  # ids of contacts, in the order in which the server first answered them
        self._called: SyncRequest | None = None  # the newest contact, as it was sent
        self.copies = 0
        """How often somebody called with a copy of this machine's disk."""
        self._late: set[asyncio.Task[Any]] = set()

    def line(self, tls: Any = None) -> "Line":
        return Line(self, is_bare=getattr(tls, "is_bare", False))

    def begin_attack(self, kind: str) -> None:
        """From now on the server is another's."""
        if not self._heard:
            return
        self.attack = kind
        self._held = self._heard[-1]
        self.world.log(self.name, f"the server is hostile: {kind}")

    def end_attack(self) -> None:
        if self.attack is not None:
            self.world.log(self.name, "the server is honest again")
        self.attack = None

    def in_range(self) -> bool:
        """By the hour: a machine is out of range for hours, not for requests."""
        if not self.ills.away:
            return True
        hour = int(self.world.loop.time() // 7200)
        return random.Random(f"{self.world.seed}/{self.name}/range/{hour}").random() >= self.ills.away

    async def ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str], *, is_bare: bool = False
    ) -> tuple[int, bytes]:
        """One request and its fate."""
        certificate = None if is_bare else self.certificate()
        _check_power()
        if not self.in_range():
            self.world.seen["out-of-range"] += 1
            raise LinkError("out of range")
        fate = draw_fate(self._chance, self.ills)
        if path == SYNC:
            self._called = decode(body, SyncRequest, limit=limits.SYNC_BYTES)
        await asyncio.sleep(fate.before_s)
        _check_power()
        if fate.before_s > 1:
            self.world.fault("late", self.name, path)
        if fate.lost:
            self._copy(fate, method, path, body, headers, certificate)
            self.world.fault("request-lost", self.name, _short(path))
            raise LinkError("the request was lost")
        self._asked += 1
        self._copy(fate, method, path, body, headers, certificate)
        status, answer = await self.house.ask(method, path, body, headers, certificate)
        if path == SYNC and status == 200:
            self._note(answer)
        await asyncio.sleep(fate.after_s)
        _check_power()
        if fate.answer_lost:
            self.world.fault("answer-lost", self.name, _short(path))
            raise LinkError("the answer was lost")
        if path == SYNC and status == 200:
            answer = self._say(answer)
        return status, answer

    def _copy(
        self, fate: Fate, method: str, path: str, body: bytes, headers: dict[str, str], certificate: bytes | None
    ) -> None:
        """The same request arrives once more, or one that was given up arrives after all; perhaps when others have
        overtaken it. Nobody waits for the answer."""
        if fate.again_after_s is None or method != "POST":
            return
        again_after_s = fate.again_after_s
        asked = self._asked
        called = decode(body, SyncRequest, limit=limits.SYNC_BYTES).contact_id if path == SYNC else ""

        async def again() -> None:
            await asyncio.sleep(again_after_s)
            overtaken_by = self._overtaken_by(called)
            if overtaken_by > sync_token.REMEMBERED:
                return  # no request stays on its way for so long, and the server counts on that
            try:
                status, answer = await self.house.ask(method, path, body, headers, certificate)
            except LinkError:
                return
            self.world.fault("held-up" if fate.lost else "delivered-twice", self.name, f"{_short(path)} {status}")
            if self._asked > asked:
                self.world.seen["overtaken"] += 1
            if called and status == 200:
                self.world.seen["overtaken-contact"] += overtaken_by > 0
                self._note(answer)

        # Of the air, not of the machine: no plug is in its context.
        task = self.world.loop.create_task(again(), context=contextvars.Context())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def _overtaken_by(self, contact: str) -> int:
        """How many newer contacts were answered since this one was."""
        return len(self._answered) - 1 - self._answered.index(contact) if contact in self._answered else 0

    def _note(self, answer: bytes) -> None:
        contact = decode(answer, SyncAnswer, limit=limits.ANSWER_BYTES).contact_id
        if contact not in self._answered:
            self._answered.append(contact)

    async def call_from_a_copy(self) -> None:
        """Somebody has started a copy of this machine's disk, as it was at its newest contact, and it calls."""
        if self._called is None:
            return
        self.copies += 1
        chance = self.world.chance.of(f"{self.name}/copy")
        contact, nonce = (f"{chance.getrandbits(128):032x}" for _ in range(2))
        body = encode(msgspec.structs.replace(self._called, contact_id=contact, nonce=nonce))
        try:
            await self.house.ask("POST", SYNC, body, {"Content-Type": "application/json"}, self.certificate())
        except LinkError:
            return
        self.world.fault("copy-called", self.name)

    def _say(self, answer: bytes) -> bytes:
        """What reaches the machine of an answer to a contact."""
        said = decode(answer, SyncAnswer, limit=limits.ANSWER_BYTES)
        if self.attack is None:
            self._heard = [*self._heard[-20:], said]
            self._shown = None
            return answer
        assert self._held is not None
        shown = self._held if self.attack == "frozen" else self._chance.choice([*self._heard, said])
        self._shown = shown
        self.world.fault(self.attack, self.name)
        changes: dict[str, Any] = {
            "image_timestamp": shown.image_timestamp,
            "director_timestamp": shown.director_timestamp,
        }
        if self.attack == "replayed":
            changes["assignment"] = shown.assignment
            if self._chance.random() < 0.2:
                changes["time"] = shown.time
        return encode(msgspec.structs.replace(said, **changes))

    def read(self, kind: RepositoryKind, name: str) -> bytes:
        """A metadata file, as `signing.trust.source.Source`. It takes no time; the wall clock may jump in it."""
        _check_power()
        self.on_read()
        if not self.in_range() or self._chance.random() < self.ills.request_lost / 2:
            self.world.fault("request-lost", self.name, "metadata")
            raise LinkError("the link dropped")
        data = self.house.metadata(kind, name)
        if data is None and self.attack is not None:
            data = self.house.archive.get((kind, name))
        if data is None:
            raise LinkError(f"{name}: HTTP status 404", retryable=False, status=404)
        return data

    async def close(self) -> None:
        for task in list(self._late):
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)


class Line:
    """Implements what the device asks of `device.link.Link`, over the air."""

    def __init__(self, air: Air, *, is_bare: bool) -> None:
        self._air = air
        self._is_bare = is_bare

    async def close(self) -> None:
        """Nothing is open."""

    async def renew(self, tls: Any) -> None:
        self._is_bare = getattr(tls, "is_bare", False)

    async def get(self, path: str, *, limit: int) -> Answer:
        return self._bounded(await self._air.ask("GET", path, b"", {}, is_bare=self._is_bare), limit)

    async def post(self, path: str, body: bytes, *, limit: int, content_type: str = "application/json") -> Answer:
        headers = {"Content-Type": content_type}
        return self._bounded(await self._air.ask("POST", path, body, headers, is_bare=self._is_bare), limit)

    async def stream(self, path: str, *, first: int, length: int) -> AsyncGenerator[bytes, None]:
        air, chance = self._air, self._air._chance
        if first:
            air.world.seen["gone-on-in-a-blob"] += 1
        status, body = await air.ask("GET", path, b"", {"Range": f"bytes={first}-{first + length - 1}"})
        if status not in (200, 206):
            raise refusal(status, body)
        assert len(body) <= length
        ends = len(body)
        if chance.random() < air.ills.cut_in_blob:
            ends = int(chance.random() * len(body))
        if chance.random() < air.ills.changed and body:
            at = int(chance.random() * len(body))
            air.world.fault("bytes-changed", air.name)
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        for start in range(0, ends, 64 * limits.KIB):
            _check_power()
            yield body[start : min(start + 64 * limits.KIB, ends)]
            await asyncio.sleep(chance.uniform(0.01, 0.5))
        if ends < length:
            air.world.fault("cut-in-blob", air.name, f"{ends * 100 // max(length, 1)} %")
            raise LinkError("the answer ended early")

    def _bounded(self, answered: tuple[int, bytes], limit: int) -> Answer:
        status, body = answered
        if len(body) > limit:
            raise Refused(Reason.LENGTH, f"an answer of more than {limit} bytes")
        return Answer(status, body)


class MetadataLine:
    """Implements `signing.trust.source.Source` over the air, in the place of `HttpSource`."""

    def __init__(self, air: Air, kind: RepositoryKind) -> None:
        self._air = air
        self._kind = kind

    def read(self, name: str, limit_bytes: int) -> bytes:
        data = self._air.read(self._kind, name)
        if len(data) > limit_bytes:
            raise Refused(Reason.LENGTH, f"{name}: more than {limit_bytes} bytes")
        return data

    def close(self) -> None:
        """Nothing is open."""


def _check_power() -> None:
    plug = CURRENT.get()
    if plug is not None:
        plug.check()


def _short(path: str) -> str:
    return path if len(path) < 40 else path[:10]
