"""Room on the disk: what a release will take is set aside before the first byte travels, and given back afterwards."""

import ctypes
import errno

import pytest

from device.containers.engine_archive import take_layers
from device.store import NoSpaceError, Store, taken_bytes
from device.transfer import Transfer, TransferSettings
from device.transfer.elsewhere import brought_part
from device.transfer.holding import peak_bytes
from device.transfer.reserving import release, reserve
from protocol.errors import LinkError
from protocol.ids import digest
from protocol.limits import MIB
from signing import durable
from signing.durable import Disk, Part
from tests.fakes.images import file, tar
from tests.fakes.updates import BlobSource, Release, noise

BIG = Release("1.0.0", 1, noise(3 * MIB + 12345, 7), config=noise(2 * MIB, 8))
STEPS = BIG.plan.steps
LARGE = [step for step in STEPS if step.length_bytes >= MIB]
ARTIFACTS = BIG.manifest.artifacts()


def transfer(store, source):
    return Transfer(source, store, TransferSettings(attempts=1), count=lambda _: None, random=lambda: 0.5)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store", keep_free_bytes=0)
    with store.disk.open_part(store.part("probe")) as part:
        part.reserve(MIB)
    if taken_bytes(store.part("probe").stat()) < MIB:
        pytest.skip("this file system sets nothing aside")
    store.disk.unlink(store.part("probe"))
    return store


def parts(store):
    return {path.name: path.stat() for path in store.part("x").parent.iterdir()}


def test_what_is_set_aside_leaves_the_length_and_counts_as_used(store):
    reserved = reserve(store, STEPS)
    assert len(reserved) == len(LARGE) == 2
    assert all(stat.st_size == 0 for stat in parts(store).values())
    want = sum(step.length_bytes for step in LARGE)
    assert want <= store.used_bytes() < want + 2 * 4096
    small = sum(step.length_bytes for step in STEPS if step not in LARGE)
    assert peak_bytes(store, STEPS) == small + sum(
        step.index.length_bytes for step in sorted(LARGE, key=lambda step: -step.index.length_bytes)[:1]
    ), "what is set aside for it need not be there again"
    release(store, reserved)
    assert parts(store) == {}
    release(store, reserved)


def test_a_layer_that_is_brought_out_of_an_engine_takes_the_very_room_that_was_set_aside_for_it(store):
    data = noise(2 * MIB, 3)
    name = digest(data)
    place = brought_part(store, name)
    reserved = reserve(store, [], {name: len(data), digest(b"small"): MIB - 1})
    assert reserved == [place]
    (before,) = parts(store).values()
    assert taken_bytes(before) >= len(data)
    need, with_it = (peak_bytes(store, STEPS, brought, at_once=True) for brought in ({}, {name: len(data)}))
    assert need == with_it, "what is set aside need not be there again"
    with place.open("rb") as same:
        assert take_layers(iter([tar([file("layer", data)])]), {name: place}, {name: len(data)}) == {name}
        assert same.read() == data
    store.adopt(place, name, len(data))
    release(store, reserved)
    assert store.used_bytes() < taken_bytes(before) + 4096
    place.symlink_to(store.path(name))
    take_layers(iter([tar([file("layer", data)])]), {name: place}, {name: len(data)})
    assert not place.is_symlink()


async def test_all_is_set_aside_before_the_first_byte_travels(store):
    source = BlobSource(BIG)
    taken = []
    stream = source.stream

    def watched(path, *, first, length):
        taken.append(store.used_bytes())
        return stream(path, first=first, length=length)

    source.stream = watched
    await transfer(store, source).fetch(BIG.plan, ARTIFACTS)
    assert taken[0] >= sum(step.length_bytes for step in LARGE)
    assert all(store.is_whole(name) for name in BIG.artifacts)
    assert parts(store) == {}
    assert store.used_bytes() == sum(map(len, BIG.artifacts.values())), "nothing stays set aside"


async def test_a_pause_gives_back_what_was_not_written(store):
    source = BlobSource(BIG)
    source.drops_at = {MIB + 5000}
    with pytest.raises(LinkError):
        await transfer(store, source).fetch(BIG.plan, ARTIFACTS)
    assert parts(store)
    assert all(stat.st_size for stat in parts(store).values())
    assert all(taken_bytes(stat) == stat.st_size for stat in parts(store).values())
    await transfer(store, source).fetch(BIG.plan, ARTIFACTS)
    assert all(store.is_whole(name) for name in BIG.artifacts)


async def test_what_a_cut_left_set_aside_is_room_for_the_next_try(store):
    need = peak_bytes(store, STEPS)
    reserve(store, STEPS)  # and the power goes
    here = sum(taken_bytes(stat) for stat in parts(store).values())
    store._free = lambda _: need - here + 2 * 4096
    await transfer(store, BlobSource(BIG)).fetch(BIG.plan, ARTIFACTS)
    assert all(store.is_whole(name) for name in BIG.artifacts)


def test_a_disk_that_is_fuller_than_it_seemed_keeps_nothing_set_aside(store, monkeypatch):
    reserved = []
    whole = Part.reserve

    def second_is_too_much(self, length_bytes):
        if reserved:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserved.append(self.path)
        whole(self, length_bytes)

    monkeypatch.setattr(Part, "reserve", second_is_too_much)
    with pytest.raises(NoSpaceError):
        reserve(store, STEPS)
    assert parts(store) == {}


async def test_a_file_system_that_sets_nothing_aside_is_no_hindrance(store, monkeypatch):
    monkeypatch.setattr("signing.durable._FALLOCATE", lambda *_: -1)
    await transfer(store, BlobSource(BIG)).fetch(BIG.plan, ARTIFACTS)
    assert all(store.is_whole(name) for name in BIG.artifacts)


def test_no_room_is_an_error_and_nothing_stays_set_aside(tmp_path, monkeypatch):
    real = durable._FALLOCATE

    def half_of_it(fd, mode, offset, length):
        real(fd, mode, offset, type(length)(length.value // 2))
        ctypes.set_errno(errno.ENOSPC)
        return -1

    monkeypatch.setattr(durable, "_FALLOCATE", half_of_it)
    with Disk().open_part(tmp_path / "part") as part:
        part.append(b"x" * 100)
        with pytest.raises(OSError, match="space"):
            part.reserve(4 * MIB)
    ctypes.set_errno(0)
    stat = (tmp_path / "part").stat()
    assert (stat.st_size, taken_bytes(stat)) == (100, 100)
