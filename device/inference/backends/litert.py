"""TFLite models by LiteRT on the CPU."""

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Final, Protocol, cast, get_args

import numpy as np
from numpy.typing import NDArray

from device.inference.backends.port import Description, Mode, Outputs
from device.inference.backends.tflite_scan import refuse_external_buffers
from protocol.errors import Reason, Refused
from protocol.release import Accelerator, DType, Tensor

_DTYPES: Final = frozenset(get_args(DType))
_OUT_OF_MEMORY: Final = re.compile(r"alloc(?!ate_tensors)|memory", re.IGNORECASE)


class LiteRtModule(Protocol):
    """What is used of `ai_edge_litert.interpreter`; tests for absent hardware hand in one of their own."""

    @property
    def Interpreter(self) -> Any:  # noqa: N802  (the runtime's name)
        """A class."""
        ...

    def load_delegate(self, library: str, options: Mapping[str, str] | None = None) -> Any:
        """Opens a delegate's shared library.

        Raises:
            ValueError: The library or its device is not there.
        """
        ...


class LiteRtBackend:
    """See the module.

    Args:
        runtime: The module `ai_edge_litert.interpreter`, which is imported when none is handed in.
    """

    mode: Mode = "overlap"

    def __init__(self, runtime: LiteRtModule | None = None) -> None:
        self._runtime = runtime or import_litert()

    @property
    def version(self) -> str:
        """As in the port."""
        return litert_version()

    def describe(self, model: bytes) -> Description:
        """As in the port."""
        return describe(self._runtime, model)

    def load(self, model: bytes, accelerator: Accelerator, *, threads: int) -> "LiteRtSession":
        """As in the port."""
        refuse_external_buffers(model)
        try:
            interpreter = self._runtime.Interpreter(model_content=model, num_threads=threads or None)
        except Exception as error:
            raise translate(error, Reason.MODEL_LOAD, "LiteRT does not load the model") from error
        fallback = "" if accelerator == "cpu" else f"asked for {accelerator}, runs on cpu: LiteRT has no {accelerator}"
        return LiteRtSession(interpreter, "cpu", fallback)


class LiteRtSession:
    """An interpreter with its tensors allocated.

    Args:
        interpreter: Of LiteRT, or of the tflite_runtime that PyCoral brings.
        accelerator: What runs it.
        fallback: As in the port.

    Raises:
        Refused: `MODEL_LOAD`: an operator that this runtime does not have; `BOUNDS`: no memory.
    """

    def __init__(self, interpreter: Any, accelerator: Accelerator, fallback: str) -> None:
        self._interpreter: Any = interpreter
        self.accelerator: Accelerator = accelerator
        self.fallback = fallback
        self.description = read_description(interpreter)
        try:
            interpreter.allocate_tensors()
        except Exception as error:
            raise translate(error, Reason.MODEL_LOAD, "LiteRT does not prepare the model") from error
        self._indexes = _indexes(interpreter)
        self._shapes = {
            name: tuple(int(side) for side in details["shape"])
            for name, details in zip(self._indexes[0], interpreter.get_input_details(), strict=True)
        }

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Outputs:
        """As in the port."""
        inputs, outputs = self._indexes
        try:
            self._resize(feeds)
            for name, index in inputs.items():
                self._interpreter.set_tensor(index, feeds[name])
            self._interpreter.invoke()
            return {name: self._interpreter.get_tensor(index) for name, index in outputs.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise translate(error, Reason.MODEL_SHAPE, "LiteRT does not take the inputs") from error
        except Exception as error:
            raise translate(error, Reason.MODEL_LOAD, "LiteRT does not run the model") from error

    def close(self) -> None:
        """As in the port. The delegate, and so the device, goes with the last reference to the interpreter."""
        self._interpreter = None

    def _resize(self, feeds: Mapping[str, NDArray[np.generic]]) -> None:
        changed = {name: feeds[name].shape for name, shape in self._shapes.items() if feeds[name].shape != shape}
        if not changed:
            return
        for name, shape in changed.items():
            # Strict: only what the file declares free may change.
            self._interpreter.resize_tensor_input(self._indexes[0][name], list(shape), strict=True)
        self._interpreter.allocate_tensors()
        self._shapes.update(changed)


def import_litert() -> LiteRtModule:
    """The module of LiteRT's interpreter.

    Raises:
        Refused: `MODEL_LOAD`: it is not installed, or its native library does not load.
    """
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise Refused(Reason.MODEL_LOAD, f"ai-edge-litert cannot be imported: {error}") from error
    return cast("LiteRtModule", interpreter)


def litert_version() -> str:
    """Of the installed package; empty when there is none."""
    try:
        return metadata.version("ai-edge-litert")
    except metadata.PackageNotFoundError:
        return ""


def describe(runtime: LiteRtModule, model: bytes) -> Description:
    """Reads the tensors of a file without allocating them, so that files compiled for an Edge TPU can be read too.

    Raises:
        Refused: As `Backend.describe`.
    """
    refuse_external_buffers(model)
    try:
        interpreter = runtime.Interpreter(model_content=model, num_threads=1)
        return read_description(interpreter)
    except Refused:
        raise
    except Exception as error:
        raise translate(error, Reason.MODEL_LOAD, "LiteRT does not load the model") from error


def read_description(interpreter: Any) -> Description:
    """The tensors of an interpreter, in the file's order.

    Raises:
        Refused: `MODEL_SHAPE` for a type that no manifest can state.
    """
    return Description(
        inputs=_tensors(interpreter.get_input_details()), outputs=_tensors(interpreter.get_output_details())
    )


def translate(error: Exception, reason: Reason, what: str) -> Refused:
    """A runtime's error as ours."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        reason = Reason.BOUNDS
    return Refused(reason, f"{what}: {text[:500]}")


def _tensors(details: Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(_tensor(name, one) for name, one in zip(_names(details), details, strict=True))


def _tensor(name: str, details: Mapping[str, Any]) -> Tensor:
    dtype = np.dtype(details["dtype"]).name
    if dtype not in _DTYPES:
        raise Refused(Reason.MODEL_SHAPE, f"tensor {name!r} is {dtype}: known are {sorted(_DTYPES)}")
    signature = details.get("shape_signature")
    # An empty signature means that the file has none, and the shape is fixed.
    sides = signature if signature is not None and len(signature) else details["shape"]
    scale, zero_point = details["quantization"]
    return Tensor(
        name=name,
        shape=tuple(int(side) for side in sides),
        dtype=cast("DType", dtype),
        layout="NHWC" if len(sides) == 4 else "any",
        scale=float(scale),
        zero_point=int(zero_point),
    )


def _indexes(interpreter: Any) -> tuple[dict[str, int], dict[str, int]]:
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    return (
        dict(zip(_names(inputs), (int(one["index"]) for one in inputs), strict=True)),
        dict(zip(_names(outputs), (int(one["index"]) for one in outputs), strict=True)),
    )


def _names(details: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tensors' names; where a file gives two the same, or none, the place is added."""
    names = [str(one["name"]) for one in details]
    return [f"{name}#{place}" if names.count(name) > 1 or not name else name for place, name in enumerate(names)]
