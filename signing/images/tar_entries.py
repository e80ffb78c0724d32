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
HARD_LINK: Final = ord("1")
SYMLINK: Final = ord("2")
FOLDER: Final = ord("5")
_HEADER_ONLY: Final = frozenset(b"123456")  # whatever length they say
_ATTRIBUTES: Final = ord("x")
_GLOBAL: Final = ord("g")
_LONG_NAME: Final = ord("L")
_LONG_LINK: Final = ord("K")
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
_MODE: Final = slice(100, 108)
_LINK: Final = slice(157, 257)


class Place(NamedTuple):
    """Where the content of an entry lies."""

    offset: int
    length_bytes: int


class Entry(NamedTuple):
    """An entry of an archive.

    Args:
        name: As it is written, less `./` before it.
        kind: Its type, of those below.
        mode: Who may do what.
        link: Where a symbolic link leads.
        place: Of its content.
    """

    name: str
    kind: int
    mode: int
    link: str
    place: Place

    @property
    def is_file(self) -> bool:
        """Whether it has content of its own."""
        return self.kind in _REGULAR


def read_entries(file: BinaryIO) -> dict[str, Place]:
    """All regular files of an archive. Of two that have one name, the later one counts, as it does when unpacked.

    Args:
        file: At any place; seekable.

    Raises:
        Refused: `IMAGE`: no archive, or a torn one. `LIMIT`: more than an image has.
    """
    entries = list(walk(file, bounds.ARCHIVE_ENTRIES))
    if not entries:
        raise Refused(Reason.IMAGE, "no tar archive")
    return {entry.name: entry.place for entry in entries if entry.is_file}


def walk(file: BinaryIO, most: int) -> Iterator[Entry]:
    """All entries of an archive in their order.

    Args:
        file: At any place; seekable. Nobody else may move in it meanwhile.
        most: Headers that are read.

    Raises:
        Refused: `IMAGE`: a torn archive. `LIMIT`: more headers, or a name of no measure.
    """
    end = file.seek(0, os.SEEK_END)
    said = _Said()  # of the next entry
    for count, block in enumerate(_headers(file), 1):
        if count > most:
            raise Refused(Reason.LIMIT, f"an archive of more than {most} entries")
        at = file.tell()
        kind = block[TYPE]
        length = 0 if kind in _HEADER_ONLY else said.size if said.size >= 0 else _size(block)
        if length < 0 or at + padded(length) > end + BLOCK_BYTES:
            raise Refused(Reason.IMAGE, "an archive that is torn, or none at all")
        if kind in (_ATTRIBUTES, _LONG_NAME, _LONG_LINK):
            if length > bounds.ARCHIVE_NAME_BYTES:
                raise Refused(Reason.LIMIT, f"an archive with a name of {length} bytes")
            said = _heard(said, kind, file.read(length))
        elif kind != _GLOBAL:
            name, link = said.name or _name(block), said.link or _text(block[_LINK])
            mode = max(0, read_number(block, _MODE))
            symlink = link if kind == SYMLINK else ""
            yield Entry(name.removeprefix("./"), kind, mode, symlink, Place(at, length))
            said = _Said()
        file.seek(at + padded(length))


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
    name, prefix = _text(block[_NAME]), _text(block[_PREFIX]) if block[_MAGIC] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode(errors="replace")


class _Said(NamedTuple):
    name: str = ""
    link: str = ""
    size: int = -1


def _heard(said: _Said, kind: int, content: bytes) -> _Said:
    if kind == _LONG_NAME:
        return said._replace(name=_text(content))
    return said._replace(link=_text(content)) if kind == _LONG_LINK else _attributes(said, content)


def _attributes(said: _Said, content: bytes) -> _Said:
    """What a PAX header says."""
    while content:
        digits = content.split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record, content = content[:length], content[length:]
        key, equals, value = record[len(digits) + 1 :].rstrip(b"\n").partition(b"=")
        if not length or not equals:
            raise Refused(Reason.IMAGE, "an archive with a header that makes no sense")
        if key == b"path":
            said = said._replace(name=value.decode(errors="replace"))
        elif key == b"linkpath":
            said = said._replace(link=value.decode(errors="replace"))
        elif key == b"size":
            size = int(value) if value.isdigit() and len(value) < 19 else -1
            if size < 0:
                raise Refused(Reason.IMAGE, "an archive with an entry of no length")
            said = said._replace(size=size)
    return said
