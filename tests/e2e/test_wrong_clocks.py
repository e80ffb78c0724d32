"""Whole agents, their keepers and TLS, under wall clocks that nobody should believe."""

import time

import pytest

from device import clock
from device.contact import read_record
from device.state_db import StateDb
from tests.e2e.device_stage import Stage
from tests.fakes import wrong_wall

YEARS_S = 365 * 86_400.0
CLOCKS = {"dead-clock": -time.time(), "ahead-clock": 10 * YEARS_S}


@pytest.mark.slow
def test_attack_o15_agents_with_a_dead_clock_and_one_ten_years_ahead_install_and_keep_no_trace_of_it(
    stage: Stage,
) -> None:
    machines = {name: stage.machine(name) for name in CLOCKS}
    began_ms = time.time() * 1000
    for name, machine in machines.items():
        arguments = ("--state", str(machine.state), "--json")
        machine.process.command = wrong_wall.command(CLOCKS[name], "device.agent", *arguments)
        machine.start()
        machine.show(30)
    for name, machine in machines.items():
        machine.until_it_runs("1.0.0")
        machine.process.stop()
        database = StateDb(machine.state / "state.db")
        record, complaints = clock.load(database), read_record(database).complaints
        database.close()
        # The time is the server's, and the wall clock was told of as an alarm.
        assert began_ms <= record.floor_ms <= time.time() * 1000 + 61_000, name
        assert record.anchor is not None
        assert "wall-clock/time" in complaints, name
        said = machine.process.log.read_text()
        assert ("1970-01-01" in said) == (name == "dead-clock"), "the agent's log is by its own clock"
