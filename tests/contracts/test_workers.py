"""What the update machine may rely on, held to the real processes and to the fake of its own tests alike."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from device.inference.canary_client import SubprocessCanary
from device.inference.workers import ProcessWorkers
from device.update.ports import Canary, ReleaseSet, Workers
from protocol.errors import Reason, Refused
from tests.fakes import tiny_models as tiny
from tests.fakes.release_sets import ModelSpec, make_release
from tests.fakes.workers import FakeCanary, FakeWorkers


@dataclass
class Releases:
    good: ReleaseSet
    better: ReleaseSet
    broken: ReleaseSet
    lying: ReleaseSet


@pytest.fixture
def releases(tmp_path) -> Releases:
    return Releases(
        good=make_release(tmp_path / "good", ModelSpec(tiny.brightness())),
        better=make_release(tmp_path / "better", ModelSpec(tiny.brightness(0.5), factor=0.5), version="1.1.0"),
        broken=make_release(tmp_path / "broken", ModelSpec(b"no model"), version="1.2.0"),
        lying=make_release(tmp_path / "lying", ModelSpec(tiny.brightness(0.9)), version="1.3.0"),
    )


@pytest.fixture(params=["real", "fake"])
async def workers(request, releases) -> AsyncIterator[Workers]:
    if request.param == "fake":
        yield FakeWorkers(dead=[releases.broken.digest])
        return
    real = ProcessWorkers(clock=time.monotonic)
    yield real
    await real.close()


@pytest.fixture(params=["real", "fake"])
def canary(request, releases, tmp_path) -> Canary:
    if request.param == "fake":
        return FakeCanary({releases.broken.digest: Reason.MODEL_LOAD, releases.lying.digest: Reason.GOLDEN})
    return SubprocessCanary(tmp_path / "scratch")


async def test_nothing_serves_before_it_is_told(workers):
    health = workers.health()
    assert (health.digest, health.serving) == (None, False)
    await workers.converge(None)
    assert workers.health().digest is None


async def test_once_converge_returns_the_release_serves(workers, releases):
    for release in (releases.good, releases.better, releases.better, releases.good):
        await workers.converge(release)
        health = workers.health()
        assert (health.digest, health.serving) == (release.digest, True)
        assert (health.errors, health.crashes) == (0, ())
    await workers.converge(None)
    assert workers.health().digest is None


async def test_what_does_not_come_up_leaves_what_served_serving(workers, releases):
    await workers.converge(releases.good)
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            await workers.converge(releases.broken)
        assert refused.value.reason is Reason.MODEL_LOAD
        health = workers.health()
        assert (health.digest, health.serving) == (releases.good.digest, True)
    await workers.converge(releases.better)
    assert workers.health().digest == releases.better.digest


async def test_a_canary_lets_a_good_release_pass_each_time(canary, releases):
    await canary.check(releases.good)
    await canary.check(releases.good)


@pytest.mark.parametrize(
    ("pick", "reason"),
    [(lambda all_: all_.broken, Reason.MODEL_LOAD), (lambda all_: all_.lying, Reason.GOLDEN)],
    ids=["broken", "lying"],
)
async def test_a_canary_refuses_with_the_reason(canary, releases, pick: Callable[[Releases], Any], reason):
    with pytest.raises(Refused) as refused:
        await canary.check(pick(releases))
    assert refused.value.reason is reason
