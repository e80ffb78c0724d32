"""Every test of the server runs with its event loop watched: a blocking call in it fails the test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from tests.fakes.patch_bench import PatchBench
from tests.fakes.server_house import House, running


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with blockbuster_ctx(["server"]):
        yield


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with running(tmp_path) as house:
        await house.publish()
        yield house


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[PatchBench]:
    bench = PatchBench(tmp_path)
    yield bench
    bench.catalog.close()
