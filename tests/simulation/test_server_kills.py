"""A real server is killed again and again while machines drain and managers push: nothing twice, nothing lost."""

from pathlib import Path

import pytest

from tests.simulation.server_kills import at_points, at_random

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_a_server_that_is_killed_at_random_keeps_every_promise(tmp_path: Path) -> None:
    report = await at_random(tmp_path, kills=12, seed=20261123)
    print(report)
    assert report.kills == 12 and report.publications and report.rows > 40


async def test_a_server_that_is_killed_at_chosen_points_keeps_every_promise(tmp_path: Path) -> None:
    report = await at_points(tmp_path, points=range(7, 150, 24))
    print(report)
    assert report.kills > 3


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        # The version of a receipt that is rolled back is given again.
        ("receipts_before_the_commit", "were receipted and are not here|a version went back"),
        ("published_before_it_is_served", "was published, and|listed is not what is served"),
    ],
)
async def test_a_server_that_promises_too_early_is_found_out(tmp_path: Path, fault: str, seen: str) -> None:
    with pytest.raises(AssertionError, match=seen):
        await at_random(tmp_path, kills=30, seed=3, machines=1, fault=fault)
