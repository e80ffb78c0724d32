"""What a machine remembers of patches."""

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
    PatchBook(state).note_failure(failed(1))
    book = PatchBook(state)
    assert book.has_failed("a" * 64, "b" * 64, f"{1:064x}") == failed(1)
    assert book.has_failed("a" * 64, "b" * 64, f"{2:064x}") is None
    assert book.has_failed("a" * 64, "c" * 64, f"{1:064x}") is None
    assert book.has_failed("d" * 64, "b" * 64, f"{1:064x}") is None


def test_the_oldest_are_forgotten(state):
    book = PatchBook(state)
    for number in range(KEPT + 5):
        book.note_failure(failed(number))
    assert book.has_failed("a" * 64, "b" * 64, f"{4:064x}") is None
    assert book.has_failed("a" * 64, "b" * 64, f"{5:064x}") is not None


def test_what_is_damaged_is_as_good_as_empty(state):
    state.put("patches/failed", b"[{")
    state.put("patches/rate", b"much")
    book = PatchBook(state)
    assert (book.untold(), book.rate_kib_s()) == ((), 0)


def test_the_speed_is_a_power_of_two_and_does_not_waver(state):
    book = PatchBook(state)
    assert book.rate_kib_s() == 0
    book.note_speed(1000, 0.001)  # too little output to tell
    assert book.rate_kib_s() == 0
    book.note_speed(10 << 20, 1.0)
    assert book.rate_kib_s() == 8192
    for rate in (7000, 8000, 16_000, 20_000):
        book.note_speed(rate << 10, 1.0)
        assert book.rate_kib_s() == 8192, "the inventory's hash does not change for this"
    book.note_speed(5000 << 10, 1.0)
    assert PatchBook(state).rate_kib_s() == 4096
    book.note_speed(40_000 << 10, 1.0)
    assert book.rate_kib_s() == 32_768
