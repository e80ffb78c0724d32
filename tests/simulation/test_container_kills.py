"""The short form: `scripts/soak --kill-containers 50` is the long one."""

import pytest

from tests.fakes.private_engine import PrivateEngine
from tests.simulation.container_kills import Killing


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wherever_agent_and_engine_are_killed_one_of_the_two_whole_sets_runs_once_they_are_back(tmp_path):
    report = Killing(tmp_path, PrivateEngine(), seed=13).play(updates=3)
    print(report.line())
    assert report.updates.total() == 3
    assert report.kills.total() >= 3
    assert report.rows > 10
