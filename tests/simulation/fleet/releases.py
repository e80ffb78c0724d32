"""Releases of a play, and what each kind does to the machines that try it."""

from dataclasses import dataclass
from functools import cache

from protocol.release import TrialRules
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
    "kills-check": "takes the whole machine down when it is tried beside what runs, each time",
    "kills-trial": "takes the whole machine down seconds after it serves, each time",
}
GOOD = ("good", "large")
EVIDENCE = ("golden", "trial-golden", "crash", "errors", "slow", "hang")
KILLERS = ("kills-check", "kills-trial")
RULES = TrialRules(
    healthy_s=120.0, min_healthy_s=40.0, max_failed_starts=1, min_inferences=10, max_retries=1, max_error_rate=0.05
)
LARGE_BYTES = 1_300_000

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
    release = Release(f"{number}.0.0", number, head + noise(length, number * 100), trial=RULES)
    return Made(release, kind)


def kind_of(model: bytes) -> str:
    """What a model does, by its own bytes."""
    return model.partition(b";")[0].removeprefix(b"kind:").decode()
