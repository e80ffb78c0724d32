"""What a container of a release is made from and granted, in words: for who signs it, and for who looks it up."""

from collections.abc import Iterator

from protocol.container import (
    Container,
    DataMount,
    HostMount,
    Image,
    LinkMount,
    Mount,
    ReleaseMount,
    RunSpec,
    ScratchMount,
)

Line = tuple[str, bool]
"""A line, and whether a signer should stop at it: it opens the machine to the container, or the container to others."""


def container_lines(container: Container) -> Iterator[Line]:
    """All of a container, the first line being its name."""
    run = container.run
    yield f"container {container.name}: {' '.join(map(_quoted, run.command))}", False
    for image in container.images:
        yield from image_lines(image)
    yield f"  runs as {run.user} in {run.workdir}, network {run.network}", run.network == "host" or _is_root(run.user)
    for mount in run.mounts:
        yield f"  mounts {_mount(mount)}", isinstance(mount, HostMount)
    for port in run.ports:
        everybody = port.address != "127.0.0.1"
        yield f"  port {port.address}:{port.host} -> {port.container}/{port.protocol}", everybody
    for device in run.devices:
        yield f"  device {device}", True
    if run.gpu != "none":
        yield f"  GPUs through the {run.gpu} runtime", True
    if run.capabilities:
        yield f"  capabilities {', '.join(run.capabilities)}", True
    if run.writable_root:
        yield "  may write into its own file system", True
    if run.init:
        yield "  the engine's init before it", False
    for name, value in run.environment.items():
        yield f"  {name}={_quoted(value)}", False
    yield from _how(run)


def unpacked_bytes(image: Image) -> int:
    """The length of its layers, each once."""
    return sum({layer.artifact.sha256: layer.artifact.length_bytes for layer in image.layers}.values())


def image_lines(image: Image) -> Iterator[Line]:
    """What an image is, and where it was taken from."""
    tags = f" with {', '.join(image.hardware)}" if image.hardware else ""
    yield (
        f"  image {image.config.sha256[:12]} for {image.platform}{tags}: {len(image.layers)} layers, "
        f"{unpacked_bytes(image):,} bytes",
        False,
    )
    if image.source:
        yield f"    from {image.source}", False


def _how(run: RunSpec) -> Iterator[Line]:
    limits = run.resources
    cpus = f", {limits.cpus:g} CPUs" if limits.cpus is not None else ""
    yield f"  at most {limits.memory_mib} MiB, {limits.pids} processes{cpus}", False
    health = run.health
    if health is None:
        yield "  no health check: it is healthy for as long as it runs", True
    else:
        words = " ".join(map(_quoted, health.command))
        yield (
            f"  healthy while every {health.interval_s:g} s: {words} (within {health.timeout_s:g} s; "
            f"unhealthy after {health.retries}, but not in its first {health.start_s:g} s)",
            False,
        )
    restart = run.restart
    yield (
        f"  starts again {restart.first_s:g} s after its end, later up to {restart.longest_s:g} s, "
        f"anew after a life of {restart.steady_s:g} s",
        False,
    )
    if restart.in_trial:
        yield f"  a trial bears that it ends {restart.in_trial} times", True
    if run.sees_model:
        yield f"  must say within {run.sees_within_s:g} s which model it sees", False
    yield f"  update: {run.strategy}, {run.stop_s:g} s to end", False


def _mount(mount: Mount) -> str:
    match mount:
        case ReleaseMount():
            return f"what serves at {mount.at}, read only"
        case LinkMount():
            return f"the local socket at {mount.at}"
        case DataMount():
            return f"the data {mount.name} at {mount.at}{', read only' if mount.read_only else ''}"
        case ScratchMount():
            return f"{mount.size_mib} MiB of memory at {mount.at}"
        case HostMount():
            return f"the machine's {mount.path} at {mount.at}, {'read only' if mount.read_only else 'to WRITE'}"


def _is_root(user: str) -> bool:
    return any(int(part) == 0 for part in user.split(":"))


def _quoted(word: str) -> str:
    return word if word and not set(word) & set(" \\\"'") else repr(word)
