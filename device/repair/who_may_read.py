"""Files that only the machine's own user may read, after a copy or a restore that forgot that."""

import stat
from pathlib import Path

from device.damage import LOGS
from device.repair.fault import Fault, Place
from device.seal import Seals

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def find(place: Place) -> list[Fault]:
    """The key, the databases and the seals."""
    layout = place.layout
    key = layout.identity / "key.pem"
    databases = [base.with_name(base.name + end) for base in (layout.state_db, layout.outbox_db) for end in ("", *LOGS)]
    return [
        _fault(path, path == key)
        for path in (key, *databases, *Seals(layout.state_db).paths)
        if path.exists() and path.stat().st_mode & OTHERS
    ]


def _fault(path: Path, is_key: bool) -> Fault:
    mode = stat.S_IMODE(path.stat().st_mode)

    def mend() -> str:
        path.chmod(0o600)
        return "only its owner may read it now" + (": if others did, enrol anew with another key" if is_key else "")

    return Fault(f"{path} can be read by others (mode {mode:04o})", mend)
