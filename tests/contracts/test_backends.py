"""One suite over every backend whose hardware is present: they agree with their runtime called directly.

What is not present here (CUDA, TensorRT, an Edge TPU) is tested behind the port, with a runtime of the test's own, in
`tests/unit/device/inference/test_accelerators.py`; it was never run on that hardware.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter

from device.inference.backends import choose, mode_of
from device.inference.backends.edgetpu import EdgeTpuBackend
from device.inference.backends.litert import LiteRtBackend
from device.inference.backends.onnxruntime_ import OnnxRuntimeBackend
from device.inference.backends.port import Backend
from protocol.errors import Reason, Refused
from protocol.release import Tensor
from tests.fakes import tiny_models as tiny


def by_onnxruntime(model: bytes, feeds: dict) -> dict:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return dict(zip([node.name for node in session.get_outputs()], session.run(None, feeds), strict=True))


def by_litert(model: bytes, feeds: dict) -> dict:
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    for details in interpreter.get_input_details():
        interpreter.set_tensor(details["index"], feeds[details["name"]])
    interpreter.invoke()
    return {one["name"]: interpreter.get_tensor(one["index"]) for one in interpreter.get_output_details()}


@dataclass
class Case:
    backend: Callable[[], Backend]
    accelerator: str
    runs_on: str
    model: bytes
    directly: Callable[[bytes, dict], dict]
    shape: tuple[int, ...]
    dtype: str = "float32"
    description: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None = None

    def feeds(self, seed: int) -> dict:
        noise = np.random.default_rng(seed).random(self.shape, np.float32)
        return {"image": noise if self.dtype == "float32" else (noise * 255 - 128).astype(self.dtype)}


def f32(name: str, *shape: int, layout: str = "any") -> Tensor:
    return Tensor(name=name, shape=shape, dtype="float32", layout=layout)


NCHW, NHWC = (1, 3, 8, 8), (1, 8, 8, 3)
CASES = {
    "onnxruntime": Case(
        OnnxRuntimeBackend, "cpu", "cpu", tiny.brightness(), by_onnxruntime, NCHW,
        description=((f32("image", *NCHW, layout="NCHW"),), (f32("scores", 1, 2),)),
    ),
    "onnxruntime-free-batch": Case(
        OnnxRuntimeBackend, "cpu", "cpu", tiny.free_batch(), by_onnxruntime, (3, 3, 8, 8),
        description=((f32("image", -1, 3, 8, 8, layout="NCHW"),), (f32("scores", -1, 2),)),
    ),
    "onnxruntime-fallback": Case(
        OnnxRuntimeBackend, "cuda", "cpu", tiny.brightness(), by_onnxruntime, NCHW
    ),
    "litert": Case(
        LiteRtBackend, "cpu", "cpu", tiny.brightness_tflite(), by_litert, NHWC,
        description=((f32("image", *NHWC, layout="NHWC"),), (f32("scores", 1, 2),)),
    ),
    "litert-int8": Case(
        LiteRtBackend, "cpu", "cpu", tiny.logistic_int8_tflite(), by_litert, NHWC, "int8",
        description=(
            (Tensor(name="image", shape=NHWC, dtype="int8", layout="NHWC", scale=1 / 16, zero_point=3),),
            (Tensor(name="scores", shape=NHWC, dtype="int8", layout="NHWC", scale=1 / 256, zero_point=-128),),
        ),
    ),
    "edgetpu-fallback": Case(
        lambda: EdgeTpuBackend(look=False), "edgetpu", "cpu", tiny.brightness_tflite(), by_litert, NHWC
    ),
}  # fmt: skip


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request) -> Case:
    return request.param


@pytest.fixture
def session(case):
    made = case.backend().load(case.model, case.accelerator, threads=1)
    yield made
    made.close()


def test_outputs_are_those_of_the_runtime_called_directly(case, session):
    for seed in range(3):
        feeds = case.feeds(seed)
        want = case.directly(case.model, feeds)
        got = session.run(feeds)
        assert set(got) == set(want)
        for name, values in want.items():
            np.testing.assert_array_equal(got[name], values)


def test_outputs_stay_as_they_are_when_the_next_run_comes(case, session):
    first = session.run(case.feeds(1))
    kept = {name: values.copy() for name, values in first.items()}
    session.run(case.feeds(2))
    for name, values in kept.items():
        np.testing.assert_array_equal(first[name], values)


def test_it_says_what_really_runs(case, session):
    assert session.accelerator == case.runs_on
    assert bool(session.fallback) == (case.accelerator != case.runs_on)
    if session.fallback:
        assert session.fallback.startswith(f"asked for {case.accelerator}, runs on {case.runs_on}: ")


def test_the_description_is_the_files_own(case, session):
    backend = case.backend()
    assert backend.describe(case.model) == session.description
    if case.description is not None:
        assert (session.description.inputs, session.description.outputs) == case.description
    assert backend.version


def test_feeds_of_another_shape_or_type_are_refused_and_the_session_lives_on(case, session):
    good = case.feeds(1)
    for bad in (
        {"image": good["image"][..., :2]},
        {"image": good["image"].astype(np.float64)},
        {"image": good["image"][0]},
    ):
        with pytest.raises(Refused) as refused:
            session.run(bad)
        assert refused.value.reason in (Reason.MODEL_SHAPE, Reason.MODEL_LOAD)
    with pytest.raises(Refused):
        session.run({})
    session.run(good)


def test_rubbish_is_refused(case):
    backend = case.backend()
    for data in (b"", b"\x00" * 64, case.model[: len(case.model) // 2], bytes(reversed(case.model))):
        with pytest.raises(Refused) as refused:
            backend.load(data, case.accelerator, threads=1)
        assert refused.value.reason is Reason.MODEL_LOAD
        with pytest.raises(Refused):
            backend.describe(data)


def test_threads_change_nothing_in_the_result(case):
    feeds = case.feeds(4)
    results = []
    for threads in (0, 1, 2):
        session = case.backend().load(case.model, case.accelerator, threads=threads)
        results.append(session.run(feeds))
        session.close()
    for other in results[1:]:
        for name, values in other.items():
            np.testing.assert_allclose(values, results[0][name], atol=1e-6)


def test_closing_twice_is_safe(session):
    session.close()
    session.close()


@pytest.mark.parametrize(
    ("runtime", "accelerator"),
    [("onnxruntime", "cpu"), ("onnxruntime", "tensorrt"), ("litert", "cpu"), ("litert", "edgetpu")],
)
def test_the_mode_can_be_told_without_the_runtime(runtime, accelerator):
    assert mode_of(runtime, accelerator) == choose(runtime, accelerator).mode
