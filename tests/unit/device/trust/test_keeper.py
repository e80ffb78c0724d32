"""The keeper as a process: started on demand, gone when idle, replaced when it dies, and never inside the agent."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from device import clock
from device.damage import StateDamagedError
from device.recovery import FLOORS_DUE
from device.seal import Seals
from device.state_db import StateDb
from device.trust import roster
from device.trust.client import KeeperTrust
from device.trust.keeper import StateFloors
from device.trust.wire import LINE_BYTES, JudgeAsked
from protocol import limits
from protocol.errors import LinkError, StateError
from protocol.objects import ReceiptsBody
from protocol.wire import encode
from tests.fakes.field import DEVICE, NONCE, PRODUCT, Field, ms
from tests.fakes.repository_server import Shelf, http_server


class Machine:
    """An enrolled state folder, and an honest server over plain HTTP."""

    def __init__(self, state: Path, url: str, shelves: dict[str, Shelf]) -> None:
        self.state = state
        self.url = url
        self.field = Field(state, datetime.now(UTC))
        self.field.image_shelf, self.field.director_shelf = shelves["image"], shelves["director"]
        identity = state / "identity"
        identity.mkdir(parents=True)
        from device.identity import keep_key

        keep_key(identity / "key.pem")
        (identity / "enrolment.json").write_text(json.dumps({"server": url, "device": DEVICE, "product": PRODUCT}))
        for name, data in self.field.first_roots.items():
            (identity / f"{name}.root.json").write_bytes(data)
        StateDb(state / "state.db").close()
        self.field.serve()

    def trust(self, *extra: str, **options: Any) -> KeeperTrust:
        return KeeperTrust(
            self.state, command=(sys.executable, "-m", "device.trust.keeper", *extra), **({"answer_s": 30.0} | options)
        )


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    shelves = {"image": Shelf(), "director": Shelf()}
    with http_server({f"/v1/tuf/{name}/": shelf for name, shelf in shelves.items()}) as url:
        yield Machine(tmp_path, url, shelves)


@pytest.fixture
async def trust(machine: Machine) -> AsyncIterator[KeeperTrust]:
    trust = machine.trust()
    yield trust
    await trust.close()


async def test_a_contact_is_judged_and_its_time_reaches_the_agents_clock(machine: Machine, trust: KeeperTrust) -> None:
    machine.field.house.release("1.0.0", 1, b"manifest")
    machine.field.serve()
    verdict = await trust.judge(machine.field.answer(), NONCE, clock.boot_seconds())
    assert (verdict.complaints, verdict.may_install) == ((), True)
    database = StateDb(machine.state / "state.db")
    try:
        reading = clock.Clock(database).now()
        assert reading.sure
        assert abs(reading.ms - ms(datetime.now(UTC))) < 60_000
        assert StateFloors(database).read("image/root") == 1
    finally:
        database.close()
    bodies = await trust.receipts((machine.field.receipts(), "junk"))
    assert [type(body) for body in bodies] == [ReceiptsBody]


async def test_after_state_db_was_made_anew_floors_rise_to_the_stored_metadata(machine: Machine) -> None:
    trust = machine.trust("--idle-s", "0.1")
    machine.field.house.release("1.0.0", 1, b"manifest")
    machine.field.serve()
    await trust.judge(machine.field.answer(), NONCE, clock.boot_seconds())
    await trust.close()
    path = machine.state / "state.db"
    database = StateDb(path)
    floors = {name: value for name, value in database.floors().items() if not name.startswith("director/clock/")}
    assert Seals(path).newest() == database.sealed(), "what a judgement raised is sealed"
    database.close()
    for each in (path, *Seals(path).paths):
        each.unlink()
    database = StateDb(path)
    database.put(FLOORS_DUE, b"1")
    trust = machine.trust()
    await trust.receipts(())
    await trust.close()
    assert {name: database.floor(name) for name in floors} == floors
    assert len(floors) > 8
    assert database.get(FLOORS_DUE) is None
    database.close()


async def test_a_keeper_that_finds_the_database_damaged_says_so(machine: Machine) -> None:
    told: list[str] = []
    trust = machine.trust(on_damage=told.append)
    (machine.state / "state.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StateDamagedError):
        await trust.judge(machine.field.answer(), NONCE, clock.boot_seconds())
    await trust.close()
    assert len(told) == 1


async def test_a_keeper_that_was_killed_is_replaced_at_the_next_question(machine: Machine, trust: KeeperTrust) -> None:
    await trust.judge(machine.field.answer(), NONCE, clock.boot_seconds())
    assert trust._process is not None
    os.kill(trust._process.pid, signal.SIGKILL)
    verdict = await trust.judge(machine.field.answer(), NONCE, clock.boot_seconds())
    assert verdict.may_install


async def test_an_idle_keeper_ends_by_itself_and_comes_back(machine: Machine) -> None:
    trust = machine.trust("--idle-s", "0.1")
    await trust.judge(machine.field.answer(), NONCE, clock.boot_seconds())
    assert trust._process is not None
    assert await asyncio.wait_for(trust._process.wait(), 10) == 0
    assert (await trust.judge(machine.field.answer(), NONCE, clock.boot_seconds())).may_install
    await trust.close()


async def test_a_keeper_whose_agent_is_gone_ends(machine: Machine) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "device.trust.keeper", "--state", str(machine.state)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(b'{"ask": "receipts", "te')
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_a_link_failure_is_told_as_one(machine: Machine, trust: KeeperTrust) -> None:
    answer = machine.field.answer()
    machine.field.director_shelf.statuses["2.root.json"] = 503
    with pytest.raises(LinkError) as caught:
        await trust.judge(answer, NONCE, clock.boot_seconds())
    assert (caught.value.status, caught.value.retryable) == (503, True)


async def test_a_machine_that_is_not_enrolled_is_told_so(tmp_path: Path) -> None:
    trust = KeeperTrust(tmp_path / "empty")
    with pytest.raises(StateError, match="not enrolled"):
        await trust.receipts(("x",))
    await trust.close()


async def test_a_keeper_that_dies_over_the_question_or_hangs_is_a_link_error(machine: Machine) -> None:
    dying = KeeperTrust(machine.state, command=("false",), answer_s=10)
    with pytest.raises(LinkError, match="died"):
        await dying.receipts(())
    hanging = KeeperTrust(machine.state, command=(sys.executable, "-c", "import time; time.sleep(60)"), answer_s=0.5)
    with pytest.raises(LinkError, match="did not answer"):
        await hanging.receipts(())
    assert hanging._process is None
    babbling = KeeperTrust(machine.state, command=(sys.executable, "-c", "input(); print('{}')"), answer_s=10)
    with pytest.raises(LinkError, match="nonsense"):
        await babbling.receipts(())
    await babbling.close()


async def test_questions_asked_together_are_answered_one_after_the_other(machine: Machine, trust: KeeperTrust) -> None:
    await trust.judge(machine.field.answer(), NONCE, clock.boot_seconds())
    asked = [trust.receipts((machine.field.receipts(),) * number) for number in range(5)]
    assert [len(bodies) for bodies in await asyncio.gather(*asked)] == [0, 1, 2, 3, 4]


async def test_a_question_that_was_given_up_is_not_answered_to_the_next(machine: Machine, trust: KeeperTrust) -> None:
    task = asyncio.ensure_future(trust.receipts(("junk",) * 2))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await trust.judge(machine.field.answer(), NONCE, clock.boot_seconds())).may_install


def test_the_largest_answer_fits_into_a_line(machine: Machine) -> None:
    # Quotes and backslashes double when text stands in text.
    answer = machine.field.answer(assignment='"' * (limits.ANSWER_BYTES // 2))
    assert len(encode(JudgeAsked(answer=answer, nonce=NONCE, asked_boot_s=1.0))) < LINE_BYTES


def test_the_agents_end_loads_neither_tuf_nor_any_of_what_it_needs() -> None:
    code = (
        "import sys, device.trust.client, device.trust.port, device.clock\n"
        "heavy = {'tuf', 'securesystemslib', 'urllib3', 'cryptography', 'numpy', 'onnxruntime'}\n"
        "sys.exit(', '.join(heavy & {name.split('.')[0] for name in sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


async def test_two_keepers_do_not_write_one_folder_at_a_time(machine: Machine) -> None:
    first, second = machine.trust(), machine.trust("--idle-s", "0.2")
    await second.judge(machine.field.answer(), NONCE, clock.boot_seconds())
    waiting = asyncio.ensure_future(first.judge(machine.field.answer(), NONCE, clock.boot_seconds()))
    # The second one is left idle; once it has ended, the first one gets its turn.
    assert (await asyncio.wait_for(waiting, 20)).may_install
    assert second._process is not None
    assert await asyncio.wait_for(second._process.wait(), 10) == 0
    await first.close()
    await second.close()


async def test_a_kit_is_judged_by_the_keeper_too(machine: Machine, trust: KeeperTrust) -> None:
    machine.field.house.release("1.0.0", 1, b"manifest")
    folder = machine.field.kit()
    verdict = await trust.judge_kit(str(folder))
    assert verdict.kit is not None
    assert verdict.terms is not None
    assert len(verdict.terms.listed) == 1
    database = StateDb(machine.state / "state.db")
    try:
        assert roster.load(database) == verdict.roster
        assert StateFloors(database).read("image/root") == 1
    finally:
        database.close()
    (folder / "kit.json").unlink()
    verdict = await trust.judge_kit(str(folder))
    assert verdict.complaint is not None
    assert verdict.complaint.reason == "metadata"
