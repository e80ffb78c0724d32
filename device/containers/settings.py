"""What a person may set about containers, in `device.toml`; and where the engine of this machine listens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from protocol.settings import Settings

SOCKETS: Final = (Path("/run/docker.sock"), Path("/run/podman/podman.sock"))

KeepLayers = Literal["while-there-is-room", "always", "never"]


class ContainerSettings(Settings):
    """Table `[containers]` of the settings.

    Args:
        socket: Of the engine; empty: see `find_socket`.
        host_paths: Folders of the machine that a container may be given, with all below them; none by default.
        keep_layers: How long layers stay in the store once the engine holds them: they save bytes when it loses them,
            and time when a patch needs them. `while-there-is-room`: they are the first to go when a download needs
            room. `never`: they go with the next cleaning, and are exported from the engine when they are needed.
    """

    socket: Annotated[str, msgspec.Meta(pattern=r"^(?:/[^\x00]+)?\Z")] = ""
    host_paths: tuple[Annotated[str, msgspec.Meta(pattern=r"^/[^\x00]+\Z")], ...] = ()
    keep_layers: KeepLayers = "while-there-is-room"


def find_socket(named: str, used: Path | None = None, known: Sequence[Path] = SOCKETS) -> Path:
    """Where the engine of this machine listens now, or would. Blocking.

    Args:
        named: By the settings.
        used: Of the engine that may hold something of ours; None when none does.
        known: Where engines usually listen: the first that is there, where nothing is named or used.
    """
    if named:
        return Path(named)
    return used or next((path for path in known if is_there(path)), known[0])


def is_there(socket: Path) -> bool:
    """Whether an engine listens there that may be spoken to, running or not. Blocking.

    Engines keep their folders to themselves: an agent that may not look into one has none there.
    """
    try:
        return socket.is_socket()
    except OSError:
        return False
