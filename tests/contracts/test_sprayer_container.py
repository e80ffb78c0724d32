"""The contract for application writers, on a real engine: the example application in a container that is nobody."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from device.containers.wishes import Places, make_wish
from device.layout import Layout
from device.local.link import LocalLink
from device.update.ports import ReleaseSet
from device.update.sets import Sets
from protocol.artifact import Artifact
from protocol.container import CONFIG_MEDIA_TYPE, LAYER_MEDIA_TYPE, Container, Image, Layer
from protocol.ids import digest
from scripts.demo_apps.runtimes import PYTHON
from scripts.demo_apps.sprayer_images import DESCRIPTION, sprayer
from signing.release_description import read_description
from tests.fakes.engine_bench import Bench, real_bench
from tests.fakes.images import PLATFORM
from tests.fakes.updates import Release, noise

OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(1000, 2))
TRIES = """
import os, socket
link, release = "/headland/link", "/headland/release"
def fails(act, *arguments):
    try:
        act(*arguments)
    except OSError as error:
        print("refused", type(error).__name__, flush=True)
    else:
        print("done", act.__name__, arguments, flush=True)
fails(os.unlink, f"{link}/headland.sock")
fails(os.rename, f"{link}/headland.sock", f"{link}/other")
fails(socket.socket(socket.AF_UNIX).bind, f"{link}/mine")
fails(os.chmod, f"{link}/headland.sock", 0o600)
fails(open, f"{release}/new", "w")
fails(os.unlink, f"{release}/active")
fails(os.symlink, "/etc", f"{release}/active2")
fails(open, f"{release}/active/models/pests", "r+b")
fails(os.chmod, f"{release}/active/models/pests", 0o666)
fails(open, "/anywhere", "w")
print(os.getuid(), os.getgid(), sorted(os.listdir(link)))
"""


class Field:
    """A machine's folders, and the sprayer in an engine beside it."""

    def __init__(self, state: Path, bench: Bench) -> None:
        self.bench = bench
        self.layout = Layout(state)
        self.store = state / "store"
        self.store.mkdir(parents=True, mode=0o700)
        state.chmod(0o700)  # as an agent's: nobody gets through it, but by a mount
        self.image = sprayer("1.0.0", state.parent / "layers")
        self.config = state.parent / "config.json"
        self.config.write_bytes(self.image.config)
        self.taken = Image(
            platform=PLATFORM,
            config=_artifact(self.image.id, len(self.image.config), CONFIG_MEDIA_TYPE),
            layers=tuple(
                Layer(artifact=_artifact(each.sha256, each.length_bytes, LAYER_MEDIA_TYPE))
                for each in self.image.layers
            ),
        )

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[LocalLink]:
        link = LocalLink(self.layout.link)
        await link.prepare()
        self.sets = Sets(self.layout.state, tell=link.board.show)
        task = asyncio.create_task(link.run(lambda: 7))
        try:
            yield link
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def serve(self, release: Release) -> None:
        files = {digest(data): self.store / digest(data) for data in release.artifacts.values()}
        for data in (*release.artifacts.values(), release.manifest_bytes):
            path = self.store / digest(data)
            if not path.exists():
                path.write_bytes(data)
                path.chmod(0o444)
        variants = {model.name: model.variants[0] for model in release.manifest.models}
        shown = ReleaseSet(digest=release.digest, manifest=release.manifest, variants=variants, files=files)
        await asyncio.to_thread(self.sets.show, shown, self.store / release.digest)

    def wish(self, **changes):
        description = self.layout.state.parent / "release.toml"
        description.write_text('product = "p"\nversion = "1.0.0"\ncounter = 1\n' + DESCRIPTION.read_text())
        (described,) = read_description(description)[1].containers
        container = Container(name=described.name, images=(self.taken,), run=described.run())
        places = Places(sets=self.layout.sets, link=self.layout.link, data=self.layout.state / "data")
        return replace(make_wish(container, self.taken, self.image.config, places), **changes)

    async def load(self) -> None:
        files = {self.image.id: self.config} | {each.sha256: each.path for each in self.image.layers}
        await self.bench.engine.load(self.taken, files)

    async def log(self) -> str:
        one = await self.bench.only()
        return (await self.bench.engine.log(one.id, "", 1 << 20)).decode()

    async def until_it_says(self, text: str, times: int = 1) -> str:
        async with asyncio.timeout(60):
            while (said := await self.log()).count(text) < times:  # noqa: ASYNC110  (an engine is asked)
                await asyncio.sleep(0.1)
        return said


def _artifact(sha256, length_bytes, media_type):
    return Artifact(sha256=sha256, length_bytes=length_bytes, media_type=media_type)


@pytest.fixture(params=["docker", "podman"])
async def field(request, tmp_path):
    if not PYTHON.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{PYTHON} is not here")
        pytest.skip("no Python of Debian's")
    bench = real_bench(request.getfixturevalue(f"shared_{request.param}"), tmp_path / "images")
    yield Field(tmp_path / "state", bench)
    await bench.clear()
    shutil.rmtree(tmp_path / "layers")


@pytest.mark.slow
async def test_the_example_sees_models_hears_alarms_and_outlives_agents(field):
    umask = os.umask(0o077)  # as the agent's unit has it
    try:
        await _play(field)
    finally:
        os.umask(umask)


async def _play(field):
    async with field.agent() as link:
        await field.serve(OLD)
        await field.load()
        await field.bench.engine.start(field.wish())
        await field.until_it_says(f"headland-sees {digest(OLD.model)}")
        await field.bench.until(lambda view: all(one.health == "healthy" for one in view.containers))
        await field.serve(NEW)
        await field.until_it_says(f"headland-sees {digest(NEW.model)}")
        row = json.dumps({"model": digest(NEW.model), "alarm": True}).encode()
        link.readers.show([("alarms", row)])
        sprayed = field.layout.state / "data/sprayer/sprayed.json"
        async with asyncio.timeout(20):
            while not sprayed.exists():  # noqa: ASYNC110  (of another process)
                await asyncio.sleep(0.05)
        assert json.loads(sprayed.read_text()) == {digest(NEW.model): 1}
    await field.until_it_says("no results to follow")
    async with field.agent() as link:  # the next one, in the same folder
        await field.serve(OLD)
        await field.until_it_says(f"headland-sees {digest(OLD.model)}", times=2)
        async with asyncio.timeout(20):
            while not len(link.readers):  # noqa: ASYNC110  (as above)
                await asyncio.sleep(0.05)
    one = await field.bench.only()
    await field.bench.engine.stop(one.id, 10.0)
    assert (await field.bench.only()).exit == "exit 0", "it ends on SIGTERM"


@pytest.mark.slow
async def test_a_container_changes_nothing_of_the_machine_through_its_mounts(field):
    async with field.agent():
        await field.serve(OLD)
        await field.load()
        before = sorted(path.name for path in (*field.layout.sets.rglob("*"), *field.layout.link.iterdir()))
        for user in ("65534:65534", "0:0"):
            wish = field.wish(
                command=("/usr/bin/python3", "-I", "-S", "-c", TRIES), user=user, spec=digest(user.encode())
            )
            code, said = await field.bench.run(wish)
            assert code == 0, said
            *tries, last = said.splitlines()
            assert len(tries) == 10
            assert all(line.startswith("refused") for line in tries), said
            assert last == f"{user.replace(':', ' ')} ['headland.sock']"
        assert before == sorted(path.name for path in (*field.layout.sets.rglob("*"), *field.layout.link.iterdir()))
