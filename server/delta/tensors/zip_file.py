"""Lists the entries of a zip archive that are stored uncompressed: .npz, PyTorch (.pt, TorchScript), task bundles.

Read by its own few lines, on a memoryview: `zipfile` would copy, and raises half a dozen kinds of errors.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from server.delta.tensors.reading import Budget, Damaged, check, text, u16, u32, u64

MAGIC = b"PK\x03\x04"
MAX_ENTRIES = 200_000  # twice the tensors that we would take
END_BYTES = 22
MAX_COMMENT_BYTES = 65_535
NEEDS_64 = 0xFFFFFFFF
ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry whose bytes lie in the archive as they are."""

    offset: int
    length_bytes: int
    name: str


def stored_entries(data: memoryview) -> Iterator[Stored]:
    """Yields the stored entries, in the order of the directory.

    Raises:
        Damaged: There is no directory, or it leads outside.
    """
    budget = Budget(MAX_ENTRIES)
    at, end = _directory(data)
    while at + 46 <= end and bytes(data[at : at + 4]) == b"PK\x01\x02":
        budget.spend()
        flags, method = u16(data, at + 8), u16(data, at + 10)
        packed, size = u32(data, at + 20), u32(data, at + 24)
        name_bytes, extra_bytes, comment_bytes = (u16(data, at + n) for n in (28, 30, 32))
        header = u32(data, at + 42)
        if NEEDS_64 in (packed, size, header):
            size, packed, header = _wide(data, at + 46 + name_bytes, extra_bytes, [size, packed, header])
        if method == 0 and not flags & ENCRYPTED and packed == size:
            check(data, header, 30)
            if bytes(data[header : header + 4]) != MAGIC:
                raise Damaged("an entry without its header")
            start = header + 30 + u16(data, header + 26) + u16(data, header + 28)
            check(data, start, size)
            yield Stored(start, size, text(data, at + 46, name_bytes))
        at += 46 + name_bytes + extra_bytes + comment_bytes


def _directory(data: memoryview) -> tuple[int, int]:
    tail = bytes(data[max(0, len(data) - END_BYTES - MAX_COMMENT_BYTES) :])
    found = tail.rfind(b"PK\x05\x06")
    if found < 0:
        raise Damaged("no directory")
    at = len(data) - len(tail) + found
    length, start = u32(data, at + 12), u32(data, at + 16)
    if NEEDS_64 in (length, start) and at >= 20 and bytes(data[at - 20 : at - 16]) == b"PK\x06\x07":
        wide = u64(data, at - 12)
        check(data, wide, 56)
        length, start = u64(data, wide + 40), u64(data, wide + 48)
    check(data, start, length)
    return start, start + length


def _wide(data: memoryview, at: int, length: int, values: list[int]) -> list[int]:
    """The 64-bit values: present, in this order, only for the fields that are full of ones."""
    end = at + length
    check(data, at, length)
    while at + 4 <= end:
        kind, part = u16(data, at), u16(data, at + 2)
        at += 4
        if kind == 1:
            for index, value in enumerate(values):
                if value == NEEDS_64:
                    values[index] = u64(data, at)
                    at += 8
            return values
        at += part
    return values
