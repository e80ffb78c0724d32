"""Finds what two small files have in common: equal runs, in the order of the new one."""

from collections.abc import Iterator
from typing import Final, NamedTuple

SEED_BYTES: Final = 8
LEAST_BYTES: Final = 20  # a shorter run elsewhere costs about as much as its bytes
CANDIDATES: Final = 16  # places of one seed that are looked at


class Run(NamedTuple):
    """Bytes of the new file that stand in the old one."""

    new: int
    old: int
    length: int


def find_runs(old: bytes, new: bytes) -> Iterator[Run]:
    """Equal runs, in order, not overlapping in `new`."""
    seeds: dict[bytes, list[int]] = {}
    for place in range(len(old) - SEED_BYTES + 1):
        places = seeds.setdefault(old[place : place + SEED_BYTES], [])
        if len(places) < CANDIDATES:
            places.append(place)
    at = taken = shift = 0
    while at < len(new):
        aligned = at + shift
        candidates = seeds.get(new[at : at + SEED_BYTES], [])
        best, longest, score = -1, 0, 0
        if 0 <= aligned < len(old) and old[aligned] == new[at]:
            longest = _common(old, aligned, new, at)
            best, score = aligned, longest + 6
        for place in candidates:
            length = _common(old, place, new, at)
            if length > score and length >= LEAST_BYTES:
                best, longest, score = place, length, length
        if best < 0 or (best == aligned and longest < 4):
            at += 1
            continue
        back = 0
        while at - back > taken and best > back and old[best - back - 1] == new[at - back - 1]:
            back += 1
        yield Run(at - back, best - back, longest + back)
        at += longest
        taken = at
        shift = best + longest - at


def _common(old: bytes, one: int, new: bytes, other: int) -> int:
    """How many bytes from these places on are equal."""
    length = 0
    most = min(len(old) - one, len(new) - other)
    step = 64
    while length < most:
        step = min(step, most - length)
        if old[one + length : one + length + step] == new[other + length : other + length + step]:
            length += step
            step *= 2
        elif step == 1:
            return length
        else:
            step = max(1, step // 4)
    return length
