"""Writes tokens as blocks of a deflate stream (RFC 1951), with the codes that zlib and GNU gzip make of them."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from protocol.delta.deflate_read import (
    DISTANCE_BASE,
    DISTANCE_EXTRA,
    DYNAMIC,
    END,
    FIXED_DISTANCES,
    FIXED_LITERALS,
    LAST,
    LENGTH_BASE,
    LENGTH_EXTRA,
    MOST_DISTANCE,
    MOST_LENGTH,
    STORED,
    Ints,
)
from protocol.delta.huffman import Bits, code_lengths, codes_of, write_lengths

PART_TOKENS: Final = 1 << 14  # written at once: bounds the memory
STORED_BYTES: Final = 0xFFFF  # of one block

LENGTH_CODES: Final = np.searchsorted(LENGTH_BASE, np.arange(MOST_LENGTH + 1), "right").astype(np.int64) - 1
DISTANCE_CODES: Final = (np.searchsorted(DISTANCE_BASE, np.arange(MOST_DISTANCE + 1), "right") - 1).astype(np.uint8)
_TOLD_LENGTHS: Final = np.arange(3, MOST_LENGTH + 1)  # of matches; literals stand before them in what is looked up
_FIRST_LENGTH: Final = 256 - 3


class BlockWriter:
    """Puts blocks one behind the other."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._bits = 0  # of the last byte that are taken

    def write(self, kind: int, lengths: Ints, values: Ints, *, last: bool) -> None:
        """Appends a block of tokens.

        Args:
            kind: `FIXED` or `DYNAMIC`.
            lengths: Of the tokens, as in `deflate_read.Part`.
            values: Likewise.
            last: Whether the stream ends with it.
        """
        parts = [slice(at, at + PART_TOKENS) for at in range(0, lengths.size, PART_TOKENS)]
        head: Bits = [(int(last), 1), (kind, 2)]
        literals: Sequence[int] = FIXED_LITERALS
        distances: Sequence[int] = FIXED_DISTANCES
        if kind == DYNAMIC:
            literal_counts, distance_counts = np.zeros(LAST + 1, np.int64), np.zeros(len(DISTANCE_BASE), np.int64)
            for part in parts:
                more, far = _counts(lengths[part], values[part])
                literal_counts += more
                distance_counts += far
            literal_counts[END] = 1
            literals, distances = code_lengths(literal_counts.tolist()), code_lengths(distance_counts.tolist())
            head += write_lengths(literals, distances)
        self._add(*(np.array(column, np.int64) for column in zip(*head, strict=True)))
        codes = _Codes(literals, distances)
        for part in parts:
            self._add(*codes.bits(lengths[part], values[part]))
        self._add(codes.end[:1], codes.end[1:])

    def store(self, data: bytes, *, last: bool) -> None:
        """Appends a block of bytes, at most `STORED_BYTES`."""
        self._add(np.array([int(last), STORED]), np.array([1, 2]))
        self._bits = 0
        self._out += len(data).to_bytes(2, "little") + (len(data) ^ 0xFFFF).to_bytes(2, "little") + data

    def take(self) -> bytes:
        """All whole bytes so far, which are forgotten."""
        whole = len(self._out) - (self._bits > 0)
        taken = bytes(self._out[:whole])
        del self._out[:whole]
        return taken

    def finish(self) -> bytes:
        """What is left."""
        return bytes(self._out)

    def _add(self, values: Ints, widths: Ints) -> None:
        """Appends numbers of at most 48 bits, lowest bit first."""
        ends = np.cumsum(widths, dtype=np.int64) + self._bits
        starts = ends - widths
        total = int(ends[-1])
        packed = np.zeros(total // 32 + 3, np.uint32)
        if self._bits:
            packed[0] = self._out.pop()
        words = starts >> 5
        shifts = (starts & 31).astype(np.uint64)
        values = values.astype(np.uint64)
        firsts = np.concatenate(([0], np.flatnonzero(np.diff(words)) + 1))
        words = words[firsts]
        low = np.bitwise_or.reduceat(values << shifts, firsts)
        packed[words] |= low.astype(np.uint32)
        packed[words + 1] |= (low >> np.uint64(32)).astype(np.uint32)
        values >>= np.uint64(1)
        values >>= np.uint64(63) - shifts
        if values.any():
            packed[words + 2] |= np.bitwise_or.reduceat(values, firsts).astype(np.uint32)
        self._out += packed.astype("<u4", copy=False).tobytes()[: -(-total // 8)]
        self._bits = total & 7


def _counts(lengths: Ints, values: Ints) -> tuple[Ints, Ints]:
    """How often each symbol stands for some tokens."""
    match = lengths > 1
    symbols = np.where(match, LENGTH_CODES[lengths] + END + 1, values)
    distances = DISTANCE_CODES[values[match]]
    return np.bincount(symbols, minlength=LAST + 1), np.bincount(distances, minlength=len(DISTANCE_BASE))


class _Codes:
    """What stands for tokens in one block.

    Args:
        literals: The code lengths of literals and lengths.
        distances: Those of distances.
    """

    def __init__(self, literals: Sequence[int], distances: Sequence[int]) -> None:
        codes, widths = _padded(literals, LAST + 1)
        symbols = LENGTH_CODES[3:] + END + 1
        more = (_TOLD_LENGTHS - LENGTH_BASE[symbols - END - 1]) << widths[symbols]
        self._codes = np.concatenate((codes[:256], codes[symbols] | more))
        self._widths = np.concatenate((widths[:256], widths[symbols] + LENGTH_EXTRA[symbols - END - 1]))
        self._far_codes, self._far_widths = _padded(distances, len(DISTANCE_BASE))
        self.end = np.array([codes[END], widths[END]])

    def bits(self, lengths: Ints, values: Ints) -> tuple[Ints, Ints]:
        """What stands for each token, and in how many bits."""
        match = np.flatnonzero(lengths > 1)
        symbols = values.astype(np.int64)
        symbols[match] = lengths[match].astype(np.int64) + _FIRST_LENGTH
        code, width = self._codes[symbols], self._widths[symbols]
        far = values[match].astype(np.int64)
        which = DISTANCE_CODES[far]
        far -= DISTANCE_BASE[which]
        far <<= self._far_widths[which]
        far |= self._far_codes[which]
        code[match] |= far << width[match]
        width[match] += self._far_widths[which] + DISTANCE_EXTRA[which]
        return code, width


def _padded(lengths: Sequence[int], count: int) -> tuple[Ints, Ints]:
    """Codes and widths of so many symbols."""
    widths = np.zeros(max(count, len(lengths)), np.int64)
    widths[: len(lengths)] = lengths
    codes = np.zeros(widths.size, np.int64)
    codes[: len(lengths)] = codes_of(lengths)
    return codes, widths
