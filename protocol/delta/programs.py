"""What a patch says about the programs in its base: how offsets become addresses, and which words hold addresses.

The applier knows no format of programs (ELF and its like): it is told in numbers what `protocol.delta.addresses` needs.
"""

from enum import IntEnum
from typing import Final, NamedTuple

from protocol.delta.numbers import Numbers
from protocol.errors import Reason, Refused

SPACE: Final = 1 << 40  # addresses of one program
MOST_PROGRAMS: Final = 1 << 12  # of one stream
MOST_PARTS: Final = 1 << 16  # segments, regions and exceptions of one stream together
MOST_OFFSET: Final = 1 << 60

# Contexts of the numbers, each a count of its own.
_PROGRAMS, _SEGMENTS, _REGIONS, _EXCEPTIONS, _END, _BASE, _LENGTH, _LIES, _LANDS, _GAP, _RULE, _SHIFT = range(12)


class Rule(IntEnum):
    """How the words of a region say addresses. All but `X86` are aligned to their size in the base."""

    NONE = 0
    ARM64 = 1  # instructions of four bytes
    X86 = 2  # instructions of any length, with distances of four bytes
    POINTERS = 3  # addresses of eight bytes
    POINTERS_32 = 4  # addresses of four bytes
    BEHIND = 5  # signed distances of four bytes, from where they stand back to what lies before
    AHEAD = 6  # the same, to what follows
    TABLE = 7  # signed distances of four bytes, from where the region begins
    UNWIND = 8  # what `.eh_frame` of ELF holds: for each function where it begins, its length, and its kind's record


class Segment(NamedTuple):
    """A run of bytes of the base that is loaded as a whole.

    Args:
        base: Offset in the base.
        length: In bytes.
        lies: What is added to an offset in the base to give the old address.
        lands: What is added to an offset in the result to give the new address.
    """

    base: int
    length: int
    lies: int
    lands: int


class Region(NamedTuple):
    """A run of bytes of the base whose words follow one rule."""

    base: int
    length: int
    rule: Rule


class Exceptional(NamedTuple):
    """Old addresses that moved by something else than the operations tell."""

    address: int
    length: int
    shift: int


class Program(NamedTuple):
    """One program or library in the base.

    Args:
        end: The first old address behind it.
        segments: Ascending by offset, apart from each other.
        regions: Ascending by offset, apart from each other.
        exceptions: Ascending by address, apart from each other.
    """

    end: int
    segments: tuple[Segment, ...]
    regions: tuple[Region, ...]
    exceptions: tuple[Exceptional, ...]


def code_programs(numbers: Numbers, given: tuple[Program, ...] = ()) -> tuple[Program, ...]:
    """Codes the programs of a stream, in either direction.

    Args:
        numbers: Reader or writer.
        given: When writing: the programs, ascending by offset and apart from each other.

    Raises:
        Refused: `LIMIT`, `METADATA`: too many of them, a number that is out of bounds, or an unknown rule.
    """
    coded: list[Program] = []
    at = parts = 0
    for number in range(_within(numbers.unsigned(_PROGRAMS, len(given)), MOST_PROGRAMS)):
        known = given[number] if given else None
        end = _within(numbers.unsigned(_END, known.end if known else 0), SPACE)
        segments = _code_segments(numbers, at, MOST_PARTS - parts, known.segments if known else ())
        parts += len(segments)
        regions = _code_regions(numbers, at, MOST_PARTS - parts, known.regions if known else ())
        parts += len(regions)
        exceptions = _code_exceptions(numbers, MOST_PARTS - parts, known.exceptions if known else ())
        parts += len(exceptions)
        at = max((at, *(part.base + part.length for part in segments), *(part.base + part.length for part in regions)))
        coded.append(Program(end, segments, regions, exceptions))
    return tuple(coded)


def _code_segments(numbers: Numbers, at: int, most: int, given: tuple[Segment, ...]) -> tuple[Segment, ...]:
    coded: list[Segment] = []
    lies = drift = 0
    for number in range(_within(numbers.unsigned(_SEGMENTS, len(given)), most)):
        known = given[number] if given else Segment(at, 0, lies, lies + drift)
        base = at + numbers.unsigned(_BASE, known.base - at)
        length = numbers.unsigned(_LENGTH, known.length)
        lies += numbers.signed(_LIES, known.lies - lies)
        drift += numbers.signed(_LANDS, known.lands - known.lies - drift)
        at = _within(base + length, MOST_OFFSET)
        _within(base + lies, SPACE)
        _within(MOST_OFFSET + drift, 2 * MOST_OFFSET)
        coded.append(Segment(base, length, lies, lies + drift))
    return tuple(coded)


def _code_regions(numbers: Numbers, at: int, most: int, given: tuple[Region, ...]) -> tuple[Region, ...]:
    coded: list[Region] = []
    for number in range(_within(numbers.unsigned(_REGIONS, len(given)), most)):
        known = given[number] if given else Region(at, 0, Rule.NONE)
        base = at + numbers.unsigned(_BASE, known.base - at)
        length = numbers.unsigned(_LENGTH, known.length)
        rule = _rule(numbers.symbol(_RULE, 4, known.rule))
        at = _within(base + length, MOST_OFFSET)
        coded.append(Region(base, length, rule))
    return tuple(coded)


def _code_exceptions(numbers: Numbers, most: int, given: tuple[Exceptional, ...]) -> tuple[Exceptional, ...]:
    coded: list[Exceptional] = []
    at = shift = 0
    for number in range(_within(numbers.unsigned(_EXCEPTIONS, len(given)), most)):
        known = given[number] if given else Exceptional(at, 0, shift)
        address = at + numbers.unsigned(_GAP, known.address - at)
        length = numbers.unsigned(_GAP, known.length)
        shift += numbers.signed(_SHIFT, known.shift - shift)
        at = _within(address + length, SPACE)
        _within(SPACE + shift, 2 * SPACE)
        coded.append(Exceptional(address, length, shift))
    return tuple(coded)


def _rule(number: int) -> Rule:
    if number >= len(Rule):
        raise Refused(Reason.METADATA, f"words of a program that follow rule {number}")
    return Rule(number)


def _within(number: int, most: int) -> int:
    if not 0 <= number <= most:
        raise Refused(Reason.LIMIT, f"{number} where a patch may say at most {most} about a program")
    return number
