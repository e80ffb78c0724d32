"""A disk that is nearly full: updates wait, and soon results are dropped. One that is so full that no database can be
opened gives back what can be had again, or is only kept for a person: inference and results come first."""

from pathlib import Path

from device.damage import with_logs
from device.outbox.damage import salvaged
from device.repair.fault import Fault, Place
from device.rescue import NEEDED_BYTES
from protocol.limits import MIB


def find(place: Place) -> list[Fault]:
    """Less is free than is kept back for everything but releases."""
    free = place.free(place.layout.state)
    if free >= place.keep_free_bytes:
        return []
    spare = _spare(place) if free < NEEDED_BYTES else []

    def mend() -> str:
        place.remove_all(spare)
        return f"removed {len(spare)} files of unfinished downloads and old outboxes"

    return [
        Fault(
            f"{free / MIB:.1f} MiB are free on the disk of {place.layout.state}, "
            f"{place.keep_free_bytes / MIB:.1f} MiB are kept back for results, databases and the log"
            + ("; no result can be kept" if free < NEEDED_BYTES else ""),
            mend if spare else None,
            advice="free space on it: what releases and results take has budgets in device.toml",
        )
    ]


def _spare(place: Place) -> list[Path]:
    parts = place.layout.store / "parts"
    return [
        *(sorted(parts.iterdir()) if parts.is_dir() else ()),
        *(file for old in salvaged(place.layout.outbox_db) for file in with_logs(old)),
    ]
