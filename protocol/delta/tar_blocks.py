"""What the tar operations know of a header block: where name, size, mtime and checksum stand, and how to change them.

Fields are rewritten in place with as many digits as they had, so that every writer's habits (spaces, NULs, width) stay.
A field that is not octal is not read and not rewritten; what differs then travels as bytes.
"""

from typing import Final

BLOCK_BYTES: Final = 512
NAME_BYTES: Final = 100  # the first field
SIZE: Final = slice(124, 136)
MTIME: Final = slice(136, 148)
CHECKSUM: Final = slice(148, 156)
TYPE: Final = 156
DIGITS: Final = b"01234567"

STAMP_BYTES: Final = 16
"""The head of a compiled Python module: magic, flags, then mtime and size of its source (PEP 552), little-endian."""
_STAMP_MTIME: Final = slice(8, 12)
_STAMP_SIZE: Final = slice(12, 16)
STAMP_LIMIT: Final = 1 << 32  # its fields are of 32 bits


def read_number(block: bytes | bytearray, field: slice) -> int:
    """The octal number in a field, or -1 where there is none."""
    digits = bytes(block[field]).rstrip(b"\0 ").lstrip(b" ")
    if not digits or digits.strip(DIGITS):
        return -1
    return int(digits, 8)


def write_number(block: bytearray, field: slice, number: int) -> None:
    """Puts a number where one is, in as many digits; leaves the field alone where it does not fit or there is none."""
    old = bytes(block[field])
    width = len(old.rstrip(b"\0 ").lstrip(b" "))
    first = field.start + len(old) - len(old.lstrip(b" "))
    digits = b"%o" % number
    if read_number(block, field) >= 0 and len(digits) <= width:
        block[first : first + width] = digits.rjust(width, b"0")


def write_checksum(block: bytearray) -> None:
    """Makes the checksum right, in the form that it has."""
    outside = sum(block) - sum(block[CHECKSUM])
    write_number(block, CHECKSUM, outside + 8 * ord(" "))


def retimed(block: bytes | bytearray, mtime: int) -> bytearray:
    """The block with another mtime when that is not -1, and its checksum put right."""
    new = bytearray(block)
    if mtime >= 0:
        write_number(new, MTIME, mtime)
    write_checksum(new)
    return new


def padded(length: int) -> int:
    """What so many bytes of content take in the archive."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def is_stamped(content: bytes | memoryview) -> bool:
    """Whether a file that begins so is a compiled Python module that carries its source's mtime."""
    return len(content) >= STAMP_BYTES and content[2:4] == b"\r\n" and content[4:8] == bytes(4)


def read_stamp(stamp: bytes | memoryview) -> tuple[int, int]:
    """Mtime and size of the source."""
    return int.from_bytes(stamp[_STAMP_MTIME], "little"), int.from_bytes(stamp[_STAMP_SIZE], "little")


def restamped(stamp: bytes | memoryview, mtime: int, size: int) -> bytes:
    """The stamp with another mtime and size of the source, each less than 2^32."""
    return bytes(stamp[:8]) + mtime.to_bytes(4, "little") + size.to_bytes(4, "little")
