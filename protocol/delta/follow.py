"""What the words of a program become when all that they name has moved."""

import numpy as np
import numpy.typing as npt

from protocol.delta.addresses import Addresses, Words
from protocol.delta.arm64 import follow_arm64
from protocol.delta.programs import Rule
from protocol.delta.x86 import distances

Ints = npt.NDArray[np.int64]

LOW = 0xFFFFFFFF


def follow(values: Ints, sizes: Ints, known: Words, addresses: Addresses) -> tuple[Ints, Ints]:
    """Words of four bytes as they would be after the move. They may be wrong: this is a guess.

    Args:
        values: Words, little-endian, in the order of the result.
        sizes: Bytes of each: fewer than four at the ends of operations.
        known: What is known of them.
        addresses: How far things moved.

    Returns:
        The words, and the old addresses that they name, or -1.
    """
    present = [int(np.count_nonzero(known.rule == rule)) for rule in Rule]
    for rule in Rule:
        if rule not in (Rule.NONE, Rule.X86) and present[rule] == values.size and sizes.min() == 4:
            return _follow_rule(rule, values, known, addresses)  # as in most blocks: nothing is copied
    followed = values.copy()
    names = np.full(values.size, -1, np.int64)
    for rule in Rule:
        if rule in (Rule.NONE, Rule.X86) or not present[rule]:
            continue
        where = np.flatnonzero((known.rule == rule) & (sizes == 4))
        followed[where], names[where] = _follow_rule(rule, values[where], known.at(where), addresses)
    if present[Rule.X86]:
        _follow_x86(followed, names, sizes, known, addresses)
    return followed, names


def _follow_rule(rule: Rule, values: Ints, known: Words, addresses: Addresses) -> tuple[Ints, Ints]:
    match rule:
        case Rule.ARM64:
            return follow_arm64(values, known.old, known.moved, addresses.shift)
        case Rule.UNWIND:
            return _follow_unwind(values, known, addresses)
        case Rule.POINTERS | Rule.POINTERS_32:
            named = known.space + values
            moved = np.zeros_like(values)
            fits = addresses.inside(named, known.space)
            if rule == Rule.POINTERS:  # the upper half of what a program's addresses can be is zero
                fits[-1:] = False
                fits[:-1] &= (known.behind[:-1] & 7 == 0) & (np.diff(known.behind) == 4) & (values[1:] == 0)
        case _:
            distance = values - (values >> 31 << 32)
            named = distance + (known.region if rule == Rule.TABLE else known.old)
            moved = addresses.shift(known.region) if rule == Rule.TABLE else known.moved
            fits = addresses.inside(named, known.space)
            if rule != Rule.TABLE:
                fits &= distance < 0 if rule == Rule.BEHIND else distance > 0
    followed = np.where(fits, (values + addresses.shift(named) - moved) & LOW, values)
    return followed, np.where(fits, named, -1)


def _follow_unwind(values: Ints, known: Words, addresses: Addresses) -> tuple[Ints, Ints]:
    """A function's record is told by its shape.

    Four words: its length, how far back its kind's record stands, how far off the function begins, how long that is.
    """
    followed = values.copy()
    names = np.full(values.size, -1, np.int64)
    if values.size < 4:
        return followed, names
    record, back, begin, length = (values[at : at - 3 or None] for at in range(4))
    named = begin - (begin >> 31 << 32) + known.old[2:-1]
    shaped = (record & 3 == 0) & (record >= 8) & (record < 1 << 16)
    shaped &= (back > 0) & (back <= known.behind[1:-2]) & (length > 0) & (length < 1 << 26)
    at = np.flatnonzero(shaped & (np.diff(known.behind)[1:-1] == 4) & addresses.inside(named, known.space[2:-1]))
    named, back, length = named[at], back[at], length[at]
    moved = known.moved[at + 1]
    kind = known.old[at + 1] - back
    began = addresses.shift(named)
    followed[at + 1] = (back + moved - addresses.shift(kind)) & LOW
    followed[at + 2] = (begin[at] + began - moved) & LOW
    followed[at + 3] = (length + addresses.shift(named + length - 1) - began) & LOW
    names[at + 1], names[at + 2] = kind, named
    return followed, names


def _follow_x86(followed: Ints, names: Ints, sizes: Ints, known: Words, addresses: Addresses) -> None:
    """Instructions are not aligned: they are looked for in the bytes."""
    code = followed.astype("<u4").view(np.uint8)
    places = np.arange(code.size)
    places = places[(places & 3) < np.repeat(sizes, 4)]
    packed = code[places]
    where = distances(packed)
    first, last = places[where], places[where + 3]
    together = (known.old[last >> 2] + (last & 3)) - (known.old[first >> 2] + (first & 3)) == 3
    where = where[together & (known.rule[first >> 2] == Rule.X86)]
    word = places[where] >> 2
    distance = np.zeros(where.size, np.int64)
    for byte in range(4):
        distance |= packed[where + byte].astype(np.int64) << (8 * byte)
    named = known.old[word] + (places[where] & 3) + 4 + distance - (distance >> 31 << 32)
    fits = addresses.inside(named, known.space[word])
    where, word, named = where[fits], word[fits], named[fits]
    changed = distance[fits] + addresses.shift(named) - known.moved[word]
    for byte in range(4):
        code[places[where + byte]] = changed >> (8 * byte) & 0xFF
    followed[:] = code.view("<u4")
    names[word] = named
