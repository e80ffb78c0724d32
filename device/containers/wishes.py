"""What the engine is asked for: a container of a release, on this machine. Everything is decided here and in `RunSpec`.

Looks at the machine (device nodes, folders of the machine's settings) and makes what a container needs of it, and
nothing else: so it blocks.
"""

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

from device.containers.engine import Bind, Wish
from protocol.container import (
    Container,
    DataMount,
    HealthCheck,
    HostMount,
    Image,
    LinkMount,
    ReleaseMount,
    ScratchMount,
    spec_digest,
)
from protocol.errors import Reason, Refused, StateError
from protocol.image_config import parse_image_config
from signing.durable import DISK, Disk

CLOSED: Final = (Path("/proc"), Path("/sys"), Path("/dev"))
"""Never mounted, nor anything in them: what is granted of the machine's devices stands in `RunSpec.devices`."""
NO_CHECK: Final = HealthCheck(command=("",))  # its numbers mean nothing: there is no command
WHOLE: Final = (Path("/run"), Path("/var/run"))
"""Full of other programs' sockets: never mounted as a whole; a folder in them is a choice that somebody may make."""


@dataclass(frozen=True)
class Places:
    """What this machine mounts into containers.

    Args:
        sets: The folder in which `active` is what serves.
        link: The folder with the machine's local socket.
        data: In which each data mount has its folder.
        host: Folders of the machine that its settings allow, with all below them.
        never: Neither these nor what is above or below them: the state folder, the engine's socket.
    """

    sets: Path
    link: Path
    data: Path
    host: tuple[Path, ...] = ()
    never: tuple[Path, ...] = ()


def make_wish(
    container: Container, image: Image, config: bytes, places: Places, *, disk: Disk = DISK, dev: Path = Path("/dev")
) -> Wish:
    """The wish for one container; its data folders are there on return, whoever owns them. Blocking; may be repeated.

    Args:
        container: Of the release.
        image: The one that was chosen for this machine.
        config: The bytes of its config.
        places: What is mounted.
        disk: Through which every effect goes.
        dev: The machine's device nodes.

    Raises:
        Refused: `WRONG_HARDWARE`: a device is not there now. `IMAGE`: what was checked before the release was
            activated is not so any more.
        StateError: A folder cannot be made.
    """
    run = container.run
    health = run.health or NO_CHECK
    devices = tuple(_devices(container, dev))
    asked = parse_image_config(config)
    return Wish(
        name=container.name,
        spec=spec_digest(container.name, image.config.sha256, run),
        image=image.config.sha256,
        command=run.command,
        environment=dict(run.environment),
        hidden=tuple(name for name in dict.fromkeys(asked.variables) if name not in run.environment),
        labels=asked.labels,
        workdir=run.workdir,
        user=run.user,
        binds=tuple(_binds(container, places, disk)),
        scratch={mount.at: mount.size_mib for mount in run.mounts if isinstance(mount, ScratchMount)} or None,
        devices=devices,
        groups=_groups(dev / path.removeprefix("/dev/") for path in devices),
        gpu=run.gpu,
        network=run.network,
        ports=tuple((port.container, port.protocol, port.address, port.host) for port in run.ports),
        memory_mib=run.resources.memory_mib,
        cpus=run.resources.cpus,
        pids=run.resources.pids,
        capabilities=run.capabilities,
        writable_root=run.writable_root,
        init=run.init,
        stop_s=run.stop_s,
        health_command=run.health.command if run.health is not None else (),
        health_interval_s=health.interval_s,
        health_timeout_s=health.timeout_s,
        health_retries=health.retries,
        health_start_s=health.start_s,
    )


def give_data(container: Container, places: Places) -> None:
    """Gives the container's data folders to its user; what lies in them stays as it is. Blocking; may be repeated.

    Raises:
        StateError: One is gone, or cannot be given away.
    """
    for mount in container.run.mounts:
        if isinstance(mount, DataMount):
            _give(places.data / mount.name, container.run.user)


def check_host_mounts(containers: Iterable[Container], places: Places) -> None:
    """Whether this machine allows what the containers of a release want of its folders. Blocking.

    Whoever may write into a folder may put a symlink in the place of one in it, between our look at that and the
    engine's: so nothing is mounted from within what a container may write.

    Raises:
        Refused: `IMAGE`: it does not. A folder that is not there now may be there later: the start looks again.
    """
    wanted = [(one.name, mount) for one in containers for mount in one.run.mounts if isinstance(mount, HostMount)]
    for name, mount in wanted:
        try:
            _host_folder(name, mount, places)
        except Refused as refused:
            if refused.reason is not Reason.WRONG_HARDWARE:
                raise
        for other, outer in wanted:
            if not outer.read_only and Path(os.path.realpath(outer.path)) in Path(os.path.realpath(mount.path)).parents:
                raise Refused(
                    Reason.IMAGE,
                    f"container {name}: {mount.path} lies in {outer.path}, where container {other} may write",
                    hint="mount folders that lie side by side, or the outer one `read_only`",
                )


def _binds(container: Container, places: Places, disk: Disk) -> Iterator[Bind]:
    for mount in container.run.mounts:
        match mount:
            case ReleaseMount():
                yield Bind(str(places.sets), mount.at, read_only=True)
            case LinkMount():
                yield Bind(str(places.link), mount.at, read_only=True)
            case DataMount():
                folder = places.data / mount.name
                _make_data(folder, container.run.user, disk)
                yield Bind(str(folder), mount.at, mount.read_only)
            case HostMount():
                yield Bind(str(_host_folder(container.name, mount, places)), mount.at, mount.read_only)
            case ScratchMount():
                pass  # memory, no folder
            case _:
                assert_never(mount)


def _make_data(folder: Path, user: str, disk: Disk) -> None:
    """One that is new is given to the user at once. Another may still be in use by a container of another user."""
    try:
        is_new = not folder.is_dir()
        disk.make_dir(folder)
    except OSError as error:
        raise StateError(f"the data folder {folder.name} cannot be made: {error}") from error
    if is_new:
        _give(folder, user)


def _give(folder: Path, user: str) -> None:
    owner = tuple(int(part) for part in user.split(":"))
    try:
        now = folder.stat()
        if (now.st_uid, now.st_gid) != owner:  # nothing of it is synced: each look looks again
            os.chown(folder, *owner, follow_symlinks=False)
    except OSError as error:
        raise StateError(f"the data folder {folder.name} cannot be given to user {user}: {error}") from error


def _host_folder(name: str, mount: HostMount, places: Places) -> Path:
    """The folder without symlinks, so that none can lead elsewhere after it was looked at."""
    try:
        real = Path(mount.path).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise Refused(Reason.WRONG_HARDWARE, f"container {name} needs {mount.path}, which is not there") from error
    allowed = any(real.is_relative_to(folder.resolve()) for folder in places.host)
    closed = any(real.is_relative_to(folder) for folder in CLOSED)
    above = any(folder.resolve().is_relative_to(real) for folder in (*CLOSED, *WHOLE, *places.never))
    within = any(real.is_relative_to(folder.resolve()) for folder in places.never)
    if not allowed or closed or above or within:
        raise Refused(
            Reason.IMAGE,
            f"container {name}: this machine does not allow {mount.path} to be mounted",
            hint="`host_paths` of `[containers]` in device.toml says what it allows",
        )
    return real


def _devices(container: Container, dev: Path) -> Iterator[str]:
    """Raises `WRONG_HARDWARE` for one that is not there: it may be plugged in, or enumerated late at a boot."""
    found: dict[str, None] = {}
    for wanted in container.run.devices:
        name = wanted.removeprefix("/dev/")
        if name.endswith("*"):
            found |= dict.fromkeys(f"/dev/{path.relative_to(dev)}" for path in _numbered(dev, name.removesuffix("*")))
        elif (dev / name).exists():
            found[wanted] = None
        else:
            raise Refused(Reason.WRONG_HARDWARE, f"container {container.name} needs {wanted}, which is not there")
    yield from found


def _groups(nodes: Iterable[Path]) -> tuple[int, ...]:
    """Those that may use these nodes, or the nodes below them: without its group, nobody may open a camera."""
    found = set()
    for node in nodes:
        for path in (node, *node.rglob("*")) if node.is_dir() else (node,):
            try:
                about = path.lstat()
            except FileNotFoundError:  # unplugged in this moment: the engine will say so
                continue
            if not stat.S_ISDIR(about.st_mode) and about.st_mode & stat.S_IRGRP and about.st_mode & stat.S_IWGRP:
                found.add(about.st_gid)
    return tuple(sorted(found - {0}))


def _numbered(dev: Path, stem: str) -> list[Path]:
    """Only with a number behind it, as where it is named in full: `/dev/video*` is no `/dev/video-tuner`."""
    number = re.compile(re.escape(stem) + r"[0-9]{1,3}\Z")
    return sorted(path for path in dev.glob(f"{glob.escape(stem)}*") if number.match(path.name))
