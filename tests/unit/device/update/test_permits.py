"""Going back by a permit: one machine, one release, once; and what it stands in for, which is one rule alone."""

import msgspec
import pytest

from device.update.ports import Health
from device.update.rules import Accepted, Floor, Time, judge_offer, look_again, permit_for
from device.update.states import Held, State, UpdateRecord
from protocol.errors import Reason, Refused
from protocol.objects import Conditions
from tests.fakes.machines import Bench
from tests.fakes.updates import DEVICE, MACHINE, BlobSource, Release, noise, permit, terms

DAY_MS = 86_400_000
NOW_MS = 1_790_000_000_000
OLD = Release("1.0.0", 1, noise(900, 1))
BETWEEN = Release("1.1.0", 2, noise(900, 2))
NEW = Release("1.2.0", 3, noise(900, 3))
NEXT = Release("1.3.0", 4, noise(900, 4))
RUNS = UpdateRecord(committed=Held(digest=NEW.digest, version="1.2.0", release_counter=3), active=NEW.digest)
FLOOR = Floor(0, 3)
PERMIT = permit(OLD, created_ms=NOW_MS)


def find(*permits, release=OLD, floor=FLOOR, ms=NOW_MS + DAY_MS, sure=True, floor_ms=0, device=DEVICE):
    known = msgspec.structs.replace(terms(OLD, NEW), permits=permits)
    return permit_for(release.digest, known, device, floor, Time(ms, sure, floor_ms))


def judge(known=None, floor=FLOOR, granted=PERMIT, **facts):
    return judge_offer(
        OLD.assignment(),
        OLD.manifest_bytes,
        known or terms(OLD, NEW),
        MACHINE,
        floor=floor,
        record=RUNS,
        refused=facts.get("refused", {}),
        delisted=facts.get("delisted", ()),
        permit=granted,
    )


def look(offer, known=None, floor=FLOOR, granted=PERMIT, refused=None):
    return look_again(
        offer,
        known or terms(OLD, NEW),
        floor=floor,
        record=RUNS,
        refused=refused or {},
        now_ms=NOW_MS,
        sure_of_time=True,
        signals_off=(),
        permit=granted,
    )


def test_a_permit_counts_for_its_machine_and_its_release_only():
    assert find(PERMIT) == PERMIT
    assert find(PERMIT, release=NEW) is None
    assert find(PERMIT, device="tractor-2") is None
    assert find(permit(OLD, created_ms=NOW_MS, device="tractor-2")) is None


def test_a_permit_ends_by_sure_time_and_else_by_what_is_known_at_least():
    end = PERMIT.expires_ms
    assert find(PERMIT, ms=end - 1) == PERMIT
    assert find(PERMIT, ms=end) is None
    assert find(PERMIT, ms=end + DAY_MS, sure=False) == PERMIT, "the wall clock alone ends nothing"
    assert find(PERMIT, ms=NOW_MS, sure=False, floor_ms=end - 1) == PERMIT
    assert find(PERMIT, ms=NOW_MS, sure=False, floor_ms=end) is None
    dead = msgspec.structs.replace(PERMIT, expires_ms=NOW_MS)
    assert find(dead, ms=0, sure=False) is None, "it is not earlier than it was made"


def test_a_permit_for_longer_than_thirty_days_is_none():
    assert find(permit(OLD, created_ms=NOW_MS, days=30)) is not None
    assert find(msgspec.structs.replace(PERMIT, expires_ms=PERMIT.expires_ms + 1)) is None


def test_a_permit_that_was_used_up_and_those_before_it_count_no_more_and_of_two_the_older_is_taken():
    second = permit(OLD, created_ms=NOW_MS + 1)
    assert find(second, PERMIT) == PERMIT
    assert find(second, PERMIT, floor=Floor(0, 3, NOW_MS)) == second
    assert find(second, PERMIT, floor=Floor(0, 3, NOW_MS + 1)) is None


def test_a_permit_stands_in_for_the_committed_counter_and_for_nothing_else():
    verdict = judge()
    assert isinstance(verdict, Accepted)
    assert verdict.offer.permit_ms == NOW_MS
    assert look(verdict.offer) is None
    assert judge(floor=Floor()).offer.permit_ms == 0, "it is not taken where none is needed"
    for reason, facts in (
        (Reason.COUNTER_FLOOR, {"granted": None}),
        (Reason.NOT_LISTED, {"known": terms(NEW)}),
        (Reason.PRODUCT_FLOOR, {"known": terms(OLD, NEW, floor=2)}),
        (Reason.COUNTER_FLOOR, {"known": terms(OLD, NEW, era=1)}),
        (Reason.COUNTER_FLOOR, {"floor": Floor(1, 0)}),
        (Reason.REFUSED_BEFORE, {"refused": {OLD.digest: "golden"}}),
    ):
        with pytest.raises(Refused) as refused:
            judge(**facts)
        assert refused.value.reason is reason
        with pytest.raises(Refused) as refused:
            look(verdict.offer, **facts)
        assert refused.value.reason in (reason, Reason.DELISTED)


def test_only_the_permit_by_which_it_was_accepted_lets_it_be_activated():
    with pytest.raises(Refused) as refused:
        look(judge().offer, granted=permit(OLD, created_ms=NOW_MS + 1))
    assert refused.value.reason is Reason.COUNTER_FLOOR


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, BlobSource(OLD, BETWEEN, NEW, NEXT))


def known(*permits, version=2):
    return msgspec.structs.replace(terms(OLD, BETWEEN, NEW, NEXT, role_version=version), permits=permits)


async def offer(bench, release, says, rollout="spring", conditions=None):
    return await bench.updater.offer(
        release.assignment(rollout, conditions), release.manifest_bytes, says, may_install=True
    )


async def go_back(bench, says, rollout="back"):
    assert isinstance(await offer(bench, OLD, says, rollout), Accepted)
    await bench.until(lambda: bench.updater.record.state is not State.IDLE)
    await bench.settled()


async def test_a_permit_is_used_up_by_its_commit_and_the_floor_stays(bench):
    async with bench.running() as updater:
        await bench.install(NEW, OLD)
        await go_back(bench, known(permit(OLD, created_ms=bench.now_ms)))
        assert updater.record.committed.digest == OLD.digest
        assert bench.db.floors("update/")["update/counter/0"] == NEW.counter
        assert bench.db.floor("update/permit") > 0
        for release in (BETWEEN,):
            verdict = await offer(bench, release, known(), "between")
            assert verdict.reason is Reason.COUNTER_FLOOR
        await bench.install(NEXT, OLD, BETWEEN, NEW, rollout="forward")
        assert updater.record.committed.digest == NEXT.digest


async def test_a_permit_is_good_once_also_after_a_restart(bench):
    one = permit(OLD, created_ms=bench.now_ms)
    async with bench.running():
        await bench.install(NEW, OLD)
        await go_back(bench, known(one))
        await offer(bench, NEXT, known(one, version=3), "forward")
        await bench.until(lambda: bench.updater.record.committed.digest == NEXT.digest)
        await bench.settled()
    async with bench.running():
        verdict = await offer(bench, OLD, known(one, version=3), "again")
        assert verdict.reason is Reason.COUNTER_FLOOR
        later = permit(OLD, created_ms=bench.now_ms)
        await go_back(bench, known(one, later, version=4), "another")
        assert bench.updater.record.committed.digest == OLD.digest


async def test_what_was_gone_back_to_can_be_mended(bench):
    async with bench.running() as updater:
        await bench.install(NEW, OLD)
        await go_back(bench, known(permit(OLD, created_ms=bench.now_ms)))
    model = next(name for name, content in OLD.artifacts.items() if content == OLD.model)
    path = bench.folder / "store/sha256" / model
    path.chmod(0o600)
    path.write_bytes(b"torn")
    async with bench.running() as updater:
        assert updater.report().manifest is None
        await go_back(bench, known(version=3), "repair")
        assert updater.report().manifest == OLD.digest


async def test_a_trial_that_fails_uses_up_no_permit(bench):
    bench.workers.shown[OLD.digest] = Health(digest=OLD.digest, serving=True, crashes=("SIGSEGV",))
    async with bench.running() as updater:
        await bench.install(NEW, OLD)
        await go_back(bench, known(permit(OLD, created_ms=bench.now_ms)))
        assert updater.record.committed.digest == NEW.digest
        assert bench.db.floor("update/permit") == 0


@pytest.mark.parametrize("end", ["expired", "taken back"])
async def test_a_permit_that_ended_while_its_release_waited_activates_nothing(bench, end):
    conditions = Conditions(signals_clear=("driving",))
    async with bench.running() as updater:
        await bench.install(NEW, OLD)
        await offer(bench, OLD, known(permit(OLD, created_ms=bench.now_ms)), "back", conditions)
        await bench.until(lambda: updater.record.state is State.WAIT)
        if end == "expired":
            bench.now_ms += 31 * DAY_MS
        else:
            await updater.learn(known(version=3))
        bench.signals_off.add("driving")
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest
        assert bench.outcomes()[-1] == ("refused", "counter-floor")
