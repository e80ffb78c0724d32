"""What the engine is sent for a wish: the body of `POST /containers/create`, and nothing is left to its defaults or to
the image that a release could abuse.

Engines fill what is not said from the image's config: entry point and command, variables, user, working folder, labels,
health check, stop signal. Each of them is said here, if only to take it away. Two cannot be: a volume, so CHECK refuses
an image that declares one where no mount is; and a port that it exposes, which nobody publishes.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, Final

from device.containers.engine import NAME_LABEL, OWNER_LABEL, SPEC_LABEL, Wish
from protocol.container import USUAL_PATH

LOG: Final = {"Type": "json-file", "Config": {"max-size": "2m", "max-file": "2"}}
"""A container that talks without end fills no disk."""
SHORTEST_NS: Final = 1_000_000  # that an engine takes in a health check
_GPU: Final = {
    "none": {"NVIDIA_VISIBLE_DEVICES": "void"},
    "nvidia": {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "all"},
}
"""What the NVIDIA runtime looks at. On a Jetson it may be the engine's default: `void` is its word for nothing, also
where a container looks to it like one that knows of no such variables, and is given all."""


def container_name(owner: str, wish: Wish) -> str:
    """One for each spec, so that the old and the new version of a container can be there together, and each once."""
    return f"headland-{owner}-{wish.name}-{wish.spec[:16]}"


def create_request(owner: str, wish: Wish, image_id: str, *, podman: bool = False) -> dict[str, Any]:
    """The body of the request.

    Args:
        owner: For the labels.
        wish: What is wanted.
        image_id: The engine's, as `sha256:...`.
        podman: Says some things in another way: a variable that is named without a value is taken away by Docker, but
            Podman gives it the value that it has in Podman's own environment, so there it is set to be empty; and the
            words of a health check are split anew at each space, unless they come as JSON.
    """
    return {
        "Image": image_id,
        "Entrypoint": list(wish.command),
        "Cmd": [],
        "Env": list(_environment(wish, podman)),
        "WorkingDir": wish.workdir,
        "User": wish.user,
        "Labels": {**dict.fromkeys(wish.labels, ""), OWNER_LABEL: owner, NAME_LABEL: wish.name, SPEC_LABEL: wish.spec},
        "StopSignal": "SIGTERM",
        "StopTimeout": math.ceil(wish.stop_s),
        "Healthcheck": _health(wish, podman),
        "ExposedPorts": {f"{inside}/{protocol}": {} for inside, protocol, _, _ in wish.ports},
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "HostConfig": _host(wish, podman),
    }


def _host(wish: Wish, podman: bool) -> dict[str, Any]:
    memory = wish.memory_mib << 20
    uid, _, gid = wish.user.partition(":")
    # The user's, as runc gives it the mode of the folder that the image has there; and Podman would fill it from that.
    scratch = f"rw,noexec,nosuid,nodev,mode=1777,{'U,notmpcopyup' if podman else f'uid={uid},gid={gid}'}"
    return {
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": list(wish.capabilities),
        "SecurityOpt": ["no-new-privileges"],
        "ReadonlyRootfs": not wish.writable_root,
        "NetworkMode": wish.network,
        "IpcMode": "private",
        "UsernsMode": "host",  # data folders and device nodes belong to users and groups of the machine
        "PortBindings": {
            f"{inside}/{protocol}": [{"HostIp": address, "HostPort": str(outside)}]
            for inside, protocol, address, outside in wish.ports
        },
        "PublishAllPorts": False,
        # As mounts: of a `Binds` whose folder is not there the engine would make one, as root.
        "Mounts": [
            {
                "Type": "bind",
                "Source": bind.source,
                "Target": bind.at,
                "ReadOnly": bind.read_only,
                "BindOptions": {"Propagation": "rprivate"},
            }
            for bind in wish.binds
        ],
        "Tmpfs": {at: f"{scratch},size={size_mib}m" for at, size_mib in (wish.scratch or {}).items()},
        "Devices": [{"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"} for path in wish.devices],
        "GroupAdd": [str(group) for group in wish.groups],
        "Memory": memory,
        "MemorySwap": memory,  # of both together
        "NanoCpus": round(wish.cpus * 1e9) if wish.cpus is not None else 0,
        "PidsLimit": wish.pids,
        "Init": wish.init,
        "LogConfig": LOG,
        **({"Runtime": "nvidia"} if wish.gpu == "nvidia" else {}),
    }


def _environment(wish: Wish, podman: bool) -> Iterator[str]:
    gpu = _GPU[wish.gpu]
    granted = {"PATH": USUAL_PATH, **wish.environment}
    given = {**granted, **gpu} if wish.gpu == "none" else {**gpu, **granted}
    yield from (f"{name}={value}" for name, value in given.items())
    for name in wish.hidden:
        if name not in given:
            yield name if not podman else f"{name}="


def _health(wish: Wish, podman: bool) -> dict[str, Any]:
    if not wish.health_command:
        return {"Test": ["NONE"]}
    return {
        "Test": ["CMD", *wish.health_command] if not podman else [json.dumps(wish.health_command)],
        "Interval": _ns(wish.health_interval_s),
        "Timeout": _ns(wish.health_timeout_s),
        "Retries": wish.health_retries,
        # For a zero, an engine takes the image's: a grace of hours, in which nothing is ever unhealthy.
        "StartPeriod": max(_ns(wish.health_start_s), SHORTEST_NS),
        "StartInterval": _ns(wish.health_interval_s),
    }


def _ns(duration_s: float) -> int:
    return round(duration_s * 1_000_000_000)
