"""Releases with containers, from a real server to a real agent and its real engine: one set, delta between layers."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress

import pytest

from device.containers.owner import owner_name
from scripts.cast import MODELS, PRODUCT, wait_for
from tests.e2e.device_stage import FieldMachine, Stage
from tests.fakes.engine_bench import real_bench
from tests.fakes.image_files import make_image, write_archive
from tests.fakes.images import PLATFORM, STAYS, base_layer, file, tar
from tests.fakes.private_engine import PrivateEngine
from tests.fakes.updates import noise

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONTAINER = """
[[containers]]
name = "app"
image = "archive:app.tar"
command = {command}
stop_s = 2.0

[containers.health]
command = ["/bin/busybox", "test", "-s", "/app"]
interval_s = 1.0
retries = 2
"""


@pytest.fixture(scope="module")
def container_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("containers"))
    try:
        stage.open()
        yield stage
    finally:
        stage.close()


@pytest.fixture(scope="module")
def machine(container_stage: Stage, shared_docker: PrivateEngine) -> Iterator[FieldMachine]:
    settings = f'\n[containers]\nsocket = "{shared_docker.socket}"\nkeep_layers = "never"\n'
    machine = container_stage.machine("sprayer-1", settings=settings)
    machine.start()
    yield machine
    machine.process.kill()
    root = (machine.state / "identity" / "image.root.json").read_bytes()
    bench = real_bench(shared_docker, container_stage.root / "images", owner_name(root, machine.name))
    asyncio.run(bench.clear())


def release(stage: Stage, version: str, counter: int, app: bytes) -> None:
    """The demo's models, and a program of its own in a container."""
    folder = stage.root / f"release-{version}"
    shutil.copytree(MODELS, folder)
    architecture, _, variant = PLATFORM.removeprefix("linux/").partition("/")
    layers = [base_layer(), tar([file("app", app, 0o755)])]
    write_archive(folder / "app.tar", make_image(layers, architecture=architecture, variant=variant))
    text = (folder / f"{PRODUCT}-1.0.0.toml").read_text()
    for old, new in (
        ('version = "1.0.0"', f'version = "{version}"'),
        ("counter = 1", f"counter = {counter}"),
        ("min_healthy_s = 2.0", "min_healthy_s = 0.5"),
        ("healthy_s = 4.0", "healthy_s = 1.0"),
    ):
        text = text.replace(old, new, 1)
    description = folder / "release.toml"
    description.write_text(text + CONTAINER.format(command=json.dumps(STAYS)))
    stage.managers("release", "build", description)
    stage.sign_and_push()


def kept_layers(machine: FieldMachine) -> list[int]:
    """Lengths of what is a tar in the store, which the agent sweeps while we look."""
    tars = []
    for path in (machine.state / "store" / "sha256").iterdir():
        with suppress(FileNotFoundError):
            data = path.read_bytes()
            if data[257:262] == b"ustar":
                tars.append(len(data))
    return tars


def image_of(machine: FieldMachine) -> str:
    (one,) = machine.status()["engine"]["containers"].values()
    return one["image"] if one["state"] == "running" else ""


def patches_are_made(stage: Stage) -> bool:
    patches = stage.server.get("/status")["patches"]
    return patches["surveyed"] and not patches["waiting"] and patches["ready"] > 0


def test_a_container_changes_by_delta_against_what_only_the_engine_has_and_a_sick_one_goes_back(
    container_stage: Stage, machine: FieldMachine
) -> None:
    stage, program = container_stage, noise(500_000, 7)
    release(stage, "1.0.0", 1, program)
    stage.rollout("first", "1.0.0")
    machine.until_it_runs("1.0.0")
    wait_for("the first container", lambda: image_of(machine))
    first = image_of(machine)
    wait_for("the layers to go from the store", lambda: kept_layers(machine) == [])

    release(stage, "1.0.1", 2, program[:200_000] + b"changed" + program[200_000:])
    wait_for("the patch to be made", lambda: patches_are_made(stage), 120)
    stage.rollout("second", "1.0.1")
    machine.until_it_runs("1.0.1")
    took = machine.status()["update"]["transfer"]
    assert took["delta_bytes"] > 0
    assert took["delta_bytes"] + took.get("full_bytes", 0) < 20_000
    second = wait_for("the second container", lambda: image_of(machine))
    assert second != first

    release(stage, "1.0.2", 3, b"")  # its health check asks for more
    stage.rollout("third", "1.0.2")
    wait_for(
        "the sick one to go back",
        lambda: machine.show(1) or (machine.status()["last_update"] or {}).get("outcome") == "rolled-back",
        120,
        0.3,
    )
    assert machine.status()["last_update"]["reason"] == "trial-container"
    wait_for("the second container again", lambda: image_of(machine) == second)
    assert machine.runs() == "1.0.1"
