"""`scripts/soak`, where it cannot do what it is asked for."""

import subprocess

import pytest

from scripts import soak_cuts
from tests.fakes.private_engine import CANNOT, PrivateEngine


@pytest.mark.parametrize(("ci", "code"), [("", CANNOT), ("true", 1)])
def test_where_no_engine_can_run_it_says_why_and_that_is_a_failure_in_ci_alone(monkeypatch, capsys, tmp_path, ci, code):
    said = subprocess.CompletedProcess([], CANNOT, "", "engine: a private engine needs root\n")
    monkeypatch.setattr(PrivateEngine, "_script", lambda *_: said)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert soak_cuts.kill_containers(1, 7, as_json=False) == code
    assert "a private engine needs root" in capsys.readouterr().err
    assert bool(list(tmp_path.glob("headland-soak-*"))) == (code == 1)
