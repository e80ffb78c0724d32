"""T5: the same metadata for ever. After expiry the machine says so and installs nothing; what runs is not asked."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.fakes.field import Field, reasons

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def field(tmp_path: Path) -> Field:
    field = Field(tmp_path, NOW)
    field.house.release("1.0.0", 1, b"genuine")
    field.contact()
    return field


def test_attack_t5_metadata_that_never_changes_is_stale_after_its_expiry(field: Field) -> None:
    field.passes(days=6)
    assert field.contact(serve=False).may_install
    field.passes(days=2)
    verdict = field.contact(serve=False, assignment=field.assignment())
    assert reasons(verdict) == [("director", "expired"), ("image", "expired")]
    assert not verdict.may_install
    assert verdict.assignment is None
    # What is known stays known: expiry gates installing, never running.
    assert verdict.terms is not None
    assert len(verdict.terms.listed) == 1
    assert verdict.time_ms is not None


@pytest.mark.parametrize("years", [-56, -1, 12])
def test_attack_t5_setting_the_wall_clock_does_not_thaw_it(field: Field, years: int) -> None:
    field.passes(days=8)
    field.wall_off = timedelta(days=365 * years)
    for _ in range(2):
        verdict = field.contact(serve=False)
        assert ("image", "expired") in reasons(verdict)
        assert not verdict.may_install
        field.reboots()


def test_attack_t5_a_frozen_machine_with_its_time_withheld_too_installs_nothing(field: Field) -> None:
    old_time = field.time()
    field.passes(days=8)
    field.reboots()
    field.wall_off = timedelta(days=-8)
    verdict = field.contact(serve=False, time=old_time.replace("0" * 32, "f" * 32))
    assert not verdict.may_install


def test_attack_t5_the_answer_of_an_old_request_does_not_hold_time_back(field: Field) -> None:
    # The nonce is the same in this test: only its age gives it away.
    old_time = field.time()
    field.passes(seconds=61)
    verdict = field.contact(serve=False, time=old_time, asked_ago_s=61)
    assert ("clock", "time") in reasons(verdict)


def test_attack_t5_fresh_metadata_thaws_it(field: Field) -> None:
    field.passes(days=8)
    field.contact(serve=False)
    verdict = field.contact()
    assert (reasons(verdict), verdict.may_install) == ([], True)
