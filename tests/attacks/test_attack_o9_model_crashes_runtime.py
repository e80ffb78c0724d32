"""O9: what a model does to its runtime, it does to a throw-away process; the live session answers all the while."""

import asyncio
import random
import time

import numpy as np
import pytest

from device.inference.canary_client import SubprocessCanary
from device.inference.frames import Frame
from device.inference.workers import ProcessWorkers
from protocol.errors import Reason, Refused
from protocol.release import Tensor
from tests.fakes import tiny_models as tiny
from tests.fakes.release_sets import IMAGE_NHWC, ModelSpec, grey_png, make_release

BLACK = [(grey_png(0), "image/png", {"scores": np.array([[0, 1]], np.float32)})]
WHITE = [(grey_png(255), "image/png", {"scores": np.array([[1, 0]], np.float32)})]

HOSTILE = {
    "crash": (ModelSpec(tiny.crashes_on_black(), goldens=BLACK), Reason.MODEL_CRASH),
    "crash-at-load": (
        ModelSpec(tiny.without_graphs(), runtime="litert", inputs=IMAGE_NHWC),
        Reason.MODEL_CRASH,
    ),
    "out-of-memory": (ModelSpec(tiny.hungry(8192, on_white_only=False)), Reason.BOUNDS),
    "endless-loop": (ModelSpec(tiny.spins_on_white(10**12), goldens=WHITE), Reason.BOUNDS),
    "wrong-shape": (
        ModelSpec(tiny.brightness(), outputs=(Tensor(name="scores", shape=(1, 3), dtype="float32"),)),
        Reason.MODEL_SHAPE,
    ),
    "not-a-number": (ModelSpec(tiny.not_a_number_on_black(), goldens=BLACK), Reason.GOLDEN),
    "wrong-answer": (ModelSpec(tiny.brightness(0.5)), Reason.GOLDEN),
    "rubbish": (ModelSpec(random.Random(9).randbytes(4096)), Reason.MODEL_LOAD),
}


WORDS = {"out-of-memory": "allocate memory", "endless-loop": "hangs"}


@pytest.mark.parametrize("case", HOSTILE)
async def test_attack_o9_a_hostile_model_is_refused_and_the_live_one_never_notices(tmp_path, case):
    spec, reason = HOSTILE[case]
    good = make_release(tmp_path / "good", ModelSpec(tiny.brightness()))
    bad = make_release(tmp_path / "bad", spec, version="2.0.0")
    workers = ProcessWorkers(clock=time.monotonic)
    try:
        await workers.converge(good)
        pid = workers.status().models["light"].pid
        answered = 0

        async def live() -> None:
            nonlocal answered
            while True:
                reply = await workers.infer(Frame("f.png", "image/png", grey_png(51), 0.0))
                assert reply.replies[0].kind == "finding"
                answered += 1
                await asyncio.sleep(0.01)

        task = asyncio.create_task(live())
        with pytest.raises(Refused) as refused:
            await SubprocessCanary(tmp_path / "scratch", wall_limit_s=4.0).check(bad)
        assert refused.value.reason is reason
        # Two limits share a reason: a memory limit that is gone must not hide behind the time limit.
        assert WORDS.get(case, "") in refused.value.message
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert answered > 10
        health = workers.health()
        assert (health.digest, health.serving, health.errors, health.crashes) == (good.digest, True, 0, ())
        assert workers.status().models["light"].pid == pid
    finally:
        await workers.close()


async def test_attack_o9_cut_and_mangled_models_are_refused_each_in_its_own_process(tmp_path):
    """A handful of mutants: loaded or not, the canary has a verdict on each, and none passes with other answers."""
    data = tiny.brightness()
    rng = random.Random(5)
    mutants = [data[: len(data) // 3]]
    for _ in range(2):
        mutant = bytearray(data)
        for _ in range(8):
            mutant[rng.randrange(len(mutant))] ^= 1 << rng.randrange(8)
        mutants.append(bytes(mutant))
    canary = SubprocessCanary(tmp_path / "scratch", wall_limit_s=20.0)
    for number, mutant in enumerate(mutants):
        release = make_release(tmp_path / str(number), ModelSpec(mutant))
        with pytest.raises(Refused):
            await canary.check(release)
