"""A whole set on real engines: models in real processes and containers change together, whoever is killed over it."""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from device.containers.engine_client import EngineClient
from device.containers.keeper import ContainerKeeper
from device.containers.whole import WholeSet
from device.containers.wishes import Places, give_data, make_wish
from device.inference.frames import Frame
from device.inference.workers import ProcessWorkers
from device.update.ports import ReleaseSet
from device.update.world import UpdateSettings
from protocol.container import Container, HealthCheck, Restart, RunSpec
from protocol.errors import Reason, Refused
from protocol.ids import Digest, digest
from protocol.release import TrialRules
from tests.fakes import tiny_models as tiny
from tests.fakes.container_sets import Packed, make_container_release, with_containers
from tests.fakes.images import SHELL, Images
from tests.fakes.private_engine import PrivateEngine
from tests.fakes.real_sets import RealField
from tests.fakes.release_sets import ModelSpec, grey_png, make_release
from tests.fakes.whole_sets import FakeStock, FakeTrace, specs_of
from tests.fakes.whole_updates import Updates

WAITS = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
CHECK = HealthCheck(command=(*SHELL, "test ! -e /app/sick"), interval_s=1.0, timeout_s=2.0, retries=2)


def container(images: Images, name: str, text: str, run: RunSpec) -> Packed:
    """A container whose image differs from another one's by a file."""
    built = images.app(text)
    files = {one: path.read_bytes() for one, path in built.files.items()}
    return Packed(Container(name=name, images=(built.image,), run=run), files)


def gateway(model: Digest, *, sick: bool = False) -> RunSpec:
    """It hands over, tells its health, and says which model it sees."""
    return RunSpec(
        command=(*SHELL, f"echo headland-sees {model}; {WAITS}"),
        strategy="start-then-stop",
        health=CHECK
        if not sick
        else HealthCheck(command=(*SHELL, "echo it is sick; false"), interval_s=1.0, retries=1),
        sees_model=True,
        sees_within_s=20.0,
        stop_s=2.0,
    )


DRIVER = RunSpec(command=(*SHELL, WAITS), stop_s=2.0)


class Real:
    """One machine with a real engine and real model workers."""

    def __init__(self, engine: PrivateEngine, folder: Path) -> None:
        self.folder = folder
        self.images = Images(folder / "images")
        self.client = EngineClient(lambda: engine.socket, secrets.token_hex(8))
        self.files: dict[Digest, Path] = {}
        places = Places(folder / "sets", folder / "link", folder / "data")
        (folder / "sets").mkdir(parents=True)
        (folder / "link").mkdir()
        self.whole = WholeSet(
            ProcessWorkers(clock=time.monotonic),
            ContainerKeeper(
                self.client,
                FakeStock(self.client, self.files),
                FakeTrace(),
                lambda one: make_wish(
                    one.container, one.image, self.files[one.image.config.sha256].read_bytes(), places
                ),
                clock=time.monotonic,
                give_data=lambda one: give_data(one.container, places),
            ),
        )

    def release(self, version: str, factor: float, text: str, *, sick: bool = False) -> ReleaseSet:
        model = tiny.brightness(factor)
        bare = make_release(self.folder / version, ModelSpec(model, factor=factor), version=version)
        packed = (
            container(self.images, "gateway", text, gateway(digest(model), sick=sick)),
            container(self.images, "driver", text, DRIVER),
        )
        release = with_containers(bare, self.folder / version, *packed)
        self.files |= release.files
        return release

    async def running(self) -> dict[str, tuple[str, Digest]]:
        found = await self.client.view()
        return {one.name: (one.id, one.spec) for one in found.containers if one.state == "running"}

    async def settled(self) -> None:
        async with asyncio.timeout(60):
            while True:
                if self.whole.health().serving:
                    return
                await asyncio.sleep(0.1)

    async def label(self) -> Digest | None:
        return (await self.whole.infer(Frame("a.png", "image/png", grey_png(51), time.monotonic()))).manifest

    async def close(self) -> None:
        await self.whole.close()
        for one in (await self.client.view()).containers:
            await self.client.stop(one.id, 0.0)
            await self.client.remove(one.id)
        await self.client.drop_images(())
        await self.client.close()


@pytest.fixture(params=["docker", "podman"])
async def real(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Real]:
    made = Real(request.getfixturevalue(f"shared_{request.param}"), tmp_path)
    yield made
    await made.close()


async def test_a_model_and_its_containers_change_together_and_go_back_together(real: Real) -> None:
    old, new = real.release("1.0.0", 1.0, "one"), real.release("2.0.0", 0.5, "two")
    broken = real.release("3.0.0", 0.25, "three", sick=True)
    await real.whole.converge(old)
    await real.settled()
    assert await real.label() == old.digest

    await real.whole.converge(new, trial=True)
    await real.settled()
    assert await real.label() == new.digest
    served = await real.running()
    assert {name: [spec] for name, (_, spec) in served.items()} == specs_of(new)
    assert real.whole.health().faults == ()

    with pytest.raises(Refused, match="gateway is unhealthy: it is sick") as refused:
        await real.whole.converge(broken, trial=True)
    assert refused.value.reason is Reason.TRIAL_CONTAINER
    await real.settled()
    assert await real.label() == new.digest
    back = await real.running()
    assert back["gateway"] == served["gateway"], "it never stopped"
    assert {name: [spec] for name, (_, spec) in back.items()} == specs_of(new)
    assert len((await real.client.view()).containers) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(5))
async def test_of_fifty_updates_in_which_engine_and_agent_are_killed_each_ends_in_one_of_two_complete_sets(
    seed: int, new_engine: Callable[..., PrivateEngine], tmp_path: Path
) -> None:
    """Ten of them; at any moment, as a real engine has more of them than calls."""
    chance = random.Random(seed)
    images = Images(tmp_path / "images")
    rules = TrialRules(healthy_s=0.4, min_healthy_s=0.1, max_failed_starts=3, min_inferences=10, max_retries=2)
    quick = Restart(first_s=0.1, in_trial=1)
    handing = RunSpec(command=(*SHELL, WAITS), strategy="start-then-stop", stop_s=2.0, restart=quick)
    single = RunSpec(command=(*SHELL, WAITS), stop_s=2.0, restart=quick)
    releases = {
        version: make_container_release(
            tmp_path / version,
            container(images, "gateway", version, handing),
            container(images, "driver", driver, single),
            version=version,
            trial=rules,
        )
        for version, driver in (("1.0.0", "a"), ("2.0.0", "b"), ("3.0.0", "b"))
    }
    field = RealField(tmp_path / "state", releases, new_engine("docker"))
    updates = Updates(field, "1.0.0", UpdateSettings(watch_s=0.2), back_s=0.2)
    await updates.serve()
    for _ in range(10):
        before = updates.names[updates.record.active or ""]
        new = chance.choice([name for name in releases if name != before])
        async with field.killing(chance):
            assert await updates.update(new) in (before, new)
    await field.end()
