"""Who signs a release sees everything that a container of it is granted."""

from typing import Any

import msgspec
import pytest

from protocol.container import Container, HealthCheck, PublishedPort, Resources, Restart, RunSpec, ScratchMount
from signing.containers_shown import container_lines

HEALTH = HealthCheck(command=("/check",))
CHANGES: dict[type[msgspec.Struct], dict[str, Any]] = {
    RunSpec: {
        "command": ("/other",),
        "environment": {"A": "b"},
        "workdir": "/srv",
        "user": "1000:1000",
        "mounts": (ScratchMount(at="/tmp"),),
        "devices": ("/dev/video0",),
        "gpu": "nvidia",
        "network": "bridge",
        "ports": (PublishedPort(container=80, host=8080),),
        "resources": Resources(pids=7),
        "capabilities": ("KILL",),
        "writable_root": True,
        "init": True,
        "stop_s": 7.0,
        "health": HEALTH,
        "restart": Restart(in_trial=7),
        "strategy": "start-then-stop",
        "sees_model": True,
    },
    Resources: {"memory_mib": 77, "cpus": 7.5, "pids": 7},
    HealthCheck: {"command": ("/other",), "interval_s": 7.5, "timeout_s": 7.5, "retries": 7, "start_s": 7.5},
    Restart: {"first_s": 7.5, "longest_s": 77.5, "steady_s": 7.5, "in_trial": 7},
}
IN: dict[type[msgspec.Struct], str] = {Resources: "resources", HealthCheck: "health", Restart: "restart"}


def shown(run: RunSpec) -> list[tuple[str, bool]]:
    return list(container_lines(Container(name="sprayer", images=(), run=run)))


@pytest.mark.parametrize("kind", list(CHANGES))
def test_no_field_of_a_run_specification_is_kept_from_who_signs(kind: type[msgspec.Struct]) -> None:
    assert set(CHANGES[kind]) | {"sees_within_s"} >= set(kind.__struct_fields__), "add what is new"
    given = RunSpec(command=("/app",), health=None if kind is RunSpec else HEALTH)
    for field, value in CHANGES[kind].items():
        changed: Any = value
        name = field
        if kind is not RunSpec:
            name = IN[kind]
            changed = msgspec.structs.replace(getattr(given, name), **{field: value})
        assert shown(msgspec.structs.replace(given, **{name: changed})) != shown(given), f"{kind.__name__}.{field}"
    sees = RunSpec(command=("/app",), sees_model=True)
    assert shown(sees) != shown(msgspec.structs.replace(sees, sees_within_s=7.5))


def test_a_signer_stops_at_a_trial_that_bears_ends() -> None:
    run = RunSpec(command=("/app",), restart=Restart(in_trial=3))
    assert any("3" in text and "trial" in text and stop for text, stop in shown(run))
    assert not any("trial" in text and stop for text, stop in shown(RunSpec(command=("/app",))))
