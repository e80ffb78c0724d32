"""What becomes of calls, images and containers when the engine dies, freezes, fills its disk or is not there.

None of it says anything about a release: no call ends in `Refused` but one whose fault is the release's.
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from device.containers.engine import EngineAwayError, EngineError
from device.containers.engine_client import EngineClient
from device.containers.engine_docker import DockerEngine
from device.store import NoSpaceError
from tests.fakes.engine_bench import real_bench
from tests.fakes.images import BuiltImage, Images, base_layer, file, tar
from tests.fakes.private_engine import PrivateEngine

NewEngine = Callable[..., PrivateEngine]


def large(images: Images, length_mib: int) -> BuiltImage:
    return images.build([base_layer(), tar([file("data", os.urandom(length_mib << 20))])])


def _fills(folder: Path) -> bool:
    return any(path.is_file() and path.stat().st_size for path in folder.rglob("*"))


async def _wait_for(seen: Callable[[], bool]) -> None:
    def wait() -> None:
        end = time.monotonic() + 30
        while not seen():
            assert time.monotonic() < end
            time.sleep(0.005)

    await asyncio.to_thread(wait)


@pytest.mark.parametrize("end", [PrivateEngine.kill, PrivateEngine.stop], ids=["killed", "stopped"])
@pytest.mark.parametrize("kind", ["docker", "podman"])
async def test_an_engine_that_ends_over_a_load_has_the_image_whole_or_not_at_all(
    kind: str, end: Callable[[PrivateEngine], None], new_engine: NewEngine, tmp_path: Path
) -> None:
    engine = new_engine(kind)
    bench = real_bench(engine, tmp_path)
    small, big = bench.images.app("one"), large(bench.images, 24)
    await bench.engine.load(small.image, small.files)
    unpacking = engine.data / "tmp" if kind == "docker" else engine.folder / "tmp"
    load = asyncio.create_task(bench.engine.load(big.image, big.files))
    await _wait_for(lambda: _fills(unpacking))
    await asyncio.to_thread(end, engine)
    (outcome,) = await asyncio.gather(load, return_exceptions=True)
    # What is stopped in good order may still bring the load to its end, or give it up: never is it the release's fault.
    stopped = (type(None), EngineAwayError, EngineError)
    assert isinstance(outcome, stopped if end is PrivateEngine.stop else EngineAwayError)
    with pytest.raises(EngineAwayError):
        await bench.engine.view()
    await asyncio.to_thread(engine.start)
    held = {image.image: image.layers for image in (await bench.engine.view()).images}
    assert held.pop(small.digest) == small.layers
    assert held in ({}, {big.digest: big.layers})
    await bench.engine.load(big.image, big.files)
    assert len((await bench.engine.view()).images) == 2
    await bench.engine.close()


@pytest.mark.parametrize("moment", ["create", "start", "started"])
async def test_an_engine_killed_over_a_start_runs_the_container_once_when_it_is_asked_again(
    moment: str, new_engine: NewEngine, tmp_path: Path
) -> None:
    engine = new_engine("docker")
    bench = real_bench(engine, tmp_path)
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    wish = bench.wish(image)
    task = asyncio.create_task(bench.engine.start(wish))
    made = engine.data / "containers"
    if moment == "create":
        await _wait_for(lambda: any(made.iterdir()))
    elif moment == "start":
        await _wait_for(lambda: any((engine.folder / "exec").glob("**/moby/*")))
    else:
        await task
    engine.kill()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    assert outcome is None or isinstance(outcome, EngineAwayError)
    await asyncio.to_thread(engine.start)
    before = await bench.engine.view()
    assert all(one.state != "running" for one in before.containers)  # nothing is started by the engine itself
    await bench.engine.start(wish)
    (one,) = (await bench.engine.view()).containers
    assert (one.state, one.spec, one.image) == ("running", wish.spec, image.digest)
    await bench.clear()


async def test_containers_that_end_with_their_engine_are_never_seen_ended_in_the_same_life(
    new_engine: NewEngine, tmp_path: Path
) -> None:
    """Neither while it stops in good order, nor after it was killed: that they ended says nothing about them."""
    engine = new_engine("docker")
    bench = real_bench(engine, tmp_path)
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    wish = bench.wish(image)
    for end in (engine.stop, engine.kill):
        await bench.engine.start(wish)
        life = (await bench.engine.view()).life
        ending = asyncio.create_task(asyncio.to_thread(end))
        while not ending.done():
            try:
                view = await bench.engine.view()
            except EngineAwayError:
                await asyncio.sleep(0.01)
            else:
                assert (view.life, [one.state for one in view.containers]) == (life, ["running"])
        await ending
        await asyncio.to_thread(engine.start)
        view = await bench.engine.view()
        assert view.life != life
        assert [one.state for one in view.containers] == ["exited"]
    await bench.clear()


async def test_containers_may_outlive_their_engine_and_are_the_same_afterwards(
    new_engine: NewEngine, tmp_path: Path
) -> None:
    engine = new_engine("docker", live_restore=True)
    bench = real_bench(engine, tmp_path)
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    await bench.engine.start(bench.wish(image))
    before = await bench.engine.view()
    engine.kill()
    await asyncio.to_thread(engine.start)
    after = await bench.engine.view()
    assert after.life != before.life
    assert after.containers == before.containers
    await bench.clear()


async def test_podmans_containers_outlive_its_service_and_it_counts_as_one_life(
    new_engine: NewEngine, tmp_path: Path
) -> None:
    engine = new_engine("podman")
    bench = real_bench(engine, tmp_path)
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    await bench.engine.start(bench.wish(image))
    before = await bench.engine.view()
    engine.kill()
    with pytest.raises(EngineAwayError):
        await bench.engine.view()
    await asyncio.to_thread(engine.start)
    assert await bench.engine.view() == before
    await bench.engine.start(bench.wish(image))
    assert await bench.engine.view() == before
    await bench.clear()


def _entries(podman: PrivateEngine, what: str, without: Sequence[str] = ()) -> list[dict[str, str]]:
    """What Podman's store has of these, once these were taken away."""
    path = podman.data / f"overlay-{what}" / f"{what}.json"
    found = [one for one in json.loads(path.read_text()) if one["id"] not in without]
    path.write_text(json.dumps(found))
    return found


@pytest.mark.parametrize("lost", ["containers", "layers"])
async def test_a_podman_that_was_cut_in_a_removal_shows_the_others_and_starts_the_half_removed_one(
    lost: str, new_engine: NewEngine, tmp_path: Path
) -> None:
    engine = new_engine("podman")
    bench, stranger = real_bench(engine, tmp_path), real_bench(engine, tmp_path / "stranger")
    image = bench.images.app("one")
    wishes = [bench.wish(image, name=name) for name in ("cut", "whole")]
    await bench.engine.load(image.image, image.files)
    for wish in wishes:
        await bench.engine.start(wish)
    await stranger.engine.load(image.image, image.files)
    await stranger.engine.start(wishes[0])
    cut = [one.id for one in (await bench.engine.view()).containers if one.name == "cut"] + [(await stranger.only()).id]
    for id in cut:
        await bench.engine.stop(id, 0.0)
    engine.kill()
    # What it has done first of a removal: the files are gone.
    layers = [one["layer"] for one in _entries(engine, "containers") if one["id"] in cut]
    _entries(engine, lost, without=[*cut, *layers])
    await asyncio.to_thread(engine.start)
    assert [one.name for one in (await bench.engine.view()).containers] == ["whole"]
    await bench.engine.start(wishes[0])
    assert {one.name: one.state for one in (await bench.engine.view()).containers} == dict.fromkeys(
        ("cut", "whole"), "running"
    )
    await stranger.clear()
    await bench.clear()


@pytest.mark.parametrize(("kind", "length_mib"), [("docker", 40), ("podman", 60)])  # Docker unpacks beside the archive
async def test_a_full_disk_of_the_engine_leaves_what_runs_and_what_it_holds(
    kind: str, length_mib: int, new_engine: NewEngine, tmp_path: Path
) -> None:
    engine = new_engine(kind, size_mib=48)
    bench = real_bench(engine, tmp_path)
    small, big = bench.images.app("one"), large(bench.images, length_mib)
    await bench.engine.load(small.image, small.files)
    await bench.engine.start(bench.wish(small))
    before = await bench.engine.view()
    free = os.statvfs(engine.data).f_bavail
    with pytest.raises(NoSpaceError):
        await bench.engine.load(big.image, big.files)
    assert await bench.engine.view() == before
    assert os.statvfs(engine.data).f_bavail >= free - 16  # nothing of it stays
    other = bench.images.app("two")
    await bench.engine.load(other.image, other.files)
    await bench.clear()


def test_a_frozen_engine_is_away_and_back_when_it_thaws(new_engine: NewEngine) -> None:
    engine = new_engine("docker")
    with contextlib.closing(DockerEngine(engine.socket, "0" * 16, answer_s=0.5)) as adapter:
        life = adapter.view().life
        engine.freeze()
        try:
            with pytest.raises(EngineAwayError):
                adapter.view()
        finally:
            engine.thaw()
        assert adapter.view().life == life


async def test_no_child_is_started_for_an_engine_that_is_not_there(tmp_path: Path) -> None:
    client = EngineClient(lambda: tmp_path / "engine.sock", "0" * 16, command=("/bin/false",))
    with pytest.raises(EngineAwayError, match="there is no engine"):
        await client.view()
    await client.close()


async def test_a_socket_that_nobody_listens_on_is_an_engine_that_is_away(new_engine: NewEngine, tmp_path: Path) -> None:
    engine = new_engine("docker")
    bench = real_bench(engine, tmp_path)
    await bench.engine.view()
    engine.kill()
    assert engine.socket.exists()
    with pytest.raises(EngineAwayError):
        await bench.engine.view()
    await bench.engine.close()


async def test_a_load_does_not_hold_up_a_look(shared_docker: PrivateEngine, tmp_path: Path) -> None:
    bench = real_bench(shared_docker, tmp_path / "images")
    image = bench.images.app("one")
    slow = tmp_path / "slow"
    os.mkfifo(slow)  # whoever reads it waits for its writer
    load = asyncio.create_task(bench.engine.load(image.image, {**image.files, image.layers[1]: slow}))
    writer = await asyncio.to_thread(slow.open, "wb")  # the load is under way
    assert (await bench.engine.view()).images == ()
    assert not load.done()
    await asyncio.to_thread(writer.write, image.files[image.layers[1]].read_bytes())
    await asyncio.to_thread(writer.close)
    await load
    assert [held.image for held in (await bench.engine.view()).images] == [image.digest]
    await bench.clear()


async def test_a_load_that_is_cancelled_is_over_and_other_calls_go_on(
    shared_docker: PrivateEngine, tmp_path: Path
) -> None:
    bench = real_bench(shared_docker, tmp_path / "images")
    image = bench.images.app("one")
    slow = tmp_path / "slow"
    os.mkfifo(slow)
    load = asyncio.create_task(bench.engine.load(image.image, {**image.files, image.layers[1]: slow}))
    writer = await asyncio.to_thread(slow.open, "wb")
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    with pytest.raises(BrokenPipeError):  # nobody reads it any more
        await asyncio.to_thread(os.write, writer.fileno(), b"x")
    with contextlib.suppress(BrokenPipeError):
        writer.close()
    assert (await bench.engine.view()).images == ()
    await bench.clear()
