"""What a machine remembers of patches."""

import threading

import pytest

from device.state_db import StateDb
from device.transfer.patch_book import KEPT, PatchBook
from protocol.errors import Reason
from protocol.messages import FailedPatch


@pytest.fixture
def state(tmp_path):
    state = StateDb(tmp_path / "state.db")
    yield state
    state.close()


def failed(number: int, reason: Reason = Reason.HASH) -> FailedPatch:
    return FailedPatch(artifact="a" * 64, base="b" * 64, payload=f"{number:064x}", reason=reason)


def test_only_the_very_patch_has_failed(state):
    PatchBook(state, "1.0.0").note_failure(failed(1))
    book = PatchBook(state, "1.0.0")
    assert book.has_failed("a" * 64, "b" * 64, f"{1:064x}", 0) == failed(1)
    assert book.has_failed("a" * 64, "b" * 64, f"{2:064x}", 0) is None
    assert book.has_failed("a" * 64, "c" * 64, f"{1:064x}", 0) is None
    assert book.has_failed("d" * 64, "b" * 64, f"{1:064x}", 0) is None


def test_another_agent_forgets_what_failed_and_tries_once(state):
    old = PatchBook(state, "1.0.0")
    old.note_failure(failed(1))
    new = PatchBook(state, "1.0.1")
    assert new.has_failed("a" * 64, "b" * 64, f"{1:064x}", 0) is None
    assert new.untold() == new.failed() == (), "nor is the server told what another agent found"
    new.note_failure(failed(1, Reason.LIMIT))
    assert PatchBook(state, "1.0.1").has_failed("a" * 64, "b" * 64, f"{1:064x}", 0) == failed(1, Reason.LIMIT)


def test_a_record_of_before_versions_were_kept_is_forgotten(state):
    book = PatchBook(state, "1.0.0")
    book.note_failure(failed(1))
    state.put("patches/failed", state.get("patches/failed").replace(b',"agent":"1.0.0"', b""))
    assert PatchBook(state, "1.0.0").failed() == ()


def test_what_a_person_lifted_is_tried_once_more(state):
    book = PatchBook(state, "1.0.0")
    which = "a" * 64, "b" * 64, f"{1:064x}"
    book.note_failure(failed(1))
    assert book.has_failed(*which, 0) == failed(1)
    assert book.has_failed(*which, 1000) is None
    again = FailedPatch(artifact=which[0], base=which[1], payload=which[2], reason=Reason.HASH, lifted_ms=1000)
    book.note_failure(again)
    assert book.failed() == (again,), "of a patch the last word is kept"
    assert book.has_failed(*which, 1000) == again
    assert book.has_failed(*which, 0) == again, "an older plan gives no new try"
    assert book.has_failed(*which, 1001) is None


def test_a_machine_that_ends_each_applier_asks_for_no_more_patches_until_one_is_applied(state):
    book = PatchBook(state, "1.0.0")
    for _ in range(4):
        book.note_end()
    assert book.can_apply
    book.note_end()
    assert not book.can_apply
    assert book.failed() == (), "no patch is blamed"
    book.note_speed(1, 1.0)
    assert book.can_apply


def test_what_a_technician_lifts_is_tried_and_told_until_the_server_knows(state):
    book = PatchBook(state, "1.0.0")
    which = "a" * 64, "b" * 64, f"{1:064x}"
    book.note_failure(failed(1))
    book.note_failure(failed(2))
    assert PatchBook(state, "1.0.0").lift("0" * 7) == PatchBook(state, "1.0.0").lift("f" * 8) == ()
    assert PatchBook(state, "1.0.0").lift(f"{1:064x}") == (failed(1),)
    assert book.lift(f"{1:064x}") == (), "it is done"
    assert book.has_failed(*which, 0) is None
    assert (book.failed(), book.untold(), book.lifted()) == ((failed(2),), (failed(2),), (f"{1:064x}",))
    book.mark_told(book.untold(), book.lifted())
    assert (book.untold(), book.lifted()) == ((), ())
    assert book.has_failed(*which, 0) is None


def test_what_fails_again_before_the_server_knows_of_the_lift_is_told_as_failed(state):
    book = PatchBook(state, "1.0.0")
    book.note_failure(failed(1))
    assert book.lift("a" * 64) == (failed(1),), "by its result as well"
    book.note_failure(failed(1))
    assert (book.untold(), book.lifted()) == ((failed(1),), ())


def test_two_processes_do_not_overwrite_each_others_word(tmp_path):
    one, two = (StateDb(tmp_path / "state.db") for _ in range(2))
    books = PatchBook(one, "1.0.0"), PatchBook(two, "1.0.0")

    def note(book, numbers):
        for number in numbers:
            book.note_failure(failed(number))

    threads = [threading.Thread(target=note, args=(book, range(at, 40, 2))) for at, book in enumerate(books)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(books[0].failed()) == 40
    one.close()
    two.close()


def test_the_oldest_are_forgotten(state):
    book = PatchBook(state, "1.0.0")
    for number in range(KEPT + 5):
        book.note_failure(failed(number))
    assert book.has_failed("a" * 64, "b" * 64, f"{4:064x}", 0) is None
    assert book.has_failed("a" * 64, "b" * 64, f"{5:064x}", 0) is not None


def test_what_is_damaged_is_as_good_as_empty(state):
    state.put("patches/failed", b"[{")
    state.put("patches/rate", b"much")
    book = PatchBook(state, "1.0.0")
    assert (book.untold(), book.rate_kib_s()) == ((), 0)


def test_the_speed_is_a_power_of_two_and_does_not_waver(state):
    book = PatchBook(state, "1.0.0")
    assert book.rate_kib_s() == 0
    book.note_speed(1000, 0.001)  # too little output to tell
    assert book.rate_kib_s() == 0
    book.note_speed(10 << 20, 1.0)
    assert book.rate_kib_s() == 8192
    for rate in (7000, 8000, 16_000, 20_000):
        book.note_speed(rate << 10, 1.0)
        assert book.rate_kib_s() == 8192, "the inventory's hash does not change for this"
    book.note_speed(5000 << 10, 1.0)
    assert PatchBook(state, "1.0.0").rate_kib_s() == 4096
    book.note_speed(40_000 << 10, 1.0)
    assert book.rate_kib_s() == 32_768
