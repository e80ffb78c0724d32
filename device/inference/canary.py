"""`python -m device.inference.canary REQUEST.json`: tries a release in this throw-away process.

Loads every chosen variant, holds the file's tensors against the manifest, runs every golden input and compares, then
measures. Prints one line: `{"ok": true, "models": {NAME: Tried}}` or `{"ok": false, "reason": ..., "message": ...}`;
the exit code is 0 either way. That it crashed, hung or was killed, only the caller can see.

An exclusive accelerator belongs to the worker that serves: such a variant is only read here, and its golden inputs
are run by the new worker before its first frame.
"""

import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from device.inference.backends import choose
from device.inference.canary_request import CanaryAnswer, CanaryRequest, Tried, chosen
from device.inference.latency import percentile
from device.inference.loaded import LoadedModel, check_description, load_model, read_artifact, read_golden
from device.inference.rlimits import confine, die_with
from protocol import limits
from protocol.errors import Reason, Refused
from protocol.ids import Digest
from protocol.release import Model, ReleaseManifest, Variant, parse_manifest
from protocol.wire import decode

_RUNS: Final = 20  # of which the 95th percentile is one below the worst
_MEASURE_S: Final = 3.0  # a slow model is measured on fewer runs
_REQUEST_BYTES: Final = 4 * limits.MIB


def check(manifest: ReleaseManifest, variants: dict[str, str], files: dict[Digest, Path], threads: int) -> CanaryAnswer:
    """Tries every model of the manifest in turn.

    Raises:
        Refused: At the first that fails.
    """
    return CanaryAnswer(
        ok=True,
        models={
            model.name: _try(model, variant, files, threads) for model, variant in chosen(manifest, variants).values()
        },
    )


def _try(model: Model, variant: Variant, files: dict[Digest, Path], threads: int) -> Tried:
    path = files.get(variant.artifact.sha256)
    if path is None:
        raise Refused(Reason.HASH, f"model {model.name}: its file is not there")
    backend = choose(variant.runtime, variant.accelerator)
    if backend.mode == "exclusive":
        check_description(variant, backend.describe(read_artifact(path, variant.artifact)))
        return Tried(accelerator=variant.accelerator, deferred=True)
    began = time.perf_counter()
    loaded = load_model(model, variant, path, threads=threads, backend=backend)
    load_s = time.perf_counter() - began
    try:
        latency_ms = _hold_all(loaded, files)
    finally:
        loaded.close()
    bounds = variant.bounds
    if load_s > bounds.load_s:
        raise Refused(Reason.BOUNDS, f"model {model.name} took {load_s:.1f} s to load: {bounds.load_s:g} s are allowed")
    if latency_ms > bounds.latency_ms:
        raise Refused(
            Reason.BOUNDS,
            f"model {model.name} took {latency_ms:.1f} ms (95th percentile) on its golden inputs: "
            f"{bounds.latency_ms:g} ms are allowed",
        )
    return Tried(
        accelerator=loaded.session.accelerator,
        fallback=loaded.session.fallback,
        latency_ms=latency_ms,
        load_ms=load_s * 1000.0,
    )


def _hold_all(loaded: LoadedModel, files: dict[Digest, Path]) -> float:
    """Every golden input once, the first of them before any is timed; then again until there is enough to judge."""
    goldens = loaded.variant.golden
    taken: list[float] = []
    loaded.hold(goldens[0], *read_golden(goldens[0], files))
    began = time.perf_counter()
    while len(taken) < _RUNS and (not taken or time.perf_counter() - began < _MEASURE_S):
        for golden in goldens:
            taken.append(loaded.hold(golden, *read_golden(golden, files)))
    return percentile(taken, 95)


def answer(path: Path) -> CanaryAnswer:
    """Reads the request, sets this process's limits, and tries."""
    try:
        request = decode(path.read_bytes(), CanaryRequest, limit=_REQUEST_BYTES, reason=Reason.MANIFEST)
        if request.parent_pid is not None:
            die_with(request.parent_pid)
        manifest = parse_manifest(Path(request.manifest).read_bytes())
        pairs = chosen(manifest, request.variants).values()
        for _, variant in pairs:
            choose(variant.runtime, variant.accelerator)  # imported before the limits count what is there
        on_the_cpu = all(variant.accelerator == "cpu" for _, variant in pairs)
        memory_mib = max((variant.bounds.memory_mib for _, variant in pairs), default=64)
        confine(memory_mib=memory_mib if on_the_cpu else None, cpu_s=request.cpu_s)
        return check(manifest, request.variants, {k: Path(v) for k, v in request.files.items()}, request.threads)
    except Refused as error:
        return CanaryAnswer(ok=False, reason=error.reason, message=error.message)
    except MemoryError:
        return CanaryAnswer(ok=False, reason=Reason.BOUNDS, message="the model needs more memory than its bounds allow")
    except OSError as error:
        return CanaryAnswer(ok=False, reason=Reason.MODEL_LOAD, message=f"cannot read what it was given: {error}")


def main() -> None:
    """The command."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m device.inference.canary REQUEST.json\n")
        raise SystemExit(2)
    told: Any = answer(Path(sys.argv[1]))
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")


if __name__ == "__main__":
    main()
