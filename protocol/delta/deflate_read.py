"""Reads what an encoder chose out of a deflate stream (RFC 1951): its tokens, block by block, forward only.

A token's length is known only when it is read, so where the next one begins seems to take a step of Python for each of
many questions. Instead numpy answers them for every bit of a window at once, as if a token began there; what is left
is to follow the steps.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.delta.huffman import LENGTH_ORDER, MOST_BITS, REVERSED
from protocol.errors import Reason, Refused

Ints = npt.NDArray[np.integer[Any]]
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]

STORED, FIXED, DYNAMIC = 0, 1, 2
LAST: Final = 285  # the symbols behind it mean nothing
END: Final = 256  # the symbol behind a block's last token
MOST_LENGTH: Final = 258
MOST_DISTANCE: Final = 1 << 15

LENGTH_EXTRA: Final = np.array([0] * 8 + [n for n in range(1, 6) for _ in range(4)] + [0], np.int64)
LENGTH_BASE: Final = np.concatenate((3 + np.cumsum(1 << LENGTH_EXTRA[:28]) - (1 << LENGTH_EXTRA[:28]), [258]))
DISTANCE_EXTRA: Final = np.array([0, 0] + [n for n in range(14) for _ in range(2)], np.int64)
DISTANCE_BASE: Final = 1 + np.cumsum(1 << DISTANCE_EXTRA) - (1 << DISTANCE_EXTRA)
FIXED_LITERALS: Final = (8,) * 144 + (9,) * 112 + (7,) * 24 + (8,) * 8
FIXED_DISTANCES: Final = (5,) * 30

WINDOW_BYTES: Final = 1 << 13  # looked at at once; a block of few tokens ends soon behind its beginning
PART_BYTES: Final = 1 << 14  # of a stored block, told at once
_TAIL_BYTES: Final = 16  # more than a token or a block's first numbers take
_MOST_STEP: Final = 48  # bits of a token
_CODES: Final = 1 << MOST_BITS

# A literal's or length's entry: width (4 bits), extra bits (3), 1 a match (bit 7), 1 the block's end (8), then the byte
# or the least length. A distance's entry: width (4 bits), extra bits (4), then the least distance.
_MATCH: Final = 1 << 7
_ENDS: Final = 1 << 8
_BASE: Final = 9
_DISTANCE: Final = 8
_LITERAL_ENTRIES: Final = np.concatenate(
    (np.arange(256) << _BASE, [_ENDS], LENGTH_BASE << _BASE | LENGTH_EXTRA << 4 | _MATCH, [0, 0])
).astype(np.uint32)
_DISTANCE_ENTRIES: Final = (DISTANCE_BASE << _DISTANCE | DISTANCE_EXTRA << 4).astype(np.uint32)
_OFFSETS: Final = np.arange(8, dtype=np.uint32)


class Part(NamedTuple):
    """Tokens of a block that follow one another.

    Args:
        kind: Of the block: `STORED`, `FIXED` or `DYNAMIC`. Tokens of a stored one are its bytes.
        lengths: Of each token in bytes; 1 is a literal.
        values: The literal's byte, or the distance.
        ends: Whether the block ends with them.
    """

    kind: int
    lengths: Ints
    values: Ints
    ends: bool


class _Tables(NamedTuple):
    """For the next 15 bits what stands there; 0 where nothing can."""

    literals: Words
    distances: Words
    literal_steps: Bytes  # bits up to the distance, and `_MATCH`
    distance_steps: Bytes


class DeflateReader:
    """A deflate stream as tokens.

    Args:
        pieces: The stream, and perhaps what follows it.

    Raises:
        Refused: `METADATA`, `LENGTH`: none, or a torn one. Raised by what reads on.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._data = b""
        self._at = 0  # the next bit of `_data`
        self._done = 0  # bytes before `_data`
        self._ended = False
        self._window: tuple[int, int, bytes, _Tables] | None = None  # first and last byte, and steps

    @property
    def bytes_read(self) -> int:
        """How long the stream was, once all parts are read."""
        return self._done + -(-self._at // 8)

    def parts(self) -> Iterator[Part]:
        """All of it."""
        last = False
        fixed = _tables(FIXED_LITERALS, FIXED_DISTANCES)
        while not last:
            last = bool(self._take(1))
            kind = self._take(2)
            if kind == STORED:
                yield from self._stored()
            elif kind == FIXED:
                yield from self._tokens(kind, fixed)
            elif kind == DYNAMIC:
                yield from self._tokens(kind, self._read_tables())
            else:
                raise Refused(Reason.METADATA, "compressed data of a kind that is not read")

    def rest(self) -> Iterator[bytes]:
        """What follows the stream, once all parts are read."""
        yield self._data[-(-self._at // 8) :]
        yield from self._pieces

    def _fill(self, count: int) -> None:
        """Reads on until there are so many bytes behind the next bit, or all."""
        while not self._ended and len(self._data) - (self._at >> 3) < count:
            piece = next(self._pieces, None)
            if piece is None:
                self._ended = True
                break
            gone = self._at >> 3
            self._data = self._data[gone:] + piece
            self._at &= 7
            self._done += gone
            self._window = None

    def _peek(self, bits: int) -> int:
        """The next bits, at most 32; zeros behind the end."""
        self._fill(_TAIL_BYTES)
        first = self._at >> 3
        return int.from_bytes(self._data[first : first + 5], "little") >> (self._at & 7) & ((1 << bits) - 1)

    def _skip(self, bits: int) -> None:
        self._at += bits
        if self._at > 8 * len(self._data):
            raise Refused(Reason.LENGTH, "compressed data that ends too early")

    def _take(self, bits: int) -> int:
        value = self._peek(bits)
        self._skip(bits)
        return value

    def _stored(self) -> Iterator[Part]:
        self._skip(-self._at % 8)
        length = self._take(16)
        if self._take(16) != length ^ 0xFFFF:
            raise Refused(Reason.METADATA, "compressed data with a damaged length")
        while True:
            count = min(length, PART_BYTES)
            self._fill(count)
            first = self._at >> 3
            self._skip(8 * count)
            length -= count
            values = np.frombuffer(self._data, np.uint8, count, first).astype(np.uint16)
            yield Part(STORED, np.ones(count, np.uint16), values, ends=not length)
            if not length:
                return

    def _read_tables(self) -> _Tables:
        """The codes of a block, from its head."""
        literals, distances, sent = 257 + self._take(5), 1 + self._take(5), 4 + self._take(4)
        if literals > LAST + 1 or distances > len(DISTANCE_BASE):
            raise Refused(Reason.METADATA, "compressed data whose codes cannot be read")
        own = [0] * len(LENGTH_ORDER)
        for symbol in LENGTH_ORDER[:sent]:
            own[symbol] = self._take(3)
        table = _table(own, np.arange(len(own), dtype=np.uint32) * np.uint32(16), 7).tolist()
        lengths: list[int] = []
        while len(lengths) < literals + distances:
            entry = table[self._peek(7)]
            symbol, width = entry >> 4, entry & 15
            if not width or (symbol == 16 and not lengths):
                raise Refused(Reason.METADATA, "compressed data whose codes cannot be read")
            self._skip(width)
            if symbol < 16:
                lengths.append(symbol)
            else:
                count = (3, 3, 11)[symbol - 16] + self._take((2, 3, 7)[symbol - 16])
                lengths += [lengths[-1] if symbol == 16 else 0] * count
        if len(lengths) > literals + distances:
            raise Refused(Reason.METADATA, "compressed data whose codes cannot be read")
        return _tables(lengths[:literals], lengths[literals:])

    def _tokens(self, kind: int, tables: _Tables) -> Iterator[Part]:
        while True:
            self._fill(WINDOW_BYTES + _TAIL_BYTES)
            first = self._at >> 3
            window = self._window
            if window is None or window[3] is not tables or not window[0] <= first < window[1]:
                count = min(WINDOW_BYTES, len(self._data) - first)
                held = self._data[first : first + count + _TAIL_BYTES] + bytes(_TAIL_BYTES)
                looked = _steps(np.frombuffer(held, np.uint8), count, tables)
                window = self._window = first, first + count, looked, tables
            origin, end, steps, _ = window
            marks = bytearray(8 * (end - origin))
            at = self._at - 8 * origin
            step = steps[at]
            while step:
                marks[at] = 1
                at += step
                step = steps[at]
            lengths, values = self._decode(np.frombuffer(marks, np.bool_).nonzero()[0] + 8 * origin, tables)
            self._skip(8 * origin + at - self._at)
            if self._at < 8 * end:
                entry = int(tables.literals[self._peek(MOST_BITS)])
                if not entry & _ENDS:
                    raise Refused(Reason.METADATA, "compressed data that ends too early, or with a code of no meaning")
                self._skip(entry & 15)
                yield Part(kind, lengths, values, ends=True)
                return
            if self._ended and end == len(self._data):
                raise Refused(Reason.LENGTH, "compressed data that ends too early")
            yield Part(kind, lengths, values, ends=False)

    def _decode(self, places: Ints, tables: _Tables) -> tuple[Ints, Ints]:
        """The tokens that begin at these bits."""
        if not places.size:
            return np.zeros(0, np.uint16), np.zeros(0, np.uint16)
        first = int(places[0]) >> 3
        held = self._data[first : (int(places[-1]) >> 3) + 8].ljust((int(places[-1]) >> 3) + 8 - first, b"\0")
        words = np.ndarray((len(held) - 7,), "<u8", held, 0, (1,))
        word = words[(places >> 3) - first] >> (places & 7).astype(np.uint64)
        entry = tables.literals[(word & np.uint64(_CODES - 1)).astype(np.int32)]
        lengths = np.ones(places.size, np.uint16)
        values = (entry >> _BASE).astype(np.uint16)
        match = (entry & _MATCH).nonzero()[0]
        entry, word = entry[match], word[match]
        word >>= (entry & 15).astype(np.uint64)
        extra = entry >> 4 & 7
        lengths[match] = (entry >> _BASE) + (word & ((1 << extra) - 1).astype(np.uint64)).astype(np.uint32)
        word >>= extra.astype(np.uint64)
        entry = tables.distances[(word & np.uint64(_CODES - 1)).astype(np.int32)]
        word >>= (entry & 15).astype(np.uint64)
        extra = entry >> 4 & 15
        values[match] = (entry >> _DISTANCE) + (word & ((1 << extra) - 1).astype(np.uint64)).astype(np.uint32)
        return lengths, values


def _steps(data: Bytes, count: int, tables: _Tables) -> bytes:
    """For each bit of the first `count` bytes how long the token is that would begin there; 0 where none can.

    `data` goes on behind them for at least `_TAIL_BYTES`.
    """
    wide = data[: count + _TAIL_BYTES - 2].astype(np.uint32)
    wide |= data[1 : count + _TAIL_BYTES - 1].astype(np.uint32) << 8
    wide |= data[2 : count + _TAIL_BYTES].astype(np.uint32) << 16
    codes = (wide[:, None] >> _OFFSETS & (_CODES - 1)).ravel()
    steps = np.zeros(8 * count + _MOST_STEP, np.uint8)
    steps[: 8 * count] = tables.literal_steps.take(codes[: 8 * count])
    behind = tables.distance_steps.take(codes)
    match = (steps & _MATCH).nonzero()[0]
    near = steps[match] & (_MATCH - 1)
    far = behind[match + near]
    steps[match] = (near + far) * (far > 0)
    return steps.tobytes()


def _tables(literals: "tuple[int, ...] | list[int]", distances: "tuple[int, ...] | list[int]") -> _Tables:
    of_literals = _table(literals, _LITERAL_ENTRIES[: len(literals)], MOST_BITS)
    of_distances = _table(distances, _DISTANCE_ENTRIES[: len(distances)], MOST_BITS)
    near = (of_literals & 15) + (of_literals >> 4 & 7) | of_literals & _MATCH
    near[of_literals & _ENDS > 0] = 0
    far = (of_distances & 15) + (of_distances >> 4 & 15)
    return _Tables(of_literals, of_distances, near.astype(np.uint8), far.astype(np.uint8))


def _table(lengths: "tuple[int, ...] | list[int]", entries: Words, bits: int) -> Words:
    """For the next `bits` bits the entry of the symbol that stands there and its width.

    Codes are handed out by width and then by symbol, so that read from the first bit on they lie side by side.
    """
    widths = np.array(lengths, np.int64)
    order = np.argsort(widths, kind="stable")
    order = order[widths[order] > 0]
    spans = 1 << (bits - widths[order])
    taken = int(spans.sum())
    if taken > 1 << bits:
        raise Refused(Reason.METADATA, "compressed data whose codes overlap")
    table = np.zeros(1 << bits, np.uint32)
    kept = order < len(_LITERAL_ENTRIES) - 2  # the last two of a fixed code mean nothing
    table[:taken] = np.repeat((entries[order] | widths[order].astype(np.uint32)) * kept, spans)
    turned: Words = table[REVERSED[: 1 << bits] >> (MOST_BITS - bits)]
    return turned
