"""A kit's blobs on a stick: hashed on their way, in parts where they are large, gone on with where a build broke off.

A blob has its name only when it is whole and its hash held; what is gathered has a temporary one. Files that are there
are read back: a stick may have been pulled out.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from protocol.errors import Reason, Refused
from protocol.kits import PART_BYTES
from signing.durable import TEMPORARY_PREFIX
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
    hasher = hashlib.sha256()
    done = 0
    source: Iterator[bytes] | None = None
    rest = b""
    last = len(parts) - 1
    for number, (name, length) in enumerate(parts):
        gathered = TEMPORARY_PREFIX + name
        # A whole part stands under its name only below a blob of several; the last one is named when all of it held.
        if source is None and number != last and folder.length(name) == length:
            for chunk in folder.chunks(name):
                hasher.update(chunk)
            done += length
            advance(length)
            continue
        # Gone, not cut to nothing: not every driver of FAT can do that.
        if source is not None or (folder.length(gathered) or 0) > length:
            folder.remove(gathered)
        with folder.part(gathered) as part:
            if source is None:
                if part.length_bytes:
                    for chunk in folder.chunks(gathered):
                        hasher.update(chunk)
                    advance(part.length_bytes)
                done += part.length_bytes
                source = fetch(done)
            synced = part.length_bytes
            while part.length_bytes < length:
                chunk = rest or next(source, b"")
                if not chunk:
                    raise Refused(Reason.LENGTH, f"{sha256} ended after {done} bytes")
                rest = chunk[length - part.length_bytes :]
                chunk = chunk[: length - part.length_bytes]
                part.append(chunk)
                hasher.update(chunk)
                done += len(chunk)
                advance(len(chunk))
                if part.length_bytes - synced >= SYNC_BYTES:
                    part.sync()
                    synced = part.length_bytes
            part.sync()
        if number != last:
            folder.settle(gathered, name)
    if rest or (source is not None and next(source, b"")):
        raise Refused(Reason.LENGTH, f"{sha256} is longer than {done} bytes")
    if hasher.hexdigest() != sha256:
        raise Refused(Reason.HASH, f"what came for {sha256} has another hash")
    folder.settle(TEMPORARY_PREFIX + parts[last][0], parts[last][0])
