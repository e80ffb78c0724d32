"""Runtimes behind one port."""

from typing import TYPE_CHECKING

from protocol.release import Accelerator, Runtime

if TYPE_CHECKING:
    # The port speaks of numpy's arrays; the agent, which asks for `mode_of` only, must not carry numpy.
    from device.inference.backends.port import Backend, Mode


def choose(runtime: Runtime, accelerator: Accelerator) -> "Backend":
    """The backend of a variant. Runtimes are imported here, late: the agent itself never loads one."""
    if runtime == "onnxruntime":
        from device.inference.backends.onnxruntime_ import OnnxRuntimeBackend

        return OnnxRuntimeBackend()
    if accelerator == "edgetpu":
        from device.inference.backends.edgetpu import EdgeTpuBackend

        return EdgeTpuBackend()
    from device.inference.backends.litert import LiteRtBackend

    return LiteRtBackend()


def mode_of(runtime: Runtime, accelerator: Accelerator) -> "Mode":
    """The `mode` of the backend that `choose` gives, told without importing it."""
    return "exclusive" if runtime == "litert" and accelerator == "edgetpu" else "overlap"
