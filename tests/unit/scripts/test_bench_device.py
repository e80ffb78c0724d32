"""The benchmark holds budgets as ratios of one run, and says so with its exit code."""

import json
from dataclasses import replace

import pytest

from scripts.device_bench import command
from scripts.device_bench.command import QUICK, Bench, Size
from scripts.device_bench.report import Figure
from scripts.device_bench.rows import rows

TINY = Size(rounds=2, latency_s=0.2, rate_rows=2000, slow_rows=1000, drain_rows=3000, starts=1, idle_s=0.5)


def test_a_budget_is_of_the_ratio_or_of_the_number_where_nothing_stands_beside_it():
    assert Figure("p99", "ms", 3.0, 2.0, "bare", most=1.5).judged
    assert not Figure("p99", "ms", 3.1, 2.0, "bare", most=1.5).judged
    assert Figure("rate", "rows/s", 50, 100, "bare", least=0.5).judged
    assert not Figure("rate", "rows/s", 49, 100, "bare", least=0.5).judged
    assert not Figure("idle", "MiB", 60.1, most=60).judged
    assert Figure("drain", "rows/s", 1.0).judged is None
    assert Figure("rate", "rows/s", 50, 100, "bare", least=0.5).as_json()["ratio"] == 0.5


@pytest.mark.parametrize(("ours", "code"), [(60, 0), (61, 1)])
def test_a_budget_that_is_missed_is_in_the_exit_code(tmp_path, monkeypatch, capsys, ours, code):
    monkeypatch.setattr(command, "install_packages", lambda *_: False)
    monkeypatch.setitem(command.PARTS, "agent", lambda bench: [Figure("idle", "MiB", ours, most=60)])
    assert command.main(["--only", "agent", "--json", "--cache", str(tmp_path)]) == code
    [figure] = json.loads(capsys.readouterr().out)["figures"]
    assert figure["holds"] is (code == 0)
    assert command.main(["--only", "agent", "--cache", str(tmp_path)]) == code
    assert ("holds" if code == 0 else "MISSED") in capsys.readouterr().out


def test_rows_are_those_of_a_detector_and_all_different():
    made = list(rows(500))
    assert len(set(made)) == 500
    assert 250 < sum(map(len, made)) / 500 < 500
    assert made == list(rows(500)), "the same for all that are compared"


def test_what_is_compared_takes_turns(tmp_path):
    bench = Bench(tmp_path, tmp_path, ("headland", "bare"), QUICK)
    assert [bench._turn(number)[0] for number in range(4)] == ["headland", "bare", "headland", "bare"]


@pytest.mark.slow
def test_alarms_are_measured_with_every_reader_that_there_may_be(tmp_path):
    bench = Bench(tmp_path, tmp_path / "none", ("headland",), replace(TINY, rounds=1, latency_s=1.0))
    figures = bench.readers()
    assert [figure.against for figure in figures] == ["nobody there", "nobody there", ""]
    assert all(figure.ours > 0 for figure in figures)


@pytest.mark.slow
def test_the_outbox_is_measured_beside_bare_sqlite_without_the_other_queues(tmp_path):
    bench = Bench(tmp_path, tmp_path / "none", ("headland", "bare"), replace(TINY, rounds=1))
    figures = [*bench.rate(), *bench.drain()]
    assert all(figure.ours > 0 for figure in figures if figure.unit == "rows/s")
    assert [figure.least for figure in figures if figure.least] == [0.5]
    assert [path.name for path in tmp_path.iterdir()] == ["queued"], "what the agent is measured with, and no more"
