"""Hardware that is not here, behind the port: which provider or delegate is asked for, and what is told of a fall-back.

Never run on that hardware: a runtime of the test's own stands in for it.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from device.inference.backends.edgetpu import DELEGATE, EdgeTpuBackend, genuine_pycoral
from device.inference.backends.litert import LiteRtBackend
from device.inference.backends.onnxruntime_ import OnnxRuntimeBackend
from protocol.errors import Reason, Refused
from tests.fakes import tiny_models as tiny


class FakeOrt:
    """onnxruntime with the providers that the test names; some of them fail when they are initialised."""

    __version__ = "9.9"

    def __init__(self, available: tuple[str, ...], failing: tuple[str, ...] = ()) -> None:
        self.available = available
        self.failing = failing
        self.asked: list[list[str]] = []
        self.entries: dict[str, str] = {}
        outer = self

        class SessionOptions:
            intra_op_num_threads = 0
            inter_op_num_threads = 0
            log_severity_level = 2

            def add_session_config_entry(self, key: str, value: str) -> None:
                outer.entries[key] = value

            def __getattr__(self, name: str) -> Any:
                raise AssertionError(f"{name} is not to be touched")

        class InferenceSession:
            def __init__(self, model: bytes, sess_options: Any, providers: list[str]) -> None:
                outer.asked.append(providers)
                outer.threads = (sess_options.intra_op_num_threads, sess_options.inter_op_num_threads)
                self._active = [name for name in providers if name not in outer.failing]

            def get_providers(self) -> list[str]:
                return self._active

            def get_inputs(self) -> list:
                return [SimpleNamespace(name="image", type="tensor(float)", shape=["batch", 3, None, 8])]

            def get_outputs(self) -> list:
                return [SimpleNamespace(name="scores", type="tensor(float)", shape=[1, 2])]

            def run(self, names: list[str], feeds: dict) -> list:
                return [np.zeros((1, 2), np.float32) for _ in names]

        self.SessionOptions = SessionOptions
        self.InferenceSession = InferenceSession

    def get_available_providers(self) -> tuple[str, ...]:
        return self.available


TRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("accelerator", "available", "failing", "asked", "runs_on", "why"),
    [
        ("tensorrt", (TRT, CUDA, CPU), (), [TRT, CUDA, CPU], "tensorrt", ""),
        ("tensorrt", (TRT, CUDA, CPU), (TRT,), [TRT, CUDA, CPU], "cuda", "could not be initialised"),
        ("tensorrt", (CUDA, CPU), (), [CUDA, CPU], "cuda", f"lacks {TRT}"),
        ("tensorrt", (CPU,), (), [CPU], "cpu", f"lacks {TRT}, {CUDA}"),
        ("cuda", (TRT, CUDA, CPU), (), [CUDA, CPU], "cuda", ""),
        ("cuda", (CUDA, CPU), (CUDA,), [CUDA, CPU], "cpu", "could not be initialised"),
        ("cuda", (CPU,), (), [CPU], "cpu", f"lacks {CUDA}"),
        ("cpu", (TRT, CUDA, CPU), (), [CPU], "cpu", ""),
    ],
)
def test_the_provider_is_chosen_and_a_fall_back_is_told(accelerator, available, failing, asked, runs_on, why):
    runtime = FakeOrt(available, failing)
    session = OnnxRuntimeBackend(runtime).load(tiny.brightness(), accelerator, threads=3)
    assert runtime.asked == [asked]
    assert session.accelerator == runs_on
    assert (why in session.fallback) if why else session.fallback == ""
    assert runtime.threads == (3, 1)
    assert runtime.entries == {"session.intra_op.allow_spinning": "0"}
    assert session.description.inputs[0].shape == (-1, 3, -1, 8)


def test_onnxruntime_does_not_pretend_to_drive_an_edge_tpu():
    with pytest.raises(Refused, match="does not drive edgetpu"):
        OnnxRuntimeBackend(FakeOrt((CPU,))).load(tiny.brightness(), "edgetpu", threads=1)


class FakeInterpreter:
    def __init__(self, calls: list, **options: Any) -> None:
        calls.append(("Interpreter", options))
        self.calls = calls
        self.delegated = bool(options.get("experimental_delegates"))

    def get_input_details(self) -> list:
        quantised = {"dtype": np.uint8, "quantization": (0.5, 3), "shape": np.array([1, 2]), "index": 0}
        return [{"name": "in", "shape_signature": np.array([1, 2]), **quantised}]

    def get_output_details(self) -> list:
        return [{"name": "", "dtype": np.uint8, "quantization": (0.0, 0), "shape": np.array([1, 2]), "index": 1}]

    def allocate_tensors(self) -> None:
        self.calls.append(("allocate_tensors",))

    def set_tensor(self, index: int, value: np.ndarray) -> None:
        self.value = value

    def invoke(self) -> None:
        self.calls.append(("invoke",))

    def get_tensor(self, index: int) -> np.ndarray:
        return self.value


class FakeLiteRt:
    """LiteRT on a machine with an Edge TPU, or without."""

    def __init__(self, *, tpu: bool) -> None:
        self.calls: list = []
        self._tpu = tpu

    def Interpreter(self, **options: Any) -> FakeInterpreter:
        return FakeInterpreter(self.calls, **options)

    def load_delegate(self, library: str, options: Any = None) -> str:
        self.calls.append(("load_delegate", library, options))
        if not self._tpu:
            raise ValueError("Failed to load delegate from libedgetpu.so.1")
        return "the delegate"


MODEL = tiny.brightness_tflite()


def test_the_edge_tpu_is_driven_through_the_delegate_when_there_is_no_pycoral():
    runtime = FakeLiteRt(tpu=True)
    session = EdgeTpuBackend(runtime, look=False, open_library=str).load(MODEL, "edgetpu", threads=2)
    assert runtime.calls == [
        ("load_delegate", DELEGATE, None),
        ("Interpreter", {"model_content": MODEL, "experimental_delegates": ["the delegate"]}),
        ("allocate_tensors",),
    ]
    assert (session.accelerator, session.fallback) == ("edgetpu", "")
    frame = np.array([[1, 2]], np.uint8)
    assert list(session.run({"in": frame})) == ["#0"]
    assert runtime.calls[-1] == ("invoke",)


def test_the_edge_tpu_is_driven_through_the_genuine_pycoral_when_it_is_there():
    calls: list = []
    coral = SimpleNamespace(make_interpreter=lambda model: FakeInterpreter(calls, made_by="pycoral", model=model))
    session = EdgeTpuBackend(FakeLiteRt(tpu=False), coral).load(MODEL, "edgetpu", threads=1)
    assert calls[0] == ("Interpreter", {"made_by": "pycoral", "model": MODEL})
    assert (session.accelerator, session.fallback) == ("edgetpu", "")


def test_without_an_edge_tpu_the_cpu_runs_what_it_can_and_says_so():
    runtime = FakeLiteRt(tpu=False)
    session = EdgeTpuBackend(runtime, look=False, open_library=str).load(MODEL, "edgetpu", threads=2)
    assert runtime.calls[1] == ("Interpreter", {"model_content": MODEL, "num_threads": 2})
    assert session.accelerator == "cpu"
    assert session.fallback == "asked for edgetpu, runs on cpu: Failed to load delegate from libedgetpu.so.1"


def test_without_the_delegates_library_nothing_of_it_is_touched():
    runtime = FakeLiteRt(tpu=True)

    def open_library(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    session = EdgeTpuBackend(runtime, look=False, open_library=open_library).load(MODEL, "edgetpu", threads=0)
    assert runtime.calls[0] == ("Interpreter", {"model_content": MODEL, "num_threads": None})
    assert session.fallback.endswith("libedgetpu.so.1: cannot open shared object file")


def test_a_failing_pycoral_falls_back_too():
    def make_interpreter(model: bytes) -> Any:
        raise ValueError("no device")

    coral = SimpleNamespace(make_interpreter=make_interpreter)
    session = EdgeTpuBackend(FakeLiteRt(tpu=False), coral).load(MODEL, "edgetpu", threads=1)
    assert session.fallback == "asked for edgetpu, runs on cpu: no device"


def test_a_compiled_model_without_an_edge_tpu_is_refused_with_both_reasons():
    with pytest.raises(Refused, match=r"no Edge TPU .* and the CPU does not run the model") as refused:
        EdgeTpuBackend(look=False).load(tiny.with_custom_operator(), "edgetpu", threads=1)
    assert refused.value.reason is Reason.MODEL_LOAD


def test_a_compiled_model_can_be_described_without_an_edge_tpu():
    description = EdgeTpuBackend(look=False).describe(tiny.with_custom_operator())
    assert [tensor.name for tensor in description.inputs] == ["image"]


@pytest.mark.parametrize(
    "found",
    [
        SimpleNamespace(),
        SimpleNamespace(make_interpreter="not a function"),
        ImportError("No module named 'pycoral.utils'"),
        SyntaxError("Missing parentheses in call to 'print'"),
        RuntimeError("the unrelated program does something on import"),
    ],
    ids=repr,
)
def test_the_unrelated_pycoral_is_not_taken_for_the_genuine_one(found):
    def import_module(name: str) -> Any:
        assert name == "pycoral.utils.edgetpu"
        if isinstance(found, Exception):
            raise found
        return found

    assert genuine_pycoral(import_module) is None


def test_the_genuine_pycoral_is():
    coral = SimpleNamespace(make_interpreter=lambda model: None, list_edge_tpus=list)
    assert genuine_pycoral(lambda name: coral) is coral


def test_litert_says_that_it_has_no_other_accelerator():
    session = LiteRtBackend(FakeLiteRt(tpu=False)).load(MODEL, "cuda", threads=0)
    assert session.fallback == "asked for cuda, runs on cpu: LiteRT has no cuda"
