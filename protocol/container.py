"""Containers of a release: an image by its content, and what it is granted when it runs.

An image is a config and layers, uncompressed, each named by its sha256: those of the layers are the config's diff ids,
and that of the config is the image's identity. No tag, no registry and no manifest of an image takes part. What an
image's own config asks for (user, environment, volumes, entry point, health check) is not granted: all that a container
gets stands in its `RunSpec`, which the managers sign (ATTACKS.md O4, O5).
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from protocol import limits
from protocol.artifact import Artifact
from protocol.errors import Reason, Refused
from protocol.ids import Digest, Name, digest
from protocol.wire import Message, encode

Platform = Literal["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/riscv64"]
"""In the words of image configs; `/v7` stands for the config's `variant`."""

PLATFORMS: Final[dict[str, Platform]] = {
    "linux-x86_64": "linux/amd64",
    "linux-aarch64": "linux/arm64",
    "linux-armv7l": "linux/arm/v7",
    "linux-riscv64": "linux/riscv64",
}
"""By `Inventory.platform`."""

USUAL_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""`PATH` of a container that is granted no other: without one, engines differ in where they look for a program."""

CONFIG_MEDIA_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_MEDIA_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"

Text = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[^\x00]*\Z",
        max_length=limits.CONTAINER_TEXT_BYTES,
        description=f"text in quotes, at most {limits.CONTAINER_TEXT_BYTES} characters, none of them NUL",
    ),
]
VariableName = Annotated[
    str,
    msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}\Z", description="a letter or _, then letters, digits and _"),
]
InsidePath = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(/[^/\x00:]+)+\Z",
        max_length=1024,
        description="an absolute path below /, without a slash at its end or a colon",
    ),
]
"""Absolute, in the container; never its root. `..` and `.` are refused when the manifest is read."""
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
DevicePath = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^/dev/(?:(?:apex_|video|media|ttyUSB|ttyACM|ttyS|ttyTHS|i2c-|gpiochip|hidraw|iio:device)(?:[0-9]{1,3}|\*)"
        r"|spidev[0-9]{1,3}\.[0-9]{1,3}|dri/renderD[0-9]{1,3}|snd|bus/usb)\Z",
        description="/dev/ and apex_, video, media, ttyUSB, ttyACM, ttyS, ttyTHS, i2c-, gpiochip, hidraw or iio:device "
        "with a number or *, or spidevN.M, dri/renderDN, snd, bus/usb",
    ),
]
"""Cameras, accelerators and buses. `*` stands for all that are there when the container starts."""

Capability = Literal["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID", "SYS_NICE"]
"""What may be granted again of what is dropped. Nothing that reaches beyond the container is on the list."""

Strategy = Literal["stop-then-start", "start-then-stop"]


class Layer(Message):
    """One layer as an uncompressed tar; the artifact's sha256 is its diff id.

    origin: What made it, by name: layers of one origin are likely versions of each other, so that patches lead from
        one to the other. The first 16 hexadecimal digits of the sha256 of the build step, its digests and versions
        taken out; or empty.
    """

    artifact: Artifact
    origin: Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-f]{16})?\Z")] = ""


class Image(Message):
    """One form of a container for one kind of machine. Lowest layer first. The config's sha256 is its identity.

    `image_config.check_image` is the rule for the config's content.
    """

    platform: Platform
    config: Artifact
    layers: Annotated[tuple[Layer, ...], msgspec.Meta(min_length=1, max_length=limits.IMAGE_LAYERS)]
    hardware: tuple[Name, ...] = ()  # the device must carry every one of these tags; empty fits all
    source: Text = ""  # where the builder took it from, and the digest that it found there: shown, never interpreted

    def artifacts(self) -> tuple[Artifact, ...]:
        """The config, then the layers, lowest first."""
        return (self.config, *(layer.artifact for layer in self.layers))


class ReleaseMount(Message, tag="release", tag_field="kind"):
    """What serves, read only: the folder `sets` of the machine, in which `active` is what serves now."""

    at: InsidePath = "/headland/release"


class LinkMount(Message, tag="link", tag_field="kind"):
    """The folder with the machine's local socket: results as they are made, what is active, alarms."""

    at: InsidePath = "/headland/link"


class DataMount(Message, tag="data", tag_field="kind"):
    """A folder that outlives the container and its updates. Containers of one user share it by name; it is closed to
    all others."""

    name: Name
    at: InsidePath
    read_only: bool = False


class ScratchMount(Message, tag="scratch", tag_field="kind"):
    """Memory as a file system; empty at each start, and the container's user may write into it."""

    at: InsidePath
    size_mib: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 16


class HostMount(Message, tag="host", tag_field="kind"):
    """A folder of the machine. Only one that the machine's own settings allow is mounted."""

    path: InsidePath
    at: InsidePath
    read_only: bool = True


Mount = ReleaseMount | LinkMount | DataMount | ScratchMount | HostMount


class PublishedPort(Message):
    """A port of the container, reachable on the machine."""

    container: Port
    host: Port
    protocol: Literal["tcp", "udp"] = "tcp"
    address: Literal["127.0.0.1", "0.0.0.0"] = "127.0.0.1"  # noqa: S104  (a choice that the managers sign)


class Resources(Message):
    """The most that the container may take."""

    memory_mib: Annotated[int, msgspec.Meta(ge=8, le=1 << 20)] = 256
    cpus: Annotated[float, msgspec.Meta(ge=0.01, le=1024)] | None = None
    pids: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] = 128


class HealthCheck(Message):
    """A command that is run in the container: exit 0 is healthy. `retries` failures in a row are unhealthy.

    Failures in the first `start_s` do not count; a success then counts.
    """

    command: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=limits.CONTAINER_WORDS)]
    interval_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 10.0
    timeout_s: Annotated[float, msgspec.Meta(ge=1, le=600)] = 5.0
    retries: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    start_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0


class Restart(Message):
    """What happens when the container ends by itself. The wait doubles; a life of `steady_s` begins anew."""

    first_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 1.0
    longest_s: Annotated[float, msgspec.Meta(ge=0.1, le=86400)] = 60.0
    steady_s: Annotated[float, msgspec.Meta(ge=1, le=86400)] = 60.0
    in_trial: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0  # ends that a trial bears; one more is evidence


class RunSpec(Message):
    """All that a container is granted. What does not stand here it does not get.

    Capabilities are dropped but for those named, new privileges are off, the root file system is read only unless
    `writable_root`, the engine's socket is never mounted.

    Args:
        command: Program and arguments: the image's own entry point and command do not count. The program is named, by
            its whole path or as one that is found in `PATH`.
        environment: All of it, but for `USUAL_PATH` where it has no `PATH`; the image's own is taken away.
        workdir: Where it starts.
        user: `UID:GID`, numbers only; by default nobody.
        mounts: Each `at` once.
        devices: Device nodes of the machine.
        gpu: `nvidia` asks for the NVIDIA runtime (Jetson) with all its GPUs.
        network: `bridge` is what `ports` need; `host` shares the machine's own.
        ports: Published ports.
        resources: Limits.
        capabilities: Granted again.
        writable_root: Whether it may write into its own file system; what it writes is gone with the container.
        init: Whether the engine puts a small init before the command, which reaps and passes signals on.
        stop_s: How long it has to end after SIGTERM.
        health: When it is healthy; None: for as long as it runs.
        restart: When it ended by itself.
        strategy: How a new version follows the old one: `stop-then-start`, for what has one owner; `start-then-stop`
            hands over without a gap: both run for a while, so neither publishes a port.
        sees_model: A trial needs the container's log to say which model it sees: a line `headland-sees DIGEST`, the
            sha256 of a model of the release, which must have one, after each change. See `device/README.md`.
        sees_within_s: How long after a change.
    """

    command: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=limits.CONTAINER_WORDS)]
    environment: Annotated[dict[VariableName, Text], msgspec.Meta(max_length=limits.CONTAINER_WORDS)] = {}
    workdir: Annotated[
        str, msgspec.Meta(pattern=r"^/[^\x00:]*\Z", max_length=1024, description="an absolute path without a colon")
    ] = "/"
    user: Annotated[
        str, msgspec.Meta(pattern=r"^[0-9]{1,9}:[0-9]{1,9}\Z", description='"UID:GID" in numbers, such as "1000:1000"')
    ] = "65534:65534"
    mounts: Annotated[tuple[Mount, ...], msgspec.Meta(max_length=limits.CONTAINER_MOUNTS)] = ()
    devices: Annotated[tuple[DevicePath, ...], msgspec.Meta(max_length=limits.CONTAINER_MOUNTS)] = ()
    gpu: Literal["none", "nvidia"] = "none"
    network: Literal["none", "bridge", "host"] = "none"
    ports: Annotated[tuple[PublishedPort, ...], msgspec.Meta(max_length=limits.CONTAINER_MOUNTS)] = ()
    resources: Resources = Resources()
    capabilities: tuple[Capability, ...] = ()
    writable_root: bool = False
    init: bool = False
    stop_s: Annotated[float, msgspec.Meta(ge=0, le=300)] = 10.0
    health: HealthCheck | None = None
    restart: Restart = Restart()
    strategy: Strategy = "stop-then-start"
    sees_model: bool = False
    sees_within_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0


class Container(Message):
    """A container of a release: the same run specification for each kind of machine."""

    name: Name
    images: Annotated[tuple[Image, ...], msgspec.Meta(min_length=1, max_length=limits.CONTAINER_IMAGES)]
    run: RunSpec


def spec_digest(name: Name, image: Digest, run: RunSpec) -> Digest:
    """The identity of what runs: two releases with the same one share the container, which then goes on untouched.

    Args:
        name: Of the container.
        image: sha256 of the image's config.
        run: What it is granted.
    """
    return digest(encode((name, image, _granted(run))))


def _granted(value: Any) -> Any:
    """What a record says other than by default: the same whether a default was written out or left out, and whatever
    fields a later agent adds. (The encoder leaves out what *is* the default, not what equals it.)"""
    if isinstance(value, tuple):
        return [_granted(each) for each in value]
    if not isinstance(value, msgspec.Struct):
        return value
    said: dict[str, Any] = {}
    if value.__struct_config__.tag_field is not None:
        said[value.__struct_config__.tag_field] = value.__struct_config__.tag
    for field in msgspec.structs.fields(value):
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        found = getattr(value, field.name)
        if found != default:
            said[field.name] = dict(sorted(found.items())) if isinstance(found, dict) else _granted(found)
    return said


def check_containers(containers: Sequence[Container], *, models: bool) -> None:
    """What types alone do not say, of each container and of all together.

    Args:
        containers: Of one release.
        models: Whether it has any model.

    Raises:
        Refused: `MANIFEST`, `MEDIA_TYPE`, `LIMIT`: as `protocol.release.parse_manifest`.
    """
    for container in containers:
        check_kinds(container.name, [(image.platform, image.hardware) for image in container.images])
        for image in container.images:
            _check_image(container.name, image)
    check_runs([(container.name, container.run) for container in containers], models=models)


def check_kinds(name: Name, kinds: Sequence[tuple[Platform, tuple[Name, ...]]]) -> None:
    """Whether each image of a container is the first that fits some machine: a machine takes the first.

    Args:
        name: Of the container.
        kinds: Platform and hardware tags of its images, in the manifest's order.

    Raises:
        Refused: `MANIFEST`, `LIMIT`.
    """
    if len(kinds) > limits.CONTAINER_IMAGES:
        raise _refused(name, f"{len(kinds)} images; the most is {limits.CONTAINER_IMAGES}", Reason.LIMIT)
    for number, (platform, hardware) in enumerate(kinds):
        for other, tags in kinds[:number]:
            if other != platform or not set(tags) <= set(hardware):
                continue
            if set(tags) == set(hardware):
                raise _refused(name, f"two images for one kind of machine: {_kind(platform, hardware)}")
            raise _refused(
                name,
                f"no machine ever takes the image for {_kind(platform, hardware)}: the one for {_kind(other, tags)}, "
                "which stands before it, fits all of them",
                hint="put the image with more hardware tags first",
            )


def check_runs(runs: Iterable[tuple[Name, RunSpec]], *, models: bool) -> None:
    """What the types of run specifications do not say, of each and of all together.

    Args:
        runs: Of the containers of one release, by name.
        models: Whether it has any model.

    Raises:
        Refused: `MANIFEST`.
    """
    publishers: dict[tuple[int, str], Name] = {}
    owners: dict[Name, tuple[Name, list[int]]] = {}  # of data folders: the first container, and its user
    for name, run in runs:
        _check_run(name, run)
        if run.sees_model and not models:
            raise _refused(name, "it is to see a model (`sees_model`), and the release has no model")
        for port in run.ports:
            other = publishers.setdefault((port.host, port.protocol), name)
            if other != name:
                text = f"`ports`: {port.host}/{port.protocol} of the machine is published by container {other}, too"
                raise _refused(name, text)
        user = [int(part) for part in run.user.split(":")]
        for mount in run.mounts:
            if isinstance(mount, DataMount):
                other, owner = owners.setdefault(mount.name, (name, user))
                if owner != user:
                    raise _refused(
                        name,
                        f"`mounts`: the data {mount.name} belongs to another `user`, that of container {other}",
                        hint="one data folder has one user: give both containers the same, or each its own folder",
                    )


def _check_image(name: Name, image: Image) -> None:
    if image.config.media_type != CONFIG_MEDIA_TYPE:
        raise _refused(name, f"an image config of the type {image.config.media_type}", Reason.MEDIA_TYPE)
    if image.config.length_bytes > limits.IMAGE_CONFIG_BYTES:
        raise _refused(name, f"an image config of more than {limits.IMAGE_CONFIG_BYTES} bytes", Reason.LIMIT)
    for layer in image.layers:
        if layer.artifact.media_type != LAYER_MEDIA_TYPE:
            raise _refused(name, f"a layer of the type {layer.artifact.media_type}", Reason.MEDIA_TYPE)


def _check_run(name: Name, run: RunSpec) -> None:
    if not run.command[0]:
        raise _refused(name, "`command` begins with no program")
    if run.health is not None and not run.health.command[0]:
        raise _refused(name, "`health.command` begins with no program")
    places = [mount.at for mount in run.mounts]
    for place in sorted({place for place in places if places.count(place) > 1}):
        raise _refused(name, f"`mounts` has two at {place!r:.200}")
    paths = [*places, *(mount.path for mount in run.mounts if isinstance(mount, HostMount))]
    for key, path in (("workdir", run.workdir), *(("mounts", path) for path in paths)):
        if not set(path.split("/")).isdisjoint({".", ".."}):
            raise _refused(name, f"`{key}`: the path {path!r:.200} has '.' or '..' in it")
    for place in places:
        if place == "/dev" or f"{place}/".startswith("/proc/"):
            raise _refused(name, f"`mounts`: no engine starts a container with a mount at {place!r:.200}")
    if run.ports and run.network != "bridge":
        raise _refused(name, f'`ports` are published with `network = "bridge"` only; it is "{run.network}"')
    hosts = [(port.host, port.protocol) for port in run.ports]
    for host, protocol in sorted({host for host in hosts if hosts.count(host) > 1}):
        raise _refused(name, f"`ports` has {host}/{protocol} of the machine twice")
    if hosts and run.strategy == "start-then-stop":
        raise _refused(
            name,
            f"with the strategy `start-then-stop` two versions run for a while, and only one of them can have the port "
            f"{hosts[0][0]}",
            hint='`strategy = "stop-then-start"`, or publish no port',
        )


def _kind(platform: Platform, hardware: tuple[Name, ...]) -> str:
    return f"{platform} with {', '.join(hardware)}" if hardware else f"{platform} of any hardware"


def _refused(name: Name, text: str, reason: Reason = Reason.MANIFEST, *, hint: str = "") -> Refused:
    return Refused(reason, f"container {name}: {text}", hint=hint)
