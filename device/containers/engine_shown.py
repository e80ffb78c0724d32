"""What an engine shows of a container, in our own words. Pure but for the clock, by which Podman's checks are due."""

import contextlib
import re
import signal
from datetime import UTC, datetime
from typing import Any, Final, Literal

from device.containers.engine import NAME_LABEL, SPEC_LABEL, Seen
from protocol.ids import Digest, is_digest, is_name

STOP_S: Final = 10.0  # where an engine does not tell how long a container has to end
DETAIL_SIGNS: Final = 500  # of a health check's last words
NOBODY: Final = "0" * 64
"""Stands where a label of ours, or an image, is not what it should be: matches nothing that is wanted."""


def make_seen(facts: dict[str, Any], image: Digest) -> Seen:
    """A container, by what the engine shows of it and the image that it is made of."""
    labels = facts["Config"].get("Labels") or {}
    name, spec = labels.get(NAME_LABEL, ""), labels.get(SPEC_LABEL, "")
    state = state_of(facts)
    started = str(facts["State"].get("StartedAt") or "")
    health, detail = _health(facts)
    return Seen(
        id=facts["Id"],
        name=name if is_name(name) else "unnamed",
        spec=spec if is_digest(spec) else NOBODY,
        image=image,
        state=state,
        started="" if started.startswith("0001") or state == "created" else started,
        exit=_ending(facts["State"]) if state == "exited" else "",
        health=health,
        health_detail=detail,
        stop_s=float(stop_s) if (stop_s := facts["Config"].get("StopTimeout")) is not None else STOP_S,
    )


def state_of(facts: dict[str, Any]) -> Literal["created", "running", "paused", "exited"]:
    """As `Seen.state`."""
    match facts["State"].get("Status"):
        case "running" | "stopping":
            return "running"
        case "paused":
            return "paused"
        case "exited" | "stopped":
            return "exited"
        case _:
            return "created"


def _ending(state: dict[str, Any]) -> str:
    code = int(state.get("ExitCode") or 0)
    if state.get("OOMKilled"):
        return "out of memory"
    if code > 128:
        with contextlib.suppress(ValueError):
            return signal.Signals(code - 128).name
    return f"exit {code}"


def _health(facts: dict[str, Any]) -> tuple[Literal["none", "starting", "healthy", "unhealthy"], str]:
    health = facts["State"].get("Health") or facts["State"].get("Healthcheck") or {}
    log = health.get("Log") or []
    detail = str(log[-1].get("Output") or "").strip()[-DETAIL_SIGNS:] if log and log[-1].get("ExitCode") else ""
    match health.get("Status"):
        case "starting":
            return "starting", detail
        case "healthy":
            return "healthy", ""
        case "unhealthy":
            return "unhealthy", detail
        case _:
            return ("starting", "") if _has_check(facts) else ("none", "")


def _has_check(facts: dict[str, Any]) -> bool:
    test = (facts["Config"].get("Healthcheck") or {}).get("Test") or ["NONE"]
    return str(test[0]) != "NONE"


def is_check_due(facts: dict[str, Any]) -> bool:
    """Whether its health was not looked at for as long as it is to be looked at, or was in the future."""
    if not _has_check(facts) or state_of(facts) != "running":
        return False
    log = (facts["State"].get("Health") or facts["State"].get("Healthcheck") or {}).get("Log") or []
    last = str(log[-1].get("Start") or "") if log else str(facts["State"].get("StartedAt") or "")
    interval_s = (facts["Config"]["Healthcheck"].get("Interval") or 0) / 1e9
    return not 0 <= datetime.now(UTC).timestamp() - seconds_of(last) < interval_s  # the clock may have been set back


def seconds_of(text: str) -> float:
    """Of an RFC 3339 time; to the microsecond, rounded down."""
    cut = re.sub(r"(\.\d{1,6})\d*", r"\1", text)
    return datetime.fromisoformat(cut).timestamp()
