"""`python -m device.inference.describe MODEL`: the tensors of a model file, as one line of JSON.

For the release manager's tool, which must not load a foreign model into its own process. Prints
`{"ok": true, "runtime": ..., "media_type": ..., "inputs": [...], "outputs": [...]}` with the fields of
`protocol.release.Tensor`, or `{"ok": false, "reason": ..., "message": ...}`. The exit code is 0 either way; a crash
shows as another one.
"""

import sys
from pathlib import Path
from typing import Any

import msgspec

from device.inference.backends import choose
from device.inference.rlimits import confine
from protocol.errors import Reason, Refused
from protocol.release import MODEL_MEDIA_TYPES, Runtime

_MODEL_BYTES = 4 << 30
_MEMORY_MIB = 16 * 1024  # a description must be possible for each model that a machine may run
_CPU_S = 600


def describe_file(path: Path) -> dict[str, Any]:
    """Tells runtime and tensors of a model file, or why not."""
    try:
        data = _read(path)
        runtime = runtime_of(data)
        description = choose(runtime, "cpu").describe(data)
    except Refused as error:
        return {"ok": False, "reason": error.reason, "message": error.message}
    except OSError as error:
        return {"ok": False, "reason": Reason.MODEL_LOAD, "message": f"{path} cannot be read: {error.strerror}"}
    return {
        "ok": True,
        "runtime": runtime,
        "media_type": MODEL_MEDIA_TYPES[runtime],
        "inputs": description.inputs,
        "outputs": description.outputs,
    }


def runtime_of(data: bytes) -> Runtime:
    """Which runtime reads these bytes: a TFLite file has an identifier, an ONNX file has none.

    Raises:
        Refused: `MEDIA_TYPE` for what is neither: archives, pickles, shared objects.
    """
    if data[4:8] == b"TFL3":
        return "litert"
    # A pickle of protocol 2 or newer, a zip (as .pt and .npz are), an ELF object, HDF5.
    if data[:1] == b"\x80" or data[:2] == b"PK" or data[:4] in (b"\x7fELF", b"\x89HDF"):
        raise Refused(Reason.MEDIA_TYPE, "neither ONNX nor TFLite: releases carry no other form of model")
    return "onnxruntime"


def _read(path: Path) -> bytes:
    if path.stat().st_size > _MODEL_BYTES:
        raise Refused(Reason.LIMIT, f"a model file of more than {_MODEL_BYTES} bytes")
    return path.read_bytes()


def main() -> None:
    """The command."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m device.inference.describe MODEL\n")
        raise SystemExit(2)
    confine(memory_mib=_MEMORY_MIB, cpu_s=_CPU_S)
    sys.stdout.write(msgspec.json.encode(describe_file(Path(sys.argv[1]))).decode() + "\n")


if __name__ == "__main__":
    main()
