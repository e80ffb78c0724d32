"""`state.seal`: a small second copy of what `state.db` must never lose, in two generations, each with its checksum.

It holds what runs, the floors and the refusals, and the serial number of the change that it was made after. It is
written once the change is in the database and before anybody is told of it; so a database that is damaged can be made
anew from it, and one that went back to an older state (a lost log, a file from a copy) shows a lower number than its
seal. The two files take turns, so that while one is written the other is whole; a release that was committed or
refused stands in both at once.

One generation is one line, `headland-seal 1 SHA256`, and the JSON whose hash that is.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from device.refusals import Refusal
from device.update.states import Held
from protocol import limits
from protocol.errors import Refused
from protocol.ids import Count
from protocol.wire import Message, decode, encode
from signing.durable import DISK, Disk

MAGIC: Final = b"headland-seal 1 "
SEAL_BYTES: Final = 16 * limits.MIB
"""Far above what a machine can come to: a floor takes a hundred bytes, a refusal a few hundred."""
HEAD_BYTES: Final = len(MAGIC) + 64 + 1


class Sealed(Message):
    """What is sealed.

    Args:
        format: Of this record.
        schema: Of the database that it was read from.
        serial: Counts the sealed changes of the database.
        committed: The release that evidence has kept.
        previous: The one before it.
        floors: All, by name.
        refusals: All, oldest first.
        facts: Others that hold a floor, by key, as they stand in the database.
    """

    format: Literal[1]
    schema: Annotated[int, msgspec.Meta(ge=0)]
    serial: Count
    committed: Held | None = None
    previous: Held | None = None
    floors: dict[str, Count] = {}
    refusals: tuple[Refusal, ...] = ()
    facts: dict[str, str] = {}


class Seals:
    """The two files of one database. Blocking. The caller sees to it that one process writes at a time.

    Args:
        database: Beside which they lie: `state.db` has `state.seal.0` and `state.seal.1`.
        disk: Through which they are written.
    """

    def __init__(self, database: Path, disk: Disk = DISK) -> None:
        self.paths = tuple(database.with_name(f"{database.stem}.seal.{number}") for number in range(2))
        self._disk = disk

    def write(self, sealed: Sealed, *, both: bool) -> None:
        """Makes this the newest generation; durable on return.

        Args:
            sealed: Its serial is above that of what lies here.
            both: Leaves no older generation either.

        Raises:
            OSError: A full or failing disk; the other generation is untouched.
        """
        body = encode(sealed)
        data = MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        newest_last = sorted(self.paths, key=lambda path: found.serial if (found := read(path)) is not None else -1)
        for path in newest_last[: 2 if both else 1]:
            self._disk.write(path, data)

    def newest(self) -> Sealed | None:
        """The newest whole generation; None when there is none."""
        found = [sealed for sealed in map(read, self.paths) if sealed is not None]
        return max(found, key=lambda sealed: sealed.serial, default=None)

    def behind(self, serial: int) -> list[Path]:
        """Generations that are missing, damaged, or of an earlier change than the one with this serial number."""
        return [path for path in self.paths if (found := read(path)) is None or found.serial < serial]

    def unreadable(self) -> list[Path]:
        """Generations that are missing or not what was written."""
        return [path for path in self.paths if read(path) is None]


def read(path: Path) -> Sealed | None:
    """One generation; None when it is not there, or not what was written."""
    try:
        with path.open("rb") as file:
            head, body = file.read(HEAD_BYTES), file.read(SEAL_BYTES + 1)
    except OSError:
        return None
    if head != MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n":
        return None
    try:
        return decode(body, Sealed, limit=SEAL_BYTES)
    except Refused:
        return None
