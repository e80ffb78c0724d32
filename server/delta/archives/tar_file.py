"""Reads a tar archive: where its headers and contents stand, and how each file is called.

Only what is written plainly is read: at the first block that is no header, reading ends, and what follows is plain
bytes to the encoder. A wrong guess costs bytes, never a wrong result.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from protocol.delta.tar_blocks import BLOCK_BYTES, CHECKSUM, MTIME, SIZE, TYPE, padded, read_number

LONG_NAME: Final = ord("L")
LONG_LINK: Final = ord("K")
ATTRIBUTES: Final = ord("x")
GLOBAL: Final = ord("g")
BEFORE_A_FILE: Final = frozenset((LONG_NAME, LONG_LINK, ATTRIBUTES, GLOBAL, ord("X")))
"""Types of entries that say something about the next one."""
REGULAR: Final = frozenset((0, ord("0"), ord("7")))

_NAME: Final = slice(0, 100)
_PREFIX: Final = slice(345, 500)
_MAGIC: Final = slice(257, 263)


class Entry(NamedTuple):
    """A header block and what it announces.

    Args:
        offset: Of the header.
        size: Of the content, in bytes.
        kind: The type byte.
        mtime: In seconds since 1970, or -1.
    """

    offset: int
    size: int
    kind: int
    mtime: int

    @property
    def content(self) -> int:
        """Offset of the content."""
        return self.offset + BLOCK_BYTES

    @property
    def end(self) -> int:
        """Offset behind the padding."""
        return self.offset + BLOCK_BYTES + padded(self.size)


class Member(NamedTuple):
    """A file, folder or link.

    Args:
        name: Its whole path.
        entries: What stands before it and says something about it, then its own header.
    """

    name: str
    entries: tuple[Entry, ...]

    @property
    def own(self) -> Entry:
        """Its own header and content."""
        return self.entries[-1]


class Tar(NamedTuple):
    """An archive.

    Args:
        members: In order, from the first byte on, without gaps.
        end: Offset behind the last one: what follows is the archive's end, or something else.
    """

    members: list[Member]
    end: int


def read_tar(data: memoryview) -> Tar | None:
    """The archive that `data` is, or None."""
    members: list[Member] = []
    before: list[Entry] = []
    for entry in _entries(data):
        if entry.kind in BEFORE_A_FILE:
            before.append(entry)
        else:
            members.append(Member(_name(data, before, entry), (*before, entry)))
            before = []
    if not members:
        return None
    return Tar(members, members[-1].own.end)


def _entries(data: memoryview) -> Iterator[Entry]:
    at = 0
    while at + BLOCK_BYTES <= len(data):
        block = bytes(data[at : at + BLOCK_BYTES])
        size = read_number(block, SIZE)
        checksum = read_number(block, CHECKSUM)
        if size < 0 or checksum != sum(block) - sum(block[CHECKSUM]) + 8 * ord(" "):
            return
        entry = Entry(at, size, block[TYPE], read_number(block, MTIME))
        if entry.end > len(data):
            return
        yield entry
        at = entry.end


def _name(data: memoryview, before: list[Entry], entry: Entry) -> str:
    for other in before:
        content = bytes(data[other.content : other.content + other.size])
        if other.kind == LONG_NAME:
            return content.rstrip(b"\0").decode(errors="surrogateescape")
        if other.kind == ATTRIBUTES:
            path = read_attributes(content).get(b"path")
            if path is not None:
                return path.decode(errors="surrogateescape")
    block = bytes(data[entry.offset : entry.content])
    name = block[_NAME].split(b"\0")[0]
    prefix = block[_PREFIX].split(b"\0")[0] if block[_MAGIC] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode(errors="surrogateescape")


def read_attributes(content: bytes) -> dict[bytes, bytes]:
    """The records `length key=value` of a PAX header; what is malformed ends them."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        digits, space, _ = content[at : at + 20].partition(b" ")
        if not space or not digits.isdigit() or not 0 < int(digits) <= len(content) - at:
            break
        key, equals, value = content[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        if equals:
            found[key] = value
        at += int(digits)
    return found
