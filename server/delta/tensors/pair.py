"""Decides which old tensor explains each new one: by content, by name, by order, then by what a sample costs.

Names may all change at each export, and tensors come and go; what a sample costs has the last word. A tensor that grew
rows is cut into spans, and each is explained by itself.
"""

import enum
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from server.delta.tensors import cost
from server.delta.tensors.found import File, Tensor
from server.delta.tensors.order import in_order
from server.delta.tensors.reading import sampling

WORTH = 0.995  # a difference has to be that much cheaper than the tensor alone
CLEAR = 0.9  # cheap enough to look no further
MAX_PROBES = 20_000  # sampled comparisons: some five seconds
MAX_EQUAL = 4  # tensors with the same probe bytes that are compared whole
MAX_STRANGERS = 32  # same-shape tensors tried when neither name nor order helped
PROBE_BYTES = 32  # at each of four places: tells nearly all tensors apart
COMPARE_BYTES = 4 << 20  # compared at a time
MIN_PIECE_BYTES = 64 << 10  # a tensor that moved or grew is looked at in pieces
MAX_PIECES = 64


class Match(enum.Enum):
    """How a span of the new file is explained."""

    COPY = "copy"  # the same bytes
    DELTA = "delta"  # the same type and length, values whose differences cost less than they do
    WEAK = "weak"  # the same type, length and name or place, but differences seem to cost as much: worth a try
    CAST = "cast"  # the same values in another float type, by name or order: not looked at
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Pair:
    """A span of a new tensor and what explains it.

    Args:
        new: The tensor.
        match: How.
        new_offset: Of the span, in the new file.
        new_length_bytes: Of the span; whole elements of `new`.
        old: The tensor that explains it; None when there is none, or when only a place in the old file is known.
        old_offset: Of the explaining span, in the old file; 0 when there is none.
        old_length_bytes: As `new_length_bytes`, except for CAST; 0 when there is none.
    """

    new: Tensor
    match: Match
    new_offset: int
    new_length_bytes: int
    old: Tensor | None
    old_offset: int
    old_length_bytes: int


def pair_tensors(old_file: File, old: list[Tensor], new_file: File, new: list[Tensor]) -> list[Pair]:
    """Explains each new tensor.

    Args:
        old_file: The base, whole.
        old: What `find_tensors` found in it.
        new_file: The result, whole.
        new: What `find_tensors` found in it.

    Returns:
        Spans in the order of the new file, which together are exactly the new tensors.
    """
    with memoryview(old_file).cast("B") as old_data, memoryview(new_file).cast("B") as new_data:
        pairing = _Pairing(old_data, old, new_data, new)
        equal = [pairing.equal(each) for each in new]
        with sampling(old_data), sampling(new_data):
            return pairing.explain(equal)


class _Pairing:
    def __init__(self, old_data: memoryview, old: list[Tensor], new_data: memoryview, new: list[Tensor]) -> None:
        self._old_data, self._old = old_data, old
        self._new_data, self._new = new_data, new
        self._probes = MAX_PROBES
        self._by_name: dict[str, list[int]] = defaultdict(list)
        self._by_shape: dict[object, list[int]] = defaultdict(list)
        self._by_content: dict[object, list[int]] = defaultdict(list)
        for index, each in enumerate(old):
            if each.name:
                self._by_name[each.name].append(index)
            self._by_shape[_kind(each)].append(index)
            self._by_content[_content(old_data, each)].append(index)
        self._partner = in_order([_kind(each) for each in old], [_kind(each) for each in new])
        self._near = dict(_neighbours(old, new, self._partner))

    def explain(self, equal: list[Tensor | None]) -> list[Pair]:
        pairs: list[Pair] = []
        for index, (each, same) in enumerate(zip(self._new, equal, strict=True)):
            if same is not None:
                pairs.append(_whole(each, Match.COPY, same))
            elif each.name:
                pairs += self._named(index, each)
            else:
                pairs += self._nameless(index, each)
        return pairs

    def equal(self, new: Tensor) -> Tensor | None:
        candidates = self._by_content.get(_content(self._new_data, new), [])
        named = [index for index in candidates if self._old[index].name == new.name]
        for index in [*named, *candidates][:MAX_EQUAL]:
            old = self._old[index]
            if _same(self._old_data, old.offset, self._new_data, new.offset, new.length_bytes):
                return old
        return None

    def _named(self, index: int, new: Tensor) -> list[Pair]:
        likely = [self._old[each] for each in self._likely(index, new)]
        fitting = [old for old in likely if old.element is new.element and old.length_bytes == new.length_bytes]
        best = self._cheapest(new, fitting, index)
        if best is not None:
            return [_whole(new, Match.DELTA, best)]
        if fitting:
            return [_whole(new, Match.WEAK, fitting[0])]
        for old in likely:
            if old.element is new.element and old.shape[1:] == new.shape[1:]:
                row_bytes = new.row_elements * new.element.width_bytes
                shifts = (old.offset - new.offset, old.end - new.end)
                return self._pieces(new, _Base(shifts, old.offset, old.end, row_bytes, old))
        for old in likely:
            if old.element.is_float and new.element.is_float and old.count == new.count:
                return [_whole(new, Match.CAST, old)]
        return [_whole(new, Match.NONE, None)]

    def _likely(self, index: int, new: Tensor) -> Iterator[int]:
        """Old tensors worth a look, the likeliest first."""
        yield from self._by_name.get(new.name, ())
        if index in self._partner:
            yield self._partner[index]
        yield from self._near.get(index, ())

    def _cheapest(self, new: Tensor, fitting: list[Tensor], index: int) -> Tensor | None:
        sampled = cost.words(self._new_data, new.offset, new.length_bytes, new.element)
        alone = cost.solo_bits(sampled, new.element)
        best, lowest = None, alone * WORTH
        strangers = [self._old[each] for each in _nearest(self._by_shape.get(_kind(new), ()), index)]
        seen: set[int] = set()
        for old in [*fitting, *strangers]:
            if old.offset in seen:
                continue
            if not self._probes:
                # Out of time: what has the same name or place is tried unseen, as the encoder compares again.
                return best if best is not None else next(iter(fitting), None)
            seen.add(old.offset)
            self._probes -= 1
            bits = cost.delta_bits(
                cost.words(self._old_data, old.offset, old.length_bytes, old.element), sampled, new.element
            )
            if bits < lowest:
                best, lowest = old, bits
            if lowest < alone * CLEAR and len(seen) >= len(fitting):
                break
        return best

    def _nameless(self, index: int, new: Tensor) -> list[Pair]:
        """A run of unknown parts: the same place in the old file, or that of an old run, for each piece."""
        shifts = [0, len(self._old_data) - len(self._new_data)]
        partners = [self._partner[index]] if index in self._partner else []
        for each in [*partners, *self._near.get(index, ())][:MAX_EQUAL]:
            old = self._old[each]
            if old.element is new.element:
                shifts += [old.offset - new.offset, old.end - new.end]
        width = new.element.width_bytes
        return self._pieces(new, _Base(tuple(dict.fromkeys(shifts)), 0, len(self._old_data), width, None))

    def _pieces(self, new: Tensor, base: "_Base") -> list[Pair]:
        """Explains a tensor piece by piece, each at the cheapest of the shifts."""
        pieces: list[Pair] = []
        used: int | None = None
        for start, end in base.cuts(new):
            used = self._best_shift(new, start, end, base.reaching(start, end), used)
            match = Match.NONE if used is None else Match.DELTA
            at, length = (0, 0) if used is None else (start + used, end - start)
            piece = Pair(new, match, start, end - start, None if used is None else base.old, at, length)
            if pieces and _continues(pieces[-1], piece):
                last = pieces.pop()
                whole = end - last.new_offset
                piece = Pair(
                    new, match, last.new_offset, whole, piece.old, last.old_offset, 0 if used is None else whole
                )
            pieces.append(piece)
        return pieces

    def _best_shift(self, new: Tensor, start: int, end: int, shifts: list[int], used: int | None) -> int | None:
        if not shifts:
            return None
        sampled = cost.words(self._new_data, start, end - start, new.element)
        best, lowest = None, cost.solo_bits(sampled, new.element) * WORTH
        for shift in sorted(shifts, key=lambda each: each != used):  # the last piece's first: it wins a draw
            if not self._probes:
                return used if used in shifts else shifts[0]
            self._probes -= 1
            base = cost.words(self._old_data, start + shift, end - start, new.element)
            bits = cost.delta_bits(base, sampled, new.element)
            if bits < lowest * (1 if best is None else WORTH):
                best, lowest = shift, bits
        return best


@dataclass(frozen=True, slots=True)
class _Base:
    """Where in the old file the pieces of a tensor may lie: at any of the shifts, inside [low, high)."""

    shifts: tuple[int, ...]
    low: int
    high: int
    row_bytes: int
    old: Tensor | None

    def reaching(self, start: int, end: int) -> list[int]:
        """The shifts that leave a piece inside."""
        return [shift for shift in self.shifts if self.low <= start + shift and end + shift <= self.high]

    def cuts(self, new: Tensor) -> Iterator[tuple[int, int]]:
        """Cuts a tensor into pieces of whole rows, also where the reach of a shift begins and ends."""
        size = max(MIN_PIECE_BYTES, -(-new.length_bytes // MAX_PIECES))
        size = -(-size // self.row_bytes) * self.row_bytes
        places = set(range(new.offset, new.end, size)) | {new.end}
        for shift in self.shifts:
            first = -(-(self.low - shift - new.offset) // self.row_bytes)
            last = (self.high - shift - new.offset) // self.row_bytes
            places |= {new.offset + row * self.row_bytes for row in (first, last)}
        at = new.offset
        for place in sorted(place for place in places if new.offset < place <= new.end):
            yield at, place
            at = place


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.element, tensor.shape


def _content(data: memoryview, tensor: Tensor) -> tuple[int, bytes]:
    step = (tensor.length_bytes - PROBE_BYTES) // 3
    places = (tensor.offset + index * step for index in range(4))
    return tensor.length_bytes, b"".join(data[at : at + PROBE_BYTES] for at in places)


def _same(old: memoryview, old_at: int, new: memoryview, new_at: int, length: int) -> bool:
    for done in range(0, length, COMPARE_BYTES):
        part = min(COMPARE_BYTES, length - done)
        left = np.frombuffer(old, np.uint8, part, old_at + done)
        if not np.array_equal(left, np.frombuffer(new, np.uint8, part, new_at + done)):
            return False
    return True


def _whole(new: Tensor, match: Match, old: Tensor | None) -> Pair:
    if old is None:
        return Pair(new, match, new.offset, new.length_bytes, None, 0, 0)
    return Pair(new, match, new.offset, new.length_bytes, old, old.offset, old.length_bytes)


def _continues(last: Pair, piece: Pair) -> bool:
    return last.match is piece.match and (
        piece.match is Match.NONE or last.old_offset + last.old_length_bytes == piece.old_offset
    )


def _nearest(candidates: Sequence[int], index: int) -> list[int]:
    return sorted(candidates, key=lambda each: abs(each - index))[:MAX_STRANGERS]


def _neighbours(old: list[Tensor], new: list[Tensor], partner: dict[int, int]) -> Iterator[tuple[int, list[int]]]:
    """For each new tensor without a partner the old ones without, between the same partners: like ones, in order."""
    taken = set(partner.values())
    start = 0
    gap: list[int] = []
    for index in [*range(len(new)), None]:
        if index is not None and index not in partner:
            gap.append(index)
            continue
        end = len(old) if index is None else partner[index]
        free = [each for each in range(start, end) if each not in taken]
        for each in gap:
            alike = [other for other in free if _alike(old[other], new[each])]
            if alike:
                yield each, alike[:MAX_EQUAL]
                free.remove(alike[0])
        gap = []
        start = end + 1


def _alike(old: Tensor, new: Tensor) -> bool:
    if old.element is new.element:
        return old.shape[1:] == new.shape[1:] or old.count == new.count
    return old.element.is_float and new.element.is_float and old.shape == new.shape
