"""Table `[kits]` of the settings."""

from typing import Literal

from protocol.settings import Settings


class KitSettings(Settings):
    """`[kits]`: field kits on sticks.

    Args:
        folders: Where sticks are mounted, in them or one folder below; none: no kits are looked for.
        apply: A kit that fits is installed by itself (`auto`), or waits for a person (`ask`).
        results: Whether results are written to sticks.
    """

    folders: tuple[str, ...] = ("/media", "/run/media", "/mnt")
    apply: Literal["auto", "ask"] = "auto"
    results: bool = True
