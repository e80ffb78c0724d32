"""O15: the machine's clock is set to anything at any time: no expired metadata is let in, nothing is locked out."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device.clock import BUILT_MS
from tests.fakes.field import Field, ms, reasons

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
WALLS = [
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC),
    datetime(2106, 2, 8, tzinfo=UTC),
]


@pytest.mark.parametrize("wall", WALLS)
def test_attack_o15_any_wall_clock_ends_in_the_right_time_at_the_first_contact(tmp_path: Path, wall: datetime) -> None:
    field = Field(tmp_path, NOW)
    field.wall_off = wall - NOW
    verdict = field.contact()
    assert verdict.may_install
    assert field.judge().reading().ms == ms(NOW)


@pytest.mark.parametrize("wall", WALLS)
def test_attack_o15_without_a_statement_no_wall_clock_lets_anything_be_installed(
    tmp_path: Path, wall: datetime
) -> None:
    field = Field(tmp_path, NOW)
    field.wall_off = wall - NOW
    verdict = field.contact(time="")
    assert not verdict.may_install
    assert verdict.assignment is None
    assert reasons(verdict)[0][0] == "clock"


def jump_and(field: Field, read: Callable[[str, int], bytes], name: str, limit: int) -> bytes:
    field.wall_off = timedelta(days=-15_000 if field.wall_off.days >= 0 else 15_000)
    return read(name, limit)


def test_attack_o15_a_clock_that_jumps_in_the_middle_of_a_judgement_changes_nothing(tmp_path: Path) -> None:
    field = Field(tmp_path, NOW)
    field.serve()
    for shelf in (field.image_shelf, field.director_shelf):
        shelf.read = partial(jump_and, field, shelf.read)  # type: ignore[method-assign]  # a shelf with a jump in it
    assert field.contact(serve=False).may_install


def test_attack_o15_the_first_time_ever_is_never_before_the_build() -> None:
    assert ms(datetime(2025, 1, 1, tzinfo=UTC)) < BUILT_MS


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(-20_000, 30_000), st.booleans(), st.integers(0, 3)), min_size=1, max_size=5))
def test_attack_o15_no_history_of_wall_clocks_and_boots_opens_or_locks(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[int, bool, int]]
) -> None:
    field = Field(tmp_path_factory.mktemp("field"), NOW)
    for off_days, reboot, days in history:
        field.passes(days=days)
        field.wall_off = timedelta(days=off_days)
        if reboot:
            field.reboots()
        assert field.contact().may_install
    field.serve()
    field.passes(days=8)
    assert not field.contact(serve=False).may_install
    field.reboots()
    assert not field.contact(serve=False).may_install
    assert field.contact().may_install
