"""The stock on real engines: what one of them gives back is what went in, and is enough to go on from."""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from device.containers.owner import Owner
from device.containers.stock import Stock
from device.state_db import StateDb
from device.store import NoSpaceError, Store
from protocol.errors import StateError
from protocol.limits import MIB
from tests.fakes.engine_bench import Bench, fake_bench, real_bench
from tests.fakes.images import BuiltImage, base_layer, file, tar
from tests.fakes.private_engine import PrivateEngine


@pytest.fixture(params=["fake", "docker", "podman"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "fake":
        made = fake_bench(tmp_path / "images")
    else:
        made = real_bench(request.getfixturevalue(f"shared_{request.param}"), tmp_path / "images")
    yield made
    await made.clear()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", keep_free_bytes=0)


@pytest.fixture
def stock(bench: Bench, store: Store, tmp_path: Path) -> Stock:
    return Stock(bench.engine, store, Owner("someone", StateDb(tmp_path / "state.db")), keep="never")


def keep(store: Store, image: BuiltImage) -> None:
    for path in image.files.values():
        store.put(path.read_bytes())


def here(store: Store, image: BuiltImage) -> set[str]:
    return set(store.digests()) & set(image.layers)


async def test_an_engine_is_all_that_an_update_of_one_layer_needs(bench: Bench, store: Store, stock: Stock) -> None:
    old = bench.images.build([base_layer(), tar([file("app", b"old" * 1000)])])
    new = bench.images.build([base_layer(), tar([file("app", b"new" * 1000)])])
    other = bench.images.build([tar([file("app", b"old" * 1000)]), base_layer()])
    keep(store, old)
    await stock.hold_room([old.image], [])
    await stock.bring(old.image)
    for layer in old.layers:
        store.discard(layer)

    for layer in old.layers:
        await stock.get([layer])
        assert store.is_whole(layer)
        await stock.give_up(layer)
    await stock.get(old.layers)
    assert all(store.is_whole(layer) for layer in old.layers)
    for layer in old.layers:
        await stock.give_up(layer)
    assert here(store, old) == set()

    # Only what is new was fetched.
    keep(store, new)
    store.discard(new.layers[0])
    await stock.hold_room([new.image], old.layers)
    await stock.bring(new.image)
    # The same layers the other way round are others to an engine: they come out of it and go in again.
    store.put(other.files[other.digest].read_bytes())
    await stock.bring(other.image)
    assert {held.image: held.layers for held in (await stock.look()).images} == {
        image.digest: image.layers for image in (old, new, other)
    }
    assert here(store, other) == set()

    await stock.drop_images([new.digest])
    assert [held.image for held in (await stock.look()).images] == [new.digest]
    assert await stock.redundant() == set(new.layers)


async def test_an_image_that_somebody_deleted_is_made_again_as_far_as_it_can_be(
    bench: Bench, store: Store, stock: Stock
) -> None:
    image, beside = bench.images.app("one"), bench.images.app("two")
    for each in (image, beside):
        keep(store, each)
        await stock.bring(each.image)
    await bench.engine.drop_images([beside.digest])
    store.discard(image.layers[0])
    await stock.bring(image.image)
    assert image.digest in {held.image for held in (await stock.look()).images}

    await bench.engine.drop_images([beside.digest])
    store.discard(image.layers[1])
    with pytest.raises(StateError, match="neither in the store nor in the engine"):
        await stock.bring(image.image)
    assert image.layers[1][:12] in stock.lost([image.image])


async def test_what_room_is_held_for_goes_in_and_for_what_does_not_nothing_is_begun(
    new_engine: Callable[..., PrivateEngine], store: Store, tmp_path: Path
) -> None:
    """The engine's disk is not the store's: its free space is looked at."""
    bench = real_bench(new_engine("docker", size_mib=48), tmp_path / "images")
    stock = Stock(bench.engine, store, Owner("someone", StateDb(tmp_path / "state.db")))
    fits = bench.images.build([tar([file("a", os.urandom(16 * MIB))])])
    does_not = bench.images.build([tar([file("b", os.urandom(16 * MIB))])])
    for image in (fits, does_not):
        keep(store, image)
    await stock.hold_room([fits.image], [])
    await stock.bring(fits.image)
    with pytest.raises(NoSpaceError, match="the engine needs"):
        await stock.hold_room([does_not.image], [])
    with pytest.raises(NoSpaceError):
        await stock.bring(does_not.image)
    assert [held.image for held in (await stock.look()).images] == [fits.digest]
    assert stock.lost([does_not.image]) == ""
    await bench.engine.close()
