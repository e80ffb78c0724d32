"""What the workers' evidence says of a release on trial. Pure; local evidence only, the server is never asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from device.update.ports import Health
from protocol.errors import Reason
from protocol.release import Bounds, TrialRules


@dataclass(frozen=True)
class Watched:
    """A trial so far, over all boots.

    Args:
        healthy_s: Seconds in which the set was complete and served.
        inferences: Finished ones, also those that failed.
        errors: Those that failed.
        this_start_s: Healthy seconds of this start alone.
        hindered_s: Seconds without a verdict since the set served last: nothing could be told of its containers, or
            they did not come up again.
    """

    healthy_s: float = 0.0
    inferences: int = 0
    errors: int = 0
    this_start_s: float = 0.0
    hindered_s: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """Why a release is not kept."""

    reason: Reason
    detail: str


class Watch:
    """Adds up what one start shows of a trial.

    Args:
        before: What earlier starts had shown.
    """

    def __init__(self, before: Watched) -> None:
        self._healthy_s = before.healthy_s
        self._this_start_s = 0.0
        self._hindered_s = 0.0
        self._inferences_before = before.inferences
        self._errors_before = before.errors
        self._inferences = 0
        self._errors = 0

    def take(self, health: Health, passed_s: float) -> Watched:
        """Takes one look in.

        Args:
            health: Of the release on trial.
            passed_s: Since the look before; counted only when the set serves.
        """
        if health.serving:
            self._hindered_s = 0.0
        elif why_no_verdict(health, self._healthy_s):
            self._hindered_s += passed_s
        if health.inferences < self._inferences or health.errors < self._errors:
            # The workers were started anew and count from nothing.
            self._inferences_before += self._inferences
            self._errors_before += self._errors
        self._inferences = health.inferences
        self._errors = health.errors
        if health.serving:
            self._healthy_s += passed_s
            self._this_start_s += passed_s
        return Watched(
            healthy_s=self._healthy_s,
            inferences=self._inferences_before + self._inferences,
            errors=self._errors_before + self._errors,
            this_start_s=self._this_start_s,
            hindered_s=self._hindered_s,
        )


def find_evidence(health: Health, watched: Watched, rules: TrialRules, bounds: Mapping[str, Bounds]) -> Evidence | None:
    """What speaks against the release: a worker or a container that died, a latency or an error rate out of bounds.

    Of the last two only where the set is complete: beside containers of another release they may be those' doing.

    Args:
        health: The newest look.
        watched: The trial so far.
        rules: Of the manifest.
        bounds: Of the variant that runs, by model name.
    """
    if speak_of_the_model(health.crashes):
        return Evidence(Reason.TRIAL_CRASH, f"a worker died: {', '.join(health.crashes[:5])}")
    faults = health.faults if watched.healthy_s else (*health.faults, *health.late)
    if faults:
        return Evidence(Reason.TRIAL_CONTAINER, "; ".join(faults[:3]))
    if not health.serving:
        return None
    enough = max(rules.min_inferences, 1)
    if watched.inferences >= enough and watched.errors > rules.max_error_rate * watched.inferences:
        return Evidence(
            Reason.TRIAL_ERRORS,
            f"{watched.errors} of {watched.inferences} inferences failed; at most {rules.max_error_rate:.1%} may",
        )
    if health.inferences >= enough:
        for model, latency_ms in (health.latency_ms or {}).items():
            bound = bounds.get(model)
            if bound is not None and latency_ms > bound.latency_ms:
                return Evidence(
                    Reason.TRIAL_LATENCY,
                    f"model {model} takes {latency_ms:.0f} ms (95th percentile); at most {bound.latency_ms:.0f} ms",
                )
    return None


def why_no_verdict(health: Health, healthy_s: float) -> str:
    """What is in the way of a verdict; empty when nothing is.

    A container that is late where the set served before says as little as a model that takes long to load: a machine is
    slow at a boot, when all is read at once.

    Args:
        health: The newest look.
        healthy_s: Of the trial so far.
    """
    return health.hindered or ("; ".join(health.late) if healthy_s else "")


def speak_of_the_model(crashes: Sequence[str]) -> bool:
    """Whether these ends of workers are evidence. One SIGKILL alone is none: a model that eats the memory gets more."""
    return len(crashes) > 1 or any(ending != "SIGKILL" for ending in crashes)


def is_time_up(watched: Watched, rules: TrialRules) -> bool:
    """Whether it was healthy for long enough."""
    return watched.healthy_s >= rules.healthy_s


def is_proven(watched: Watched, rules: TrialRules) -> bool:
    """Whether it may be committed."""
    return is_time_up(watched, rules) and watched.inferences >= rules.min_inferences
