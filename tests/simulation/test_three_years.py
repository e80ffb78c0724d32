"""Three years of a farm in seconds: everything that can end ends, and nobody is locked out by it.

Machines: one that calls every few days, one whose clock is dead and that is switched off every night, one whose clock
runs ten years ahead, one that sleeps eight months through a rotation of the CA and of the online keys, and one that
comes in the second year. The managers do what `headland keys due` tells them and nothing else.
"""

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from device.trust.port import WALL_CLOCK, Verdict
from protocol.errors import Reason
from protocol.objects import TECHNICIANS
from server import authorities, sealing_keys
from server.cli_keys import SEALING
from server.founding import FirstAnswers, export_keys, found, open_keys
from server.keyring import make_next, next_sealing_key
from server.publish import role_states
from server.storage.records import REPOSITORIES
from signing import anchors
from tests.fakes.yard import Clockwork, Machine, Yard, _no_secret, opened

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # seconds of work, and many more beside other work

SETTINGS = """
[lifetimes]
ca_days = 730
device_certificate_days = 180
"""
STEP = 6  # the server signs its online roles anew at each: they live a week
VISITS = 6  # a machine calls at every sixth step
SLEEP = (300, 540)  # days: eight months, over the rotations of the first anniversary
NEWCOMER = 504


class People:
    """The managers and the operator: they look now and then, and do what they are told to."""

    def __init__(self, yard: Yard, every_days: int) -> None:
        self.yard = yard
        self.every_days = every_days
        self.did: Counter[str] = Counter()
        self._next = every_days

    def look(self, day: int) -> None:
        if day < self._next:
            return
        self._next = day + self.every_days
        listed = self.yard.tool.run("keys", "due")["order"]
        told = [each for each in listed if each["state"] != "fresh" and not each["by_itself"]]
        acts = list(dict.fromkeys(each["act"] for each in told))
        roles = [act.split()[-1] for act in acts if act.startswith("headland-server keys rotate")]
        for act in acts:
            match act.split():
                case ["headland", "keys", "resign"]:
                    self._sign("resign")
                case ["headland", "keys", "rotate", "--manager", name]:
                    self._sign("rotate", "--manager", name)
                case ["headland-server", "ca", "rotate", *_]:
                    state = self.yard.state
                    authorities.rotate(state / "ca", self.yard.now, timedelta(days=730))
                case ["headland-server", "keys", "rotate", _]:
                    continue
                case ["headland-server", "init", *_]:
                    answers = FirstAnswers("127.0.0.1", 0, ("localhost",), "127.0.0.1", 0)
                    found(self.yard.state, answers, self.yard.now_ms, _no_secret)
                case _:
                    raise AssertionError(f"who would know what to do about {act!r}?")
            self.did[" ".join(act.split()[:3])] += 1
        if roles:
            parts = self.yard.parts
            make_next(parts.layout.keys, {}, [role for role in roles if role != SEALING])
            if SEALING in roles:
                assert next_sealing_key(parts.layout.keys, next(iter(sealing_keys.read_all(parts.layout.keys))))
            export_keys(parts.layout, open_keys(parts.layout, parts.settings, _no_secret))
            self._sign("rotate", "--online-of-server")
            self.did["headland-server keys rotate"] += 1

    def _sign(self, *what: str) -> None:
        tool = self.yard.tool
        tool.run("keys", *what)
        tool.sign("alice", "bob", "carol")
        tool.push()


class Story:
    """What is written down on the way, and what must hold at every step."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.contacts: Counter[str] = Counter()
        self.missed: list[str] = []
        self.installable: dict[str, bool] = {}
        self.complaints: Counter[str] = Counter()

    def met(self, machine: Machine, verdict: Verdict | None) -> None:
        at = f"{self.yard.now:%Y-%m-%d} {machine.name}"
        if verdict is None:
            self.missed.append(f"{at}: {machine.loop.trouble}")
            return
        self.contacts[machine.name] += 1
        expired = [
            f"{kind}/{role}"
            for kind in REPOSITORIES
            for role, state in self.roles(kind).items()
            if role != TECHNICIANS  # a list that has expired stops nothing but forcing
            and datetime.fromisoformat(state["expires"]) <= self.yard.now
        ]
        assert verdict.time_ms is not None, f"{at}: the time was not verified"
        reading = machine.clock.now()
        assert (reading.sure, reading.ms) == (True, self.yard.now_ms()), at
        assert verdict.may_install == (not expired), f"{at}: expired {expired}, and {verdict}"
        for complaint in verdict.complaints:
            if complaint.what == WALL_CLOCK and machine.clockwork is not Clockwork.RIGHT:
                continue  # it says that its wall clock is wrong, which is true
            assert expired, f"{at}: {complaint}"
            assert complaint.reason is Reason.EXPIRED, f"{at}: {complaint}"
            self.complaints[complaint.what] += 1

    def roles(self, kind: Any) -> dict[str, Any]:
        with self.yard.parts.catalog.read() as session:
            return role_states(session, kind)

    def nothing_ends_unheard(self) -> None:
        """Whatever has passed a mark has its alarm, and no alarm was raised twice. What renews itself has done so."""
        raised = [(event.what, event.detail) for event in self.yard.events("lifetime")]
        for each in self.yard.status()["lives"]:
            if each.by_itself:
                assert each.state in ("fresh", "due"), f"{self.yard.now}: nobody renews {each}"
            elif each.state != "fresh":
                until = f"({each.expires[:10]})"
                mine = [detail for what, detail in raised if what == f"{each.kind} {each.what}" and until in detail]
                mark = {"due": "50%", "urgent": "80%", "expired": "it has ended"}[each.state]
                assert any(detail.startswith(mark) for detail in mine), f"{self.yard.now}: {each}, alarms: {mine}"
        assert len(set(raised)) == len(raised)


async def live(yard: Yard, people: People, days: int) -> Story:
    story = Story(yard)
    await yard.enrol("steady", Clockwork.RIGHT)
    await yard.enrol("dead-clock", Clockwork.DEAD)
    await yard.enrol("fast-clock", Clockwork.FAST)
    sleeper = await yard.enrol("sleeper", Clockwork.RIGHT)
    for machine in yard.machines:
        story.met(machine, await machine.visit())
    for day in range(STEP, days, STEP):
        yard.pass_days(STEP)
        people.look(day)
        if day % (4 * STEP) == 0:
            yard.alarms()
        if day % (12 * STEP) == 0:
            story.nothing_ends_unheard()
        if day == NEWCOMER:
            await yard.enrol("newcomer", Clockwork.DEAD)
        for number, machine in enumerate(yard.machines):
            if machine is sleeper and SLEEP[0] <= day < SLEEP[1]:
                continue
            woken = machine is sleeper and day == SLEEP[1]
            if woken or (day // STEP + number) % VISITS == 0:
                if machine.clockwork is not Clockwork.RIGHT or woken:
                    machine.restart()
                verdict = await machine.visit()
                story.met(machine, verdict)
                if verdict is None:
                    story.met(machine, await machine.visit())  # minutes later
    for machine in yard.machines:
        story.met(machine, await machine.visit())
        assert machine.expires() > yard.now
        assert anchors.marks(machine.who.anchors())[0] == yard.parts.certificates.now().marks[0]
    assert yard.admitted == []
    return story


def alarms(yard: Yard) -> Counter[str]:
    """How many were raised, by kind and mark."""
    return Counter(f"{event.what.split()[0]}: {event.detail.split(' (')[0]}" for event in yard.events("lifetime"))


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut here, and three years are many fsyncs."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


async def test_nobody_is_locked_out_and_nothing_ends_where_people_do_what_they_are_told(tmp_path: Path) -> None:
    async with opened(tmp_path, SETTINGS) as yard:
        people = People(yard, every_days=24)
        story = await live(yard, people, days=3 * 365)
        # The one that slept past its certificate was told so, renewed at once, and was back within the same visit.
        assert story.missed == ["2027-10-26 sleeper: the certificate of sleeper expired at 2027-05-17"]
        assert story.complaints == Counter()
        raised = alarms(yard)
        ended = {what for what in raised if "ended" in what}
        assert ended == {"device-certificate: it has ended"}
        assert raised["device-certificate: it has ended"] == 1
        assert not {what for what in raised if "80%" in what and not what.startswith("device-certificate")}
        assert [each["standing"] for each in yard.status()["ca"]["generations"]] == ["current", "ended", "ended"]
        assert [event.detail.split(";")[0] for event in yard.events("ca-ended")] == ["no machine depends on it"] * 2
        switches = yard.events("online-key-switched")
        assert [len(event.what.split(", ")) for event in switches] == [7, 7]
        assert len(yard.events("online-key-destroyed")) == 2
        assert len(sealing_keys.read_all(yard.state / "keys")) == 3, "the old ones are kept"
        assert not [path.name for path in (yard.state / "keys").iterdir() if ".next." in path.name]
        assert dict(people.did) == {
            "headland keys resign": 11,
            "headland keys rotate": 3,
            "headland-server ca rotate": 2,
            "headland-server init makes": 5,
            "headland-server keys rotate": 2,
        }


async def test_where_people_come_late_installs_wait_each_end_was_told_and_all_goes_on_when_they_come(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, SETTINGS) as yard:
        people = People(yard, every_days=620)
        story = await live(yard, people, days=2 * 365)
        assert [line.split()[1] for line in story.missed] == ["sleeper:"]
        assert story.complaints["image"] > 5
        assert story.complaints["director"] > 0
        raised = alarms(yard)
        # The product's role ended, roots and targets of both repositories did, and the operators' token.
        assert raised["role: 80% of its life is over"] == raised["role: it has ended"] == 5
        assert raised["role: 50% of its life is over"] == 6  # the product's once more, after people came
        assert raised["token: it has ended"] == 1
        # Nobody replaced the CA: the server did, before it ended.
        assert raised["authority: 50% of its life is over"] == 1
        assert [event.detail.split(";")[0] for event in yard.events("ca-rotated")] == [
            "by itself: 80 % of its life was over"
        ]
        assert not [what for what in raised if what.startswith(("authority: it", "server-certificate"))]
        assert dict(people.did) == {
            "headland keys resign": 1,
            "headland-server init makes": 1,
            "headland-server keys rotate": 1,
        }
