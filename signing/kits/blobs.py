"""A kit's blobs on a stick: hashed on their way, in parts where they are large, gone on with where a build broke off.

A blob has its name only when it is whole and its hash held; what is gathered has a temporary one. Files that are there
are read back: a stick may have been pulled out.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from protocol.errors import Reason, Refused
from protocol.kits import PART_BYTES
from signing.durable import TEMPORARY_PREFIX, Part
from signing.stick import StickFolder

Fetch = Callable[[int], Iterator[bytes]]
"""The bytes of a blob from a position on."""
Progress = Callable[[int], None]
SYNC_BYTES: Final = 64 << 20  # what a pulled stick costs at most of one blob, about


def part_names(sha256: str, length_bytes: int, part_bytes: int = PART_BYTES) -> list[tuple[str, int]]:
    """The files of a blob, with the length of each."""
    if length_bytes <= part_bytes:
        return [(sha256, length_bytes)]
    return [
        (f"{sha256}.{number}", min(part_bytes, length_bytes - first))
        for number, first in enumerate(range(0, length_bytes, part_bytes))
    ]


def check_blob(
    folder: StickFolder, sha256: str, length_bytes: int, advance: Progress, *, part_bytes: int = PART_BYTES
) -> str:
    """What is wrong with a blob that should be there; nothing when it is as it should be.

    Raises:
        OSError: The stick cannot be read.
    """
    hasher = hashlib.sha256()
    for name, length in part_names(sha256, length_bytes, part_bytes):
        found = folder.length(name)
        if found is None:
            return f"{name} is missing"
        if found != length:
            return f"{name} has {found} bytes instead of {length}"
        for chunk in folder.chunks(name):
            hasher.update(chunk)
            advance(len(chunk))
    return "" if hasher.hexdigest() == sha256 else f"{sha256} has another content"


def write_blob(
    folder: StickFolder,
    sha256: str,
    length_bytes: int,
    fetch: Fetch,
    advance: Progress,
    *,
    part_bytes: int = PART_BYTES,
) -> bool:
    """Puts a blob on the stick; durable on return.

    Args:
        folder: Of the kit's blobs.
        sha256: Its name.
        length_bytes: Its length.
        fetch: Where it comes from.
        advance: Hears of bytes that are there.
        part_bytes: Of one file at most.

    Returns:
        Whether anything was written; False when it was there.

    Raises:
        Refused: `HASH`, `LENGTH`: what came is something else.
        LinkError: As `fetch`; what came until then stays and is gone on with.
        OSError: The stick is full, or gone.
    """
    parts = part_names(sha256, length_bytes, part_bytes)
    if not any(folder.length(name) == length for name, length in parts) and not any(
        folder.length(TEMPORARY_PREFIX + name) for name, _ in parts
    ):
        _gather(folder, sha256, parts, fetch, advance)
        return True
    if all(folder.length(name) == length for name, length in parts) and not check_blob(
        folder, sha256, length_bytes, advance, part_bytes=part_bytes
    ):
        return False
    try:
        _gather(folder, sha256, parts, fetch, lambda count: None)
    except Refused:
        # What was there is torn, or another's: once more from the beginning.
        for name, _ in parts:
            folder.remove(name)
            folder.remove(TEMPORARY_PREFIX + name)
        _gather(folder, sha256, parts, fetch, lambda count: None)
    return True


def _gather(folder: StickFolder, sha256: str, parts: list[tuple[str, int]], fetch: Fetch, advance: Progress) -> None:
    gathering = _Gathering(folder, fetch, advance)
    last = len(parts) - 1
    for number, (name, length) in enumerate(parts):
        # A whole part stands under its name only below a blob of several; the last one is named when all of it held.
        if number != last and gathering.has(name, length):
            continue
        gathering.fill(name, length)
        if number != last:
            folder.settle(TEMPORARY_PREFIX + name, name)
    if gathering.take(1):
        raise Refused(Reason.LENGTH, f"{sha256} is longer than {gathering.done} bytes")
    if gathering.hash.hexdigest() != sha256:
        raise Refused(Reason.HASH, f"what came for {sha256} has another hash")
    folder.settle(TEMPORARY_PREFIX + parts[last][0], parts[last][0])


class _Gathering:
    """The files of one blob, one after the other: what is there of them first, and from there on what comes."""

    def __init__(self, folder: StickFolder, fetch: Fetch, advance: Progress) -> None:
        self.hash = hashlib.sha256()
        self.done = 0
        self._folder = folder
        self._fetch = fetch
        self._advance = advance
        self._source: Iterator[bytes] | None = None
        self._rest = b""
        self._unsynced = 0

    def has(self, name: str, length: int) -> bool:
        """Whether a file is there whole, with nothing missing before it; it counts then."""
        if self._source is not None or self._folder.length(name) != length:
            return False
        self._count(name, length)
        return True

    def fill(self, name: str, length: int) -> None:
        """Makes the file with a temporary name as long as it must be; durable on return."""
        gathered = TEMPORARY_PREFIX + name
        # Gone, not cut to nothing: not every driver of FAT can do that.
        if self._source is not None or (self._folder.length(gathered) or 0) > length:
            self._folder.remove(gathered)
        with self._folder.part(gathered) as part:
            if part.length_bytes:
                self._count(gathered, part.length_bytes)
            missing = length - part.length_bytes
            # A chunk is hashed and written while the next one comes.
            with ThreadPoolExecutor(1, thread_name_prefix="stick") as writer:
                writing: Future[None] | None = None
                while missing:
                    chunk = self.take(missing)
                    if not chunk:
                        raise Refused(Reason.LENGTH, f"{name} ended {missing} bytes before its end")
                    missing -= len(chunk)
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(self._put, part, chunk)
                if writing is not None:
                    writing.result()
            part.sync()

    def take(self, most: int) -> bytes:
        """What comes next; nothing at the end."""
        if self._source is None:
            self._source = self._fetch(self.done)
        chunk = self._rest or next(self._source, b"")
        self._rest = chunk[most:]
        return chunk[:most]

    def _put(self, part: Part, chunk: bytes) -> None:
        self.hash.update(chunk)
        part.append(chunk)
        self.done += len(chunk)
        self._advance(len(chunk))
        self._unsynced += len(chunk)
        if self._unsynced >= SYNC_BYTES:
            part.sync()
            self._unsynced = 0

    def _count(self, name: str, length: int) -> None:
        for chunk in self._folder.chunks(name):
            self.hash.update(chunk)
        self.done += length
        self._advance(length)
