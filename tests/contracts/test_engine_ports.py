"""Published ports, on a real engine with a bridge: where the wish says, and nowhere else.

The engine stands in a network of its own, and whoever asks goes there.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from device.containers.engine import Wish
from protocol.errors import Reason, Refused
from tests.fakes.engine_bench import Bench, real_bench
from tests.fakes.images import SHELL, BuiltImage
from tests.fakes.private_engine import PrivateEngine

INSIDE, OUTSIDE = 8080, 18080
GATEWAY = "172.17.0.1"
SERVES = (*SHELL, f"trap 'exit 0' TERM; while :; do echo served | nc -l -p {INSIDE}; done & wait")
ASKS = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as line:
        print(line.makefile().readline().strip())
except OSError as error:
    print(type(error).__name__)
"""


class Networked:
    """An engine with a bridge, and one who asks in its network."""

    def __init__(self, engine: PrivateEngine, folder: Path) -> None:
        self.bench: Bench = real_bench(engine, folder)
        self._engine = engine
        self.image: BuiltImage = self.bench.images.app("one")

    def wish(self, address: str, **rest: object) -> Wish:
        ports = ((INSIDE, "tcp", address, OUTSIDE),)
        return self.bench.wish(self.image, SERVES, network="bridge", ports=ports, **rest)

    async def ask(self, address: str) -> str:
        words = ["nsenter", "--net", "--target", str(self._engine.pid), sys.executable, "-c", ASKS, address]
        asked = [*words, str(OUTSIDE)]
        done = await asyncio.to_thread(subprocess.run, asked, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    async def served(self, address: str) -> None:
        """It answers, after a moment: the program in the container has to come up first."""
        for _ in range(100):
            if await self.ask(address) == "served":
                return
            await asyncio.sleep(0.1)
        raise AssertionError(await self.ask(address))


@pytest.fixture
async def networked(new_engine: Callable[..., PrivateEngine], tmp_path: Path) -> AsyncIterator[Networked]:
    made = Networked(new_engine("docker", network=True), tmp_path)
    await made.bench.engine.load(made.image.image, made.image.files)
    yield made
    await made.bench.clear()


async def test_a_port_is_published_at_its_address_alone_and_goes_with_its_container(networked: Networked) -> None:
    engine = networked.bench.engine
    await engine.start(networked.wish("127.0.0.1"))
    await networked.served("127.0.0.1")
    assert await networked.ask(GATEWAY) == "ConnectionRefusedError"
    seen = await networked.bench.only()
    await engine.stop(seen.id, 5.0)
    assert await networked.ask("127.0.0.1") == "ConnectionRefusedError"
    await engine.remove(seen.id)

    await engine.start(networked.wish("0.0.0.0"))
    await networked.served("127.0.0.1")
    await networked.served(GATEWAY)


async def test_a_port_that_another_container_has_speaks_against_the_release_and_nothing_stays(
    networked: Networked,
) -> None:
    engine = networked.bench.engine
    await engine.start(networked.wish("127.0.0.1"))
    with pytest.raises(Refused, match="port is already allocated") as refused:
        await engine.start(networked.wish("127.0.0.1", name="other"))
    assert refused.value.reason is Reason.TRIAL_CONTAINER
    assert [one.name for one in (await engine.view()).containers] == ["app"]
    await networked.served("127.0.0.1")


async def test_a_container_that_is_granted_no_network_has_none_also_where_there_is_one(
    networked: Networked,
) -> None:
    lone = replace(networked.wish("0.0.0.0"), network="none", ports=(), command=(*SHELL, "ip -o link; exit 0"))
    code, said = await networked.bench.run(lone)
    assert (code, [line.split(": ")[1] for line in said.splitlines()]) == (0, ["lo"]), said
