"""Aligns two builds of a program: which old bytes each run of new ones is made from.

Bytes alone mislead: two neighbours in a table of addresses are more alike than an entry and the same entry after the
move. So both builds are aligned twice. From the first alignment follows how addresses moved. For the second every word
that names an address is written as what it names, in the old build as where that is now: what means the same is equal.
"""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol import limits
from protocol.delta.addresses import Addresses, Places
from protocol.delta.follow import follow
from protocol.delta.programs import Program, Region, Rule, Segment
from protocol.delta.words import cut_blocks
from server.delta.elf import Elf, find_elves
from server.delta.matching import MatchLimits, find_covers
from server.delta.pieces import How, Piece
from server.delta.programs import Stream, find_programs

Ints = npt.NDArray[np.int64]

LITERAL_SHARE: Final = 0.65  # LZMA makes so much of the entropy of new machine code and its tables
LOOKED_AT_BYTES: Final = 64 * limits.MIB  # of a build, to find out how its addresses moved: memory for all would not do
ALIGNED_TWICE_BYTES: Final = 128 * limits.MIB  # of both builds: both are written anew for it, beside the search's index
SHORT_GAP_BYTES: Final = 3  # between two covers: as changed bytes of the first it costs less than an operation
LONG_EQUAL_BYTES: Final = 1 << 14  # a copy is applied much faster, and costs about as much as two operations


def program_pieces(old: memoryview, new: memoryview, bounds: Callable[[], MatchLimits]) -> Iterator[tuple[int, Piece]]:
    """What a new build has from the old one: offsets in it, ascending, and the pieces that stand there.

    Args:
        old: The old build; offsets in the base count from its beginning.
        new: The new one.
        bounds: Of a search, asked before each.
    """
    before, after = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    for start, source, length in _without_gaps(align_programs(old, new, bounds), len(old)).tolist():
        differ = np.flatnonzero(before[source : source + length] != after[start : start + length])
        edges = np.concatenate(([-1], differ, [length]))
        at = 0
        for gap in np.flatnonzero(np.diff(edges) > LONG_EQUAL_BYTES).tolist():
            first, end = int(edges[gap]) + 1, int(edges[gap + 1])
            if first > at:
                yield start + at, Piece(How.CODE, first - at, source + at)
            yield start + first, Piece(How.COPY, end - first, source + first)
            at = end
        if at < length:
            yield start + at, Piece(How.CODE, length - at, source + at)


def _without_gaps(covers: Ints, old_bytes: int) -> Ints:
    """Covers that reach over short gaps up to the next one."""
    gap = covers[1:, 0] - covers[:-1, 0] - covers[:-1, 2]
    room = old_bytes - covers[:-1, 1] - covers[:-1, 2]
    grown = covers.copy()
    grown[:-1, 2] += np.where((gap <= SHORT_GAP_BYTES) & (gap <= room), gap, 0)
    return grown


def align_programs(old: memoryview, new: memoryview, bounds: Callable[[], MatchLimits]) -> Ints:
    """Covers of a new build: new offset, old offset, length; int64 [n, 3], as `find_covers` gives them.

    Args:
        old: The old build.
        new: The new one.
        bounds: Of a search, asked before each.
    """
    covers = find_covers(old, new, limits=bounds(), literal_share=LITERAL_SHARE)
    if len(old) + len(new) > ALIGNED_TWICE_BYTES:
        return covers
    places = Places(covers[:, 1], covers[:, 0], covers[:, 2], np.ones(len(covers), np.bool_))
    programs = find_programs(old, new, Stream(old, new, places, LOOKED_AT_BYTES)) if len(covers) else ()
    if not any(program.regions for program in programs):
        return covers
    results = _described_alike(programs, list(find_elves(new)), places)
    named_old = _named(old, Addresses(programs, places))
    nothing = np.zeros(0, np.int64)
    named_new = _named(new, Addresses(results, Places(nothing, nothing, nothing, nothing.astype(np.bool_))))
    return find_covers(named_old, named_new, limits=bounds(), literal_share=LITERAL_SHARE)


def _described_alike(programs: tuple[Program, ...], results: list[Elf], places: Places) -> tuple[Program, ...]:
    """The programs of the result, with the rules of the regions that theirs are made from."""
    regions = [region for program in programs for region in program.regions]
    described = []
    for elf in results:
        segments = tuple(
            Segment(part.offset, part.length, part.address - part.offset, part.address - part.offset)
            for part in elf.segments
        )
        alike = []
        for section in elf.sections:
            made = np.minimum(places.output + places.length, section.offset + section.length)
            made -= np.maximum(places.output, section.offset)
            longest = int(np.argmax(made))
            source = int(places.base[longest] + max(section.offset - int(places.output[longest]), 0))
            rules = [region.rule for region in regions if region.base <= source < region.base + region.length]
            if made[longest] > 0 and rules:
                alike.append(Region(section.offset, section.length, rules[0]))
        described.append(Program(elf.address_end, segments, tuple(alike), ()))
    return tuple(described)


def _named(data: memoryview, addresses: Addresses) -> bytes:
    """The bytes with what is named in place of how it is named: as if all words stood at one place."""
    whole = np.frombuffer(data, np.uint8).copy()
    zero, length = np.zeros(1, np.int64), np.array([whole.size], np.int64)
    for block in cut_blocks(zero, zero, length):
        some = whole[block.start : block.end]
        known = addresses.words(*block.offsets())
        known = known._replace(moved=np.where(known.rule > Rule.NONE, known.space - known.old, 0))
        words = block.gather(some)
        named, _ = follow(words, block.sizes, known, addresses)
        block.scatter(some, named, np.flatnonzero(named != words))
    return whole.tobytes()
