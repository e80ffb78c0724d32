"""Decides which old tensor explains each new one: by content, by name, by order, then by what a sample costs.

Names may all change at each export, and tensors come and go; what a sample costs has the last word.
"""

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from server.delta.tensors.elsewhere import Elsewhere
from server.delta.tensors.found import File, Tensor
from server.delta.tensors.moved import CLEAR, WORTH, Base, explain_pieces
from server.delta.tensors.order import in_order
from server.delta.tensors.pairs import Match, Pair, whole
from server.delta.tensors.probe import Probes
from server.delta.tensors.reading import sampling

HOPELESS = 1.08  # differences of unrelated weights cost 1.07 (int8) to 1.3 (fp16) of the weights alone
MAX_EQUAL = 4  # tensors with the same probe bytes that are compared whole
MAX_NEAR = 4  # tensors between the same neighbours that are looked at
MAX_STRANGERS = 32  # same-shape tensors tried when neither name nor order helped
PROBE_BYTES = 32  # at each of four places: tells nearly all tensors apart
COMPARE_BYTES = 4 << 20  # compared at a time


def pair_tensors(old_file: File, old: list[Tensor], new_file: File, new: list[Tensor]) -> list[Pair]:
    """Explains each new tensor. Takes some ten seconds at most, whatever the files hold, and the time to read them.

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
            pairs = pairing.explain(equal)
        elsewhere = Elsewhere(old_data, new_data)
        return [part for pair in pairs for part in ((pair,) if pair.match is Match.COPY else elsewhere.copies(pair))]


class _Pairing:
    def __init__(self, old_data: memoryview, old: list[Tensor], new_data: memoryview, new: list[Tensor]) -> None:
        self._old_data, self._old = old_data, old
        self._new_data, self._new = new_data, new
        self._probes = Probes(old_data, new_data)
        self._by_name: dict[str, list[int]] = defaultdict(list)
        self._by_shape: dict[object, list[int]] = defaultdict(list)
        self._by_content: dict[object, list[int]] = defaultdict(list)
        for index, each in enumerate(old):
            if each.name:
                self._by_name[each.name].append(index)
            self._by_shape[_kind(each)].append(index)
            self._by_content[_content(old_data, each)].append(index)
        self._offsets = [each.offset for each in old]
        self._partner = in_order([_kind(each) for each in old], [_kind(each) for each in new])
        self._near = dict(_neighbours(old, new, self._partner))

    def equal(self, new: Tensor) -> Tensor | None:
        """An old tensor of the same bytes, of the same name if there is one."""
        candidates = self._by_content.get(_content(self._new_data, new), [])
        named = [index for index in candidates[:MAX_STRANGERS] if self._old[index].name == new.name]
        for index in [*named[:MAX_EQUAL], *candidates[:MAX_EQUAL]]:
            old = self._old[index]
            if _same(self._old_data, old.offset, self._new_data, new.offset, new.length_bytes):
                return old
        return None

    def explain(self, equal: list[Tensor | None]) -> list[Pair]:
        """Explains each tensor, given those that are equal to an old one."""
        pairs: list[Pair] = []
        for index, (each, same) in enumerate(zip(self._new, equal, strict=True)):
            if same is not None:
                pairs.append(whole(each, Match.COPY, same))
            elif each.name:
                pairs += self._named(index, each)
            else:
                pairs += self._nameless(index, each)
        return pairs

    def _named(self, index: int, new: Tensor) -> list[Pair]:
        likely = [self._old[each] for each in self._likely(index, new)]
        fitting = [old for old in likely if old.element is new.element and old.length_bytes == new.length_bytes]
        match, best = self._cheapest(new, fitting, index)
        if best is not None or fitting:
            return [whole(new, match, best)]
        for old in likely:
            if old.element is new.element and old.shape[1:] == new.shape[1:]:
                row_bytes = new.row_elements * new.element.width_bytes
                shifts = (old.offset - new.offset, old.end - new.end)
                return explain_pieces(new, Base(shifts, old.offset, old.end, row_bytes, old, None), self._probes)
        for old in likely:
            if old.element.is_float and new.element.is_float and old.count == new.count:
                return [whole(new, Match.CAST, old)]
        return [whole(new, Match.NONE, None)]

    def _likely(self, index: int, new: Tensor) -> Iterator[int]:
        """Old tensors worth a look, the likeliest first."""
        yield from self._by_name.get(new.name, ())[:MAX_NEAR]
        if index in self._partner:
            yield self._partner[index]
        yield from self._near.get(index, ())

    def _cheapest(self, new: Tensor, fitting: list[Tensor], index: int) -> tuple[Match, Tensor | None]:
        """Of the fitting ones, then of all of the same shape, nearest in order first."""
        if self._probes.spent:
            # What has the same name or place is tried unseen, as the encoder compares again.
            return (Match.WEAK, fitting[0]) if fitting else (Match.NONE, None)
        sampled, alone = self._probes.alone(new.offset, new.length_bytes, new.element)
        best, lowest = None, alone * HOPELESS
        strangers = [self._old[each] for each in _nearest(self._by_shape.get(_kind(new), ()), index, MAX_STRANGERS)]
        seen: set[int] = set()
        for old in [*fitting, *strangers]:
            if old.offset in seen or self._probes.spent:
                continue
            seen.add(old.offset)
            bits = self._probes.against(sampled, old.offset, old.length_bytes, old.element)
            if bits < lowest:
                best, lowest = old, bits
            if lowest < alone * CLEAR and len(seen) >= len(fitting):
                break
        if best is None:
            return Match.NONE, None
        return Match.DELTA if lowest < alone * WORTH else Match.WEAK, best

    def _nameless(self, index: int, new: Tensor) -> list[Pair]:
        """A run of unknown parts: the same place in the old file, or that of an old run, for each piece."""
        shifts = [0, len(self._old_data) - len(self._new_data)]
        phase: int | None = None
        partners = [self._partner[index]] if index in self._partner else []
        place = bisect(self._offsets, new.offset)
        near = range(max(0, place - MAX_NEAR // 2), min(len(self._old), place + MAX_NEAR // 2))
        for each in [*partners, *self._near.get(index, ()), *near]:
            old = self._old[each]
            if old.element is new.element:
                shifts += [old.offset - new.offset, old.end - new.end]
                phase = old.offset % old.element.width_bytes if phase is None else phase
        width = new.element.width_bytes
        base = Base(tuple(dict.fromkeys(shifts)), 0, len(self._old_data), width, None, phase)
        return explain_pieces(new, base, self._probes)


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


def _nearest(candidates: Sequence[int], index: int, count: int) -> list[int]:
    """Of ascending numbers the nearest ones, nearest first."""
    place = bisect(candidates, index)
    return sorted(candidates[max(0, place - count) : place + count], key=lambda each: abs(each - index))[:count]


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
            alike = [other for other in free[:MAX_STRANGERS] if _alike(old[other], new[each])]
            if alike:
                yield each, alike[:MAX_NEAR]
                free.remove(alike[0])
        gap = []
        start = end + 1


def _alike(old: Tensor, new: Tensor) -> bool:
    if old.element is new.element:
        return old.shape[1:] == new.shape[1:] or old.count == new.count
    return old.element.is_float and new.element.is_float and old.shape == new.shape
