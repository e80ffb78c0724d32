"""What `doctor` says of images: which ones the engine lacks, and whether the machine brings them back itself."""

import pytest

from device.containers.engine import EngineAwayError, EngineView, HeldImage
from device.layout import Layout
from device.repair import release_files
from device.repair.container_images import LOADED, find
from device.repair.fault import Place
from device.repair.release_files import FETCHED
from protocol.container import RunSpec
from protocol.ids import digest
from tests.fakes.container_sets import pack_container
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise
from tests.fakes.whole_machine import tokens

APP = pack_container("app", RunSpec(command=("/app",)), (b"base", b"app"))
ONE = Release("1.0.0", 1, noise(1000, 1), containers=(APP,))
BARE = Release("1.0.0", 1, noise(1000, 1))


async def machine(tmp_path, release=ONE):
    bench = Bench(tmp_path, BlobSource(release))
    async with bench.running():
        await bench.install(release)
    return bench


def look(tmp_path, *images, **more):
    def engine():
        asked.append(1)
        return EngineView(life="1", version="docker 20", folder=tmp_path, images=images)

    asked = []
    place = Place(Layout(tmp_path), tokens(), **{"thorough": True, "engine": engine} | more)
    return [(fault.what, fault.advice) for fault in find(place)], asked


async def test_an_image_that_is_there_is_no_fault(tmp_path):
    await machine(tmp_path)
    held = HeldImage(APP.image.config.sha256, (digest(b"base"), digest(b"app")))
    assert look(tmp_path, held) == ([], [1])


async def test_an_image_that_is_lost_is_loaded_again_or_fetched(tmp_path):
    bench = await machine(tmp_path)
    ((what, advice),), _ = look(tmp_path)
    assert "container app" in what
    assert advice == LOADED
    bench.store.discard(digest(b"base"))
    assert look(tmp_path)[0] == [(what, FETCHED)]
    other = HeldImage(digest(b"other"), (digest(b"base"),))
    assert look(tmp_path, other)[0] == [(what, LOADED)], "the layer is got out of another image"
    bench.store.discard(APP.image.config.sha256)
    assert look(tmp_path, other)[0] == [(what, FETCHED)]


async def test_a_harmed_file_of_the_store_is_called_by_what_it_is(tmp_path):
    bench = await machine(tmp_path)
    for name in (digest(b"app"), APP.image.config.sha256):
        bench.store.path(name).chmod(0o600)
        bench.store.path(name).write_bytes(b"x")
    harmed = {fault.what: fault.advice for fault in release_files.find(Place(Layout(tmp_path), tokens()))}
    layer, config = f"({digest(b'app')[:12]})", f"({APP.image.config.sha256[:12]})"
    assert harmed == {
        f"release 1.0.0: layer 2 of container app {layer} in the store is of another length": release_files.ENGINE_HAS,
        f"release 1.0.0: the image config of container app {config} in the store is of another length": FETCHED,
    }


async def test_an_engine_that_is_away_is_a_fault_where_it_is_needed(tmp_path):
    def away():
        raise EngineAwayError("nobody answers")

    await machine(tmp_path)
    ((what, advice),), _ = look(tmp_path, engine=away)
    assert "nobody answers" in what
    assert advice


@pytest.mark.parametrize("more", [{"thorough": False}, {"engine": None}])
async def test_no_engine_is_asked_at_a_start(tmp_path, more):
    await machine(tmp_path)
    assert look(tmp_path, **more) == ([], [])


async def test_no_engine_is_asked_for_a_release_without_containers(tmp_path):
    await machine(tmp_path, BARE)
    assert look(tmp_path) == ([], [])
    assert look(tmp_path / "absent") == ([], [])
