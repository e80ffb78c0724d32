"""What a canary is told and what it tells, between the agent (or the manager's tool) and the throw-away process."""

import math

from protocol.errors import Reason, Refused
from protocol.ids import Count, Digest
from protocol.release import Model, ReleaseManifest, Variant
from protocol.wire import Message


class CanaryRequest(Message):
    """`python -m device.inference.canary FILE` reads one, as JSON. Paths are this machine's."""

    manifest: str  # path of the manifest's bytes
    files: dict[Digest, str]  # path of every needed artifact
    variants: dict[str, str]  # variant to try, by model name
    threads: Count = 1
    cpu_s: int | None = None  # processor seconds, after which the process is killed
    parent_pid: int | None = None  # the process ends with this one


class Tried(Message):
    """A model that passed. `deferred`: only read, as its exclusive accelerator serves; its worker holds the goldens."""

    accelerator: str
    fallback: str = ""
    latency_ms: float = 0.0  # 95th percentile on the golden inputs
    load_ms: float = 0.0
    deferred: bool = False


class CanaryAnswer(Message):
    """The one line that a canary prints."""

    ok: bool
    models: dict[str, Tried] = {}
    reason: Reason | None = None
    message: str = ""


def chosen(manifest: ReleaseManifest, variants: dict[str, str]) -> dict[str, tuple[Model, Variant]]:
    """Model and variant by model name, in the manifest's order.

    Raises:
        Refused: `MANIFEST`: a model without a choice, or a variant that the model does not have.
    """
    found: dict[str, tuple[Model, Variant]] = {}
    for model in manifest.models:
        name = variants.get(model.name)
        variant = next((variant for variant in model.variants if variant.name == name), None)
        if variant is None:
            raise Refused(Reason.MANIFEST, f"model {model.name} has no variant {name!r}")
        found[model.name] = (model, variant)
    return found


def wall_limit_s(variants: list[Variant]) -> float:
    """How long a canary may take before it counts as hanging: generous, for a small machine that also serves."""
    total = 30.0  # interpreter and runtimes, from a slow card
    for variant in variants:
        golden_s = 5.0 + 20.0 * variant.bounds.latency_ms / 1000.0
        total += 2.0 * variant.bounds.load_s + golden_s + len(variant.golden) * variant.bounds.latency_ms / 100.0
    return min(total, 3600.0)


def cpu_limit_s(wall_s: float, threads: int, processors: int) -> int:
    """Processor seconds that go with a limit on wall time."""
    return math.ceil(wall_s) * (threads or processors) + 1
