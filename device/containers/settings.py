"""What a person may set about containers, in `device.toml`; and where the engine of this machine listens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from protocol.settings import Settings

SOCKETS: Final = (Path("/run/docker.sock"), Path("/run/podman/podman.sock"))

KeepLayers = Literal["while-there-is-room", "always", "never"]


class ContainerSettings(Settings):
    """Table `[containers]` of the settings.

    Args:
        socket: Of the engine; empty looks where engines usually listen.
        host_paths: Folders of the machine that a container may be given, with all below them; none by default.
        keep_layers: How long layers stay in the store once the engine holds them: they save bytes when it loses them,
            and time when a patch needs them. `while-there-is-room`: they are the first to go when a download needs
            room. `never`: they go with the next cleaning, and are exported from the engine when they are needed.
    """

    socket: str = ""
    host_paths: tuple[str, ...] = ()
    keep_layers: KeepLayers = "while-there-is-room"


def find_socket(named: str, known: Sequence[Path] = SOCKETS) -> Path | None:
    """Where the engine listens; None: there is none now, which a boot or a person may change. Blocking.

    Args:
        named: By the settings; it need not be there. Empty: the first of `known` that is there.
        known: Where engines usually listen.
    """
    if named:
        path = Path(named)
        return path if path.is_socket() else None
    return next((path for path in known if path.is_socket()), None)
