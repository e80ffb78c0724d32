"""What the engine holds of releases: brought into it, got out of it, and not kept twice by need."""

import asyncio

import pytest

from device.containers.engine import EngineAwayError, EngineError
from device.containers.owner import KEY, Owner, find_owner, owner_name
from device.containers.stock import Stock
from device.state_db import StateDb
from device.store import NoSpaceError, Store
from device.transfer.elsewhere import brought_part
from device.update.releases import Library
from protocol.container import RunSpec
from protocol.errors import Reason, Refused, StateError
from protocol.ids import digest
from tests.fakes.container_sets import pack_container
from tests.fakes.engine import FakeDaemon, FakeEngine
from tests.fakes.updates import noise

BASE, APP, NEW_APP = noise(5000, 1), noise(3000, 2), noise(3100, 3)
RUN = RunSpec(command=("/app",))
OLD = pack_container("app", RUN, (BASE, APP))
NEW = pack_container("app", RUN, (BASE, NEW_APP))


class Rig:
    """A store and an engine; `reopened` is the next life of the agent."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.settings = settings
        self.daemon = FakeDaemon(lambda: 0.0)
        self.free_bytes = 1 << 40
        self.reopened()

    def reopened(self, **settings):
        self.settings |= settings
        self.state = StateDb(self.folder / "state.db")
        self.owner = Owner("someone", self.state)
        self.store = Store(self.folder / "store", keep_free_bytes=0, free=lambda _: self.free_bytes)
        self.engine = FakeEngine(self.daemon)
        self.stock = Stock(self.engine, self.store, self.owner, **self.settings)
        return self

    def keep(self, *packed):
        for one in packed:
            for data in one.contents.values():
                self.store.put(data)

    def here(self):
        return set(self.store.digests())

    def parts(self):
        return [path.name for path in self.store.part("x").parent.iterdir()]


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


async def test_an_image_is_brought_once_and_its_layers_are_held_then(rig):
    rig.keep(OLD)
    assert not rig.stock.holds(digest(BASE))
    await rig.stock.bring(OLD.image)
    assert rig.stock.holds(digest(BASE))
    assert rig.daemon.marked == {OLD.image.config.sha256}
    await rig.stock.bring(OLD.image)
    assert rig.daemon.calls.count("load") == 1


async def test_before_an_engine_gets_anything_it_is_kept_that_it_may_have_something(rig):
    rig.keep(OLD)
    rig.daemon.cuts_at = {3: "before"}  # the load
    task = asyncio.create_task(rig.stock.bring(OLD.image))
    async with asyncio.timeout(10):
        await rig.engine.was_cut.wait()
    task.cancel()
    await asyncio.wait({task})
    assert rig.reopened().owner.has_used


async def test_an_image_that_the_engine_lost_comes_from_the_store(rig):
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    rig.daemon.lose(OLD.image.config.sha256)
    await rig.stock.bring(OLD.image)
    assert rig.daemon.marked == {OLD.image.config.sha256}


async def test_what_the_store_does_not_keep_comes_out_of_another_image_and_goes_again(rig):
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    rig.store.discard(digest(BASE))
    rig.store.put(NEW_APP)
    rig.store.put(NEW.contents[NEW.image.config.sha256])
    await rig.stock.bring(NEW.image)
    assert NEW.image.config.sha256 in rig.daemon.marked
    assert digest(BASE) not in rig.here()
    assert rig.parts() == []


async def test_an_engine_that_takes_parts_is_not_handed_what_lies_lowest_in_it(rig):
    rig.daemon.version = "docker 20.10.24"
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    rig.store.discard(digest(BASE))
    rig.store.put(NEW_APP)
    rig.store.put(NEW.contents[NEW.image.config.sha256])
    await rig.stock.bring(NEW.image)
    assert "export" not in rig.daemon.calls
    # But to such an engine a layer is what lies on those below it.
    upside_down = pack_container("app", RUN, (APP, BASE))
    rig.store.put(upside_down.contents[upside_down.image.config.sha256])
    rig.store.discard(digest(APP))
    await rig.stock.bring(upside_down.image)
    assert rig.daemon.calls.count("export") == 1, "all of an image at once"
    beside = pack_container("app", RUN, (NEW_APP, APP))
    rig.keep(beside)
    rig.store.discard(digest(APP))
    await rig.stock.bring(beside.image)
    assert rig.daemon.calls.count("export") == 2, "the lowest layer is another"


async def test_an_image_that_is_there_waits_for_no_other_one(rig):
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    async with rig.stock._turn, asyncio.timeout(5):
        await rig.stock.bring(OLD.image)


async def test_an_image_that_is_neither_here_nor_there_is_lost_until_it_is_brought(rig):
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    rig.daemon.lose(OLD.image.config.sha256)
    rig.store.discard(digest(APP))
    with pytest.raises(StateError, match="neither in the store nor in the engine") as caught:
        await rig.stock.bring(OLD.image)
    assert not isinstance(caught.value, EngineAwayError | EngineError | NoSpaceError)
    assert rig.stock.lost([NEW.image]) == ""
    assert digest(APP)[:12] in rig.stock.lost([NEW.image, OLD.image])
    assert not rig.stock.holds(digest(APP)), "it is fetched"
    rig.store.put(APP)
    await rig.stock.bring(OLD.image)
    assert rig.stock.lost([OLD.image]) == ""


async def test_an_engine_that_is_away_says_nothing_of_an_image(rig):
    rig.keep(OLD)
    rig.daemon.die()
    with pytest.raises(EngineAwayError):
        await rig.stock.bring(OLD.image)
    assert rig.stock.lost([OLD.image]) == ""


async def test_an_engine_that_makes_another_image_is_told_of_and_nothing_is_lost(rig):
    rig.keep(OLD)
    rig.daemon.loads_as[OLD.image.config.sha256] = digest(b"evil")
    with pytest.raises(Refused) as caught:
        await rig.stock.bring(OLD.image)
    assert caught.value.reason is Reason.IMAGE
    assert rig.stock.lost([OLD.image]) == ""
    assert rig.here() == set(OLD.contents)


async def test_where_the_disk_changed_a_layer_it_is_that_file_that_goes(rig):
    """An engine takes such an archive for a bad one, and would for ever."""
    rig.keep(OLD)
    rig.daemon.loads_as[OLD.image.config.sha256] = digest(b"whatever")
    path = rig.store.path(digest(APP))
    path.chmod(0o600)
    path.write_bytes(bytes(len(APP)))
    with pytest.raises(StateError, match="not what it was"):
        await rig.stock.bring(OLD.image)
    assert rig.stock.lost([OLD.image])
    assert digest(APP) not in rig.here()


async def test_a_full_engine_is_no_loss(rig):
    rig.keep(OLD)
    rig.daemon.room_bytes = 100
    with pytest.raises(NoSpaceError):
        await rig.stock.bring(OLD.image)
    assert rig.stock.lost([OLD.image]) == ""


# Bases of patches


async def in_engine_only(rig):
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    for name in OLD.contents:
        rig.store.discard(name)


async def test_a_base_is_got_for_as_long_as_it_is_needed(rig):
    await in_engine_only(rig)
    assert rig.stock.length_bytes(digest(BASE)) == len(BASE)
    await rig.stock.get([digest(BASE)])
    assert rig.store.is_whole(digest(BASE))
    await rig.stock.get([digest(BASE)])
    assert rig.daemon.calls.count("export") == 1
    await rig.stock.give_up(digest(BASE))
    assert rig.here() == set()


async def test_bases_of_one_image_come_out_of_it_together(rig):
    await in_engine_only(rig)
    await rig.stock.get([digest(BASE), digest(APP)])
    assert rig.here() == {digest(BASE), digest(APP)}
    assert rig.daemon.calls.count("export") == 1
    await rig.stock.give_up(digest(APP))
    assert rig.here() == {digest(BASE)}


async def test_a_layer_of_which_nobody_knows_the_length_is_told_of_once_and_no_more(rig):
    """Of a release whose manifest was lost: a plan that needs it is never done, and the next one must do without."""
    await in_engine_only(rig)
    rig.reopened()
    assert digest(BASE) in await rig.stock.told()
    with pytest.raises(StateError):
        await rig.stock.get([digest(BASE)])
    await rig.stock.look()
    assert await rig.stock.told() == (digest(APP),)
    rig.stock.learn([OLD.image])
    await rig.stock.look()
    assert digest(BASE) in await rig.stock.told()
    await rig.stock.get([digest(BASE)])
    assert digest(BASE) in rig.here()


@pytest.mark.parametrize("keep", ["while-there-is-room", "always", "never"])
async def test_a_base_that_was_here_stays(tmp_path, keep):
    rig = Rig(tmp_path, keep=keep)
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    await rig.stock.get([digest(BASE)])
    await rig.stock.give_up(digest(BASE))
    assert digest(BASE) in rig.here()
    assert "export" not in rig.daemon.calls


async def test_what_is_kept_always_stays_when_it_was_got(tmp_path):
    rig = Rig(tmp_path, keep="always")
    await in_engine_only(rig)
    await rig.stock.get([digest(BASE)])
    await rig.stock.give_up(digest(BASE))
    assert digest(BASE) in rig.here()


async def test_a_container_that_is_started_meanwhile_takes_no_base_away(rig):
    await in_engine_only(rig)
    await rig.stock.get([digest(BASE)])
    rig.store.put(NEW_APP)
    rig.store.put(NEW.contents[NEW.image.config.sha256])
    await rig.stock.bring(NEW.image)
    assert digest(BASE) in rig.here()


async def test_a_base_of_which_the_store_has_a_bad_copy_is_got_from_the_engine(rig):
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    path = rig.store.path(digest(BASE))
    path.chmod(0o600)
    path.write_bytes(bytes(len(BASE)))
    rig.store.doubt(digest(BASE))
    await rig.stock.get([digest(BASE)])
    assert rig.store.is_whole(digest(BASE))


async def test_an_engine_that_gives_other_bytes_is_not_counted_on_for_them(rig):
    await in_engine_only(rig)
    rig.daemon.layers[digest(BASE)] = b"other bytes"
    with pytest.raises(StateError, match="does not come out"):
        await rig.stock.get([digest(BASE)])
    assert rig.here() == set()
    assert rig.parts() == []
    await rig.stock.look()
    assert not rig.stock.holds(digest(BASE))
    assert rig.stock.holds(digest(APP))


async def test_a_base_that_somebody_deleted_by_hand_is_no_wrong_answer_of_the_engine(rig):
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    rig.store.discard(digest(BASE))
    rig.daemon.lose(OLD.image.config.sha256)
    await rig.stock.get([digest(BASE)])
    assert not rig.stock.holds(digest(BASE)), "whoever needs it asks for a plan without it"
    rig.store.put(BASE)
    await rig.stock.bring(OLD.image)
    assert rig.stock.holds(digest(BASE)), "and is counted on again once it is loaded"


@pytest.mark.parametrize("moment", ["before", "half", "after"])
@pytest.mark.parametrize("who", ["engine", "agent"])
async def test_a_cut_in_an_export_costs_the_export(rig, moment, who):
    await in_engine_only(rig)
    number = len(rig.daemon.calls) + 1
    if who == "engine":
        rig.daemon.dies_at = {number: moment}
        with pytest.raises(EngineAwayError):
            await rig.stock.get([digest(BASE)])
        assert rig.parts() == []
        rig.daemon.restart()
    else:
        rig.daemon.cuts_at = {number: moment}
        task = asyncio.create_task(rig.stock.get([digest(BASE)]))
        async with asyncio.timeout(10):
            await rig.engine.was_cut.wait()
        task.cancel()
        await asyncio.wait({task})
        rig.daemon.cuts_at = {}
        rig.reopened().stock.learn([OLD.image])
        await rig.stock.look()
    await rig.stock.get([digest(BASE)])
    assert rig.store.is_whole(digest(BASE))
    assert rig.parts() == []


async def test_what_a_cut_left_of_an_export_is_not_taken_for_a_layer(rig):
    await in_engine_only(rig)
    brought_part(rig.store, digest(BASE)).write_bytes(BASE[:100])
    await rig.stock.get([digest(BASE)])
    assert rig.store.is_whole(digest(BASE))


# What goes


async def test_room_is_given_back_the_largest_layer_first_and_only_of_what_the_engine_holds(rig):
    rig.keep(OLD, NEW)
    await rig.stock.bring(OLD.image)
    assert await rig.stock.give_back(1, spare=()) == len(BASE)
    assert await rig.stock.give_back(1, spare={digest(APP)}) == 0
    assert await rig.stock.give_back(10_000, spare=()) == len(APP)
    assert rig.here() == {digest(NEW_APP), OLD.image.config.sha256, NEW.image.config.sha256}


async def test_what_the_engine_lost_meanwhile_stays(rig):
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    rig.daemon.lose(OLD.image.config.sha256)
    assert await rig.stock.give_back(10_000, spare=()) == 0
    await rig.stock.bring(OLD.image)
    rig.daemon.die()
    assert await rig.stock.give_back(10_000, spare=()) == 0
    assert rig.here() == set(OLD.contents)


async def test_what_a_patch_is_being_applied_to_is_not_given_back(rig):
    await in_engine_only(rig)
    await rig.stock.get([digest(BASE)])
    assert await rig.stock.give_back(10_000, spare=()) == 0


async def test_a_cleaning_takes_nothing_away_that_is_on_its_way_out_of_the_engine(rig, monkeypatch):
    await in_engine_only(rig)
    library = Library(rig.store, None, rig.stock)
    export = rig.engine.export

    async def cleaned_meanwhile(image, layers, lengths):
        await export(image, layers, lengths)
        assert library.collect([], [])

    monkeypatch.setattr(rig.engine, "export", cleaned_meanwhile)
    await rig.stock.get([digest(BASE)])
    assert digest(BASE) in rig.here()
    assert rig.stock.holds(digest(BASE)), "the engine gave it as it should"


async def test_a_cleaning_leaves_what_is_handed_to_the_engine(tmp_path, monkeypatch):
    rig = Rig(tmp_path, keep="never")
    await in_engine_only(rig)
    rig.keep(NEW)
    library = Library(rig.store, None, rig.stock)
    load = rig.engine.load

    async def cleaned_meanwhile(image, files):
        assert library.collect([], [], redundant=await rig.stock.redundant())
        assert all(path.exists() for path in files.values())
        await load(image, files)

    monkeypatch.setattr(rig.engine, "load", cleaned_meanwhile)
    await rig.stock.bring(NEW.image)
    assert NEW.image.config.sha256 in rig.daemon.marked
    assert library.collect([], [])
    assert rig.here() == set()


@pytest.mark.parametrize(("keep", "goes"), [("while-there-is-room", False), ("always", False), ("never", True)])
async def test_only_what_is_never_kept_is_redundant(tmp_path, keep, goes):
    rig = Rig(tmp_path, keep=keep)
    assert await rig.stock.redundant() == frozenset()
    assert rig.daemon.calls == [], "an engine that has nothing of ours is not asked"
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    assert await rig.stock.redundant() == ({digest(BASE), digest(APP)} if goes else frozenset())
    assert await rig.stock.give_back(1, spare=()) == (0 if keep == "always" else len(BASE))
    rig.daemon.die()
    assert await rig.stock.redundant() == frozenset()


async def test_images_that_nothing_names_go_and_an_engine_without_any_is_forgotten(rig):
    assert await rig.stock.drop_images([])
    assert rig.daemon.calls == []
    rig.keep(OLD, NEW)
    await rig.stock.bring(OLD.image)
    await rig.stock.bring(NEW.image)
    assert await rig.stock.drop_images([NEW.image.config.sha256])
    assert rig.daemon.marked == {NEW.image.config.sha256}
    assert rig.owner.has_used
    rig.daemon.die()
    assert not await rig.stock.drop_images([])
    assert rig.owner.has_used, "it is tried again"
    rig.daemon.restart()
    assert await rig.stock.drop_images([])
    assert rig.daemon.marked == set()
    assert not rig.owner.has_used


# What is told


async def test_what_an_engine_holds_is_told_and_one_that_was_never_used_is_not_asked(rig):
    assert await rig.stock.told() == ()
    assert rig.daemon.calls == []
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    rig.reopened()
    assert await rig.stock.told() == tuple(sorted([digest(BASE), digest(APP)]))
    calls = len(rig.daemon.calls)
    await rig.stock.told()
    assert len(rig.daemon.calls) == calls
    rig.reopened()
    rig.daemon.die()
    assert await rig.stock.told() == ()


# Room


async def test_room_is_held_for_what_the_engine_takes_and_given_back(rig):
    rig.keep(OLD)
    aside = rig.store.folder / "aside"
    await rig.stock.hold_room([OLD.image], [])
    config = OLD.image.config.length_bytes
    rig.free_bytes = 1000
    need = 2 * (len(BASE) + len(APP)) + config
    assert aside.stat().st_blocks * 512 >= need
    with pytest.raises(NoSpaceError) as caught:
        await rig.stock.hold_room([OLD.image], [])
    assert caught.value.lacks_bytes == need - 1000
    assert not aside.exists()
    rig.free_bytes = need
    await rig.stock.hold_room([OLD.image], [])
    await rig.stock.bring(OLD.image)
    assert not aside.exists(), "the engine takes it"
    await rig.stock.hold_room([OLD.image], [])
    assert not aside.exists(), "an image that is there takes nothing"


async def test_layers_that_lie_on_others_in_the_engine_take_room_once_more(rig):
    rig.daemon.version = "docker 20.10.24"
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    rig.free_bytes = 0
    upper = pack_container("app", RUN, (NEW_APP, APP))
    for other, layers in ((NEW, [NEW_APP]), (upper, [NEW_APP, APP])):
        with pytest.raises(NoSpaceError) as caught:
            await rig.stock.hold_room([other.image], [])
        need = 2 * sum(map(len, layers)) + other.image.config.length_bytes
        assert caught.value.lacks_bytes == need
    with pytest.raises(NoSpaceError) as caught:
        rig.store.discard(digest(BASE))
        await rig.stock.hold_room([OLD.image], [digest(BASE), digest(APP)])
    assert caught.value.lacks_bytes == len(BASE) + len(APP), "to give one, an engine puts the whole image together"


async def test_an_image_that_the_engine_lost_is_brought_only_where_there_is_room_for_it(rig):
    rig.keep(OLD)
    await rig.stock.bring(OLD.image)
    rig.daemon.lose(OLD.image.config.sha256)
    calls = len(rig.daemon.calls)
    need = 2 * (len(BASE) + len(APP)) + OLD.image.config.length_bytes
    rig.free_bytes = need - 1
    with pytest.raises(NoSpaceError) as caught:
        await rig.stock.bring(OLD.image)
    assert caught.value.lacks_bytes == 1
    assert "load" not in rig.daemon.calls[calls:], "what is kept back for results is not filled with an archive"
    assert rig.stock.lost([OLD.image]) == "", "it is all here"
    rig.free_bytes = need
    await rig.stock.bring(OLD.image)
    assert rig.daemon.marked == {OLD.image.config.sha256}
    assert not (rig.store.folder / "aside").exists()


async def test_for_an_image_that_the_engine_lost_layers_go_that_it_holds(rig):
    rig.keep(OLD)
    rig.daemon.version = "docker 20.10.24"
    other = pack_container("other", RUN, (noise(9000, 7),))
    rig.keep(other)
    await rig.stock.bring(OLD.image)
    await rig.stock.bring(other.image)
    rig.daemon.lose(OLD.image.config.sha256)
    need = 2 * (len(BASE) + len(APP)) + OLD.image.config.length_bytes
    (big,) = (name for name, data in other.contents.items() if len(data) == 9000)
    rig.store._free = lambda _: need - 1 + (0 if rig.store.has(big) else 9000)
    await rig.stock.bring(OLD.image)
    assert not rig.store.has(big)
    assert rig.daemon.marked == {OLD.image.config.sha256, other.image.config.sha256}


async def test_room_that_is_held_counts_in_the_store_but_against_no_budget(tmp_path):
    store = Store(tmp_path / "store", keep_free_bytes=0, free=lambda _: 10_000, budget_bytes=5000)
    store.set_aside(8000)
    store.check_space(5000)
    with pytest.raises(NoSpaceError) as caught:
        store.check_space(5001)
    assert (caught.value.lacks_bytes, caught.value.over_bytes) == (0, 1)
    again = Store(tmp_path / "store", keep_free_bytes=0)
    assert not (tmp_path / "store" / "aside").exists(), "it was for something that a cut has ended"
    again.set_aside(0)


def test_where_a_file_system_holds_nothing_the_room_counts_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("signing.durable._FALLOCATE", lambda *_: -1)
    store = Store(tmp_path / "store", keep_free_bytes=0, free=lambda _: 10_000)
    store.set_aside(8000)
    store.check_space(2000)
    with pytest.raises(NoSpaceError):
        store.check_space(2001)
    store.set_aside(0)
    store.check_space(10_000)


# Whose it is


def test_the_owner_is_the_same_again_when_all_is_lost_but_the_first_root(tmp_path):
    (tmp_path / "image.root.json").write_bytes(b"a root")
    state = StateDb(tmp_path / "state.db")
    first = find_owner(tmp_path, state, "tractor-1")
    assert first.name == owner_name(b"a root", "tractor-1")
    assert len(first.name) == 16
    assert first.name not in (owner_name(b"a root", "tractor-2"), owner_name(b"another", "tractor-1"))
    assert state.get(KEY) is None, "a machine without containers keeps nothing of it"
    first.uses()
    (tmp_path / "image.root.json").write_bytes(b"a newer root stands in its place")
    assert find_owner(tmp_path, state, "tractor-1").name == first.name
    first.is_done()
    assert not find_owner(tmp_path, state, "tractor-1").has_used


def test_in_a_boot_in_which_an_engine_got_nothing_nothing_of_ours_runs(tmp_path):
    state = StateDb(tmp_path / "state.db")
    assert not Owner("someone", state, "a boot").may_run
    Owner("someone", state).uses()
    assert Owner("someone", state, "a boot").may_run, "nobody knows in which"
    Owner("someone", state, "a boot").uses()
    found = {boot: Owner("someone", state, boot).may_run for boot in ("a boot", "the next", "")}
    assert found == {"a boot": True, "the next": False, "": True}
    Owner("someone", state, "the next").uses()
    assert Owner("someone", state, "the next").may_run
    Owner("someone", state, "the next").is_done()
    assert not Owner("someone", state, "the next").may_run


def test_a_boot_with_a_full_disk_starts_what_it_ran(tmp_path, monkeypatch):
    state = StateDb(tmp_path / "state.db")

    def put(name, value):
        raise StateError("database or disk is full")

    with monkeypatch.context() as full:
        full.setattr(state, "put", put)
        with pytest.raises(StateError, match="full"):
            Owner("someone", state, "a boot").uses()
    Owner("someone", state, "a boot").uses()
    with monkeypatch.context() as full:
        full.setattr(state, "put", put)
        Owner("someone", state, "the next").uses()
    Owner("someone", state, "the next").uses()
    assert Owner("someone", state, "the next").may_run


def test_a_machine_that_does_not_know_who_it_is_has_no_owner(tmp_path):
    state = StateDb(tmp_path / "state.db")
    assert find_owner(tmp_path, state, "tractor-1").name == ""
    (tmp_path / "image.root.json").write_bytes(b"a root")
    assert find_owner(tmp_path, state, "unknown").name == ""
