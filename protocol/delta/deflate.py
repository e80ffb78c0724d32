"""Compressed data as its tokens: reads what an encoder chose out of a deflate stream (RFC 1951), and writes it again.

What is written has the code lengths that zlib and GNU gzip would make. An encoder looks whether that gives the very
bytes; to the applier it is only a way to write.
"""

from array import array
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.delta.huffman import LENGTH_ORDER, MOST_BITS, Bits, code_lengths, codes_of, write_lengths
from protocol.errors import Reason, Refused

Ints = npt.NDArray[np.signedinteger[Any]]

MOST_TOKENS: Final = 1 << 18  # of one stream: bounds the memory
PART_TOKENS: Final = 1 << 14  # written at once: bounds the memory
MOST_BLOCKS: Final = 1 << 10
BLOCK_SHARE: Final = 512  # bytes of a stream for each of its blocks, but for two: their codes are slow to make
FIXED, DYNAMIC = 1, 2
LAST: Final = 285  # the symbols behind it mean nothing
END: Final = 256  # the symbol behind a block's last token
MOST_LENGTH: Final = 258
MOST_DISTANCE: Final = 1 << 15

_LENGTH_EXTRA: Final = np.array([0] * 8 + [n for n in range(1, 6) for _ in range(4)] + [0], np.int64)
_LENGTH_BASE: Final = np.concatenate((3 + np.cumsum(1 << _LENGTH_EXTRA[:28]) - (1 << _LENGTH_EXTRA[:28]), [258]))
_DISTANCE_EXTRA: Final = np.array([0, 0] + [n for n in range(14) for _ in range(2)], np.int64)
_DISTANCE_BASE: Final = 1 + np.cumsum(1 << _DISTANCE_EXTRA) - (1 << _DISTANCE_EXTRA)
_LENGTHS: Final = list(zip(_LENGTH_BASE.tolist(), _LENGTH_EXTRA.tolist(), strict=True))
_DISTANCES: Final = list(zip(_DISTANCE_BASE.tolist(), _DISTANCE_EXTRA.tolist(), strict=True))
_FIXED_LITERALS: Final = [8] * 144 + [9] * 112 + [7] * 24 + [8] * 8
_FIXED_DISTANCES: Final = [5] * 30


class Block(NamedTuple):
    """A run of tokens with codes of their own.

    Args:
        kind: `FIXED` or `DYNAMIC`.
        tokens: How many.
    """

    kind: int
    tokens: int


class Deflated(NamedTuple):
    """A stream.

    Args:
        lengths: Of each token in bytes; 1 is a literal.
        values: The literal's byte, or the distance.
        blocks: In order.
    """

    lengths: Ints
    values: Ints
    blocks: tuple[Block, ...]


def read_deflate(data: bytes) -> tuple[Deflated, int]:
    """Reads a stream without stored blocks.

    Args:
        data: It, and what follows.

    Returns:
        The stream, and its length in bytes.

    Raises:
        Refused: `METADATA`, `LIMIT`: none, or one that is not read.
    """
    padded = np.frombuffer(data + bytes(16), np.uint8)
    words = array("Q", _words(padded).tobytes())
    end_bits = 8 * len(data)
    lengths, values = array("H"), array("H")
    blocks: list[Block] = []
    at = 0
    last = False
    while not last:
        last = bool(_peek(words, at, 1, end_bits))
        kind = _peek(words, at + 1, 2, end_bits)
        at += 3
        if kind == DYNAMIC:
            literals, distances, at = _read_lengths(words, at, end_bits)
        elif kind == FIXED:
            literals, distances = _FIXED_LITERALS, _FIXED_DISTANCES
        else:
            raise Refused(Reason.METADATA, "compressed data of a kind that is not read")
        before = len(lengths)
        at = _read_tokens(words, at, end_bits, (_table(literals), _table(distances)), (lengths, values))
        blocks.append(Block(kind, len(lengths) - before))
        if len(lengths) > MOST_TOKENS or len(blocks) > min(MOST_BLOCKS, 2 + len(data) // BLOCK_SHARE):
            raise Refused(Reason.LIMIT, "compressed data of too many tokens")
    return Deflated(_ints(lengths), _ints(values), tuple(blocks)), -(-at // 8)


def _ints(numbers: "array[int]") -> Ints:
    return np.frombuffer(numbers, np.uint16).astype(np.int32) if numbers else np.zeros(0, np.int32)


def _words(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """At each byte the eight from there on, the first lowest."""
    words = np.zeros(data.size - 8, np.uint64)
    for byte in range(8):
        words |= data[byte : byte + words.size].astype(np.uint64) << np.uint64(8 * byte)
    return words


def write_deflate(stream: Deflated) -> bytes:
    """Writes a stream, each block with the codes that follow from its tokens."""
    packer = _Packer()
    at = 0
    for number, block in enumerate(stream.blocks):
        parts = [
            _Symbols(stream.lengths[start : min(start + PART_TOKENS, at + block.tokens)], stream.values[start:])
            for start in range(at, at + block.tokens, PART_TOKENS)
        ]
        at += block.tokens
        head: Bits = [(int(number == len(stream.blocks) - 1), 1), (block.kind, 2)]
        of_literals, of_distances = _FIXED_LITERALS, _FIXED_DISTANCES
        if block.kind == DYNAMIC:
            literal_counts = sum((part.literal_counts for part in parts), np.zeros(LAST + 1, np.int64))
            literal_counts[END] += 1
            distance_counts = sum((part.distance_counts for part in parts), np.zeros(30, np.int64))
            of_literals, of_distances = code_lengths(literal_counts.tolist()), code_lengths(distance_counts.tolist())
            head += write_lengths(of_literals, of_distances)
        packer.add(*(np.array(column, np.int64) for column in zip(*head, strict=True)))
        literals = codes_of(of_literals), np.array(of_literals, np.int64)
        distances = codes_of(of_distances), np.array(of_distances, np.int64)
        for part in parts:
            packer.add(*part.bits(literals, distances))
        packer.add(literals[0][END : END + 1], literals[1][END : END + 1])
    return packer.finish()


class _Symbols:
    """Some tokens of a block as the symbols that stand for them.

    Args:
        lengths: Of the tokens.
        values: Likewise, or more.
    """

    def __init__(self, lengths: Ints, values: Ints) -> None:
        self._lengths = lengths
        self._values = values[: lengths.size]
        self._match = np.flatnonzero(lengths > 1)
        self._length_codes = (np.searchsorted(_LENGTH_BASE, lengths[self._match], "right") - 1).astype(np.uint8)
        distances = self._values[self._match]
        self._distance_codes = (np.searchsorted(_DISTANCE_BASE, distances, "right") - 1).astype(np.uint8)
        symbols = self._values.astype(np.uint16)
        symbols[self._match] = self._length_codes.astype(np.uint16) + (END + 1)
        self._symbols = symbols
        self.literal_counts = np.bincount(symbols, minlength=LAST + 1)
        self.distance_counts = np.bincount(self._distance_codes, minlength=30)

    def bits(self, literals: tuple[Ints, Ints], distances: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
        """What stands for each token, and in how many bits, given codes and their lengths."""
        code, width = literals[0][self._symbols], literals[1][self._symbols]
        match, length_codes, distance_codes = self._match, self._length_codes, self._distance_codes
        more = (self._lengths[match] - _LENGTH_BASE[length_codes]) << width[match]
        wide = width[match] + _LENGTH_EXTRA[length_codes]
        more |= distances[0][distance_codes] << wide
        wide += distances[1][distance_codes]
        more |= (self._values[match] - _DISTANCE_BASE[distance_codes]) << wide
        code[match] |= more
        width[match] = wide + _DISTANCE_EXTRA[distance_codes]
        return code, width


class _Packer:
    """Puts numbers of at most 48 bits one behind the other, lowest bit first."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._bits = 0  # of the last byte that are taken

    def add(self, values: Ints, widths: Ints) -> None:
        """Appends some."""
        ends = np.cumsum(widths) + self._bits
        starts = ends - widths
        total = int(ends[-1])
        packed = np.zeros(total // 8 + 9, np.uint8)
        if self._bits:
            packed[0] = self._out.pop()
        shifted = values.astype(np.uint64) << (starts & 7).astype(np.uint64)
        first = starts >> 3
        for byte in range(7):
            part = (shifted >> np.uint64(8 * byte)).astype(np.uint8)
            some = np.flatnonzero(part)
            np.add.at(packed, first[some] + byte, part[some])
        self._out += packed[: -(-total // 8)].tobytes()
        self._bits = total & 7

    def finish(self) -> bytes:
        """All bytes."""
        return bytes(self._out)


def _peek(words: "array[int]", at: int, bits: int, end: int) -> int:
    if at + bits > end:
        raise Refused(Reason.LENGTH, "compressed data that ends too early")
    return words[at >> 3] >> (at & 7) & ((1 << bits) - 1)


def _read_lengths(words: "array[int]", at: int, end: int) -> tuple[list[int], list[int], int]:
    """The lengths of a block's two codes."""
    literals = 257 + _peek(words, at, 5, end)
    distances = 1 + _peek(words, at + 5, 5, end)
    sent = 4 + _peek(words, at + 10, 4, end)
    at += 14
    own = [0] * 19
    for symbol in LENGTH_ORDER[:sent]:
        own[symbol] = _peek(words, at, 3, end)
        at += 3
    table = _table(own)
    lengths: list[int] = []
    while len(lengths) < literals + distances:
        found = table[_peek(words, at, MOST_BITS, end + MOST_BITS)]
        symbol, width = found >> 4, found & 15
        if not width or at + width > end:
            raise Refused(Reason.METADATA, "compressed data whose codes cannot be read")
        at += width
        if symbol < 16:
            lengths.append(symbol)
            continue
        extra = (2, 3, 7)[symbol - 16]
        count = (3, 3, 11)[symbol - 16] + _peek(words, at, extra, end)
        at += extra
        if symbol == 16 and not lengths:
            raise Refused(Reason.METADATA, "compressed data whose codes cannot be read")
        lengths += [lengths[-1] if symbol == 16 else 0] * count
    if len(lengths) > literals + distances or literals > 286 or distances > 30:
        raise Refused(Reason.METADATA, "compressed data whose codes cannot be read")
    return lengths[:literals], lengths[literals:], at


def _table(lengths: list[int]) -> list[int]:
    """For the next 15 bits the symbol times 16 and the length of its code; 0 where there is none."""
    if sum((1 << MOST_BITS) >> length for length in lengths if length) > 1 << MOST_BITS:
        raise Refused(Reason.METADATA, "compressed data whose codes overlap")
    table = np.zeros(1 << MOST_BITS, np.int32)
    for symbol, code in enumerate(codes_of(lengths).tolist()):
        if lengths[symbol] and symbol <= LAST:
            table[code :: 1 << lengths[symbol]] = symbol << 4 | lengths[symbol]
    table_list: list[int] = table.tolist()
    return table_list


def _read_tokens(
    words: "array[int]",
    at: int,
    end: int,
    tables: tuple[list[int], list[int]],
    tokens: "tuple[array[int], array[int]]",
) -> int:
    """Reads a block's tokens from bit `at` on. Returns where it ends, in bits."""
    literals, distances = tables
    lengths, values = tokens
    while at < end:
        word = words[at >> 3] >> (at & 7)
        found = literals[word & 0x7FFF]
        if found < END << 4:
            if not found:
                break
            lengths.append(1)
            values.append(found >> 4)
            at += found & 15
            continue
        width = found & 15
        if found >> 4 == END:
            if at + width > end:
                break
            return at + width
        word >>= width
        base, extra = _LENGTHS[(found >> 4) - 257]
        length = base + (word & ((1 << extra) - 1))
        word >>= extra
        found = distances[word & 0x7FFF]
        if not found:
            break
        word >>= found & 15
        base, more = _DISTANCES[found >> 4]
        lengths.append(length)
        values.append(base + (word & ((1 << more) - 1)))
        at += width + extra + (found & 15) + more
        if len(lengths) > MOST_TOKENS:
            raise Refused(Reason.LIMIT, "compressed data of too many tokens")
    raise Refused(Reason.METADATA, "compressed data that ends too early, or with a code that means nothing")
