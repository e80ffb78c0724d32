"""The entries of a tar archive by name, as places in a file: nothing is unpacked, and a name is only ever compared.

Only regular files count. Links are no entries: what they would lead to is found by its content, or is not there.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from protocol.delta.tar_blocks import BLOCK_BYTES, CHECKSUM, SIZE, TYPE, padded, read_number
from protocol.errors import Reason, Refused
from signing.images import bounds

_REGULAR: Final = frozenset(b"0\0" + b"7")
_ATTRIBUTES: Final = ord("x")
_LONG_NAME: Final = ord("L")
_BASE_256: Final = 0x80
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
}
"""By what it begins with, the tool that undoes it."""
_NAME: Final = slice(0, 100)
_MAGIC: Final = slice(257, 263)
_PREFIX: Final = slice(345, 500)


class Place(NamedTuple):
    """Where the content of an entry lies."""

    offset: int
    length_bytes: int


def read_entries(file: BinaryIO) -> dict[str, Place]:
    """All regular files of an archive. Of two that have one name, the later one counts, as it does when unpacked.

    Args:
        file: At any place; seekable.

    Raises:
        Refused: `IMAGE`: no archive, or a torn one. `LIMIT`: more than an image has.
    """
    end = file.seek(0, os.SEEK_END)
    found: dict[str, Place] = {}
    name, size = "", -1  # what was said of the next entry
    at = count = 0
    for block in _headers(file):
        count += 1
        if count > bounds.ARCHIVE_ENTRIES:
            raise Refused(Reason.LIMIT, f"an archive of more than {bounds.ARCHIVE_ENTRIES} entries")
        at = file.tell()
        length = size if size >= 0 else _size(block)
        if length < 0 or at + padded(length) > end + BLOCK_BYTES:
            raise Refused(Reason.IMAGE, "an archive that is torn, or none at all")
        kind = block[TYPE]
        if kind in (_ATTRIBUTES, _LONG_NAME):
            if length > bounds.ARCHIVE_NAME_BYTES:
                raise Refused(Reason.LIMIT, f"an archive with a name of {length} bytes")
            content = file.read(length)
            if kind == _LONG_NAME:
                name = content.rstrip(b"\0").decode(errors="replace")
            else:
                said, size = _attributes(content)
                name = said or name
        else:
            if kind in _REGULAR:
                found[_plain(name or _name(block))] = Place(at, length)
            name, size = "", -1
        file.seek(at + padded(length))
    if not count:
        raise Refused(Reason.IMAGE, "no tar archive")
    return found


def begins_as_tar(file: BinaryIO) -> bool:
    """Whether what comes next may be a tar archive: nothing, an end of one, or an entry."""
    block = file.read(BLOCK_BYTES)
    return not any(block) or _is_header(block)


def _is_header(block: bytes) -> bool:
    return len(block) == BLOCK_BYTES and (
        read_number(block, CHECKSUM) == sum(block) - sum(block[CHECKSUM]) + 8 * ord(" ")
    )


def _headers(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while len(block := file.read(BLOCK_BYTES)) == BLOCK_BYTES and any(block):
        if not _is_header(block):
            for magic, tool in _COMPRESSED.items():
                if block.startswith(magic) and file.tell() == BLOCK_BYTES:
                    raise Refused(Reason.IMAGE, f"it is compressed with {tool}", hint=f"unpack it first: `{tool} -d`")
            raise Refused(Reason.IMAGE, "an archive that is torn, or none at all")
        yield block


def _size(block: bytes) -> int:
    field = block[SIZE]
    if field[0] == _BASE_256:
        return int.from_bytes(field[1:])
    return read_number(block, SIZE)


def _name(block: bytes) -> str:
    name = block[_NAME].split(b"\0")[0]
    prefix = block[_PREFIX].split(b"\0")[0] if block[_MAGIC] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode(errors="replace")


def _attributes(content: bytes) -> tuple[str, int]:
    """Name and length that a PAX header says, or nothing and -1."""
    name, size = "", -1
    while content:
        digits = content.split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record, content = content[:length], content[length:]
        key, equals, value = record[len(digits) + 1 :].rstrip(b"\n").partition(b"=")
        if not length or not equals:
            raise Refused(Reason.IMAGE, "an archive with a header that makes no sense")
        if key == b"path":
            name = value.decode(errors="replace")
        elif key == b"size":
            size = int(value) if value.isdigit() and len(value) < 19 else -1
            if size < 0:
                raise Refused(Reason.IMAGE, "an archive with an entry of no length")
    return name, size


def _plain(name: str) -> str:
    return name.removeprefix("./")
