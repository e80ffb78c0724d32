"""Explains a tensor piece by piece: one that grew or lost rows, and a run of weights that lie elsewhere now."""

from collections.abc import Iterator
from dataclasses import dataclass

from server.delta.tensors.cost import RUN_ELEMENTS
from server.delta.tensors.found import Tensor
from server.delta.tensors.pairs import Match, Pair
from server.delta.tensors.probe import Probes

WORTH = 0.995  # a difference has to be that much cheaper than the weights alone
CLEAR = 0.9  # cheap enough to look no further
MIN_PIECE_BYTES = 64 << 10
MAX_PIECES = 64
MAX_SHIFTS = 8  # tried for one piece


@dataclass(frozen=True, slots=True)
class Base:
    """Where in the old file the pieces of a tensor may lie: at any of the shifts, inside [low, high).

    Args:
        shifts: Old offset minus new offset, in bytes.
        low: First byte of the base.
        high: Behind its last byte.
        row_bytes: Pieces are cut between rows of the new tensor.
        old: The old tensor, when the base is one.
        phase: Of the old elements: offset modulo their width. None: do not search for other shifts.
    """

    shifts: tuple[int, ...]
    low: int
    high: int
    row_bytes: int
    old: Tensor | None
    phase: int | None


def explain_pieces(new: Tensor, base: Base, probes: Probes) -> list[Pair]:
    """Explains each piece by what lies at the cheapest shift, or by nothing."""
    return _Pieces(new, base, probes).run()


class _Pieces:
    def __init__(self, new: Tensor, base: Base, probes: Probes) -> None:
        self._new, self._base, self._probes = new, base, probes
        self._shifts = list(base.shifts)  # the last one that helped comes first

    def run(self) -> list[Pair]:
        spans: list[tuple[int, int, int | None]] = []
        previous = self._new.offset
        for start, end in self._cuts():
            shift = self._shift(start, end)
            if not spans or spans[-1][2] == shift:
                spans.append((spans.pop()[0] if spans else start, end, shift))
            else:
                before, _, last = spans.pop()
                edge = self._edge(max(before, previous), start, end, last, shift)
                spans += [(before, edge, last), (edge, end, shift)]
            previous = start
        return [self._pair(start, end, shift) for start, end, shift in spans if start < end]

    def _pair(self, start: int, end: int, shift: int | None) -> Pair:
        if shift is None:
            return Pair(self._new, Match.NONE, start, end - start, None, 0, 0)
        return Pair(self._new, Match.DELTA, start, end - start, self._base.old, start + shift, end - start)

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """Cuts the tensor between rows, also where the reach of a shift begins and ends."""
        row_bytes, offset, end = self._base.row_bytes, self._new.offset, self._new.end
        size = max(MIN_PIECE_BYTES, -(-self._new.length_bytes // MAX_PIECES))
        places = set(range(offset, end, -(-size // row_bytes) * row_bytes)) | {end}
        for shift in self._base.shifts:
            first = -(-(self._base.low - shift - offset) // row_bytes)
            last = (self._base.high - shift - offset) // row_bytes
            places |= {offset + row * row_bytes for row in (first, last)}
        at = offset
        for place in sorted(place for place in places if offset < place <= end):
            yield at, place
            at = place

    def _reaches(self, start: int, end: int, shift: int) -> bool:
        return self._base.low <= start + shift and end + shift <= self._base.high

    def _shift(self, start: int, end: int) -> int | None:
        """The cheapest shift for a span. The last one wins a draw, so that spans stay long."""
        element = self._new.element
        sampled, alone = self._probes.alone(start, end - start, element)
        best, lowest = None, alone * WORTH
        for shift in [each for each in self._shifts if self._reaches(start, end, each)][:MAX_SHIFTS]:
            if self._probes.spent:
                # Out of time: the likeliest is tried unseen, as the encoder compares again.
                return shift if best is None else best
            bits = self._probes.against(sampled, start + shift, end - start, element)
            if bits < lowest * (1 if best is None else WORTH):
                best, lowest = shift, bits
        if lowest > alone * CLEAR and self._base.phase is not None and element.is_float:
            expected = start + (self._shifts[0] if self._shifts else 0)
            expected += (self._base.phase - expected) % element.width_bytes
            found = self._probes.search(start, expected, element)
            if found is not None and found not in self._shifts and self._reaches(start, end, found):
                self._shifts.insert(0, found)
                if self._probes.against(sampled, start + found, end - start, element) < lowest:
                    best = found
        if best is not None:
            self._shifts.remove(best)
            self._shifts.insert(0, best)
        return best

    def _edge(self, start: int, showed: int, end: int, before: int | None, after: int | None) -> int:
        """Where one shift gives way to the other: in the piece where that showed or in the one before it.

        Halves the span of both, down to a row or a sampled run.
        """
        row_bytes = self._base.row_bytes
        block = max(row_bytes, RUN_ELEMENTS * self._new.element.width_bytes)
        low, high = 0, (end - start) // row_bytes
        if after is not None:
            low = max(low, -(-(self._base.low - after - start) // row_bytes))
        if before is not None:
            high = min(high, (self._base.high - before - start) // row_bytes)
        while (high - low) * row_bytes > block and not self._probes.spent:
            middle = (low + high) // 2
            at = start + middle * row_bytes
            if self._bits(at, min(block, end - at), before) < self._bits(at, min(block, end - at), after):
                low = middle
            else:
                high = middle
        # Where the reach of a shift ends is exact: within the blur it is the likeliest place.
        return min(max(showed, start + low * row_bytes), start + high * row_bytes)

    def _bits(self, at: int, length_bytes: int, shift: int | None) -> float:
        sampled, alone = self._probes.alone(at, length_bytes, self._new.element)
        if shift is None:
            return alone * WORTH
        if not self._reaches(at, at + length_bytes, shift):
            return float("inf")
        return self._probes.against(sampled, at + shift, length_bytes, self._new.element)
