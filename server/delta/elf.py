"""Programs and libraries of the ELF format that lie in a file, wherever: an image, an archive, alone.

Nothing here is trusted by anybody: what a damaged header says costs bytes of a patch, never the result.
"""

import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

_MAGIC: Final = re.compile(rb"\x7fELF[\x01\x02]\x01\x01")
_LOADED, _EXECUTED = 1, 4  # a segment's type; a section's flag
_NO_BITS: Final = 8  # a section without bytes in the file
_SECTIONS: Final = 512  # more are not looked at


class Loaded(NamedTuple):
    """A segment: offset in the whole file, bytes, address."""

    offset: int
    length: int
    address: int


class Section(NamedTuple):
    """A section with bytes in the file."""

    offset: int
    length: int
    executed: bool


class Elf(NamedTuple):
    """One program.

    Args:
        offset: In the whole file.
        end: The first offset behind it.
        machine: Number of the processor.
        address_end: The first address behind it.
        segments: Ascending by offset.
        sections: Ascending by offset, apart from each other.
    """

    offset: int
    end: int
    machine: int
    address_end: int
    segments: tuple[Loaded, ...]
    sections: tuple[Section, ...]


ARM64: Final = 183
X86: Final = (3, 62)


def find_elves(data: memoryview) -> Iterator[Elf]:
    """All programs in a file, ascending, apart from each other."""
    end = 0
    for match in _MAGIC.finditer(data):
        if match.start() >= end:
            try:
                elf = _read(data, match.start())
            except (struct.error, ValueError):
                continue
            end = elf.end
            yield elf


def _read(data: memoryview, at: int) -> Elf:
    wide = data[at + 4] == 2
    machine = struct.unpack_from("<H", data, at + 18)[0]
    if wide:
        headers, tables = struct.unpack_from("<QQ", data, at + 32)
        size, count, table_size, table_count = struct.unpack_from("<4H", data, at + 54)
    else:
        headers, tables = struct.unpack_from("<II", data, at + 28)
        size, count, table_size, table_count = struct.unpack_from("<4H", data, at + 42)
    segments = []
    address_end = 0
    for number in range(count):
        place = at + headers + number * size
        if wide:
            kind, _, offset, address, _, length, memory = struct.unpack_from("<IIQQQQQ", data, place)
        else:
            kind, offset, address, _, length, memory = struct.unpack_from("<6I", data, place)
        if kind == _LOADED and length and at + offset + length <= len(data):
            segments.append(Loaded(at + offset, length, address))
            address_end = max(address_end, address + memory)
    segments.sort()
    sections = []
    for number in range(min(table_count, _SECTIONS)):
        place = at + tables + number * table_size
        kind, flags, offset, length = struct.unpack_from("<4xIQ8xQQ" if wide else "<4xII4xII", data, place)
        if kind not in (0, _NO_BITS) and length:
            sections.append(Section(at + offset, length, bool(flags & _EXECUTED)))
    if not segments:
        raise ValueError("a program that loads nothing")
    if not sections:
        sections = [Section(part.offset, part.length, executed=False) for part in segments]
    apart: list[Section] = []
    behind = at
    for section in sorted(sections):
        if behind <= section.offset and section.offset + section.length <= len(data):
            apart.append(section)
            behind = section.offset + section.length
    whole: list[Loaded] = []
    for part in segments:
        if not whole or part.offset >= whole[-1].offset + whole[-1].length:
            whole.append(part)
    end = max(behind, whole[-1].offset + whole[-1].length)
    return Elf(at, end, machine, address_end, tuple(whole), tuple(apart))
