"""U1: messages are dropped at random, or one component only is delivered: nothing partial is ever activated."""

import random

import pytest

from device.update.states import State
from protocol.ids import digest
from tests.fakes.machines import Bench
from tests.fakes.updates import BlobSource, Release, noise, terms

OLD = Release("1.0.0", 1, noise(1000, 1))
NEW = Release("1.1.0", 2, noise(1_500_000, 2))


async def test_attack_u1_one_component_alone_is_never_activated(tmp_path):
    bench = Bench(tmp_path, BlobSource(OLD, NEW))
    async with bench.running() as updater:
        await bench.install(OLD)
        model = next(step for step in NEW.plan.steps if step.artifact == digest(NEW.model))
        others = {step.payload.sha256 for step in NEW.plan.steps} - {model.payload.sha256}
        for name in others:
            del bench.source.blobs[name]
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        await bench.until(lambda: updater.record.failures >= 4)
        assert updater.record.state is State.FETCH
        assert bench.workers.history == [OLD.digest]
        assert bench.active == OLD.digest
        assert bench.outcomes()[-1] == ("deferred", None), "the server is told that it is stuck"
    async with bench.running() as updater:
        assert bench.workers.serving == OLD.digest
        assert updater.report().manifest == OLD.digest


@pytest.mark.parametrize("seed", range(4))
async def test_attack_u1_random_drops_delay_and_never_mix(tmp_path, seed):
    dice = random.Random(seed)
    source = BlobSource(OLD, NEW, chunk_bytes=30_000)
    bench = Bench(tmp_path, source)
    async with bench.running() as updater:
        await bench.install(OLD)
        source.drops_at = {source.sent + dice.randrange(1, NEW.travels_bytes) for _ in range(40)}
        await updater.offer(NEW.assignment(), NEW.manifest_bytes, terms(NEW, OLD), may_install=True)
        await bench.until(lambda: updater.record.state is not State.IDLE)
        await bench.settled()
        assert updater.record.committed.digest == NEW.digest
        assert bench.workers.history == [OLD.digest, NEW.digest]
        for release in (OLD, NEW):
            shown = bench.folder / "sets" / release.digest
            assert (shown / "models/pests").read_bytes() == release.model
            assert (shown / "manifest.json").read_bytes() == release.manifest_bytes
