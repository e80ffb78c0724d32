"""Releases of a play, and what each kind does to the machines that try it."""

from dataclasses import dataclass
from functools import cache

from protocol.container import HealthCheck, RunSpec
from protocol.release import TrialRules
from tests.fakes.container_sets import Packed, pack_container
from tests.fakes.updates import PRODUCT, Release, noise

KINDS = {
    "good": "holds its golden inputs and runs",
    "large": "as good, more than a megabyte: it travels in segments and is gone on with",
    "golden": "gives other outputs than its golden inputs expect, beside what runs",
    "trial-golden": "does so only in the worker that is to serve",
    "crash": "ends its worker by a signal seconds after it serves",
    "errors": "fails one inference in four",
    "slow": "is slower than its bound",
    "hang": "never comes up: whoever waits for it ends it after a minute",
    "contained": "as good, with two containers, of which one hands over and tells its health",
    "contained-sick": "its container's check fails seconds after it was healthy",
    "contained-ends": "its container ends by itself, seconds after each start",
    "kills-check": "takes the whole machine down when it is tried beside what runs, each time",
    "kills-trial": "takes the whole machine down seconds after it serves, each time",
}
GOOD = ("good", "large", "contained")
EVIDENCE = ("golden", "trial-golden", "crash", "errors", "slow", "hang", "contained-sick", "contained-ends")
KILLERS = ("kills-check", "kills-trial")
RULES = TrialRules(
    healthy_s=120.0, min_healthy_s=40.0, max_failed_starts=1, min_inferences=10, max_retries=1, max_error_rate=0.05
)
LARGE_BYTES = 1_300_000
SERVES, SICK, ENDS = ("/serves",), ("/sick",), ("/ends",)  # what a container runs
CHECK = HealthCheck(command=("/check",), interval_s=1.0, retries=2)

__all__ = ["EVIDENCE", "GOOD", "KILLERS", "KINDS", "PRODUCT", "RULES", "Made", "make"]


@dataclass(frozen=True)
class Made:
    """A release and what it does."""

    release: Release
    kind: str


@cache
def make(number: int, kind: str) -> Made:
    """The release with this counter and kind; the same each time."""
    head = f"kind:{kind};number:{number};".encode()
    length = LARGE_BYTES if kind == "large" else 3000
    containers = _containers(number, kind) if kind.startswith("contained") else ()
    release = Release(f"{number}.0.0", number, head + noise(length, number * 100), trial=RULES, containers=containers)
    return Made(release, kind)


def _containers(number: int, kind: str) -> tuple[Packed, ...]:
    """One of which every version needs a new image, and one that pairs of them share."""
    command = {"contained-sick": SICK, "contained-ends": ENDS}.get(kind, SERVES)
    gateway = RunSpec(command=command, strategy="start-then-stop", health=CHECK)
    base = noise(4000, 1)
    return (
        pack_container("driver", RunSpec(command=SERVES), (base, f"driver {number}".encode())),
        pack_container("gateway", gateway, (base, b"gateway", str(number // 2).encode())),
    )


def kind_of(model: bytes) -> str:
    """What a model does, by its own bytes."""
    return model.partition(b";")[0].removeprefix(b"kind:").decode()
