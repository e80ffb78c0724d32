"""Trying models where the release is built: the device's own throw-away checker, run as a child process.

A model that crashes, hangs or eats memory must not hurt the manager's tool, and what a machine would refuse in CHECK
should be refused here, by the same program. This room never imports it: the room `device` may not be installed.
"""

import importlib.util
import json
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from protocol import limits
from protocol.errors import Reason, Refused, StateError
from protocol.ids import Digest
from protocol.release import ReleaseManifest, Runtime, Tensor
from protocol.wire import Message, decode, encode
from signing.child import python_command

DESCRIBE: Final = "device.inference.describe"
CANARY: Final = "device.inference.canary"
RUNTIME_PACKAGES: Final[Mapping[Runtime, str]] = {"onnxruntime": "onnxruntime", "litert": "ai_edge_litert"}
DESCRIBE_S: Final = 120.0
TRY_BASE_S: Final = 60.0  # start of interpreter and runtime on a busy computer
ANSWER_BYTES: Final = limits.MIB


class Described(Message):
    """The tensors of a model file."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Checker(Protocol):
    """Looks into models on this computer."""

    def can_read(self, runtime: Runtime) -> bool:
        """Whether the runtime is installed here."""
        ...

    def describe(self, model: Path) -> Described:
        """The tensors of a model file.

        Raises:
            Refused: `MODEL_LOAD`, `EXTERNAL_DATA`, `MEDIA_TYPE`, ...: it is not a model that machines would load.
            StateError: No checker is installed.
        """
        ...

    def attempt(self, manifest: ReleaseManifest, files: Mapping[Digest, Path], variants: Mapping[str, str]) -> None:
        """Loads the named variant of each model and holds its golden inputs and bounds.

        Raises:
            Refused: As a machine would in CHECK.
            StateError: No checker is installed.
        """
        ...


class SubprocessChecker:
    """The real one."""

    def can_read(self, runtime: Runtime) -> bool:
        """As in the port: the runtime's package is found, without importing it."""
        return importlib.util.find_spec(RUNTIME_PACKAGES[runtime]) is not None

    def describe(self, model: Path) -> Described:
        """As in the port."""
        answer = _run(DESCRIBE, model, DESCRIBE_S)
        kept = {key: answer.get(key) for key in ("inputs", "outputs")}
        return decode(json.dumps(kept), Described, limit=ANSWER_BYTES, reason=Reason.MODEL_SHAPE)

    def attempt(self, manifest: ReleaseManifest, files: Mapping[Digest, Path], variants: Mapping[str, str]) -> None:
        """As in the port. The manifest is written for the child alone; files are read where they lie."""
        with tempfile.TemporaryDirectory(prefix="headland-check-") as folder:
            manifest_path = Path(folder, "manifest.json")
            manifest_path.write_bytes(encode(manifest))
            request = Path(folder, "request.json")
            content = {
                "manifest": str(manifest_path),
                "files": {digest: str(path) for digest, path in files.items()},
                "variants": dict(variants),
            }
            request.write_text(json.dumps(content), encoding="utf-8")
            _run(CANARY, request, _limit_s(manifest, variants))


def _limit_s(manifest: ReleaseManifest, variants: Mapping[str, str]) -> float:
    limit = TRY_BASE_S
    for model in manifest.models:
        for variant in model.variants:
            if variants.get(model.name) == variant.name:
                limit += 2 * variant.bounds.load_s + 50 * variant.bounds.latency_ms / 1000
    return min(limit, 3600.0)


def _run(module: str, argument: Path, limit_s: float) -> dict[str, Any]:
    """Runs the child; its answer when `ok`, else the refusal that it names or that its end shows."""
    if _missing(module):
        raise StateError(
            "models cannot be tried here: the device's checker is not installed",
            hint="install it: pip install 'headland[device]'",
        )
    command = [*python_command(module), str(argument)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit_s, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise Refused(Reason.BOUNDS, f"{argument.name}: no answer after {limit_s:.0f} s") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise Refused(Reason.MODEL_CRASH, f"{argument.name}: the process that tried it died of {name}")
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise Refused(Reason.MODEL_CRASH, f"{argument.name}: the process that tried it ended: {said[0]:.300}")
    answer = decode(lines[-1], dict[str, Any], limit=ANSWER_BYTES, reason=Reason.MODEL_LOAD)
    if answer.get("ok") is False:
        try:
            reason = Reason(str(answer.get("reason")))
        except ValueError:
            reason = Reason.MODEL_LOAD
        raise Refused(reason, str(answer.get("message", "it was refused"))[:1000])
    return answer


def _missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True
