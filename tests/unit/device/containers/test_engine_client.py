"""The child may die at any moment, hang, or speak nonsense: whoever asked gets an answer or an engine that is away."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from device.containers.engine import EngineAwayError, EngineError
from device.containers.engine_client import EngineClient
from signing.child import python_command
from tests.fakes.engine_front import EngineFront, Heard, front, scripted

OWNER = "0123456789abcdef"
CHILD = python_command("device.containers.engine_child")
EMPTY = {("GET", "/containers/json"): [], ("GET", "/images/json"): []}


@pytest.fixture
def engine() -> Iterator[EngineFront]:
    with front(scripted(EMPTY)) as made:
        yield made


def _says(tmp_path: Path, program: str) -> tuple[str, ...]:
    path = tmp_path / "child.py"
    path.write_text(program)
    return (sys.executable, str(path))


async def test_a_child_that_was_killed_over_a_question_is_replaced(engine: EngineFront) -> None:
    client = EngineClient(lambda: engine.socket, OWNER)
    await client.view()
    plain, killed = engine.answer, []

    def answer(heard: Heard) -> object:
        if heard.path.startswith("/containers/json") and not killed:
            assert client._child is not None
            killed.append(client._child._process.pid)
            os.kill(killed[0], 9)
        return plain(heard)

    engine.answer = answer  # type: ignore[assignment]  # the same, with an effect
    view = await client.view()
    assert view.version == "docker 20.10.0"
    assert killed
    assert client._child is not None
    assert client._child._process.pid not in killed
    await client.close()


@pytest.mark.parametrize("said", [{"Id": "\ud800"}, (500, {"message": "\ud800"}), b"[" * 5000])
async def test_what_cannot_be_passed_on_is_an_answer_without_sense(said: object, engine: EngineFront) -> None:
    facts = {"Image": "sha256:x", "Config": {}, "State": {"Status": "running"}}
    table = {
        ("GET", "/containers/json"): [{"Id": "e" * 64}],
        ("GET", "/containers/e"): {**facts, **said} if isinstance(said, dict) else said,
    }
    engine.answer = scripted(EMPTY | table)
    client = EngineClient(lambda: engine.socket, OWNER, word_s=20.0)
    for _ in range(2):
        with pytest.raises(EngineError):
            await client.view()
    await client.close()


async def test_a_child_that_ends_over_every_question_is_an_engine_that_is_away(
    engine: EngineFront, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    command = _says(tmp_path, f"import sys; open({str(count)!r}, 'a').write('x'); sys.stdin.readline()")
    client = EngineClient(lambda: engine.socket, OWNER, command=command)
    with pytest.raises(EngineAwayError, match="died over the question"):
        await client.view()
    assert count.read_text() == "xxx"
    await client.close()


@pytest.mark.parametrize(
    "line", ["nonsense", '{"number": 1}', '{"number": 1, "said": {"said": "other"}}', "x" * 100_000]
)
async def test_a_child_that_speaks_nonsense_is_as_good_as_ended(line: str, engine: EngineFront, tmp_path: Path) -> None:
    command = _says(tmp_path, f"import sys, time; sys.stdin.readline(); print({line!r}, flush=True); time.sleep(60)")
    client = EngineClient(lambda: engine.socket, OWNER, command=command)
    with pytest.raises(EngineAwayError):
        await client.view()
    await client.close()


async def test_a_child_that_hangs_is_ended_and_the_next_call_has_another(engine: EngineFront, tmp_path: Path) -> None:
    command = _says(tmp_path, "import time; time.sleep(60)")
    client = EngineClient(lambda: engine.socket, OWNER, command=command, word_s=0.2)
    for _ in range(2):
        with pytest.raises(EngineAwayError, match="did not answer"):
            await client.view()
    assert client._child is not None
    assert client._child.has_ended
    await client.close()


async def test_an_idle_child_goes_and_comes_back_with_the_next_question(engine: EngineFront) -> None:
    client = EngineClient(lambda: engine.socket, OWNER, command=(*CHILD, "--idle-s", "0.2"))
    await client.view()
    assert client._child is not None
    first = client._child._process
    assert await asyncio.wait_for(first.wait(), 20) == 0
    await client.view()
    assert client._child._process is not first
    await client.close()


async def test_what_was_asked_for_at_once_is_answered_each_with_its_own(engine: EngineFront) -> None:
    client = EngineClient(lambda: engine.socket, OWNER)
    views, logs = await asyncio.gather(
        asyncio.gather(*(client.view() for _ in range(10))),
        asyncio.gather(*(client.log("a" * 64, "", 10) for _ in range(10))),
    )
    assert {view.version for view in views} == {"docker 20.10.0"}
    assert set(logs) == {b""}
    await client.close()


async def test_closing_ends_the_child_and_a_later_call_starts_one(engine: EngineFront) -> None:
    client = EngineClient(lambda: engine.socket, OWNER)
    await client.view()
    assert client._child is not None
    process = client._child._process
    await client.close()
    assert process.returncode is not None
    await client.close()
    await client.view()
    await client.close()


async def test_errors_arrive_as_what_they_were(engine: EngineFront) -> None:
    client = EngineClient(lambda: engine.socket, OWNER)
    runs = {("GET", "/containers/aaa"): {"State": {}}, ("DELETE", "/containers/"): (409, {"message": "it runs"})}
    engine.answer = scripted({**EMPTY, **runs})
    with pytest.raises(EngineError, match="it runs"):
        await client.remove("a" * 64)
    await client.close()


async def test_a_persons_settings_of_docker_do_not_count(
    engine: EngineFront, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text('{"proxies": 5}')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / ".docker"))
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    monkeypatch.setenv("ALL_PROXY", "http://192.0.2.1:3128")
    client = EngineClient(lambda: engine.socket, OWNER)
    assert (await client.view()).version == "docker 20.10.0"
    await client.close()


def test_a_child_whose_agent_is_gone_ends_whatever_is_under_way(engine: EngineFront) -> None:
    hang = {("GET", "/version"): lambda _: time.sleep(5)}
    engine.answer = scripted(hang)
    command = [*CHILD, "--socket", str(engine.socket), "--owner", OWNER]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdin is not None
        child.stdin.write(b'{"number":1,"ask":{"ask":"view"}}\n')
        child.stdin.flush()
        while not engine.heard:
            assert child.poll() is None
            time.sleep(0.01)
        child.stdin.close()
        assert child.wait(timeout=20) == 0
