"""Reads the server's audit trail whole, holds it against itself, and against what this workspace saw of it before.

The server could write a chain of its own making; what it cannot do is make it end in a line that somebody remembers. So
each look leaves the newest line's number and hash in `audit.json`, and the next look asks for that line again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from protocol import limits
from protocol.audit import AuditLine, check_chain
from protocol.errors import Reason, Refused
from protocol.ids import Digest
from protocol.wire import Message, decode, encode
from signing import durable
from signing.server_client import Operator

PAGE: Final = 5_000
TAKE_ANYWAY: Final = "`headland audit verify --forget` takes it as it is now"
LINE_BYTES: Final = 64 * limits.KIB  # a detail has at most 4,000 characters, each at most six bytes in JSON


class Place(Message):
    """One line: its number and its hash."""

    number: int
    hash: Digest


class SeenTrail(Message):
    """`audit.json`: the newest line that this workspace saw."""

    format: Literal[1]
    newest: Place


class TrailStart(Message):
    """The first line of an exported file: the line before the first that follows."""

    format: Literal[1]
    base: Place


class TrailPage(Message, forbid_unknown_fields=False):
    """What the server answers."""

    events: tuple[AuditLine, ...]
    base: Place
    head: Place


@dataclass(frozen=True)
class Checked:
    """A trail that holds.

    Args:
        lines: How many there are.
        base: The line before the first.
        head: The last.
        seen: The line that was remembered; None: there was none.
        is_old: Whether that one is older than the trail goes back.
    """

    lines: int
    base: Place
    head: Place
    seen: Place | None
    is_old: bool


def fetch(server: Operator, progress: Callable[[int, int], None]) -> tuple[Place, Iterator[AuditLine]]:
    """The trail of a server from its first line to the one that was the newest when it was asked first.

    Args:
        server: Asked page by page.
        progress: Hears how many lines came, of how many.

    Returns:
        The line before the first, and the lines.
    """
    page = _page(server, 0)
    base, head = page.base, page.head

    def lines() -> Iterator[AuditLine]:
        here, at = page, base.number
        while here.events:
            for line in here.events:
                if line.id > head.number:
                    return
                yield line
                at = line.id
            progress(at - base.number, head.number - base.number)
            here = _page(server, at)
        if at < head.number:
            raise Refused(
                Reason.HASH,
                f"the audit trail ends at line {at}, and the server names line {head.number} as its last",
            )

    return base, lines()


def read_file(path: Path) -> tuple[Place, Iterator[AuditLine]]:
    """A trail out of an exported file.

    Raises:
        Refused: `METADATA`: it is none. While it is read too.
    """
    with path.open("rb") as file:
        start = decode(file.readline(LINE_BYTES), TrailStart, limit=LINE_BYTES)

    def lines() -> Iterator[AuditLine]:
        with path.open("rb") as file:
            file.readline(LINE_BYTES)
            while data := file.readline(LINE_BYTES):
                yield decode(data, AuditLine, limit=LINE_BYTES)

    return start.base, lines()


class Walk:
    """Holds the lines of a trail against one another, and against the line that was remembered, as they pass.

    Args:
        base: The line before the first.
        seen: The line that was remembered, if any.
    """

    def __init__(self, base: Place, seen: Place | None) -> None:
        self._base = base
        self._seen = seen
        self._last = base
        self._lines = 0

    def through(self, lines: Iterator[AuditLine]) -> Iterator[AuditLine]:
        """Gives each line on once it holds.

        Raises:
            Refused: `HASH`: with the line that does not hold; after the last one when it should go further.
        """
        self._compare()
        for line in lines:
            number, hashed = check_chain([line], self._last.hash, self._last.number)
            self._last = Place(number=number, hash=hashed)
            self._lines += 1
            self._compare()
            yield line
        if self._seen is not None and self._seen.number > self._last.number:
            raise Refused(
                Reason.HASH,
                f"the audit trail ends at line {self._last.number}, and this workspace saw line {self._seen.number}",
                hint=f"was the server restored from a backup? Otherwise somebody cut the trail. {TAKE_ANYWAY}",
            )

    def all(self, lines: Iterator[AuditLine]) -> Checked:
        """As `through`, to the end."""
        for _ in self.through(lines):
            pass
        return self.done()

    def done(self) -> Checked:
        """What was walked."""
        is_old = self._seen is not None and self._seen.number < self._base.number
        return Checked(self._lines, self._base, self._last, self._seen, is_old)

    def _compare(self) -> None:
        if self._seen is not None and self._seen.number == self._last.number and self._seen.hash != self._last.hash:
            raise Refused(
                Reason.HASH,
                f"line {self._seen.number} of the audit trail is another than this workspace saw",
                hint=f"was the server restored from a backup? Otherwise somebody wrote the trail anew. {TAKE_ANYWAY}",
            )


def recall(workspace: Path) -> Place | None:
    """The line that was remembered; None: none was."""
    try:
        return decode((workspace / "audit.json").read_bytes(), SeenTrail, limit=limits.KIB).newest
    except FileNotFoundError:
        return None


def remember(workspace: Path, head: Place) -> None:
    """Keeps the newest line that was seen."""
    durable.write(workspace / "audit.json", encode(SeenTrail(format=1, newest=head)) + b"\n", 0o644)


def write_file(path: Path, base: Place, lines: Iterator[AuditLine]) -> None:
    """Writes a trail as JSON lines; the file is there when it is whole."""
    unfinished = path.with_name(path.name + ".part")
    durable.unlink(unfinished)
    try:
        with durable.open_part(unfinished) as part:
            part.append(encode(TrailStart(format=1, base=base)) + b"\n")
            for some in _batched(lines):
                part.append(b"".join(encode(line) + b"\n" for line in some))
            part.sync()
        durable.rename(unfinished, path)
    except BaseException:
        durable.unlink(unfinished)
        raise


def _page(server: Operator, after: int) -> TrailPage:
    return server.get("/events", TrailPage, {"after": str(after), "limit": str(PAGE)})


def _batched(lines: Iterator[AuditLine]) -> Iterator[list[AuditLine]]:
    """A thousand at a time: a system call for each line would be slow."""
    while some := list(islice(lines, 1000)):
        yield some
