"""Puts pieces together into groups, and codes each stream in the way that takes the fewest bytes."""

import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import zstandard

from protocol import limits
from protocol.delta.operations import COPY, FILL, TAKE, Operation, Place, code_operation
from protocol.delta.patch import write_group
from protocol.delta.streams import LZMA, STORED, ZSTD, lzma_filter, takes_base
from server.delta.numbers import NumberWriter
from server.delta.pieces import How, Piece

LEAST_WORTH_A_STREAM: Final = 32  # bytes; fewer are stored
TRIMMED_BYTES: Final = 1 << 18  # up to here the dozen bytes at a stream's end are worth looking for


@dataclass
class _Stream:
    kind_of_bytes: How
    data: bytearray = field(default_factory=bytearray)


class _Group:
    """One group as it fills."""

    def __init__(self, output_offset: int) -> None:
        self.output_offset = output_offset
        self.output_bytes = 0
        self.coded_bytes = 0
        self.operations: list[Operation] = []
        self.streams: dict[How, tuple[int, _Stream]] = {}

    def room(self, piece: Piece) -> int:
        """How much of the piece the group still takes, in bytes."""
        room = limits.GROUP_OUTPUT_BYTES - self.output_bytes
        if len(self.operations) >= limits.GROUP_OPERATIONS - 1:
            return 0
        if piece.how not in (How.COPY, How.FILL):
            room = min(room, limits.GROUP_CODED_BYTES - self.coded_bytes)
        return min(room, piece.length)

    def add(self, piece: Piece, data: memoryview) -> None:
        """Takes a piece that there is room for. `data` are its bytes."""
        match piece.how:
            case How.COPY:
                kind = COPY
            case How.FILL:
                kind = FILL
            case how:
                number, stream = self.streams.setdefault(how, (len(self.streams), _Stream(how)))
                stream.data += data
                self.coded_bytes += piece.length
                kind = TAKE + number
        self.operations.append(Operation(kind, piece.length, piece.base, piece.value))
        self.output_bytes += piece.length

    def encode(self, base_bytes: int) -> bytes:
        """The group as it travels."""
        coded = [_encode_literal(stream) for _, stream in self.streams.values()]
        numbers = NumberWriter()
        place = Place(base_bytes, self.output_offset, tuple(takes_base(kind) for kind, _, _ in coded))
        for operation in self.operations:
            code_operation(numbers, place, operation)
        return write_group(self.output_bytes, numbers.finish(), coded)


def encode_groups(pieces: Iterable[Piece], new: memoryview, base_bytes: int) -> Iterator[bytes]:
    """Codes the new file group by group.

    Args:
        pieces: All of it, in order.
        new: The new file.
        base_bytes: Length of the base.
    """
    group = _Group(0)
    at = 0
    for whole in pieces:
        piece = whole
        while piece.length:
            room = group.room(piece)
            if room == 0:
                yield group.encode(base_bytes)
                group = _Group(at)
                continue
            group.add(piece._replace(length=room), new[at : at + room])
            at += room
            piece = piece._replace(length=piece.length - room, base=piece.base + room if piece.base >= 0 else -1)
    if group.output_bytes:
        yield group.encode(base_bytes)


def _encode_literal(stream: _Stream) -> tuple[int, int, bytes]:
    """Kind, length and bytes of a stream, coded in the best of the ways that are open to it."""
    data = bytes(stream.data)
    ways = [(STORED, data)]
    if len(data) >= LEAST_WORTH_A_STREAM:
        ways.append((ZSTD, zstandard.ZstdCompressor(level=19, write_checksum=False).compress(data)))
        ways += [(LZMA, _lzma(data, lc, lp, pb)) for lc, lp, pb in ((3, 0, 0), (3, 0, 2), (0, 2, 2))]
    kind, coded = min(ways, key=lambda way: len(way[1]))
    return kind, len(data), coded


def _lzma(data: bytes, lc: int, lp: int, pb: int) -> bytes:
    properties = (pb * 5 + lp) * 9 + lc
    filters = lzma_filter(properties, len(data))
    strong = filters[0] | {"preset": 9 | lzma.PRESET_EXTREME}
    coded = lzma.compress(data, format=lzma.FORMAT_RAW, filters=[strong])
    return bytes([properties]) + _without_end(coded, data, filters)


def _without_end(coded: bytes, data: bytes, filters: list[dict[str, int]]) -> bytes:
    """Cuts what the decoder does not need to give all bytes: the end marker and the coder's last flush."""
    for cut in count(1) if len(data) <= TRIMMED_BYTES else ():
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        try:
            whole = decoder.decompress(coded[:-cut], max_length=len(data)) == data
        except (lzma.LZMAError, EOFError):
            whole = False
        if not whole:
            return coded[: len(coded) - cut + 1]
    return coded
