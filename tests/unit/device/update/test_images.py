"""Releases with containers: images go into the engine with the fetch, and nothing of them is kept twice by need."""

import asyncio
import shutil

import msgspec
import pytest

from device.containers.engine import EngineAwayError
from device.containers.owner import KEY
from device.update.fetching import ENGINE_LOOK_S
from device.update.rules import Later
from device.update.states import State
from protocol.container import RunSpec
from protocol.ids import digest
from protocol.objects import Conditions, TransferPlan
from tests.fakes.container_sets import pack_container
from tests.fakes.machines import Bench
from tests.fakes.patches import PlainPatch
from tests.fakes.updates import BlobSource, Release, noise, terms

RUN = RunSpec(command=("/app",))
BASE = noise(60_000, 11)
PATCH = PlainPatch([(0, 30_000, 2000), (5, 20_000, 100)], base=noise(50_000, 12), is_indexed=True)
APP, NEW_APP, THIRD_APP = PATCH.base, PATCH.result, noise(50_000, 13)


def release(version, counter, app):
    return Release(version, counter, noise(1000, counter), containers=(pack_container("app", RUN, (BASE, app)),))


OLD, NEW, THIRD = release("1.0.0", 1, APP), release("1.1.0", 2, NEW_APP), release("1.2.0", 3, THIRD_APP)
BARE = Release("0.9.0", 1, noise(1000, 9))


def image(of):
    return of.containers[0].image.config.sha256


def patched():
    """NEW's application travels as a patch against OLD's; what they share is here."""
    changed = {digest(NEW_APP): PATCH.step}
    changed |= {
        step.artifact: msgspec.structs.replace(step, method="have", payload=None, index=None)
        for step in NEW.plan.steps
        if step.artifact == digest(BASE)
    }
    steps = tuple(changed.get(step.artifact, step) for step in NEW.plan.steps)
    return msgspec.structs.replace(NEW.assignment(), plan=TransferPlan(steps=steps, full_bytes=0))


@pytest.fixture
def bench(tmp_path):
    source = BlobSource(BARE, OLD, NEW, THIRD, chunk_bytes=4096)
    source.blobs |= PATCH.blobs
    return Bench(tmp_path, source)


def stored(bench):
    return set(bench.store.digests())


def ends(bench):
    return [end for end in bench.outcomes() if end[0] != "deferred"]


async def take(bench, assignment, of, *listed):
    await bench.updater.offer(assignment, of.manifest_bytes, terms(of, *listed), may_install=True)
    await bench.until(lambda: bench.updater.record.state is not State.IDLE)
    await bench.settled()


async def test_the_images_of_a_release_are_in_the_engine_before_it_is_checked(bench):
    bench.canary.gate = asyncio.Event()
    async with bench.running() as updater:
        await updater.offer(OLD.assignment(), OLD.manifest_bytes, terms(OLD), may_install=True)
        await bench.until(lambda: bool(bench.canary.checked))
        assert bench.daemon.marked == {image(OLD)}
        assert not (bench.store.folder / "aside").exists()
        bench.canary.gate.set()
        await bench.settled()
        assert updater.record.committed.digest == OLD.digest


async def test_a_machine_without_containers_asks_no_engine(bench):
    async with bench.running():
        await bench.install(BARE)
    async with bench.running():
        assert await bench.stock.told() == ()
    assert bench.daemon.calls == []


async def test_both_slots_keep_their_images_and_what_is_older_goes(bench):
    async with bench.running():
        await bench.install(OLD)
        await bench.install(NEW, OLD)
        assert bench.daemon.marked == {image(OLD), image(NEW)}
        await bench.install(THIRD, OLD, NEW)
        assert bench.daemon.marked == {image(NEW), image(THIRD)}
        assert set(bench.daemon.layers) == {digest(BASE), digest(NEW_APP), digest(THIRD_APP)}


async def test_images_that_an_engine_was_away_to_let_go_of_go_at_the_next_start(bench):
    async with bench.running() as updater:
        await bench.install(OLD)
        await bench.install(NEW, OLD)
        drop = bench.stock.drop_images

        async def away(keep):
            if updater.record.state is State.CLEANUP:
                bench.daemon.die()
            return await drop(keep)

        bench.stock.drop_images = away
        await bench.install(THIRD, OLD, NEW)
        assert updater.record.committed.digest == THIRD.digest, "nothing waits for that"
    bench.daemon.restart()
    assert bench.daemon.marked == {image(OLD), image(NEW), image(THIRD)}
    async with bench.running():
        await bench.until(lambda: bench.daemon.marked == {image(NEW), image(THIRD)})


async def test_room_for_the_engine_is_held_over_the_fetch_and_not_over_a_pause(bench):
    aside = bench.folder / "store" / "aside"
    held = []
    stream = bench.source.stream

    def watched(path, **span):
        held.append(aside.exists())
        return stream(path, **span)

    bench.source.stream = watched
    async with bench.running() as updater:
        at_begin, hold_room = [], bench.stock.hold_room

        async def begins(*arguments):
            at_begin.append(aside.exists())
            await hold_room(*arguments)

        bench.stock.hold_room = begins
        bench.source.up = False
        await updater.offer(OLD.assignment(), OLD.manifest_bytes, terms(OLD), may_install=True)
        await bench.until(lambda: updater.record.failures > 1)
        assert len(at_begin) > 1
        assert not any(at_begin)
        assert held
        assert all(held)
        bench.source.up = True
        await bench.settled()


async def test_a_machine_that_lost_its_database_counts_what_the_engine_holds(bench):
    async with bench.running():
        await bench.install(OLD)
        bench.db.put(KEY, b"")
        bench.store.discard(digest(BASE))
    async with bench.running():
        sent = bench.source.sent
        await take(bench, patched(), NEW, OLD)
        assert bench.updater.record.committed.digest == NEW.digest
        assert bench.source.sent - sent < 12_000
        assert len(ends(bench)) == len(bench.outcomes()), "and waits for no other plan"


async def test_for_an_engine_that_is_away_nothing_travels_and_it_goes_on_when_it_is_back(bench):
    bench.daemon.die()
    async with bench.running() as updater:
        await updater.offer(OLD.assignment(), OLD.manifest_bytes, terms(OLD), may_install=True)
        await bench.until(lambda: updater.record.failures > 2)
        assert updater.record.paused.startswith("engine: ")
        assert bench.source.sent == 0
        bench.daemon.restart()
        await bench.settled()
        assert updater.record.committed.digest == OLD.digest
        assert ends(bench) == [("committed", None)]


async def test_an_engine_that_was_away_for_long_is_waited_for_no_longer_than_until_it_is_back(bench):
    bench.daemon.die()
    async with bench.running() as updater:
        await updater.offer(OLD.assignment(), OLD.manifest_bytes, terms(OLD), may_install=True)
        await bench.until(lambda: updater.record.failures > 8)
        await bench.until(lambda: bench.slept[-1] == ENGINE_LOOK_S)
        back_s = bench.elapsed_s
        bench.daemon.restart()
        await bench.settled()
        assert bench.elapsed_s - back_s < 2 * ENGINE_LOOK_S + OLD.trial.healthy_s + 5
        assert ends(bench) == [("committed", None)]


async def test_an_engine_that_ends_over_each_load_is_asked_more_and_more_rarely(bench):
    """Docker keeps what it had unpacked of an image when it died."""
    asked_s = []

    async def load(image, files):
        asked_s.append(bench.elapsed_s)
        raise EngineAwayError("the engine ended over the request")

    async with bench.running() as updater:
        bench.engine.load = load
        await updater.offer(OLD.assignment(), OLD.manifest_bytes, terms(OLD), may_install=True)
        await bench.until(lambda: updater.record.failures > 6)
    assert asked_s[6] - asked_s[5] > 100


async def test_an_engine_that_goes_away_over_a_load_pauses_the_update(bench):
    async with bench.running() as updater:
        await bench.install(BARE)
        bench.daemon.dies_at = dict.fromkeys(range(1, 100), "before")
        bench.daemon.dies_at.pop(1)
        bench.daemon.dies_at.pop(2)
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(BARE, NEW), may_install=True)
        await bench.until(lambda: updater.record.failures > 0)
        assert bench.workers.serving == BARE.digest
        bench.daemon.dies_at = {}
        bench.daemon.restart()
        await bench.settled()
        assert ends(bench) == [("committed", None), ("committed", None)]


async def test_an_engine_whose_disk_is_full_leaves_what_runs_alone_and_pauses_the_update(bench):
    async with bench.running() as updater:
        await bench.install(OLD)
        bench.daemon.room_bytes = sum(bench.daemon.lengths.values()) + 1000
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(OLD, NEW), may_install=True)
        await bench.until(lambda: updater.record.failures > 1)
        assert updater.record.paused.startswith("space: ")
        assert bench.workers.serving == bench.active == OLD.digest
        assert bench.daemon.marked == {image(OLD)}
        sent = bench.source.sent
        bench.daemon.room_bytes = None
        await bench.settled()
        assert bench.source.sent == sent, "all was here"
        assert updater.record.committed.digest == NEW.digest


async def test_an_engine_that_finds_the_shared_disk_full_gets_room_all_the_same(bench):
    """Files take whole blocks, archives do not: what was set aside may be too little, and no engine says how much."""
    asked = []

    async def make_room(need_bytes):
        asked.append(need_bytes)
        bench.daemon.room_bytes = None
        return need_bytes

    bench.make_room = make_room
    bench.daemon.version = "docker 20.10.24"
    async with bench.running():
        await bench.install(OLD)
        bench.daemon.room_bytes = sum(bench.daemon.lengths.values()) + 1000
        bench.store.discard(digest(BASE))
        await take(bench, THIRD.assignment(), THIRD, OLD)
        assert digest(APP) not in stored(bench), "what the engine holds goes first"
        assert asked == [len(THIRD_APP)]
        assert ends(bench)[-1] == ("committed", None)


async def test_an_engine_that_makes_another_image_is_no_evidence_against_the_release(bench):
    bench.daemon.loads_as[image(OLD)] = digest(b"evil")
    async with bench.running() as updater:
        await updater.offer(OLD.assignment(), OLD.manifest_bytes, terms(OLD), may_install=True)
        await bench.until(lambda: updater.record.failures > 1)
        assert bench.daemon.marked == set()
        assert bench.canary.checked == []
        bench.daemon.loads_as.clear()
        await bench.settled()
        assert ends(bench) == [("committed", None)]


async def test_without_its_engine_a_release_without_containers_waits_until_nothing_of_the_one_before_can_run(bench):
    async with bench.running() as updater:
        await bench.install(OLD)
        bench.daemon.die()
        late = Release("1.3.0", 4, noise(1000, 10))
        bench.source.blobs |= late.blobs
        await updater.offer(late.assignment(), late.manifest_bytes, terms(OLD, late), may_install=True)
        await bench.until(lambda: updater.progress().why.startswith("engine: "))
        assert updater.record.state is State.WAIT
        assert "until the machine is started anew" in updater.progress().why
    async with bench.running() as updater:
        await bench.until(lambda: updater.progress().why.startswith("engine: "))
    bench.boot_id = "the next boot"
    async with bench.running() as updater:
        await bench.until(lambda: updater.record.state is State.IDLE)
        assert updater.record.committed.digest == late.digest
        assert ends(bench) == [("committed", None), ("committed", None)]
        bench.daemon.restart()
    async with bench.running():
        await bench.until(lambda: bench.daemon.marked == {image(OLD)})


async def test_a_machine_without_any_engine_puts_a_release_with_containers_off(bench):
    bench.has_engine = False
    async with bench.running() as updater:
        verdict = await updater.offer(OLD.assignment(), OLD.manifest_bytes, terms(OLD), may_install=True)
        assert isinstance(verdict, Later)
        assert verdict.why.startswith("engine: ")
        await bench.install(BARE)


# What is kept twice


@pytest.mark.parametrize("keep", ["while-there-is-room", "always", "never"])
async def test_layers_stay_in_the_store_as_the_settings_say(bench, keep):
    bench.keep_layers = keep
    layers = {digest(BASE), digest(APP)}
    async with bench.running():
        await bench.install(OLD)
        assert stored(bench) == {OLD.digest, *OLD.artifacts} - (layers if keep == "never" else set())
    async with bench.running() as updater:
        assert updater.record.committed.digest == bench.workers.serving == OLD.digest


@pytest.mark.parametrize("keep", ["while-there-is-room", "always", "never"])
async def test_a_patch_is_applied_to_a_layer_that_only_the_engine_has(bench, keep):
    bench.keep_layers = keep
    async with bench.running():
        await bench.install(OLD)
        if keep != "while-there-is-room":
            bench.store.discard(digest(APP))
            bench.store.discard(digest(BASE))
    async with bench.running() as updater:
        sent = bench.source.sent
        await take(bench, patched(), NEW, OLD)
        assert updater.record.committed.digest == NEW.digest
        assert bench.source.sent - sent < 12_000
        assert bench.daemon.layers[digest(NEW_APP)] == NEW_APP
        app = {digest(APP), digest(NEW_APP)}
        kept = {"while-there-is-room": {digest(BASE), *app}, "always": app | {digest(BASE)}, "never": set()}
        assert stored(bench) & set(bench.daemon.layers) == kept[keep]
        assert list(bench.store.part("x").parent.iterdir()) == []


async def test_layers_go_before_a_download_finds_no_room_and_before_any_result_does(bench):
    asked = []

    async def make_room(need_bytes):
        asked.append(need_bytes)
        return 0

    bench.make_room = make_room
    bench.daemon.version = "docker 20.10.24"
    async with bench.running() as updater:
        await bench.install(OLD)
        assert {digest(BASE), digest(APP)} <= stored(bench)
        need = 3 * len(NEW_APP) + 5000  # the layer, once more in the engine, and once in the archive that it unpacks
        disk_bytes = bench.store.used_bytes() + need - 40_000 + (64 << 20)
        aside = bench.store.folder / "aside"

        def free(_):
            held = aside.stat().st_blocks * 512 if aside.exists() else 0
            return disk_bytes - bench.store.used_bytes() - held

        bench.store._free = free
        await take(bench, NEW.assignment(), NEW, OLD)
        assert updater.record.committed.digest == NEW.digest
        assert digest(BASE) not in stored(bench)
        assert asked == []


async def test_the_base_of_a_patch_that_nobody_applies_any_more_goes_for_the_next_release(bench):
    bench.daemon.version = "docker 20.10.24"
    async with bench.running() as updater:
        await bench.install(OLD)
        del bench.source.blobs[PATCH.step.payload.sha256]
        await updater.offer(patched(), NEW.manifest_bytes, terms(OLD, NEW), may_install=True)
        await bench.until(lambda: updater.record.failures > 0)
        used = sum(bench.store.path(name).stat().st_size for name in stored(bench))
        disk_bytes = used + 3 * len(THIRD_APP) + 10_000 - 100_000 + (64 << 20)  # more than BASE has to go
        aside = bench.store.folder / "aside"

        def free(_):
            held = aside.stat().st_blocks * 512 if aside.exists() else 0
            return disk_bytes - bench.store.used_bytes() - held

        bench.store._free = free
        await updater.offer(THIRD.assignment("summer"), THIRD.manifest_bytes, terms(OLD, NEW, THIRD), may_install=True)
        await bench.until(lambda: updater.record.committed.digest == THIRD.digest, 10.0)
        assert digest(APP) not in stored(bench)


async def test_a_fetch_counts_what_the_engine_will_take_and_says_both_numbers(bench):
    async with bench.running() as updater:
        bench.free_bytes = (64 << 20) + 150_000
        await updater.offer(OLD.assignment(), OLD.manifest_bytes, terms(OLD), may_install=True)
        await bench.until(lambda: updater.record.failures > 0)
        assert updater.record.paused.startswith("space: ")
        assert "150000 are free" in updater.record.paused
        assert bench.source.sent == 0
        assert bench.daemon.marked == set()
        bench.free_bytes = 1 << 40
        await bench.settled()


# What the engine lost


@pytest.mark.parametrize("keep", ["while-there-is-room", "never"])
async def test_an_image_that_the_engine_lost_comes_back_from_the_store_or_is_fetched(bench, keep):
    bench.keep_layers = keep
    async with bench.running() as updater:
        await bench.install(OLD)
        bench.daemon.lose(image(OLD))
        # What a keeper of containers does that finds no image.
        with_image = OLD.containers[0].image
        if keep == "never":
            with pytest.raises(Exception, match="neither"):
                await bench.stock.bring(with_image)
            assert "neither" in updater.progress().damaged
            assert updater.report().manifest is None, "it is asked for again"
            assert bench.workers.serving == OLD.digest, "which is no reason not to infer"
            await take(bench, OLD.assignment("mending"), OLD)
        else:
            await bench.stock.bring(with_image)
        assert updater.progress().damaged == ""
        assert updater.report().manifest == OLD.digest
        assert bench.daemon.marked == {image(OLD)}


# Cuts


@pytest.mark.parametrize(("moment", "first"), [("before", 1), ("half", 2), ("after", 3)])
@pytest.mark.parametrize("who", ["engine", "agent"])
async def test_a_cut_at_any_call_of_the_engine_costs_at_most_a_repetition(tmp_path, who, moment, first):
    """One in three of the calls for each moment: together all."""
    source = BlobSource(OLD, NEW, chunk_bytes=1 << 20)
    source.blobs |= PATCH.blobs
    old = Bench(tmp_path / "old", source)
    old.folder.mkdir()
    old.keep_layers = "never"
    async with old.running():
        await old.install(OLD)
    for number in range(first, 40, 3):
        bench = Bench(tmp_path / str(number), source)
        shutil.copytree(old.folder, bench.folder, symlinks=True)
        bench.keep_layers = "never"
        bench.daemon.put(OLD.containers[0].image, OLD.artifacts)
        fates = bench.daemon.dies_at if who == "engine" else bench.daemon.cuts_at
        fates[number] = moment
        async with bench.running() as updater:
            await updater.offer(patched(), NEW.manifest_bytes, terms(OLD, NEW), may_install=True)
            engine, daemon = bench.stock._engine, bench.daemon
            await bench.until(lambda d=daemon, e=engine, u=updater: not d.up or e.was_cut.is_set() or runs_new(u))
        reached = len(daemon.calls) >= number
        fates.clear()
        daemon.restart()
        async with bench.running() as updater:
            await updater.offer(patched(), NEW.manifest_bytes, terms(OLD, NEW), may_install=True)
            await bench.until(lambda u=updater: runs_new(u))
            assert bench.workers.serving == NEW.digest
            assert daemon.marked == {image(OLD), image(NEW)}
            assert daemon.layers[digest(NEW_APP)] == NEW_APP
            await bench.until(lambda b=bench: not stored(b) & set(b.daemon.layers))
            assert list(bench.store.part("x").parent.iterdir()) == []
            assert not (bench.store.folder / "aside").exists()
        if not reached:
            return
    raise AssertionError("it asks the engine more often than is looked at here")


def runs_new(updater):
    record = updater.record
    return record.state is State.IDLE and record.committed is not None and record.committed.digest == NEW.digest


# Before activation


async def test_a_release_that_waits_for_its_window_waits_for_its_engine_as_well(bench):
    signals = Conditions(signals_clear=("driving",))
    async with bench.running() as updater:
        await updater.offer(OLD.assignment(conditions=signals), OLD.manifest_bytes, terms(OLD), may_install=True)
        await bench.until(lambda: updater.record.state is State.WAIT)
        bench.daemon.die()
        bench.signals_off.add("driving")
        await bench.until(lambda: updater.progress().why.startswith("engine: "))
        assert updater.record.state is State.WAIT
        bench.daemon.restart()
        await bench.settled()
        assert updater.record.committed.digest == OLD.digest
