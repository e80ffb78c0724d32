"""The processes that infer: the swap drops nothing, a crash hurts nobody, and every result is one release's."""

import asyncio
import contextlib
import os
import signal
import time

import pytest

from device.inference import worker_process
from device.inference.frames import Frame
from device.inference.keeper import Backoff
from device.inference.worker_process import WorkerProcess
from device.inference.workers import ProcessWorkers
from protocol.errors import Reason, Refused
from protocol.ids import digest
from tests.fakes import tiny_models as tiny
from tests.fakes.release_sets import ModelSpec, grey_png, make_release

QUICK = Backoff(steady_s=3600.0, first_s=0.05, most_s=0.2)


def frame(level: int, name: str = "a.png") -> Frame:
    return Frame(name, "image/png", grey_png(level), time.monotonic())


@pytest.fixture
async def workers():
    made = ProcessWorkers(clock=time.monotonic, backoff=QUICK)
    yield made
    await made.close()


@pytest.fixture
def good(tmp_path):
    return make_release(tmp_path / "good", ModelSpec(tiny.brightness()))


@pytest.fixture
def better(tmp_path):
    return make_release(tmp_path / "better", ModelSpec(tiny.brightness(0.5), factor=0.5), version="1.1.0")


async def test_a_result_names_the_bytes_that_made_it(workers, good):
    await workers.converge(good)
    reply = await asyncio.wait_for(workers.infer(frame(204)), 20)
    assert reply.manifest == good.digest
    (one,) = reply.replies
    assert one.model_digest == digest(tiny.brightness())
    assert one.accelerator == "cpu"
    assert one.kind == "finding"
    assert [score.label for score in one.finding.scores] == ["bright"]
    assert one.finding.scores[0].score == pytest.approx(0.8, abs=1e-5)
    assert one.finding.alarm
    health = workers.health()
    assert (health.digest, health.serving, health.inferences, health.errors, health.crashes) == (
        good.digest,
        True,
        1,
        0,
        (),
    )
    assert health.latency_ms["light"] > 0


async def test_frames_wait_until_a_release_serves(workers, good):
    waiting = asyncio.create_task(workers.infer(frame(10)))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert workers.health().digest is None
    await workers.converge(good)
    assert (await asyncio.wait_for(waiting, 20)).manifest == good.digest


async def test_converging_again_changes_nothing(workers, good):
    await workers.converge(good)
    pid = workers.status().models["light"].pid
    await workers.infer(frame(10))
    await workers.converge(good)
    assert workers.status().models["light"].pid == pid
    assert workers.health().inferences == 1


async def test_a_swap_drops_no_frame_and_mixes_none(workers, good, better):
    await workers.converge(good)
    stop = asyncio.Event()

    async def camera():
        replies = []
        while not stop.is_set():
            replies.append(await workers.infer(frame(51)))
        return replies

    cameras = [asyncio.create_task(camera()) for _ in range(2)]
    await asyncio.sleep(0.1)
    await workers.converge(better)
    await asyncio.sleep(0.1)
    stop.set()
    of_cameras = await asyncio.wait_for(asyncio.gather(*cameras), 20)
    made_by = {good.digest: digest(tiny.brightness()), better.digest: digest(tiny.brightness(0.5))}
    for replies in of_cameras:  # while one is answered by the new release, another may wait for its answer by the old
        for reply in replies:
            (one,) = reply.replies
            assert one.kind == "finding"
            assert one.model_digest == made_by[reply.manifest]
        manifests = [reply.manifest for reply in replies]
        assert manifests == sorted(manifests, key=[good.digest, better.digest].index)
        assert set(manifests) == {good.digest, better.digest}
    swap = workers.status().swap
    assert (swap.old, swap.new, swap.gap_ms) == (good.digest, better.digest, 0.0)
    # The evidence is the new release's alone.
    assert workers.health().inferences == sum(r.manifest == better.digest for replies in of_cameras for r in replies)


async def test_the_old_worker_lets_go_only_when_the_new_one_serves(workers, good, better, monkeypatch):
    await workers.converge(good)
    served = []
    stop = WorkerProcess.stop

    async def watched(process: WorkerProcess) -> None:
        served.append((workers.health().digest, workers.health().serving))
        await stop(process)

    monkeypatch.setattr(WorkerProcess, "stop", watched)
    await workers.converge(better)
    assert served == [(better.digest, True)]


async def test_a_release_that_does_not_come_up_leaves_the_old_one_serving(workers, good, tmp_path):
    await workers.converge(good)
    pid = workers.status().models["light"].pid
    broken = make_release(tmp_path / "broken", ModelSpec(b"\x08\x08rubbish"))
    with pytest.raises(Refused) as refused:
        await workers.converge(broken)
    assert refused.value.reason is Reason.MODEL_LOAD
    assert workers.status().models["light"].pid == pid
    assert (await workers.infer(frame(10))).manifest == good.digest


async def test_a_golden_input_is_held_by_the_worker_that_is_to_serve(workers, tmp_path):
    lies = make_release(tmp_path / "lies", ModelSpec(tiny.brightness(0.9)))
    with pytest.raises(Refused) as refused:
        await workers.converge(lies)
    assert refused.value.reason is Reason.TRIAL_GOLDEN
    assert workers.health().digest is None


async def test_other_bytes_than_those_signed_are_never_loaded(workers, good):
    path = good.files[digest(tiny.brightness())]
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(Refused) as refused:
        await workers.converge(good)
    assert refused.value.reason is Reason.HASH


async def test_a_killed_worker_is_started_again_and_the_frame_in_flight_is_not_lost(workers, good):
    await workers.converge(good)
    await workers.infer(frame(10))
    os.kill(workers.status().models["light"].pid, signal.SIGSEGV)
    replies = await asyncio.wait_for(asyncio.gather(*(workers.infer(frame(51)) for _ in range(5))), 20)
    assert {one.kind for reply in replies for one in reply.replies} == {"finding"}
    health = workers.health()
    assert health.crashes == ("SIGSEGV",)
    assert health.serving
    assert workers.status().models["light"].restarts == 1


async def test_a_frame_that_ends_two_workers_is_given_up_and_the_next_one_is_inferred(workers, tmp_path):
    release = make_release(tmp_path / "crashes", ModelSpec(tiny.crashes_on_black()))
    await workers.converge(release)
    black, light = await asyncio.wait_for(
        asyncio.gather(workers.infer(frame(0, "black.png")), workers.infer(frame(51))), 30
    )
    assert black.replies[0].kind == "given-up"
    assert light.replies[0].kind == "finding"
    assert workers.health().crashes == ("SIGFPE", "SIGFPE")
    assert workers.status().given_up == 1


async def test_a_frame_that_crashed_one_release_is_inferred_by_the_next(tmp_path, good):
    slow_back = Backoff(steady_s=3600.0, first_s=30.0)
    workers = ProcessWorkers(clock=time.monotonic, backoff=slow_back)
    try:
        await workers.converge(make_release(tmp_path / "crashes", ModelSpec(tiny.crashes_on_black())))
        black = asyncio.create_task(workers.infer(frame(0)))
        async with asyncio.timeout(20):
            while not workers.health().crashes:  # noqa: ASYNC110  (health is polled, as the update machine does)
                await asyncio.sleep(0.01)
        assert not workers.health().serving
        await workers.converge(good)
        reply = await asyncio.wait_for(black, 20)
        assert (reply.manifest, reply.replies[0].kind) == (good.digest, "finding")
        assert workers.health().crashes == ()
    finally:
        await workers.close()


async def test_a_hang_is_ended_and_told(tmp_path):
    workers = ProcessWorkers(clock=time.monotonic, backoff=QUICK, frame_limit_s=0.5)
    try:
        spec = ModelSpec(tiny.spins_on_white(10**9))
        spec.bounds = type(spec.bounds)(latency_ms=10.0, memory_mib=128)
        await workers.converge(make_release(tmp_path / "spins", spec))
        reply = await asyncio.wait_for(workers.infer(frame(255)), 30)
        assert reply.replies[0].kind == "given-up"
        assert workers.health().crashes == ("hang", "hang")
    finally:
        await workers.close()


async def test_a_frame_does_not_wait_for_a_worker_that_outlives_a_kill(tmp_path, monkeypatch):
    async def in_vain(process) -> None: ...

    monkeypatch.setattr(worker_process, "end_process", in_vain)
    monkeypatch.setattr(worker_process, "_STOP_S", 0.1)
    monkeypatch.setattr(asyncio.subprocess.Process, "kill", lambda _: None)
    spec = ModelSpec(tiny.spins_on_white(10**9))
    spec.bounds = type(spec.bounds)(latency_ms=10.0, memory_mib=128)
    workers = ProcessWorkers(clock=time.monotonic, backoff=Backoff(first_s=3600.0, most_s=3600.0), frame_limit_s=0.2)
    await workers.converge(make_release(tmp_path / "spins", spec))
    (keeper,) = workers._crew.keepers.values()
    hung = keeper.process._process
    try:
        waits = asyncio.create_task(workers.infer(frame(255)))
        async with asyncio.timeout(20):
            while workers.health().serving:  # noqa: ASYNC110  (health tells nobody)
                await asyncio.sleep(0.01)
        assert workers.health().crashes == ("hang",)
        waits.cancel()
    finally:
        os.kill(hung.pid, signal.SIGKILL)
        await hung.wait()
        await workers.close()


async def test_a_model_that_wants_too_much_memory_fails_alone(workers, tmp_path):
    release = make_release(tmp_path / "hungry", ModelSpec(tiny.hungry(4096, on_white_only=True)))
    await workers.converge(release)
    reply = await asyncio.wait_for(workers.infer(frame(255)), 30)
    assert reply.replies[0].kind == "error"
    assert "bounds" in reply.replies[0].message
    assert (await workers.infer(frame(51))).replies[0].kind == "finding"
    health = workers.health()
    assert (health.inferences, health.errors, health.crashes) == (2, 1, ())


async def test_a_broken_frame_is_no_evidence_against_the_model(workers, good):
    await workers.converge(good)
    broken = Frame("b.png", "image/png", grey_png(10)[:40], 0.0)
    assert (await workers.infer(broken)).replies[0].kind == "unreadable"
    health = workers.health()
    assert (health.inferences, health.errors) == (0, 0)
    assert workers.status().unreadable == 1


async def test_not_a_number_is_an_error_of_the_model(workers, tmp_path):
    await workers.converge(make_release(tmp_path / "nan", ModelSpec(tiny.not_a_number_on_black())))
    assert (await workers.infer(frame(0))).replies[0].kind == "error"
    assert workers.health().errors == 1


async def test_every_frame_goes_to_every_model(workers, tmp_path):
    release = make_release(
        tmp_path / "two",
        ModelSpec(tiny.brightness(), name="light"),
        ModelSpec(tiny.brightness(0.5), name="half", factor=0.5),
    )
    await workers.converge(release)
    reply = await workers.infer(frame(102))
    assert [one.model.name for one in reply.replies] == ["light", "half"]
    assert [one.finding.scores[0].label for one in reply.replies] == ["dark", "dark"]
    assert [one.finding.scores[0].score for one in reply.replies] == pytest.approx([0.6, 0.8], abs=1e-5)


async def test_none_lets_every_worker_go(workers, good):
    await workers.converge(good)
    pid = workers.status().models["light"].pid
    await workers.converge(None)
    assert workers.health().digest is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("comes_up", [True, False])
async def test_what_has_to_be_up_before_the_switch_is_waited_for_while_the_old_release_answers(
    workers, good, better, comes_up
):
    await workers.converge(good)
    answered = []

    async def containers() -> None:
        answered.append((await workers.infer(frame(51))).manifest)
        if not comes_up:
            raise Refused(Reason.TRIAL_CONTAINER, "it does not come up")

    with contextlib.nullcontext() if comes_up else pytest.raises(Refused, match="does not come up"):
        await workers.converge(better, before_switch=containers)
    assert answered == [good.digest]
    assert (await workers.infer(frame(51))).manifest == (better if comes_up else good).digest
    assert workers.health().serving
