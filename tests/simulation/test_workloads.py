"""The workloads themselves, where nothing is cut: what they promise, they keep."""

import pytest

from tests.simulation.run import promised, run
from tests.simulation.workloads.catalogue import WORKLOADS


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_is_not_cut_keeps_its_promises_whenever_it_starts_again(tmp_path, name):
    home = tmp_path / "home"
    run("prepare", name, home)
    run("act", name, home)
    assert promised(home)
    moved = home.rename(tmp_path / "moved")
    for _ in range(2):
        run("recover", name, moved)
        run("check", name, moved)


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_was_cut_at_once_is_done_by_the_next_start(tmp_path, name):
    run("prepare", name, tmp_path)
    run("recover", name, tmp_path)
    run("check", name, tmp_path)
    assert promised(tmp_path) == []
