"""Bytes over the air: the smaller budget holds, a day is a day whatever the clocks say, and no cut forgets."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.accounts import Accounts, read_ledger
from device.day import DAY_MS, Day, Instant, look
from device.state_db import StateDb
from device.totals import Totals
from device.transfer import OverBudgetError
from protocol.ids import digest
from protocol.messages import TransferBytes
from protocol.objects import Budget

RELEASE, OTHER = digest(b"one"), digest(b"other")
NOON = 20_000 * DAY_MS + DAY_MS // 2


class Machine:
    """Clocks under the test's hand."""

    def __init__(self, folder):
        self.folder = folder
        self.boot, self.boot_ms, self.sure_ms = 1, 1000, NOON
        self.link = "cellular"
        self.start()

    def start(self, **own):
        self.state = StateDb(self.folder / "state.db")
        self.totals = Totals(self.state)
        self.accounts = Accounts(self.state, self.totals, link=self.link, own=Budget(**own), now=self.now)
        return self.accounts

    def restart(self, **own):
        self.state.close()
        self.boot, self.boot_ms = self.boot + 1, 10
        return self.start(**own)

    def now(self):
        return Instant(f"boot {self.boot}", self.boot_ms, self.sure_ms)

    def pass_ms(self, ms):
        self.boot_ms += ms
        if self.sure_ms is not None:
            self.sure_ms += ms


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    yield machine
    machine.state.close()


def test_without_a_budget_everything_may_travel_and_is_counted(machine):
    purse = machine.accounts.purse(RELEASE, Budget())
    purse.check(1 << 50)
    purse.spend(100, "delta")
    purse.spend(20, "full")
    purse.promise("a" * 64, 9, 3)
    purse.settle(here("a" * 64, 9))
    assert machine.accounts.of(RELEASE) == TransferBytes(delta_bytes=100, full_bytes=20, saved_bytes=3)
    assert machine.accounts.of(OTHER) == TransferBytes()
    counters = machine.totals.now(0)
    assert (counters.bytes_received, counters.delta_bytes, counters.full_bytes, counters.saved_bytes) == (
        120,
        100,
        20,
        3,
    )
    assert machine.restart().of(RELEASE).delta_bytes == 100
    assert machine.totals.now(0) == counters


@pytest.mark.parametrize(
    ("own", "signed"),
    [
        ({}, {"release_bytes": 1000}),
        ({"release_bytes": 1000}, {}),
        ({"release_bytes": 1000}, {"release_bytes": 5000}),
        ({"release_bytes": 5000}, {"release_bytes": 1000}),
        ({"day_bytes": {"cellular": 1000, "wifi": 1}}, {}),
        ({}, {"day_bytes": {"cellular": 1000, "wifi": 1}}),
        ({"day_bytes": {"cellular": 1000}}, {"day_bytes": {"cellular": 2000}}),
        ({"day_bytes": {"cellular": 2000}}, {"day_bytes": {"cellular": 1000}, "release_bytes": 1001}),
    ],
)
def test_the_smaller_limit_holds_to_the_byte(machine, own, signed):
    machine.state.close()
    purse = machine.start(**own).purse(RELEASE, Budget(**signed))
    purse.check(1000)
    with pytest.raises(OverBudgetError) as over:
        purse.check(1001)
    assert over.value.needs_bytes == 1001
    assert "1,001" in over.value.message
    purse.spend(400, "delta")
    purse.check(600)
    with pytest.raises(OverBudgetError):
        purse.check(601)
    purse.spend(700, "full")
    purse.check(0)
    with pytest.raises(OverBudgetError):
        purse.check(1)


def test_a_release_pays_over_all_links_and_a_day_over_its_own(machine):
    budget = Budget(release_bytes=1000, day_bytes={"cellular": 100})
    machine.accounts.purse(RELEASE, budget).spend(100, "full")
    machine.accounts.purse(OTHER, budget).check(0)
    with pytest.raises(OverBudgetError):
        machine.accounts.purse(OTHER, budget).check(1)
    machine.link = "wifi"
    accounts = machine.restart()
    accounts.purse(RELEASE, budget).check(900)
    with pytest.raises(OverBudgetError):
        accounts.purse(RELEASE, budget).check(901)
    accounts.purse(OTHER, budget).check(1000)


def test_nothing_may_travel_where_zero_is_allowed(machine):
    purse = machine.accounts.purse(RELEASE, Budget(day_bytes={"cellular": 0}))
    purse.check(0)
    with pytest.raises(OverBudgetError):
        purse.check(1)


def test_only_limits_that_bear_on_the_link_make_its_bytes_scarce(machine):
    assert not machine.accounts.is_limited
    assert not machine.restart(day_bytes={"wifi": 1}).is_limited
    assert machine.restart(day_bytes={"cellular": 1}).is_limited
    assert machine.restart(release_bytes=0).is_limited


DAILY = Budget(day_bytes={"cellular": 1000})


def is_broke(accounts):
    try:
        accounts.purse(RELEASE, DAILY).check(1)
    except OverBudgetError:
        return True
    return False


def test_midnight_of_sure_time_begins_a_new_day(machine):
    machine.accounts.purse(RELEASE, DAILY).spend(1000, "full")
    machine.pass_ms(DAY_MS // 2 - 1)
    assert is_broke(machine.accounts)
    machine.pass_ms(1)
    assert not is_broke(machine.accounts)
    assert read_ledger(machine.state).day.date == 20_001


def test_what_was_spent_today_survives_starts_and_a_time_that_is_not_sure_yet(machine):
    machine.accounts.purse(RELEASE, DAILY).spend(1000, "full")
    machine.sure_ms = None
    accounts = machine.restart()
    assert is_broke(accounts)
    machine.sure_ms = NOON + 60_000
    assert is_broke(accounts)
    machine.sure_ms = NOON + DAY_MS
    assert not is_broke(accounts)


def test_learning_the_time_in_the_middle_of_a_day_gives_no_fresh_one(machine):
    machine.state.close()
    machine.sure_ms = None
    accounts = machine.start()
    accounts.purse(RELEASE, DAILY).spend(1000, "full")
    machine.sure_ms = NOON
    assert is_broke(accounts)
    machine.sure_ms = NOON + DAY_MS // 2
    assert not is_broke(accounts)


def test_a_machine_that_never_learns_the_time_waits_24_hours_of_its_own(machine):
    machine.sure_ms = None
    accounts = machine.restart()
    accounts.purse(RELEASE, DAILY).spend(1000, "full")
    for _ in range(23):
        machine.pass_ms(3_600_000)
        assert is_broke(accounts)
    # What a start does not see is not counted, what was on is: a restart costs an hour at most.
    accounts = machine.restart()
    assert is_broke(accounts)
    for _ in range(2):
        machine.pass_ms(3_600_000)
        broke = is_broke(accounts)
    assert not broke


def test_sure_time_that_goes_back_gives_no_fresh_day_and_no_endless_one(machine):
    machine.accounts.purse(RELEASE, DAILY).spend(1000, "full")
    machine.sure_ms = NOON - 5 * DAY_MS
    assert is_broke(machine.accounts)
    machine.boot_ms += DAY_MS
    assert not is_broke(machine.accounts)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3_600_000), st.none() | st.just(0)), max_size=60))
def test_no_sequence_of_starts_and_unsure_times_gives_two_days_in_one(steps):
    """True time passes between looks; sure time is true, unsure time is not there. The wall clock is never asked."""
    true_ms, boot, boot_ms = NOON, 1, 0
    day, _ = look(Day(), Instant("1", 0, None))
    begun = [(true_ms, None)]
    for restarts, passed, sure in steps:
        true_ms += passed
        boot, boot_ms = (boot + 1, 0) if restarts else (boot, boot_ms + passed)
        day, fresh = look(day, Instant(str(boot), boot_ms, true_ms if sure is not None else None))
        if fresh:
            begun.append((true_ms, sure))
    for (one, _), (two, sure) in itertools.pairwise(begun):
        assert two - one >= DAY_MS or (sure is not None and two // DAY_MS > one // DAY_MS)


def test_a_count_and_what_it_was_spent_on_are_one_transaction(machine, monkeypatch):
    purse = machine.accounts.purse(RELEASE, Budget())
    purse.spend(5, "full")

    def full_disk(*_):
        raise OSError("no space")

    monkeypatch.setattr(machine.state, "count_all", full_disk)
    with pytest.raises(OSError, match="no space"):
        purse.spend(7, "full")
    assert machine.accounts.of(RELEASE).full_bytes == machine.totals.now(0).bytes_received == 5


def here(*artifact):
    """A store that has one artifact."""
    return lambda name, length_bytes: (name, length_bytes) == artifact


def nothing(name, length_bytes):
    return False


@pytest.mark.parametrize("cuts", range(3))
def test_a_saving_is_counted_once_however_often_it_is_settled_and_wherever_the_power_goes(machine, cuts):
    purse = machine.accounts.purse(RELEASE, Budget())
    purse.promise("a" * 64, 9, 300)
    # The artifact came, and the power went before it was counted.
    for _ in range(cuts):
        machine.restart().settle(here("a" * 64, 9))
    machine.accounts.settle(here("a" * 64, 9))
    machine.accounts.settle(here("a" * 64, 9))
    assert machine.restart().of(RELEASE).saved_bytes == machine.totals.now(0).saved_bytes == 300


def test_what_did_not_come_is_not_saved_even_if_it_comes_by_another_way_later(machine):
    purse = machine.accounts.purse(RELEASE, Budget())
    purse.promise("a" * 64, 9, 300)
    machine.restart().settle(nothing)
    machine.accounts.settle(here("a" * 64, 9))
    machine.accounts.purse(RELEASE, Budget()).promise("a" * 64, 9, 300)
    machine.accounts.settle(here("a" * 64, 8))
    assert machine.totals.now(0).saved_bytes == 0


def test_a_saving_and_the_end_of_its_promise_are_one_transaction(machine, monkeypatch):
    purse = machine.accounts.purse(RELEASE, Budget())
    purse.promise("a" * 64, 9, 300)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StateDb, "count_all", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        purse.settle(here("a" * 64, 9))
    machine.restart().settle(here("a" * 64, 9))
    assert machine.accounts.of(RELEASE).saved_bytes == 300


def test_a_promise_that_cannot_be_read_promises_nothing(machine):
    machine.state.put("accounts/promise", b"{")
    machine.accounts.settle(here("a" * 64, 9))
    assert machine.totals.now(0).saved_bytes == 0


def test_the_oldest_releases_are_forgotten_first(machine):
    for number in range(70):
        machine.accounts.purse(digest(b"%d" % number), Budget()).spend(1, "full")
    machine.accounts.purse(digest(b"20"), Budget()).spend(1, "full")
    kept = read_ledger(machine.state).releases
    assert len(kept) == 64
    assert list(kept)[-1] == digest(b"20")


def test_a_ledger_that_cannot_be_read_is_a_new_one(machine):
    machine.state.put("accounts", b"{}x")
    assert machine.restart().of(RELEASE) == TransferBytes()
