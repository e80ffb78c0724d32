"""Which old address stands at which new one: what moved, as a function that nobody has to send.

When a program is built again, nearly all that changes in what stayed is where things lie: calls, pointers and tables
name places that moved. The operations of a group say where bytes went, the segments of its programs what addresses
that makes, and exceptions add what operations cannot tell.

All programs share one line of numbers, each with `SPACE` of it to itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.delta.operations import COPY, TAKE
from protocol.delta.programs import SPACE, Program
from protocol.errors import Reason, Refused

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Places(NamedTuple):
    """The operations of a group that read the base, in the order in which they write.

    Args:
        base: Where they read, int64 [n].
        output: Where they write, in the whole result.
        length: In bytes.
        own: Those of the stream that is being made.
    """

    base: Ints
    output: Ints
    length: Ints
    own: Bools


def find_places(kinds: Ints, lengths: Ints, bases: Ints, output: int, own: int) -> Places:
    """The operations of a group that read the base.

    Args:
        kinds: `Operation.kind` of all of the group's operations, [n].
        lengths: Of their output, in bytes.
        bases: Where they read the base.
        output: Where the group's output begins.
        own: The kind of those of the stream that is being made.
    """
    read = np.flatnonzero((bases >= 0) & ((kinds == COPY) | (kinds >= TAKE)))
    outputs = output + np.cumsum(lengths) - lengths
    return Places(bases[read], outputs[read], lengths[read], kinds[read] == own)


class Words(NamedTuple):
    """What is known of words of the base.

    Args:
        rule: `Rule` of their region, uint8 [n].
        behind: How far behind their region's beginning they lie, in bytes.
        region: The old address of that beginning.
        space: Where their program's addresses begin.
        old: Their old address.
        moved: How far they moved.
    """

    rule: npt.NDArray[np.uint8]
    behind: Ints
    region: Ints
    space: Ints
    old: Ints
    moved: Ints

    def at(self, where: npt.NDArray[np.intp]) -> "Words":
        """Some of them."""
        return Words(
            self.rule[where],
            self.behind[where],
            self.region[where],
            self.space[where],
            self.old[where],
            self.moved[where],
        )


class Addresses:
    """Old and new addresses of what the base holds.

    Args:
        programs: As `code_programs` gives them.
        places: All operations of the group that read the base.

    Raises:
        Refused: `METADATA`: programs or regions that lie in each other.
    """

    def __init__(self, programs: tuple[Program, ...], places: Places) -> None:
        spaces = [at * SPACE for at in range(len(programs))]
        segments = [(*part, space) for space, known in zip(spaces, programs, strict=True) for part in known.segments]
        regions = [(*part, space) for space, known in zip(spaces, programs, strict=True) for part in known.regions]
        self._base, self._length, lies, lands, space = _columns(segments, 5)
        self._lies, self._lands = lies + space, lands + space
        self._region_base, self._region_length, self._region_rule, self._region_space = _columns(regions, 4)
        for base, length in ((self._base, self._length), (self._region_base, self._region_length)):
            if (np.diff(base) < length[:-1]).any():
                raise Refused(Reason.METADATA, "programs that lie in each other")
        self._region_old = self._region_base + _pick(self._lies, self._segment(self._region_base))
        self._ends = np.array([space + known.end for space, known in zip(spaces, programs, strict=True)], np.int64)
        self._from, self._shift = self._except(programs, *self._follow(places))

    def words(self, base: Ints, output: Ints) -> Words:
        """What is known of the words at these offsets in the base, of which the result has its form at `output`."""
        segment = _all_within(self._base, self._length, base)
        old = _pick(self._lies, segment) + base
        moved = np.where(segment >= 0, _pick(self._lands, segment) + output - old, 0)
        region = _all_within(self._region_base, self._region_length, base)
        behind = np.where(region >= 0, base - _pick(self._region_base, region), 0)
        rule = _pick(self._region_rule, region).astype(np.uint8)
        begin, space = _pick(self._region_old, region), _pick(self._region_space, region)
        return Words(
            np.broadcast_to(rule, base.shape),
            behind,
            np.broadcast_to(begin, base.shape),
            np.broadcast_to(space, base.shape),
            old,
            moved,
        )

    def shift(self, addresses: Ints) -> Ints:
        """How far what stood at these old addresses moved: 0 where nothing is known."""
        return _pick(self._shift, np.searchsorted(self._from, addresses, "right") - 1)

    def inside(self, addresses: Ints, space: Ints) -> Bools:
        """Whether the addresses are those of the program whose addresses begin at `space`."""
        return (addresses >= space) & (addresses < _pick(self._ends, space // SPACE))

    def _segment(self, base: Ints) -> npt.NDArray[np.intp]:
        return _within(self._base, self._length, base)

    def _follow(self, places: Places) -> tuple[Ints, Ints]:
        """What operations and segments tell: addresses from which on things moved, ascending, and how far."""
        order = np.lexsort((-places.length, places.base))
        base, end = places.base[order], (places.base + places.length)[order]
        shift = (places.output - places.base)[order]
        before = np.maximum.accumulate(np.concatenate((np.zeros(1, np.int64), end)))[:-1]
        outer = end > before  # where two operations read the same bytes, the first and longer one says where they went
        base, shift = np.maximum(base, before)[outer], shift[outer]
        starts = np.sort(np.concatenate((base, self._base)))  # np.unique would load megabytes of other code
        starts = starts[np.diff(starts, prepend=-1) > 0]
        segment = self._segment(starts)
        starts, segment = starts[segment >= 0], segment[segment >= 0]
        at = np.maximum(np.searchsorted(base, starts, "right") - 1, 0)
        moved = _pick(shift, at) + self._lands[segment] - self._lies[segment]
        starts = starts + self._lies[segment]
        order = np.argsort(starts, kind="stable")
        return starts[order], moved[order]

    def _except(self, programs: tuple[Program, ...], starts: Ints, moved: Ints) -> tuple[Ints, Ints]:
        """Adds where programs begin and end, and the exceptions. Of equal addresses the last one holds."""
        spaces = np.arange(len(programs), dtype=np.int64) * SPACE
        edges = np.concatenate((spaces, self._ends))
        starts, moved = _sorted((edges, starts), (np.zeros_like(edges), moved))
        rows = [
            (at * SPACE + address, length, shift)
            for at, program in enumerate(programs)
            for address, length, shift in program.exceptions
        ]
        address, length, shift = _columns(rows, 3)
        end = address + length
        again = _pick(moved, np.searchsorted(starts, end, "right") - 1)
        apart = _within(address, length, starts) < 0
        return _sorted((starts[apart], end, address), (moved[apart], again, shift))


def _columns(rows: Sequence[tuple[int, ...]], count: int) -> tuple[Ints, ...]:
    return tuple(np.array(rows, np.int64).reshape(-1, count).T.copy())


def _sorted(keys: tuple[Ints, ...], values: tuple[Ints, ...]) -> tuple[Ints, Ints]:
    key, value = np.concatenate(keys), np.concatenate(values)
    order = np.argsort(key, kind="stable")
    return key[order], value[order]


def _within(base: Ints, length: Ints, offsets: Ints) -> npt.NDArray[np.intp]:
    """In which of the runs the offsets lie, or -1."""
    at = np.searchsorted(base, offsets, "right") - 1
    return np.where((at >= 0) & (offsets - _pick(base, at) < _pick(length, at)), at, -1)


def _all_within(base: Ints, length: Ints, offsets: Ints) -> npt.NDArray[np.intp]:
    """As `_within`, and a single number when it is the same for all."""
    ends = _within(base, length, np.array([offsets.min(), offsets.max()]))
    if base.size == 0 or (ends[0] == ends[1] and ends[0] >= 0):
        return ends[:1]
    return _within(base, length, offsets)


def _pick(values: npt.NDArray[np.int64], at: npt.NDArray[np.intp]) -> Ints:
    """`values[at]`, and 0 where `at` is -1."""
    if not values.size:
        return np.zeros(at.shape, np.int64)
    picked: Ints = np.where(at >= 0, values[np.maximum(at, 0)], 0)
    return picked
