"""The short form: `scripts/soak --kill 1000` is the long one."""

import pytest

from tests.simulation.machine_kills import Killing


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_machines_that_are_killed_again_and_again_end_on_the_best_release_with_every_row_once(tmp_path):
    report = Killing(tmp_path, seed=20261123).play(kills=8)
    print(report.line())
    assert report.killed == 8
    assert report.rows > 20
