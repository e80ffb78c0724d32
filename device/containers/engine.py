"""What the device asks of a container engine, in its own words. `engine_client` answers it with a real one.

The engine is a store of layers and a runner of processes; what runs is decided by the update record alone. So nothing
is ever started by the engine itself, and all that is ours carries the owner: containers as a label, images as a tag
(`TAG`). A tag is a mark of whose an image is and keeps others from pruning it; images are found and run by config
digest only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from protocol.container import Image
from protocol.errors import StateError
from protocol.ids import Digest

OWNER_LABEL: Final = "io.headland.owner"
NAME_LABEL: Final = "io.headland.container"
SPEC_LABEL: Final = "io.headland.spec"
TAG: Final = "headland-{owner}:{image}"


class EngineAwayError(StateError):
    """The engine does not answer, or ended over the question. It says nothing about a release."""


class EngineError(StateError):
    """The engine answered and did not do it, for a reason of its own: also no evidence against a release."""


@dataclass(frozen=True)
class HeldImage:
    """An image of ours in the engine.

    Args:
        image: sha256 of its config.
        layers: Diff ids, lowest first.
    """

    image: Digest
    layers: tuple[Digest, ...]


@dataclass(frozen=True)
class Seen:
    """A container of ours, as the engine shows it now.

    Args:
        id: The engine's.
        name: Of the container in its release.
        spec: `protocol.container.spec_digest`, from its label.
        image: sha256 of the config of the image that it was made from.
        state: `created` also stands for one that is being removed or is dead; `paused` by somebody's hand, it still has
            its ports and devices.
        started: When it last started, as the engine tells it; changes with each start.
        exit: What ended it: `exit 1`, `SIGKILL`, `out of memory`; empty while it runs or before it ran.
        health: `none` when it has no health check.
        health_detail: The last output of a check that failed.
        stop_s: How long it was granted to end, as it was made.
    """

    id: str
    name: str
    spec: Digest
    image: Digest
    state: Literal["created", "running", "paused", "exited"]
    started: str = ""
    exit: str = ""
    health: Literal["none", "starting", "healthy", "unhealthy"] = "none"
    health_detail: str = ""
    stop_s: float = 10.0


@dataclass(frozen=True)
class EngineView:
    """What the engine holds of ours.

    Args:
        life: Changes when the engine was started anew: ends of containers across that say nothing about them.
        version: `docker 20.10.24`, `podman 4.3.1`.
        folder: In which it keeps images, on this machine.
        images: Of ours.
        containers: Of ours, running or not.
    """

    life: str
    version: str
    folder: Path
    images: tuple[HeldImage, ...] = ()
    containers: tuple[Seen, ...] = ()


@dataclass(frozen=True)
class Bind:
    """A folder of the machine that a container sees."""

    source: str
    at: str
    read_only: bool


@dataclass(frozen=True)
class Wish:
    """A container to be made and started: everything is decided here, the adapter only translates it.

    Args:
        name: In its release.
        spec: Its identity.
        image: sha256 of the config.
        command: Entry point; the image's is taken away.
        environment: All of it; `hidden` names variables of the image that are taken away.
        hidden: See there.
        labels: Names of labels of the image that are emptied, for they cannot be taken away.
        workdir: In the container.
        user: `UID:GID`.
        binds: Folders of the machine.
        scratch: MiB by path.
        devices: Nodes of the machine that are there.
        groups: That the process is in besides that of `user`: those to which these nodes belong.
        gpu: As `RunSpec.gpu`.
        network: As `RunSpec.network`.
        ports: (container port, protocol, address, host port).
        memory_mib: Limit, swap included.
        cpus: Limit; None for none.
        pids: Limit.
        capabilities: Granted again.
        writable_root: Otherwise read only.
        init: As `RunSpec.init`.
        health_command: Empty: no health check, not even the image's.
        health_interval_s: And its companions, as `HealthCheck`.
        health_timeout_s: Likewise.
        health_retries: Likewise.
        health_start_s: Likewise.
        stop_s: Until it is killed.
    """

    name: str
    spec: Digest
    image: Digest
    command: tuple[str, ...]
    environment: Mapping[str, str]
    hidden: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    workdir: str = "/"
    user: str = "65534:65534"
    binds: tuple[Bind, ...] = ()
    scratch: Mapping[str, int] | None = None
    devices: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    gpu: str = "none"
    network: str = "none"
    ports: tuple[tuple[int, str, str, int], ...] = ()
    memory_mib: int = 256
    cpus: float | None = None
    pids: int = 128
    capabilities: tuple[str, ...] = ()
    writable_root: bool = False
    init: bool = False
    health_command: tuple[str, ...] = ()
    health_interval_s: float = 10.0
    health_timeout_s: float = 5.0
    health_retries: int = 3
    health_start_s: float = 0.0
    stop_s: float = 10.0


class Engine(Protocol):
    """A container engine. Every call may be repeated; calls may overlap, the engine sorts them out.

    All raise `EngineAwayError` and `EngineError`; what else is said there.
    """

    async def view(self) -> EngineView:
        """All of ours. Quick."""
        ...

    async def load(self, image: Image, files: Mapping[Digest, Path]) -> None:
        """Puts an image into the engine and marks it as ours; on return it is there, with exactly its config digest.

        Args:
            image: Its config's and its layers' bytes were hashed before.
            files: Where they lie; layers may be left out that the engine holds.

        Raises:
            MissingLayersError: The engine wants layers that `files` lacks.
            device.store.NoSpaceError: The engine's disk is full; nothing of it stays, what runs is untouched.
            Refused: `IMAGE`: the engine made another image of it, which is removed and never run.
        """
        ...

    async def export(self, image: Digest, layers: Mapping[Digest, Path], lengths: Mapping[Digest, int]) -> None:
        """Writes layers of an image as uncompressed tars. Each is hashed on the way: it has its digest or is not there.
        Not durable on return.

        An engine gives an image only as a whole: Docker puts one together under its folder first, which takes the
        length of all its layers there for as long as this lasts.

        Args:
            image: That has them.
            layers: Where each goes. Nothing else is written.
            lengths: Of these layers: whatever of the image is of another length is passed over unwritten.

        Raises:
            StateError: The engine does not hold the image, or gives other bytes.
            device.store.NoSpaceError: The disk of the files is full.
        """
        ...

    async def start(self, wish: Wish) -> None:
        """Makes and starts the container; returns once it was started. The image is looked at again before each start.

        One of the same name and spec that runs is left alone; one that does not is made anew, with its log gone: its
        device nodes may be others by now, and a start that was cut short leaves what nobody should rely on.

        Raises:
            Refused: `TRIAL_CONTAINER`: it cannot be started as it is wished for (no such program, no such user, a
                device that is not there). `IMAGE`: the engine's image is not the signed one.
        """
        ...

    async def stop(self, id: str, limit_s: float) -> None:
        """Ends a container: SIGTERM, after `limit_s` SIGKILL. One that is gone or stopped is well."""
        ...

    async def remove(self, id: str) -> None:
        """Removes a container that does not run. One that is gone is well."""
        ...

    async def drop_images(self, keep: Sequence[Digest]) -> None:
        """Takes our mark off all images but these, and with it what nobody else marked.

        One that a container is made of, running or not, stays with its mark: it goes the next time.
        """
        ...

    async def log(self, id: str, since: str, limit_bytes: int) -> bytes:
        """The last lines of a container's output, both streams together.

        Args:
            id: The engine's.
            since: RFC 3339, from `Seen.started` or a time of this machine; empty: all.
            limit_bytes: The most that is returned: the newest.
        """
        ...

    async def close(self) -> None:
        """Lets go of what was started for this; containers run on."""
        ...


class MissingLayersError(StateError):
    """The engine wants layers that nobody handed to it.

    Args:
        layers: Their diff ids.
    """

    def __init__(self, layers: Sequence[Digest]) -> None:
        super().__init__(f"the engine needs {len(layers)} layers that are not here")
        self.layers = tuple(layers)
