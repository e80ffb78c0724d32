"""ONNX models by onnxruntime: TensorRT or CUDA where the machine has them, else the CPU, and never silently."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from device.inference.backends.onnx_scan import refuse_external_data
from device.inference.backends.port import Description, Mode, Outputs
from protocol.errors import Reason, Refused
from protocol.release import Accelerator, DType, Layout, Tensor

_PROVIDERS: Final[dict[Accelerator, tuple[str, ...]]] = {
    # TensorRT leaves to CUDA what it cannot compile, and both leave to the CPU what they do not implement.
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "cpu": ("CPUExecutionProvider",),
}
_ACCELERATORS: Final[dict[str, Accelerator]] = {
    "TensorrtExecutionProvider": "tensorrt",
    "CUDAExecutionProvider": "cuda",
    "CPUExecutionProvider": "cpu",
}
_DTYPES: Final = {"tensor(float)": "float32"} | {f"tensor({name})": name for name in get_args(DType)}
_OUT_OF_MEMORY: Final = re.compile(r"alloc|memory", re.IGNORECASE)
_CHANNELS: Final = (1, 3, 4)
_QUIET: Final = 3  # errors only: warnings about every graph optimisation are no news to a machine


class OrtModule(Protocol):
    """What is used of the `onnxruntime` module; tests for absent hardware hand in one of their own."""

    __version__: str

    def get_available_providers(self) -> Sequence[str]:
        """Names of the providers that this build has."""
        ...

    @property
    def SessionOptions(self) -> Any:  # noqa: N802  (the runtime's name)
        """A class."""
        ...

    @property
    def InferenceSession(self) -> Any:  # noqa: N802  (the runtime's name)
        """A class."""
        ...


class OnnxRuntimeBackend:
    """See the module.

    Args:
        runtime: The module `onnxruntime`, which is imported when none is handed in.
    """

    mode: Mode = "overlap"

    def __init__(self, runtime: OrtModule | None = None) -> None:
        if runtime is None:
            try:
                import onnxruntime
            except ImportError as error:
                raise Refused(Reason.MODEL_LOAD, f"onnxruntime cannot be imported: {error}") from error
            runtime = cast("OrtModule", onnxruntime)
        self._runtime = runtime

    @property
    def version(self) -> str:
        """As in the port."""
        return self._runtime.__version__

    def describe(self, model: bytes) -> Description:
        """As in the port."""
        return self.load(model, "cpu", threads=1).description

    def load(self, model: bytes, accelerator: Accelerator, *, threads: int) -> "OnnxSession":
        """As in the port."""
        refuse_external_data(model)
        if accelerator not in _PROVIDERS:
            raise Refused(Reason.MODEL_LOAD, f"onnxruntime does not drive {accelerator}")
        available = self._runtime.get_available_providers()
        wanted = _PROVIDERS[accelerator]
        missing = [name for name in wanted if name not in available]
        usable = [name for name in wanted if name in available]
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        # Threads that spin between frames take the core from the worker of the next model, and the battery's charge.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Custom operators would be foreign code: nothing here ever calls register_custom_ops_library.
        try:
            session = self._runtime.InferenceSession(model, sess_options=options, providers=usable)
        except Exception as error:
            raise _translate(error, Reason.MODEL_LOAD, "onnxruntime does not load the model") from error
        # onnxruntime takes a provider out again, with a warning only, when its libraries or the device fail.
        active = list(session.get_providers())
        got: Accelerator = next((_ACCELERATORS[name] for name in active if name in _ACCELERATORS), "cpu")
        fallback = ""
        if got != accelerator:
            why = f"this build lacks {', '.join(missing)}" if missing else "the provider could not be initialised"
            fallback = f"asked for {accelerator}, runs on {got}: {why}"
        return OnnxSession(session, got, fallback)


class OnnxSession:
    """A loaded model; made by `OnnxRuntimeBackend`."""

    def __init__(self, session: Any, accelerator: Accelerator, fallback: str) -> None:
        self._session: Any = session
        self.accelerator: Accelerator = accelerator
        self.fallback = fallback
        self.description = Description(
            inputs=tuple(_tensor(node, is_input=True) for node in session.get_inputs()),
            outputs=tuple(_tensor(node, is_input=False) for node in session.get_outputs()),
        )
        self._names = [tensor.name for tensor in self.description.outputs]

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Outputs:
        """As in the port."""
        try:
            values = self._session.run(self._names, dict(feeds))
        except Exception as error:
            reason = Reason.MODEL_SHAPE if "INVALID_ARGUMENT" in str(error) else Reason.MODEL_LOAD
            raise _translate(error, reason, "onnxruntime does not run the model") from error
        outputs: Outputs = {}
        for name, value in zip(self._names, values, strict=True):
            if not isinstance(value, np.ndarray) or value.dtype.hasobject:
                raise Refused(Reason.MODEL_SHAPE, f"output {name!r} is no tensor of numbers")
            outputs[name] = value
        return outputs

    def close(self) -> None:
        """As in the port."""
        self._session = None


def _tensor(node: Any, *, is_input: bool) -> Tensor:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise Refused(Reason.MODEL_SHAPE, f"tensor {node.name!r} is {node.type}: known are {sorted(_DTYPES)}")
    # A dimension is a number, a symbol's name, or None when the file says nothing.
    shape = tuple(side if isinstance(side, int) and side >= 0 else -1 for side in node.shape)
    layout: Layout = "any"
    if len(shape) == 4:
        # ONNX's convention is NCHW; an input with its channels at the end came from a framework with the other one.
        layout = "NHWC" if is_input and shape[3] in _CHANNELS and shape[1] not in _CHANNELS else "NCHW"
    return Tensor(name=node.name, shape=shape, dtype=cast("DType", dtype), layout=layout)


def _translate(error: Exception, reason: Reason, what: str) -> Refused:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        reason = Reason.BOUNDS
    return Refused(reason, f"{what}: {text[:500]}")
