"""Instructions of 64-bit ARM processors that name addresses: what they become when these move.

An instruction is a word of four bytes. A branch holds its distance. Data is reached by two instructions: ADRP holds
the distance to a page of 4 KiB, and an ADD, load or store soon behind it the place in the page.
"""

from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Shift = Callable[[Ints], Ints]

REACH: Final = 16  # instructions behind an ADRP where the other half of the address is looked for
PAGE_BITS: Final = 12

# The upper byte of what holds a distance, the distance's bits, and where these begin.
_BRANCHES: Final = (
    ("14 15 16 17 94 95 96 97", 26, 0),  # B, BL
    ("54 34 35 b4 b5 18 1c 58 5c 98 9c d8 dc", 19, 5),  # B.cond, CBZ, CBNZ, and LDR of what lies near
    ("36 37 b6 b7", 14, 5),  # TBZ, TBNZ
)
_PAGES: Final = "90 b0 d0 f0"  # ADRP
_PAGES_AT_ONCE: Final = 1024
_ADD_MASK, _ADD = 0x7FC00000, 0x11000000
_ACCESS_MASK, _ACCESS = 0x3B000000, 0x39000000  # loads and stores with an unsigned offset
_STORE_MASK = 0x3B400000
_VECTOR_16 = 0x04800000  # an access of 16 bytes


def follow_arm64(words: Ints, old: Ints, moved: Ints, shift: Shift) -> tuple[Ints, Ints]:
    """The instructions as they would be when all that they name moved.

    Args:
        words: Instructions in the order of their addresses.
        old: Their old addresses.
        moved: How far they moved themselves.
        shift: How far what stood at an old address moved.

    Returns:
        The instructions, and the old addresses that they name, or -1.
    """
    followed = words.copy()
    names = np.full(words.size, -1, np.int64)
    kinds = _kinds()[(words >> 24).astype(np.uint8)]
    for kind, (_, bits, lowest) in enumerate(_BRANCHES, 1):
        where = np.flatnonzero(kinds == kind)
        branch = words[where]
        distance = _signed(branch >> lowest, bits)
        names[where] = old[where] + distance * 4
        change = shift(names[where]) - moved[where]
        field = (1 << bits) - 1
        changed = branch & ~(field << lowest) | ((distance + (change >> 2)) & field) << lowest
        followed[where] = np.where(change & 3, branch, changed)
    pages = np.flatnonzero(kinds == len(_BRANCHES) + 1)
    for begin in range(0, pages.size, _PAGES_AT_ONCE):  # no word is used by two: the later one writes the register
        _follow_pages(words, pages[begin : begin + _PAGES_AT_ONCE], (followed, names), (old, moved), shift)
    return followed, names


def _follow_pages(
    words: Ints, pages: npt.NDArray[np.intp], results: tuple[Ints, Ints], places: tuple[Ints, Ints], shift: Shift
) -> None:
    followed, names = results
    old, moved = places
    register = (words[pages] & 31)[:, None]
    distance = _signed(words[pages] >> 5 << 2 & 0x1FFFFC | words[pages] >> 29 & 3, 21)
    page = ((old[pages] >> PAGE_BITS) + distance) << PAGE_BITS
    behind = pages[:, None] + np.arange(1, REACH + 1)
    word = words[np.minimum(behind, words.size - 1)].astype(np.uint32)
    written = ((word & 31) == register) & ((word & _STORE_MASK) != _ACCESS)
    live = np.ones_like(written)
    np.logical_not(np.logical_or.accumulate(written[:, :-1], axis=1), out=live[:, 1:])
    adds = (word & _ADD_MASK) == _ADD
    live &= (adds | ((word & _ACCESS_MASK) == _ACCESS)) & ((word >> 5 & 31) == register) & (behind < words.size)
    row, column = np.nonzero(live)
    where = behind[row, column]
    used = words[where]
    scale = np.where(adds[row, column], 0, np.where((used & _VECTOR_16) == _VECTOR_16, 4, used >> 30 & 3))
    named = page[row] + ((used >> 10 & 0xFFF) << scale)
    lands = (named + shift(named)) & 0xFFF
    followed[where] = used & ~(0xFFF << 10) | (lands >> scale) << 10
    names[where] = named
    target = page.copy()
    target[row[::-1]] = named[::-1]  # the first use of each
    names[pages] = target
    distance = ((target + shift(target)) >> PAGE_BITS) - ((old[pages] + moved[pages]) >> PAGE_BITS)
    bare = words[pages] & ~(3 << 29 | 0x7FFFF << 5)
    followed[pages] = bare | (distance & 3) << 29 | (distance >> 2 & 0x7FFFF) << 5


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """For each upper byte which of the branches it is, from 1 on, or a page."""
    table = np.zeros(256, np.uint8)
    for kind, uppers in enumerate((*(uppers for uppers, _, _ in _BRANCHES), _PAGES), 1):
        table[list(bytes.fromhex(uppers))] = kind
    return table


def _signed(values: Ints, bits: int) -> Ints:
    values = values & ((1 << bits) - 1)
    return values - (values >> (bits - 1) << bits)
