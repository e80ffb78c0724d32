"""Identity: mutual TLS 1.3 with one CA's servers, with a dead clock too, and renewal under an expired certificate."""

import asyncio
import contextlib
import os
import signal
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from device import agent, identity
from device.clock import Reading
from device.identity import STRANGER, Enrolment
from device.layout import Layout
from device.link import Link
from device.parts import assembled, open_identity, open_tls, why_cut_off
from device.renewal import Renewal
from device.settings import DeviceSettings
from device.state_db import StateDb
from device.status import read_status
from protocol import limits
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.messages import RenewAnswer, RenewRequest
from protocol.wire import decode, encode
from server.ca import Authority, read_csr

NOW = datetime(2026, 6, 1, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=20_000)


class House:
    """A CA, a TLS server under it, and one enrolled machine."""

    def __init__(
        self,
        folder: Path,
        *,
        server_made: datetime = NOW,
        device_made: datetime = NOW,
        client: ssl.VerifyMode = ssl.CERT_REQUIRED,
    ) -> None:
        self.authority = Authority.make(min(server_made, device_made, NOW) - timedelta(days=2), timedelta(days=40_000))
        self.folder = folder
        self.client = client
        self.names: list[str] = []
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / "server.pem").write_text(self.authority.issue_server(key, ["127.0.0.1"], server_made))
        (folder / "server.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        device = folder / "identity"
        device.mkdir()
        device_key = identity.keep_key(device / "key.pem")
        csr = read_csr(identity.make_csr(device_key, "tractor-1"), "tractor-1")
        (device / "cert.pem").write_text(self.authority.issue_device("tractor-1", csr, device_made, 10))
        (device / "ca.pem").write_text(self.authority.pem())
        (device / "enrolment.json").write_bytes(
            encode(Enrolment(server="https://x", device="tractor-1", product="pest-detector"))
        )
        self.who = identity.load(device)

    async def __aenter__(self) -> "House":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        context.load_verify_locations(cadata=self.authority.pem())
        context.verify_mode = self.client
        context.verify_flags = ssl.VerifyFlags(context.verify_flags | identity.NO_CHECK_TIME)
        app = web.Application()
        app.add_routes([web.get("/who", self._who), web.post("/v1/renew", self._renew)])
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.url = f"https://127.0.0.1:{self.runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()

    async def _who(self, request: web.Request) -> web.Response:
        transport = request.transport
        assert transport is not None
        tls = transport.get_extra_info("ssl_object")
        return web.json_response({"serial": tls.getpeercert()["serialNumber"], "version": tls.version()})

    async def _renew(self, request: web.Request) -> web.Response:
        asked = decode(await request.read(), RenewRequest, limit=limits.ENROL_BYTES)
        csr = read_csr(asked.csr_pem, "tractor-1")
        pem = self.authority.issue_device("tractor-1", csr, NOW, 100)
        return web.Response(body=encode(RenewAnswer(certificate_pem=pem)))


def renewal(who: identity.Identity, link: Link, folder: Path) -> Renewal:
    async def renewed() -> None:
        pass

    return Renewal(
        who,
        link,
        StateDb(folder / "state.db"),
        now=lambda: Reading(0, sure=False),
        draw_token=lambda: "0" * 32,
        monotonic=lambda: 0.0,
        on_renewed=renewed,
        open_bare=lambda tls: Link(link._base_url, tls),
    )


async def ask(link: Link) -> bytes:
    try:
        return (await link.get("/who", limit=1000)).content()
    finally:
        await link.close()


@pytest.mark.parametrize(
    ("server_made", "device_made"),
    [(NOW, NOW), (NOW, LONG_AGO), (LONG_AGO, NOW), (datetime(2040, 1, 1, tzinfo=UTC), NOW)],
    ids=["now", "device-expired", "server-expired", "server-not-yet-valid"],
)
async def test_a_dead_clock_does_not_break_tls(tmp_path, server_made, device_made):
    async with House(tmp_path, server_made=server_made, device_made=device_made) as house:
        assert b"TLSv1.3" in await ask(Link(house.url, house.who.tls()))


async def test_a_server_of_another_ca_is_not_spoken_to(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    other = House(tmp_path / "b")
    async with House(tmp_path / "a") as house:
        with pytest.raises(LinkError, match="certificate"):
            await ask(Link(house.url, other.who.tls()))


async def test_a_renewed_certificate_is_shown_from_the_next_connection_on(tmp_path):
    async with House(tmp_path, device_made=LONG_AGO) as house:
        link = Link(house.url, house.who.tls())
        before = await ask(link)
        await renewal(house.who, link, tmp_path).renew()
        after = await ask(link)
        assert before != after
        assert identity.load(house.who.folder).certificate().not_valid_after_utc > NOW


async def test_a_renewal_for_somebody_else_is_refused(tmp_path):
    async with House(tmp_path) as house:
        other = ec.generate_private_key(ec.SECP256R1())
        csr = read_csr(identity.make_csr(other, "tractor-1"), "tractor-1")
        kept = (house.who.folder / "cert.pem").read_bytes()
        with pytest.raises(Refused) as caught:
            await asyncio.to_thread(
                house.who.take,
                RenewAnswer(certificate_pem=house.authority.issue_device("tractor-1", csr, NOW, 10)),
            )
        assert caught.value.reason is Reason.CERTIFICATE
        assert (house.who.folder / "cert.pem").read_bytes() == kept


def test_a_damaged_identity_says_so(tmp_path):
    house = House(tmp_path)
    (house.who.folder / "key.pem").write_bytes(b"not a key")
    with pytest.raises(StateError, match="damaged"):
        identity.load(house.who.folder)
    (house.who.folder / "key.pem").unlink()
    with pytest.raises(StateError, match="not enrolled"):
        identity.load(house.who.folder)


DAMAGES = [b"", b"-----BEGIN CERTIFICATE-----\nMIIB", None]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ca_cuts_the_machine_off_and_does_not_end_it(tmp_path: Path, damage: bytes | None) -> None:
    who = House(tmp_path).who
    assert open_tls(who)[1] == ""
    path = who.folder / "ca.pem"
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(StateError, match=r"cert\.pem.* is damaged"):
        who.tls()
    tls, why = open_tls(who)
    assert why.startswith("no server is spoken to")
    assert tls.verify_mode is ssl.CERT_REQUIRED
    assert tls.get_ca_certs() == []


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["key.pem", "enrolment.json"])
async def test_a_damaged_key_or_enrolment_cuts_the_machine_off_and_results_are_kept_all_the_same(
    tmp_path: Path, name: str, damage: bytes | None
) -> None:
    layout = Layout(tmp_path)
    House(tmp_path)
    (tmp_path / "active").symlink_to("sets/of-a-release")
    path = layout.identity / name
    good = path.read_bytes()
    path.unlink() if damage is None else path.write_bytes(damage)
    async with assembled(layout, DeviceSettings()) as parts:
        assert parts.isolated.startswith("no server is spoken to")
        assert parts.waits_for_identity
        assert name in why_cut_off(layout)
        assert await parts.outbox.enqueue("alarms", b"stop") == 0
    status = read_status(layout)
    assert any(name in line for line in status.trouble)
    assert status.lanes["alarms"].queued == 1
    assert status.device == ("tractor-1" if name == "key.pem" else STRANGER)
    path.write_bytes(good)
    assert why_cut_off(layout) == ""


async def test_an_agent_that_could_not_read_its_key_goes_on_once_it_can(tmp_path: Path, monkeypatch) -> None:
    """A disk that refused one read must not cut a machine off until somebody starts the agent again."""
    layout, lives = Layout(tmp_path), []
    House(tmp_path)
    (tmp_path / "active").symlink_to("sets/of-a-release")
    aside = layout.identity / "aside"
    (layout.identity / "key.pem").rename(aside)

    @contextlib.asynccontextmanager
    async def noted(*arguments, **more):
        async with assembled(*arguments, **more) as parts:
            lives.append(parts.isolated)
            if parts.isolated:
                aside.rename(layout.identity / "key.pem")
            else:
                os.kill(os.getpid(), signal.SIGTERM)
            yield parts

    monkeypatch.setattr(agent, "assembled", noted)
    monkeypatch.setattr(agent, "RETRY_S", 0.01)
    async with asyncio.timeout(60.0):
        await agent.run(layout, DeviceSettings())
    assert [bool(why) for why in lives] == [True, False]


def test_a_machine_that_never_ran_and_was_not_enrolled_is_no_damaged_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    House(tmp_path)
    (layout.identity / "enrolment.json").unlink()
    with pytest.raises(StateError, match="not enrolled"):
        open_identity(layout)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_certificate_is_renewed_by_the_key(tmp_path: Path, damage: bytes | None) -> None:
    async with House(tmp_path, client=ssl.CERT_OPTIONAL) as house:
        path = house.who.folder / "cert.pem"
        path.unlink() if damage is None else path.write_bytes(damage)
        tls, why = open_tls(house.who)
        assert why == ""
        link = Link(house.url, tls)
        await renewal(house.who, link, tmp_path).renew()
        assert b"TLSv1.3" in await ask(link)
        assert house.who.certificate().not_valid_after_utc > NOW
