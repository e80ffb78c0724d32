"""Renewal: by sure time or by the server's word, never by the wall clock; alarms only where it does not help."""

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device import identity
from device.clock import Reading
from device.identity import Enrolment
from device.link import Answer
from device.renewal import PAUSE_S, Renewal
from device.state_db import StateDb
from protocol.errors import LinkError, Reason
from protocol.messages import ErrorAnswer, RenewAnswer, RenewRequest
from protocol.wire import decode, encode
from server.ca import Authority, read_csr

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAYS = 100


class World:
    """One machine, and a server that renews as it is told."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.make(NOW - timedelta(days=1), timedelta(days=10_000))
        self.server_now = NOW
        self.refuses = False
        self.reading = Reading(0, sure=False)
        self.elapsed = 0.0
        self.asked = 0
        self.renewed = 0
        key = identity.keep_key(folder / "key.pem")
        (folder / "ca.pem").write_text(self.authority.pem())
        (folder / "cert.pem").write_text(self._issue(identity.make_csr(key, "tractor-1")))
        (folder / "enrolment.json").write_bytes(
            encode(Enrolment(server="https://x", device="tractor-1", product="pest-detector"))
        )
        self.who = identity.load(folder)
        self.state = StateDb(folder / "state.db")
        ids = (f"{number:032x}" for number in itertools.count())
        self.renewal = Renewal(
            self.who,
            self,
            self.state,
            now=lambda: self.reading,
            draw_token=lambda: next(ids),
            monotonic=lambda: self.elapsed,
            on_renewed=self._count,
            open_bare=lambda tls: self,
        )

    def _issue(self, csr: str) -> str:
        return self.authority.issue_device("tractor-1", read_csr(csr, "tractor-1"), self.server_now, DAYS)

    async def _count(self) -> None:
        self.renewed += 1

    async def post(self, path: str, body: bytes, *, limit: int) -> Answer:
        self.asked += 1
        if self.refuses:
            return Answer(403, encode(ErrorAnswer(error="no", reason="certificate")))
        csr = decode(body, RenewRequest, limit=limit).csr_pem
        return Answer(200, encode(RenewAnswer(certificate_pem=self._issue(csr))))

    async def renew(self, tls: object) -> None:
        pass

    async def close(self) -> None:
        pass

    def later(self, days: float, *, sure: bool = True) -> None:
        at = NOW + timedelta(days=days)
        self.server_now = at
        self.reading = Reading(int(at.timestamp() * 1000), sure=sure)
        self.elapsed += 86_400

    def alerts(self) -> list[str]:
        return [f"{alert.kind}: {alert.detail}" for alert in self.state.pending_alerts(99)]


@pytest.fixture
def world(tmp_path: Path):
    made = World(tmp_path)
    yield made
    made.state.close()


async def test_sure_time_renews_at_half_the_life(world: World) -> None:
    world.later(49)
    await world.renewal.after_contact(asked=False)
    assert world.renewed == 0
    world.later(50.5)
    await world.renewal.after_contact(asked=False)
    assert world.renewed == 1
    assert world.who.certificate().not_valid_after_utc == NOW + timedelta(days=150.5)
    world.later(51)
    await world.renewal.after_contact(asked=False)
    assert world.renewed == 1
    assert world.alerts() == []


@pytest.mark.parametrize("days", [-20_000, 60, 3650])
async def test_an_unsure_clock_renews_nothing_by_itself_and_raises_no_alarm(world: World, days: int) -> None:
    world.later(days, sure=False)
    await world.renewal.after_contact(asked=False)
    assert world.asked == 0
    world.refuses = True
    await world.renewal.after_contact(asked=True)
    assert world.asked == 1
    assert world.alerts() == []


async def test_the_servers_word_renews_whatever_the_clock_says(world: World) -> None:
    world.later(-20_000, sure=False)
    world.server_now = NOW
    await world.renewal.after_contact(asked=True)
    assert world.renewed == 1


async def test_a_server_that_asks_at_each_contact_is_heard_once_an_hour(world: World) -> None:
    for _ in range(10):
        await world.renewal.after_contact(asked=True)
        world.elapsed += PAUSE_S / 5
    assert world.asked == 2


async def test_an_alarm_is_raised_once_at_each_mark_where_renewing_does_not_help(world: World) -> None:
    world.refuses = True
    for day in (40, 52, 53, 79, 81, 82, 99, 101, 102):
        world.later(day)
        await world.renewal.after_contact(asked=False)
    assert [line.partition("; ")[0] for line in world.alerts()] == [
        f"certificate-ending: the certificate of this machine: {said}"
        for said in (
            "52% of its life is over, until 2026-09-09",
            "81% of its life is over, until 2026-09-09",
            "expired at 2026-09-09",
        )
    ]
    world.refuses = False
    world.later(103)
    await world.renewal.after_contact(asked=False)
    world.later(104)
    await world.renewal.after_contact(asked=False)
    assert world.renewed == 1
    assert len(world.alerts()) == 3
    world.refuses = True
    world.later(160)
    await world.renewal.after_contact(asked=False)
    assert len(world.alerts()) == 4, "another certificate has marks of its own"


async def test_a_renewal_that_fails_changes_nothing_and_says_so(world: World) -> None:
    before = (world.who.folder / "cert.pem").read_bytes()
    world.refuses = True
    with pytest.raises(Exception, match="no") as caught:
        await world.renewal.renew()
    assert caught.value.reason is Reason.CERTIFICATE  # type: ignore[attr-defined]  # a Refused
    with pytest.raises(Exception, match="no"):
        await world.renewal.renew_bare()
    assert (world.who.folder / "cert.pem").read_bytes() == before
    assert not isinstance(caught.value, LinkError)


async def test_a_certificate_that_is_damaged_while_the_agent_runs_is_renewed_at_the_next_contact(world: World) -> None:
    (world.who.folder / "cert.pem").write_bytes(b"flipped")
    await world.renewal.after_contact(asked=False)
    assert world.renewed == 1
    assert world.who.certificate()


async def test_a_full_disk_fails_the_renewal_and_ends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (world.who.folder / "cert.pem").read_bytes()

    def full(effect: str, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("signing.durable.DISK.before", full)
        await world.renewal.after_contact(asked=True)
    assert (world.who.folder / "cert.pem").read_bytes() == before
    assert world.renewed == 0
    world.elapsed += PAUSE_S
    await world.renewal.after_contact(asked=True)
    assert world.renewed == 1


async def test_where_a_new_certificate_did_not_help_none_is_fetched_again_for_an_hour(world: World) -> None:
    world.refuses = True
    with pytest.raises(Exception, match="no"):
        await world.renewal.renew_bare()
    world.refuses = False
    for _ in range(3):
        await world.renewal.renew_bare()
    assert world.renewed == 1
    world.elapsed += PAUSE_S
    await world.renewal.renew_bare()
    assert world.renewed == 2
