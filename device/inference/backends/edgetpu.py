"""TFLite models on a Coral Edge TPU, which has one owner at a time.

Two ways in. The genuine PyCoral, where a Coral image brings it: PyPI's package of that name is an unrelated program,
so what can be imported must have `pycoral.utils.edgetpu.make_interpreter` to count. Else LiteRT with the delegate of
`libedgetpu.so.1`.
"""

import ctypes
import importlib
from collections.abc import Callable
from typing import Any, Final

from device.inference.backends.litert import (
    LiteRtModule,
    LiteRtSession,
    describe,
    import_litert,
    litert_version,
    read_description,
    translate,
)
from device.inference.backends.port import Description, Mode
from device.inference.backends.tflite_scan import refuse_external_buffers
from protocol.errors import Reason, Refused
from protocol.release import Accelerator

DELEGATE: Final = "libedgetpu.so.1"
_PYCORAL: Final = "pycoral.utils.edgetpu"


def genuine_pycoral(import_module: Callable[[str], Any] = importlib.import_module) -> Any | None:
    """The module `pycoral.utils.edgetpu` of the genuine PyCoral; None when there is none."""
    try:
        module = import_module(_PYCORAL)
    except Exception:
        # The unrelated program may fail in any way when it is imported.
        return None
    return module if callable(getattr(module, "make_interpreter", None)) else None


class EdgeTpuBackend:
    """See the module.

    Args:
        runtime: The module `ai_edge_litert.interpreter`, which is imported when none is handed in.
        pycoral: The genuine `pycoral.utils.edgetpu`; looked for when `look` says so.
        look: Whether to look for PyCoral.
        open_library: Opens a shared library or raises OSError.
    """

    mode: Mode = "exclusive"

    def __init__(
        self,
        runtime: LiteRtModule | None = None,
        pycoral: Any | None = None,
        *,
        look: bool = True,
        open_library: Callable[[str], object] = ctypes.CDLL,
    ) -> None:
        self._open_library = open_library
        self._pycoral = genuine_pycoral() if pycoral is None and look else pycoral
        self._runtime = runtime

    @property
    def version(self) -> str:
        """As in the port."""
        return litert_version()

    def describe(self, model: bytes) -> Description:
        """As in the port. LiteRT reads it: a compiled model's operator is unknown to it, its tensors are not."""
        return describe(self._runtime or import_litert(), model)

    def load(self, model: bytes, accelerator: Accelerator, *, threads: int) -> LiteRtSession:
        """As in the port. Where the TPU is not there, a model that the CPU can run falls back to it, and says so."""
        refuse_external_buffers(model)
        if accelerator != "edgetpu":
            raise Refused(Reason.MODEL_LOAD, f"the Edge TPU does not drive {accelerator}")
        try:
            interpreter = self._interpreter(model)
        except Exception as error:
            return self._on_the_cpu(model, threads, error)
        return LiteRtSession(interpreter, "edgetpu", "")

    def _interpreter(self, model: bytes) -> Any:
        if self._pycoral is not None:
            return self._pycoral.make_interpreter(model)
        runtime = self._runtime or import_litert()
        # Tried first, as the destructor of LiteRT's Delegate fails, noisily, when there is no library.
        self._open_library(DELEGATE)
        return runtime.Interpreter(model_content=model, experimental_delegates=[runtime.load_delegate(DELEGATE)])

    def _on_the_cpu(self, model: bytes, threads: int, error: Exception) -> LiteRtSession:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        runtime = self._runtime or import_litert()
        try:
            interpreter = runtime.Interpreter(model_content=model, num_threads=threads or None)
            read_description(interpreter)
        except Exception as second:
            raise translate(second, Reason.MODEL_LOAD, "LiteRT does not load the model") from second
        try:
            return LiteRtSession(interpreter, "cpu", f"asked for edgetpu, runs on cpu: {why}")
        except Refused as refused:
            raise Refused(
                refused.reason, f"no Edge TPU ({why}), and the CPU does not run the model: {refused.message}"
            ) from error
