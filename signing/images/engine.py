"""An image that an engine of this computer has: asked of its socket as `docker save`, and read as any archive."""

import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from protocol import limits
from protocol.container import Platform
from protocol.errors import LinkError, Reason, Refused, SettingsError, StateError
from protocol.ids import Digest, is_digest
from signing import durable
from signing.images import bounds
from signing.images.archive import images_of_archive
from signing.images.content import Found, Say
from signing.images.http import ask_socket, read_whole

SOCKETS: Final = ("/var/run/docker.sock", "/run/podman/podman.sock")
ARCHIVE_BYTES: Final = 2 * bounds.LAYER_BYTES  # of one image


class _Inspected(msgspec.Struct, frozen=True):
    Id: str


def find_socket(environment: Mapping[str, str]) -> Path:
    """The engine's socket.

    Raises:
        StateError: There is none.
        SettingsError: `DOCKER_HOST` names something else than a socket.
    """
    named = environment.get("DOCKER_HOST", "")
    if named and not named.startswith("unix://"):
        raise SettingsError(f"DOCKER_HOST is {named!r:.80}: images are taken from a socket of this computer only")
    runtime = environment.get("XDG_RUNTIME_DIR")
    known = [*SOCKETS, *([f"{runtime}/podman/podman.sock"] if runtime else [])]
    for path in [named.removeprefix("unix://")] if named else known:
        if _is_socket(path):
            return Path(path)
    raise StateError(
        f"no container engine answers at {named or ' or '.join(known)}",
        hint="start it, or name its socket: DOCKER_HOST=unix:///PATH",
    )


def _is_socket(path: str) -> bool:
    """Also False where it may not be looked at: another place may be ours."""
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False


def _id_of(socket: Path, name: str) -> Digest:
    """What a name means now: without a tag it is `latest`, whereas an archive by name holds all tags."""
    with ask_socket(socket, f"/images/{quote(name, safe='')}/json") as answer:
        if answer.status == 404:
            raise StateError(f"the engine has no image {name!r:.200}", hint="it lists its images: `docker images`")
        if answer.status != 200:
            raise StateError(f"the engine answers {answer.status} for the image {name!r:.200}")
        data = read_whole(answer.body, bounds.MANIFEST_BYTES, "the engine")
    try:
        image = msgspec.json.decode(data, type=_Inspected).Id.removeprefix("sha256:")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        image = ""
    if not is_digest(image):
        raise Refused(Reason.IMAGE, "the engine says nothing of the image that can be read")
    return image


def images_of_engine(
    socket: Path, name: str, spool: Path, platforms: Collection[Platform], say: Say
) -> tuple[Found, ...]:
    """The image that an engine calls so.

    Args:
        socket: Of the engine.
        name: Or an id.
        spool: Where its archive goes; the caller removes it.
        platforms: As `find_images`.
        say: Likewise.

    Raises:
        StateError: There is none of this name.
        LinkError: The engine does not answer, or not all of it.
        Refused: As `find_images`.
    """
    durable.unlink(spool)
    told = 0
    image = _id_of(socket, name)
    with ask_socket(socket, f"/images/{image}/get") as answer, durable.open_part(spool) as part:
        if answer.status != 200:
            raise StateError(f"the engine does not give the image {image[:12]} ({answer.status})")
        for chunk in answer.body:
            if part.length_bytes + len(chunk) > ARCHIVE_BYTES:
                raise Refused(Reason.LIMIT, f"the engine's archive has more than {ARCHIVE_BYTES} bytes")
            part.append(chunk)
            if part.length_bytes - told >= 64 * limits.MIB:
                told = part.length_bytes
                say(f"    {told // limits.MIB} MiB from the engine")
    if not told and not spool.stat().st_size:
        raise LinkError("the engine gives an empty archive")
    return images_of_archive(spool, platforms, say)
