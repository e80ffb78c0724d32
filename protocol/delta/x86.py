"""Instructions of x86 processors that name addresses: where their distances stand.

Instructions are of any length and are not decoded from their beginning: the bytes before a distance tell well enough
that it is one, and what they do not tell, the address does that it would name.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

_CALLS: Final = 0xE8  # E8 call, E9 jump: the distance follows
_PLAIN: Final = bytes.fromhex("0103090b2123292b313338393a3b6380818384858788898a8b8dc6c7d8d9dbdcdddff6f7ff")
"""Opcodes of one byte whose next byte may say that a distance follows it."""
_LONG: Final = bytes((*range(0x10, 0x18), *range(0x28, 0x30), *range(0x40, 0x80), *range(0x90, 0xA0))) + bytes(
    (0xAF, 0xB0, 0xB1, 0xB6, 0xB7, 0xBE, 0xBF, 0xC0, 0xC1, 0xC2, 0xC6, *range(0xD0, 0x100))
)
"""The same of those behind 0F."""
_WIDE: Final = ((3, 0xC5), (4, 0xC4), (5, 0x62))  # prefixes of vector instructions, how far before


def distances(code: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Where in the code distances of four bytes stand, ascending, no two in each other.

    A distance counts from the byte behind it; instructions with an operand behind it count from there, a few bytes on,
    which is close enough to know what it names.
    """
    if code.size < 8:
        return np.zeros(0, np.intp)
    found = np.zeros(code.size + 1, np.bool_)
    found[1:] = (code & 0xFE) == _CALLS
    found[2:] |= _conditional(code)
    at = np.flatnonzero((code[5:] & 0xC7) == 0x05) + 5  # an operand named by its distance
    opcode = code[at - 1]
    plain = _among(_PLAIN)[opcode] | ((code[at - 2] == 0x0F) & _among(_LONG)[opcode])
    for before, prefix in _WIDE:
        plain |= code[at - before] == prefix
    found[at[plain] + 1] = True
    where = np.flatnonzero(found[: max(code.size - 3, 0)])
    apart = np.ones(where.size, np.bool_)
    apart[1:] = np.diff(where) >= 4
    return where[apart]


def _conditional(code: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Jumps of two bytes: 0F 80 to 0F 8F."""
    jumps: npt.NDArray[np.bool_] = (code[:-1] == 0x0F) & ((code[1:] & 0xF0) == 0x80)
    return jumps


def _among(opcodes: bytes) -> npt.NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[np.frombuffer(opcodes, np.uint8)] = True
    return table
