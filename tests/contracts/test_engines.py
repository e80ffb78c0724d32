"""One contract, three engines: `device.containers.engine.Engine` holds for the one in memory, for Docker and for
Podman, the real ones by way of the engine child."""

import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import docker
import msgspec
import pytest

from device.containers.engine import EngineError, MissingLayersError
from protocol.errors import Reason, Refused, StateError
from protocol.ids import digest
from tests.fakes.engine_bench import ENDS, NO_PROGRAM, SICK, WELL, Bench, fake_bench, real_bench
from tests.fakes.images import SHELL, base_layer, file, tar
from tests.fakes.private_engine import PrivateEngine


@pytest.fixture(params=["fake", "docker", "podman"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "fake":
        made = fake_bench(tmp_path / "images")
    else:
        made = real_bench(request.getfixturevalue(f"shared_{request.param}"), tmp_path / "images")
    yield made
    await made.clear()


async def test_an_engine_that_was_asked_for_nothing_holds_nothing_of_ours(bench: Bench) -> None:
    view = await bench.engine.view()
    assert (view.images, view.containers) == ((), ())
    assert view.version.startswith(bench.kind)
    assert view.life == (await bench.engine.view()).life


async def test_a_loaded_image_is_held_by_its_config_digest_with_its_layers(bench: Bench) -> None:
    image = bench.images.app("one")
    for _ in range(2):
        await bench.engine.load(image.image, image.files)
        (held,) = (await bench.engine.view()).images
        assert (held.image, held.layers) == (image.digest, image.layers)


async def test_layers_that_the_engine_holds_need_not_be_handed_over(bench: Bench) -> None:
    old, new = bench.images.app("old"), bench.images.app("new")
    await bench.engine.load(old.image, old.files)
    files = {name: path for name, path in new.files.items() if name != old.layers[0]}
    if bench.kind == "podman":  # it wants all of them, and says which
        with pytest.raises(MissingLayersError) as missing:
            await bench.engine.load(new.image, files)
        assert missing.value.layers == (old.layers[0],)
        files = dict(new.files)
    await bench.engine.load(new.image, files)
    assert {held.image: held.layers for held in (await bench.engine.view()).images}[new.digest] == new.layers


async def test_layers_that_nobody_has_are_named(bench: Bench) -> None:
    image = bench.images.app("one")
    with pytest.raises(MissingLayersError) as missing:
        await bench.engine.load(image.image, {image.digest: image.files[image.digest]})
    assert missing.value.layers == image.layers
    assert (await bench.engine.view()).images == ()


async def test_an_image_whose_layers_are_not_its_configs_is_refused_and_not_there(bench: Bench) -> None:
    good, other = bench.images.app("one"), bench.images.app("two")
    lying = msgspec.structs.replace(good.image, layers=other.image.layers)
    with pytest.raises(Refused) as refused:
        await bench.engine.load(lying, {**good.files, **other.files})
    assert refused.value.reason is Reason.IMAGE
    assert (await bench.engine.view()).images == ()


async def test_an_exported_layer_is_the_one_that_went_in_byte_for_byte(bench: Bench, tmp_path: Path) -> None:
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    top = image.layers[1]
    length = image.image.layers[1].artifact.length_bytes
    await bench.engine.export(image.digest, {top: tmp_path / "top"}, {top: length})
    assert digest((tmp_path / "top").read_bytes()) == top


async def test_layers_of_one_length_are_told_apart(bench: Bench, tmp_path: Path) -> None:
    layers = [base_layer(), tar([file("app", b"a" * 100)]), tar([file("app", b"b" * 100)])]
    image = bench.images.build(layers)
    await bench.engine.load(image.image, image.files)
    lengths = {one.artifact.sha256: one.artifact.length_bytes for one in image.image.layers[1:]}
    for turn, names in enumerate((list(lengths), list(reversed(lengths)))):  # whichever the engine gives first
        places = {name: tmp_path / f"{turn}-{name}" for name in names}
        await bench.engine.export(image.digest, places, lengths)
        assert all(hashlib.sha256(place.read_bytes()).hexdigest() == name for name, place in places.items())


async def test_what_the_engine_does_not_hold_cannot_be_exported(bench: Bench, tmp_path: Path) -> None:
    image, other = bench.images.app("one"), bench.images.app("two")
    name = image.layers[1]
    with pytest.raises(StateError):
        await bench.engine.export(image.digest, {name: tmp_path / "layer"}, {name: 10})
    await bench.engine.load(image.image, image.files)
    strange = other.layers[1]
    with pytest.raises(StateError):
        await bench.engine.export(image.digest, {strange: tmp_path / "layer"}, {strange: 10})
    assert not (tmp_path / "layer").exists()


async def test_a_container_that_was_started_runs_and_is_started_once(bench: Bench) -> None:
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    wish = bench.wish(image)
    await bench.engine.start(wish)
    first = await bench.only()
    await bench.engine.start(wish)
    again = await bench.only()
    assert (first.name, first.spec, first.image) == (wish.name, wish.spec, wish.image)
    assert (first.state, first.health, first.exit) == ("running", "none", "")
    assert first.started
    assert first.stop_s == wish.stop_s
    assert (again.id, again.started) == (first.id, first.started)


async def test_a_stopped_container_starts_again_and_a_removed_one_is_gone(bench: Bench) -> None:
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    wish = bench.wish(image)
    await bench.engine.start(wish)
    first = await bench.only()
    with pytest.raises(EngineError):
        await bench.engine.remove(first.id)  # it runs
    await bench.engine.stop(first.id, 5.0)
    await bench.engine.stop(first.id, 5.0)
    assert (await bench.only()).state == "exited"
    await bench.engine.start(wish)
    second = await bench.only()
    assert (second.state, second.spec) == ("running", wish.spec)
    assert second.started != first.started
    await bench.engine.stop(second.id, 5.0)
    await bench.engine.remove(second.id)
    assert (await bench.engine.view()).containers == ()
    await bench.engine.stop(second.id, 5.0)
    await bench.engine.remove(second.id)


async def test_how_a_container_ended_is_told_and_what_it_said(bench: Bench) -> None:
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    await bench.engine.start(bench.wish(image, ENDS))
    view = await bench.until(lambda view: view.containers[0].state == "exited")
    (ended,) = view.containers
    assert ended.exit == "exit 3"
    assert await bench.engine.log(ended.id, "", 1000) == b"one\ntwo\n"
    assert await bench.engine.log(ended.id, ended.started, 4) == b"two\n"
    assert await bench.engine.log(ended.id, "2099-01-01T00:00:00.000000001Z", 1000) == b""


async def test_a_line_that_is_written_in_pieces_is_one_line_of_the_log(bench: Bench) -> None:
    if bench.kind == "fake":
        return  # nobody writes there
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    wish = bench.wish(image, (*SHELL, "for it in one two three; do printf $it; sleep 0.1; done; echo; printf end"))
    assert await bench.run(wish) == (0, "onetwothree\nend")


async def test_a_program_that_is_not_there_is_evidence_and_leaves_nothing(bench: Bench) -> None:
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    with pytest.raises(Refused) as refused:
        await bench.engine.start(bench.wish(image, NO_PROGRAM))
    assert refused.value.reason is Reason.TRIAL_CONTAINER
    assert (await bench.engine.view()).containers == ()


async def test_an_image_that_is_not_there_is_no_evidence(bench: Bench) -> None:
    with pytest.raises(EngineError):
        await bench.engine.start(bench.wish(bench.images.app("one")))


async def test_the_old_and_the_new_version_of_a_container_run_side_by_side(bench: Bench) -> None:
    old, new = bench.images.app("old"), bench.images.app("new")
    for image in (old, new):
        await bench.engine.load(image.image, image.files)
        await bench.engine.start(bench.wish(image))
    seen = (await bench.engine.view()).containers
    assert {(one.name, one.image, one.state) for one in seen} == {
        ("app", old.digest, "running"),
        ("app", new.digest, "running"),
    }


async def test_a_health_check_says_well_or_sick_and_why(bench: Bench) -> None:
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    beat = {"health_interval_s": 1.0, "health_timeout_s": 5.0, "health_retries": 1}
    await bench.engine.start(bench.wish(image, name="well", health_command=WELL, **beat))
    await bench.engine.start(bench.wish(image, name="sick", health_command=SICK, **beat))
    view = await bench.until(
        lambda view: {one.name: one.health for one in view.containers} == {"well": "healthy", "sick": "unhealthy"}
    )
    details = {one.name: one.health_detail for one in view.containers}
    assert details["well"] == ""
    assert details["sick"]


async def test_images_that_are_dropped_are_gone_and_those_that_are_kept_stay(bench: Bench) -> None:
    old, new = bench.images.app("old"), bench.images.app("new")
    for image in (old, new):
        await bench.engine.load(image.image, image.files)
    for _ in range(2):
        await bench.engine.drop_images([new.digest])
        assert [held.image for held in (await bench.engine.view()).images] == [new.digest]
    await bench.engine.start(bench.wish(new))
    with pytest.raises(EngineError):
        await bench.engine.start(bench.wish(old))


async def test_an_image_of_which_there_is_a_container_stays_until_that_is_gone(bench: Bench) -> None:
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    await bench.engine.start(bench.wish(image))
    await bench.engine.drop_images(())
    seen = await bench.only()
    assert seen.state == "running"
    await bench.engine.stop(seen.id, 5.0)
    await bench.engine.drop_images(())
    assert [held.image for held in (await bench.engine.view()).images] == [image.digest]
    await bench.engine.remove(seen.id)
    await bench.engine.drop_images(())
    assert (await bench.engine.view()).images == ()


async def test_an_image_may_have_one_layer_twice(bench: Bench, tmp_path: Path) -> None:
    same = tar([file("app", b"x" * 3000)])
    image = bench.images.build([base_layer(), same, tar([file("other")]), same])
    await bench.engine.load(image.image, image.files)
    (held,) = (await bench.engine.view()).images
    assert held.layers == image.layers
    length = image.image.layers[1].artifact.length_bytes
    await bench.engine.export(image.digest, {image.layers[1]: tmp_path / "layer"}, {image.layers[1]: length})
    assert (tmp_path / "layer").read_bytes() == same
    await bench.engine.start(bench.wish(image))


async def test_an_engine_without_a_bridge_starts_no_container_that_needs_one_and_that_is_no_evidence(
    shared_docker: PrivateEngine, tmp_path: Path
) -> None:
    bench = real_bench(shared_docker, tmp_path / "images")
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    with pytest.raises(EngineError, match="network bridge not found"):
        await bench.engine.start(bench.wish(image, network="bridge", ports=((80, "tcp", "127.0.0.1", 18080),)))
    assert (await bench.engine.view()).containers == ()
    await bench.clear()


async def test_a_container_that_somebody_paused_can_be_stopped_or_made_anew(
    shared_docker: PrivateEngine, tmp_path: Path
) -> None:
    bench = real_bench(shared_docker, tmp_path / "images")
    image = bench.images.app("one")
    await bench.engine.load(image.image, image.files)
    with contextlib.closing(docker.APIClient(f"unix://{shared_docker.socket}", version="auto")) as api:
        await bench.engine.start(bench.wish(image))
        api.pause((await bench.only()).id)
        assert (await bench.only()).state == "paused"
        await bench.engine.start(bench.wish(image))
        assert (await bench.only()).state == "running"
        seen = await bench.only()
        api.pause(seen.id)
    await bench.engine.stop(seen.id, 1.0)
    await bench.engine.remove(seen.id)
    assert (await bench.engine.view()).containers == ()
    await bench.clear()
