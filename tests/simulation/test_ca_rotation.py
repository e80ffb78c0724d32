"""The CA is replaced under real machines over real sockets: those who call follow, those who slept come back."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from device import identity
from device.clock import Reading
from device.enrol import enrol
from device.layout import Layout
from device.link import Link
from device.renewal import Renewal
from device.state_db import StateDb
from protocol import limits
from protocol.errors import LinkError, Reason, Refused
from protocol.ids import digest
from protocol.messages import LanePosition, RenewRequest, SyncAnswer, SyncRequest, VersionReport
from protocol.wire import decode, encode
from server import authorities
from server.clock import as_datetime
from server.storage.catalog import Catalog
from signing import anchors
from tests.fakes.server_house import CPU, House, published

DAY_MS = 86_400_000


class PowerCutError(Exception):
    pass


class Tractor:
    """A machine's own identity, link and renewal, with the smallest contact that a server answers."""

    def __init__(self, layout: Layout, clock: Callable[[], Reading]) -> None:
        self.layout = layout
        self.who = identity.load(layout.identity)
        self.link = Link(self.who.enrolment.server, self.who.tls())
        self.state = StateDb(layout.state_db)
        self.renewals = 0
        self.elapsed = 0.0
        self.sync_token: str | None = None
        self.renewal = Renewal(
            self.who,
            self.link,
            self.state,
            now=clock,
            draw_token=lambda: secrets.token_hex(16),
            monotonic=lambda: self.elapsed,
            on_renewed=self._renewed,
            open_bare=lambda tls: Link(self.who.enrolment.server, tls),
        )

    async def _renewed(self) -> None:
        self.renewals += 1

    def trusts(self) -> tuple[str, ...]:
        return anchors.marks(self.who.anchors())

    async def contact(self) -> SyncAnswer:
        self.elapsed += 86_400
        request = SyncRequest(
            format=1,
            device=self.who.enrolment.device,
            product=self.who.enrolment.product,
            contact_id=secrets.token_hex(16),
            sync_token=self.sync_token,
            nonce=secrets.token_hex(16),
            report=VersionReport(),
            inventory_sha256=digest(encode(CPU)),
            inventory=CPU,
            epoch="0" * 32,
            lanes={"alarms": LanePosition(next_seq=0, queued=0)},
            trusts=self.trusts(),
        )
        body = (await self.link.post("/v1/sync", encode(request), limit=limits.ANSWER_BYTES)).content()
        answer = decode(body, SyncAnswer, limit=limits.ANSWER_BYTES)
        self.sync_token = answer.sync_token
        return answer

    async def visit(self) -> SyncAnswer:
        """As the contact loop does it."""
        try:
            answer = await self.contact()
        except Refused as refused:
            assert refused.reason is Reason.CERTIFICATE
            await self.renewal.renew()
            answer = await self.contact()
        except LinkError:
            await self.renewal.renew_bare()
            answer = await self.contact()
        await self.renewal.after_contact(answer.renew)
        return answer


class Farm:
    def __init__(self, house: House, folder: Path) -> None:
        self.house = house
        self.folder = folder
        self.reading = Reading(0, sure=False)
        self.machines: list[Tractor] = []

    async def enrol(self, name: str, token: str | None = None) -> Tractor:
        layout = Layout(self.folder / name)
        await enrol(layout, token or await self.house.make_token(name, ("all",)))
        machine = await asyncio.to_thread(Tractor, layout, lambda: self.reading)
        self.machines.append(machine)
        return machine

    async def rotate(self) -> None:
        await asyncio.to_thread(authorities.rotate, self.house.state / "ca", as_datetime(self.house.now_ms))
        await self.seen()

    async def end(self) -> None:
        await asyncio.to_thread(authorities.end, self.house.state / "ca", as_datetime(self.house.now_ms))
        await self.seen()

    async def seen(self) -> None:
        """Returns once the running server follows what lies in its folder: what it signs is of the newest CA."""
        held = await asyncio.to_thread(authorities.load, self.house.state / "ca")
        link = Link(self.house.running.device_url, identity.unverified_context())
        try:
            for _ in range(500):
                if (await link.get("/v1/ca", limit=limits.MIB)).content().decode() == held.trusted_pem:
                    return
                await asyncio.sleep(0.02)
        finally:
            await link.close()
        raise AssertionError("the server did not follow")


@asynccontextmanager
async def farm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Farm]:
    monkeypatch.setattr("server.app.CERTIFICATES_CHECK_S", 0.05)
    async with published(folder) as house:
        place = Farm(house, folder)
        try:
            yield place
        finally:
            for machine in place.machines:
                await machine.link.close()
                machine.state.close()


async def test_machines_follow_a_rotation_at_their_next_contact_and_forget_the_old_ca_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with farm(tmp_path, monkeypatch) as place:
        machine = await place.enrol("tractor-1")
        first = machine.trusts()
        assert not (await machine.visit()).renew
        await place.rotate()
        assert (await machine.visit()).renew
        both = machine.trusts()
        assert both[1:] == first
        assert both[0] != first[0]
        assert not (await machine.visit()).renew
        await place.end()
        assert (await machine.visit()).renew
        assert machine.trusts() == both[:1]
        assert not (await machine.visit()).renew
        assert machine.renewals == 2
        renewed = await place.house.events("renewed")
        assert len(renewed) == 2


async def test_a_machine_that_slept_through_two_rotations_their_end_and_its_own_expiry_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with farm(tmp_path, monkeypatch) as place:
        sleeper = await place.enrol("tractor-1")
        await sleeper.visit()
        await sleeper.link.close()
        for _ in range(2):
            place.house.now_ms += 400 * DAY_MS
            await place.rotate()
            await place.end()
        refused = await sleeper.link.post("/v1/sync", b"{}", limit=limits.MIB)
        assert refused.status == 403
        assert b"expired" in refused.body
        await sleeper.visit()
        held = await asyncio.to_thread(authorities.load, place.house.state / "ca")
        assert sleeper.trusts() == held.marks
        assert not (await sleeper.visit()).renew
        assert sleeper.renewals == 1


async def test_a_certificate_of_an_ended_ca_may_renew_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with farm(tmp_path, monkeypatch) as place:
        machine = await place.enrol("tractor-1")
        await place.rotate()
        await place.end()
        for method, path in (("get", "/v1/tuf/image/timestamp.json"), ("get", f"/v1/blobs/{'0' * 64}")):
            answer = await getattr(machine.link, method)(path, limit=limits.MIB)
            assert (answer.status, b"has ended" in answer.body) == (403, True), path
        for path in ("/v1/sync", "/v1/results"):
            answer = await machine.link.post(path, b"{}", limit=limits.MIB)
            assert (answer.status, b"has ended" in answer.body) == (403, True), path
        csr = identity.make_csr(machine.who.key, "tractor-1")
        answer = await machine.link.post("/v1/renew", encode(RenewRequest(csr_pem=csr)), limit=limits.MIB)
        assert answer.status == 200


async def test_a_token_from_before_the_rotation_enrols_a_machine_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with farm(tmp_path, monkeypatch) as place:
        early = await place.house.make_token("tractor-1", ("all",))
        await place.rotate()
        machine = await place.enrol("tractor-1", early)
        held = await asyncio.to_thread(authorities.load, place.house.state / "ca")
        assert machine.trusts() == held.marks
        assert not (await machine.visit()).renew
        late = await place.enrol("tractor-2")
        assert late.trusts() == held.marks[:1]  # it never knew the old one
        assert not (await late.visit()).renew


async def test_a_server_restored_from_before_the_rotation_is_still_spoken_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with farm(tmp_path, monkeypatch) as place:
        machine = await place.enrol("tractor-1")
        ca = place.house.state / "ca"
        backup = {path.name: path.read_bytes() for path in ca.iterdir()}
        await place.rotate()
        await machine.visit()
        trusted = machine.trusts()
        assert (await place.house.must("GET", "/api/v1/status"))["ca"]["lacks"] == []
        for name, data in backup.items():
            (ca / name).write_bytes(data)
        await place.seen()
        answer = await machine.visit()
        assert (await place.house.must("GET", "/api/v1/status"))["ca"]["lacks"] == ["tractor-1"]
        assert answer.renew  # it holds a certificate of a CA that this server does not know
        assert machine.trusts() == trusted  # and does not go back
        (alert,) = machine.state.pending_alerts(9)
        assert (alert.kind, alert.reason) == ("refused-ca", Reason.CERTIFICATE)
        await machine.visit()
        assert len(machine.state.pending_alerts(9)) == 1


async def test_what_a_machine_shows_counts_where_the_catalog_remembers_another_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A catalog out of a backup would wait for ever for machines that have long followed."""
    async with farm(tmp_path, monkeypatch) as place:
        machine = await place.enrol("tractor-1")
        old = (machine.who.folder / "cert.pem").read_text()
        await place.rotate()
        assert (await waits_for(place)) == ["tractor-1"]
        await machine.visit()
        await machine.visit()
        assert (await waits_for(place)) == []

        def forget() -> None:
            catalog = Catalog(f"sqlite:///{place.house.state / 'catalog.db'}")
            with catalog.write() as session:
                session.devices.set_certificate("tractor-1", old)
            catalog.close()

        await asyncio.to_thread(forget)
        assert (await waits_for(place)) == ["tractor-1"]
        assert not (await machine.visit()).renew
        assert (await waits_for(place)) == []


async def waits_for(place: Farm) -> list[str]:
    status = await place.house.must("GET", "/api/v1/status")
    return list(status["ca"]["waits_for"])


async def test_a_server_of_a_stolen_key_without_a_ca_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds the listeners' key can answer as the server, and cannot give machines a CA of their own."""
    async with farm(tmp_path, monkeypatch) as place:
        machine = await place.enrol("tractor-1")
        trusted = machine.trusts()
        thief = await asyncio.to_thread(lambda: authorities.Authority.make(as_datetime(place.house.now_ms)))
        csr = identity.make_csr(machine.who.key, "tractor-1")
        from protocol.messages import RenewAnswer
        from server.ca import read_csr

        theirs = thief.issue_device("tractor-1", read_csr(csr, "tractor-1"), as_datetime(place.house.now_ms), 10)
        with pytest.raises(Refused) as caught:
            machine.who.take(RenewAnswer(certificate_pem=theirs, trust_pem=thief.pem()))
        assert caught.value.reason is Reason.CERTIFICATE
        good = (machine.who.folder / "cert.pem").read_text()
        assert machine.who.take(RenewAnswer(certificate_pem=good, trust_pem=thief.pem()))
        assert machine.trusts() == trusted


async def test_a_cut_anywhere_in_a_renewal_leaves_a_pair_that_speaks_to_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with farm(tmp_path, monkeypatch) as place:
        machine = await place.enrol("tractor-1")
        await machine.visit()
        await place.rotate()
        csr = identity.make_csr(machine.who.key, "tractor-1")
        answer = await machine.link.post("/v1/renew", encode(RenewRequest(csr_pem=csr)), limit=limits.MIB)
        from protocol.messages import RenewAnswer

        renewed = decode(answer.content(), RenewAnswer, limit=limits.MIB)
        old = {path.name: path.read_bytes() for path in machine.who.folder.iterdir()}
        seen = set()
        for nth in range(1, 100):
            for name, data in old.items():
                (machine.who.folder / name).write_bytes(data)
            count = 0

            def before(effect: str, path: Path, last: int = nth) -> None:
                nonlocal count
                count += 1
                if count >= last:
                    raise PowerCutError(effect)

            with monkeypatch.context() as patch:
                patch.setattr("signing.durable.DISK.before", before)
                try:
                    await asyncio.to_thread(machine.who.take, renewed)
                    done = True
                except PowerCutError:
                    done = False
            seen.add((machine.trusts(), (machine.who.folder / "cert.pem").read_bytes() == old["cert.pem"]))
            link = Link(place.house.running.device_url, identity.load(machine.who.folder).tls())
            try:
                answered = await link.get("/v1/tuf/image/timestamp.json", limit=limits.MIB)
            finally:
                await link.close()
            assert answered.status == 200, nth
            if done:
                break
        assert done
        assert len(seen) == 3  # before, between and after


async def test_an_untrusted_server_is_still_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The links let machines follow; they open no door: a machine of the newest CA does not trust an older one."""
    async with farm(tmp_path, monkeypatch) as place:
        ca = place.house.state / "ca"
        backup = {path.name: path.read_bytes() for path in ca.iterdir()}
        await place.rotate()
        late = await place.enrol("tractor-1")
        for name, data in backup.items():
            (ca / name).write_bytes(data)
        await place.seen()
        await late.link.close()
        with pytest.raises(LinkError, match="certificate"):
            await late.contact()
