"""When the machine speaks: at the interval, at once with news, later and later into an outage, and for ever."""

import asyncio
import logging

import pytest

from device.contact_loop import ContactLoop, News
from device.settings import ServerSettings
from protocol.errors import LinkError, Reason, Refused, StateError
from protocol.messages import SyncAnswer

SETTINGS = ServerSettings(poll_min_s=5, poll_max_s=100, retry_first_s=2, retry_longest_s=30)


class World:
    """A clock that jumps, and a server that answers as it is told."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        self.contacts: list[float] = []
        self.drains: list[float] = []
        self.error: Exception | None = None
        self.drain_error: Exception | None = None
        self.poll_s = 60.0
        self.slept: list[float] = []
        self.renewals = 0
        self.asks = False
        self.bare: list[int] = []
        self.asked: list[bool] = []
        self.batches = 0
        self.news = News()
        self.loop = ContactLoop(
            self,
            self._Drain(self),
            SETTINGS,
            self.news,
            renewal=self,
            monotonic=lambda: self.now,
            random=lambda: 0.5,
        )

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            self.now += seconds

        monkeypatch.setattr("device.contact_loop.asyncio.sleep", sleep)

    async def make(self) -> SyncAnswer:
        self.contacts.append(self.now)
        if self.error is not None:
            raise self.error
        return SyncAnswer(
            contact_id="0" * 32,
            sync_token="0" * 32,
            generation="0" * 32,
            time="",
            image_timestamp="",
            director_timestamp="",
            poll_s=self.poll_s,
            renew=self.asks,
        )

    async def after_contact(self, asked: bool) -> None:
        self.asked.append(asked)

    async def renew(self) -> None:
        self.renewals += 1

    async def renew_bare(self) -> None:
        self.bare.append(len(self.contacts))

    class _Drain:
        def __init__(self, world: "World") -> None:
            self.world = world

        async def run(self, go_on=lambda: True) -> int:
            self.world.drains.append(self.world.now)
            if self.world.drain_error is not None:
                raise self.world.drain_error
            count = 0
            while count < self.world.batches and go_on():
                count += 1
                self.world.now += 10
            return count


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


async def test_the_first_visit_is_a_contact_and_the_next_comes_at_the_interval(world):
    await world.loop.visit()
    await world.loop.visit()
    assert world.contacts == [1000.0]
    assert world.drains == [1000.0, 1000.0]
    world.now += 60.1
    await world.loop.visit()
    assert len(world.contacts) == 2


@pytest.mark.parametrize(("asked", "waits"), [(0.001, 5), (60, 60), (100_000, 100)])
async def test_the_servers_interval_is_kept_within_the_settings(world, asked, waits):
    world.poll_s = asked
    await world.loop.visit()
    world.now += waits - 0.1
    await world.loop.visit()
    assert len(world.contacts) == 1
    world.now += 0.2
    await world.loop.visit()
    assert len(world.contacts) == 2


async def test_an_outage_is_logged_once_with_its_end_and_waits_grow_to_their_bound(world, caplog):
    caplog.set_level(logging.INFO, "headland.contact")
    world.error = LinkError("no route")
    for _ in range(8):
        await world.loop.visit()
        await world.loop._wait()
    assert world.slept == sorted(world.slept)
    assert max(world.slept) <= SETTINGS.retry_longest_s
    assert world.loop.trouble == "no route"
    world.error = None
    await world.loop.visit()
    assert world.loop.trouble == ""
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "answers again" in caplog.records[-1].message
    assert len(caplog.records) == 2


async def test_news_do_not_shorten_the_wait_of_an_outage(world):
    world.error = LinkError("no route")
    await world.loop.visit()
    world.news.results()
    await world.loop._wait()
    assert world.slept
    assert world.slept[0] >= 1


async def test_alarms_are_sent_without_a_contact_and_things_to_tell_with_one(world):
    await world.loop.visit()
    world.news.results()
    await asyncio.wait_for(world.loop._wait(), 1)
    await world.loop.visit()
    assert (len(world.contacts), len(world.drains)) == (1, 2)
    world.news.to_tell()
    await asyncio.wait_for(world.loop._wait(), 1)
    await world.loop.visit()
    assert len(world.contacts) == 2


async def test_a_long_backlog_does_not_hold_up_the_next_contact(world):
    world.batches = 1000
    await world.loop.visit()
    assert world.now <= 1000 + 60 + 10
    await world.loop.visit()
    assert len(world.contacts) == 2


async def test_a_failure_while_draining_is_an_outage_too(world):
    world.drain_error = LinkError("cut")
    await world.loop.visit()
    await world.loop._wait()
    assert world.slept
    world.drain_error = None
    await world.loop.visit()
    assert len(world.contacts) == 2, "after an outage the machine says first how it is"


async def test_each_answered_contact_passes_on_whether_the_certificate_should_be_renewed(world):
    await world.loop.visit()
    world.asks, world.now = True, world.now + 200
    await world.loop.visit()
    assert world.asked == [False, True]


async def test_where_no_contact_gets_through_it_is_tried_now_and_then_whether_the_certificate_is_at_fault(world):
    world.error = LinkError("reset by peer")
    for _ in range(9):
        await world.loop.visit()
    assert world.bare == [4, 8]
    world.error = LinkError("the server answered 503", status=503)
    for _ in range(9):
        await world.loop.visit()
    assert world.bare == [4, 8], "a server that answers takes the certificate"


async def test_an_expired_certificate_is_renewed(world):
    world.error = Refused(Reason.CERTIFICATE, "expired")
    await world.loop.visit()
    assert world.renewals == 1
    world.error = Refused(Reason.REVOKED, "revoked by ann")
    await world.loop.visit()
    assert world.renewals == 1
    assert world.loop.trouble == "revoked by ann"


async def test_a_full_disk_is_an_outage_and_no_end(world):
    world.error = StateError("the disk is full")
    await world.loop.visit()
    assert world.loop.trouble == "the disk is full"
