"""Puts pieces together into groups, and codes each stream in the way that takes the fewest bytes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
import zstandard

from protocol import limits
from protocol.delta import streams
from protocol.delta.addresses import find_places
from protocol.delta.lowrank import BF16, F16, F32, I32
from protocol.delta.operations import CHANGED, COPY, FILL, NEW, TAKE, Operation, Place, code_operation, digest_value
from protocol.delta.patch import BEHIND, CODE, EDITS, write_group
from protocol.delta.streams import LZMA, STORED, ZSTD, takes_base
from protocol.delta.tar import DIGEST, ENTRIES, HEAD, PAD, STAMP
from protocol.delta.tar_blocks import BLOCK_BYTES
from server.delta import changed, few
from server.delta.archives.members import encode_members
from server.delta.behind import compress_behind
from server.delta.code import encode_code
from server.delta.edits import encode_edits
from server.delta.floats import encode_alone, encode_differences
from server.delta.integers import encode_integers
from server.delta.lowrank import Matrix
from server.delta.lzma_stream import compress_lzma
from server.delta.numbers import NumberWriter
from server.delta.pieces import ELEMENT_BYTES, WHOLE, How, Piece
from server.delta.planes import encode_planes, may_be_shorter
from server.delta.unchanged import as_integers, unchanged_copied

REMEMBERED: Final = 8  # streams of numbers; those of one group hold at most GROUP_CODED_BYTES twice
REMEMBERED_NEW: Final = 2  # streams of new bytes; one group may hold two kinds of them
LEAST_WORTH_A_STREAM: Final = 32  # bytes; fewer are stored
NEW_BYTES: Final = 2048  # up to here new bytes may be coded among the operations, at some ten thousand a second
OTHER_BYTES: Final = 1 << 14  # of other streams, where several ways to say a group are tried
TRIED_BYTES: Final = 256  # up to here new bytes are worth trying many ways
MOST_PIECES: Final = 1 << 12  # likewise
ABSORBING_BYTES: Final = 1 << 18  # of new text, up to which several ways to cut it are tried
SLOW_WORTH: Final = 16  # one byte in so many has to be saved by half a second of decoding
RETOLD_BYTES: Final = 1 << 13  # up to here also with what it reads again and again
LEAST_SHORT: Final = 8  # short pieces among it, or nothing is gained
FEW_EDITS: Final = 1 << 12  # bytes of changed code: more are not worth trying in that way
_UNCODED: Final = {How.COPY: COPY, How.FILL: FILL, How.ENTRIES: ENTRIES, How.PAD: PAD}
_CODED: Final = {How.HEAD: HEAD, How.STAMP: STAMP, How.DIGEST: DIGEST}  # operations that the applier makes in memory
_ROOMY: Final = frozenset({How.CODE, How.EDITS})  # see `protocol.delta.patch.held_bytes`
_HEAVY: Final = frozenset({How.BEHIND})  # likewise

DIFFERENCES: Final = {
    How.F32_DIFFERENCE: (streams.F32_DIFFERENCE, F32),
    How.F16_DIFFERENCE: (streams.F16_DIFFERENCE, F16),
    How.BF16_DIFFERENCE: (streams.BF16_DIFFERENCE, BF16),
    How.I32_DIFFERENCE: (streams.I32_DIFFERENCE, I32),
}
MATRICES: Final = frozenset({*DIFFERENCES, How.I8_DIFFERENCE})
ALONE: Final = {
    How.F32_ALONE: (streams.F32_ALONE, F32),
    How.F16_ALONE: (streams.F16_ALONE, F16),
    How.BF16_ALONE: (streams.BF16_ALONE, BF16),
}


class ViewBase:
    """A file in memory as `protocol.delta.base.Base`.

    Args:
        view: Of all of it.
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.length_bytes = len(view)

    def read(self, offset: int, length: int) -> bytes:
        """As `Base`."""
        return bytes(self._view[offset : offset + length])


@dataclass
class _Stream:
    kind_of_bytes: How
    data: bytearray = field(default_factory=bytearray)
    reference: bytearray = field(default_factory=bytearray)  # bytes of the base that it is made from
    members: list[tuple[memoryview, memoryview]] = field(default_factory=list)  # older and newer compressed data
    matrices: list[Matrix] = field(default_factory=list)  # of its elements


@dataclass
class GroupPlan:
    """What one group gives: pieces of the new file from `output_offset` on."""

    output_offset: int
    output_bytes: int = 0
    held_bytes: int = 0
    pieces: list[Piece] = field(default_factory=list)

    def room(self, piece: Piece) -> int:
        """How many bytes of the piece the group still takes."""
        if len(self.pieces) == limits.GROUP_OPERATIONS:
            return 0
        room = limits.GROUP_OUTPUT_BYTES - self.output_bytes
        if piece.how not in _UNCODED:
            held = limits.GROUP_CODED_BYTES - self.held_bytes
            if piece.how in _HEAVY:
                held = held * 2 // 3
            elif piece.how in _ROOMY:
                held = held * 4 // 3
            room = min(room, held)
        if piece.how in WHOLE:
            return piece.length if piece.length <= room else 0
        if room >= piece.length:
            return piece.length
        width = ELEMENT_BYTES.get(piece.how, 1)
        row = width * max(piece.value, 1) if piece.how in MATRICES else width
        return room - room % (row if row <= room else width)

    def add(self, piece: Piece) -> None:
        """Takes a piece that there is room for."""
        self.pieces.append(piece)
        self.output_bytes += piece.length
        if piece.how not in _UNCODED:
            roomy = -(-3 * piece.length // 4) if piece.how in _ROOMY else piece.length
            self.held_bytes += -(-3 * piece.length // 2) if piece.how in _HEAVY else roomy


def cut_groups(pieces: Iterable[Piece], output_offset: int = 0) -> Iterator[GroupPlan]:
    """Cuts the new file into groups, each as large as its bounds allow.

    Args:
        pieces: All of it, in order.
        output_offset: Where the first one begins in the new file.
    """
    group = GroupPlan(output_offset)
    for whole in pieces:
        piece = whole
        while piece.length:
            room = group.room(piece)
            if room == 0:
                yield group
                group = GroupPlan(group.output_offset + group.output_bytes)
                continue
            group.add(piece._replace(length=room))
            piece = piece._replace(length=piece.length - room, base=piece.base + room if piece.base >= 0 else -1)
    if group.output_bytes:
        yield group


def encode_group(group: GroupPlan, old: memoryview, new: memoryview) -> bytes:
    """The group as it travels.

    Args:
        group: Its pieces.
        old: The base.
        new: The result.
    """
    found = few.filled(group.pieces, group.output_offset, new)
    if not any(changed.is_short(piece) for piece in found):
        return _encode_edited(group, found, old, new)
    edited, apart = changed.worth_trying(found, group.output_offset, old, new)
    coded = [_encode_edited(group, changed.as_edits(found), old, new)] if edited else []
    if apart:
        ways = [found, changed.as_differences(found)] if any(piece.how is How.EDITS for piece in found) else [found]
        coded += [_coded(group, way, old, new) for way in ways if _fits(way)]
    return min(coded, key=len)


def _fits(pieces: list[Piece]) -> bool:
    """Whether a group has room for the pieces, which may be held in other streams than those it was cut for."""
    group = GroupPlan(0)
    for piece in pieces:
        group.add(piece)
    return group.held_bytes <= limits.GROUP_CODED_BYTES


def _encode_edited(group: GroupPlan, pieces: list[Piece], old: memoryview, new: memoryview) -> bytes:
    """The shortest of the ways to put pieces in which short runs of changed bytes are edits."""
    ways = [pieces]
    if any(piece.how in few.DIFFERENCES for piece in pieces):
        thinned = few.sparse(pieces, group.output_offset, old, new)
        cut = unchanged_copied(pieces, group.output_offset, old, new)
        tried = [thinned, cut, as_integers(cut, group.output_offset, old, new)] if cut != pieces else [thinned]
        for way in tried:
            ways += [way] if way not in ways and len(way) <= limits.GROUP_OPERATIONS else []
    pieces, shortest = min(((way, _coded(group, way, old, new)) for way in ways), key=_length)
    absorbed = _absorbed(group, pieces, old, new)
    if absorbed != pieces:
        found = [(pieces, shortest), (absorbed, _coded(group, absorbed, old, new))]
        hows = few.NEW | {How.EDITS}
        pieces, shortest = min(found, key=_length)
        if NEW_BYTES < _new_bytes(absorbed) <= limits.GROUP_NEW_BYTES and _few_edits(absorbed):
            slow = encode_pieces(group, absorbed, old, new, hows)
            if SLOW_WORTH * (len(shortest) - len(slow)) > len(shortest):
                pieces, shortest = absorbed, slow
    others = sum(piece.length for piece in pieces if piece.how not in few.NEW | few.READ and piece.how not in _UNCODED)
    if others > OTHER_BYTES or len(pieces) > MOST_PIECES or any(piece.how is How.HEAD for piece in pieces):
        return shortest  # in archives it takes long and gives little
    return min(shortest, _put_otherwise(group, pieces, old, new, shortest), key=len)


def _length(way: tuple[list[Piece], bytes]) -> int:
    return len(way[1])


def _absorbed(group: GroupPlan, pieces: list[Piece], old: memoryview, new: memoryview) -> list[Piece]:
    """The pieces without short ones of the base where new text is coded better as a whole: it has its own repetitions.

    What is coded by numbers costs the same in all ways, so it is left out when they are weighed.
    """
    text = _new_bytes(pieces)
    short = sum(piece.how in few.READ and piece.length < few.LEAST_JOINED[-1] for piece in pieces)
    plain = all(piece.how in few.PLAIN for piece in pieces)
    if not plain or not NEW_BYTES // 4 < text <= ABSORBING_BYTES or not LEAST_SHORT < short < MOST_PIECES:
        return pieces
    ways = [pieces]
    puts = [pieces, few.spelled(pieces, group.output_offset, old, new)]
    if text <= RETOLD_BYTES:
        puts += [few.told_again(put, times) for put in puts for times in few.OFTEN]
    for put in puts:
        joined = [few.tidied(few.absorbed(put, least), group.output_offset, new) for least in few.LEAST_JOINED]
        ways += [way for way in joined if way not in ways]
    return min(ways, key=lambda way: len(_coded(group, few.without_numbers(way), old, new)))


def _put_otherwise(group: GroupPlan, pieces: list[Piece], old: memoryview, new: memoryview, shortest: bytes) -> bytes:
    """The shortest of some ways to put the pieces: first how the base is read, then what is not worth reading there."""
    start = group.output_offset
    tidied = few.tidied(pieces, start, new)
    if not _few_new(tidied):
        return shortest
    beside = few.alongside(pieces, start, old, new)
    ways, leasts = [beside], few.LEAST_COPIES[:0]
    if sum(piece.length for piece in tidied if piece.how in few.NEW) <= TRIED_BYTES:
        ways += [pieces, few.spelled(pieces, start, old, new), few.spelled(beside, start, old, new)]
        leasts = few.LEAST_COPIES
    tried = [pieces]

    def coded(way: list[Piece], least: int) -> bytes:
        put = few.tidied(few.absorbed(way, least), start, new)
        if put in tried or not _few_new(put) or not _few_edits(put):
            return shortest
        tried.append(put)
        return encode_pieces(group, put, old, new, few.NEW | {How.EDITS})

    found = [coded(way, 0) for way in ways]
    best = min(range(len(ways)), key=lambda way: len(found[way]))
    found += [coded(ways[best], least) for least in leasts]
    return min(found, key=len)


def _few_new(pieces: list[Piece]) -> bool:
    return _new_bytes(pieces) <= NEW_BYTES


def _new_bytes(pieces: list[Piece]) -> int:
    # The digest of a file in another group goes as new bytes too.
    return sum(piece.length for piece in pieces if piece.how in few.NEW or piece.how is How.DIGEST)


def _few_edits(pieces: list[Piece]) -> bool:
    return sum(piece.length for piece in pieces if piece.how is How.EDITS) <= limits.GROUP_CHANGED_BYTES


def _coded(group: GroupPlan, pieces: list[Piece], old: memoryview, new: memoryview) -> bytes:
    """The group made of pieces, of which those that are few are coded among the operations, where that is shorter."""
    hows = {piece.how for piece in pieces}
    inline = frozenset({How.EDITS}) if How.EDITS in hows and _few_edits(pieces) else frozenset()
    coded = encode_pieces(group, pieces, old, new, inline)
    if hows & few.NEW and _few_new(pieces):
        coded = min(coded, encode_pieces(group, pieces, old, new, inline | few.NEW), key=len)
    return coded


def encode_pieces(
    group: GroupPlan, pieces: list[Piece], old: memoryview, new: memoryview, inline: frozenset[How]
) -> bytes:
    """The group made of pieces, some kinds of which are coded among the operations."""
    filled: dict[How, _Stream] = {}
    numbers: dict[How, int] = {}
    operations = []
    heads = _heads(group.output_offset, pieces)
    first = min(heads, default=-1)
    at = group.output_offset
    for whole in pieces:
        piece = whole
        if piece.how is How.HEAD and piece.base < 0 and at + BLOCK_BYTES == first:  # the one before is in another group
            piece = piece._replace(base=0)
        elif piece.how is How.DIGEST and heads.get(piece.base, -1) >= 0:
            piece = piece._replace(base=-1, value=digest_value(heads[piece.base], piece.value))
        elif piece.how is How.DIGEST:  # of a file in another group
            piece = Piece(How.TEXT, piece.length)
        if piece.how in _UNCODED:
            kind = _UNCODED[piece.how]
        elif piece.how in _CODED:
            kind = _CODED[piece.how]
        elif piece.how in inline:
            kind = CHANGED if piece.how is How.EDITS else NEW
        else:
            kind = TAKE + numbers.setdefault(piece.how, len(numbers))
            stream = filled.setdefault(piece.how, _Stream(piece.how))
            if piece.how in MATRICES:
                stream.matrices += _matrix(piece, len(stream.data))
                piece = piece._replace(value=0)
            stream.data += new[at : at + piece.length]
            if piece.how is How.DEFLATED:
                stream.members.append((old[piece.base :], new[at : at + piece.length]))
            elif piece.base >= 0:
                stream.reference += old[piece.base : piece.base + piece.length]
        operations.append(Operation(kind, piece.length, piece.base, piece.value))
        at += piece.length
    coded = []
    for how, stream in filled.items():
        if how is How.CODE:
            kinds, lengths, bases = np.array([operation[:3] for operation in operations], np.int64).T
            places = find_places(kinds, lengths, bases, group.output_offset, TAKE + numbers[how])
            coded.append(_code(stream, encode_code(old, new, places)))
        else:
            coded.append(_encode_literal(stream))
    writer = NumberWriter()
    place = Place(ViewBase(old), group.output_offset, at, tuple(takes_base(kind) for kind, _, _ in coded))
    for operation in operations:
        code_operation(writer, place, operation, new[place.output : place.output + operation.length])
    return write_group(group.output_bytes, writer.finish(), coded)


def _heads(output_offset: int, pieces: list[Piece]) -> dict[int, int]:
    """The number of each file that begins in a group, by the offset of its content; -1 for one that does not end."""
    heads: dict[int, int] = {}
    at = output_offset
    last = -1
    for piece in pieces:
        if piece.how is How.HEAD:
            last = at + BLOCK_BYTES
            heads[last] = len(heads)
        at += piece.length
    if last >= 0 and pieces[-1].how not in (How.PAD, How.FILL, How.ENTRIES):
        heads[last] = -1
    return heads


def _matrix(piece: Piece, stream_bytes: int) -> list[Matrix]:
    """The shape of a piece that is to be the next of a stream."""
    width = ELEMENT_BYTES.get(piece.how, 1)
    columns = max(piece.value, 1)
    rows = piece.length // width // columns
    return [Matrix(stream_bytes // width, rows, columns)] if rows else []


def _encode_literal(stream: _Stream) -> tuple[int, int, bytes]:
    """Kind, length and bytes of a stream, coded in the best of the ways that are open to it."""
    data = bytes(stream.data)
    if stream.kind_of_bytes is How.BEHIND:
        return BEHIND, len(data), compress_behind(bytes(stream.reference), data)
    if stream.kind_of_bytes is How.EDITS:
        return EDITS, len(data), encode_edits(bytes(stream.reference), data)
    if stream.kind_of_bytes is How.DEFLATED:
        return streams.DEFLATED, len(data), encode_members(stream.members)
    if stream.kind_of_bytes in MATRICES | ALONE.keys():
        kind, coded = _encode_numbers(stream.kind_of_bytes, bytes(stream.reference), data, tuple(stream.matrices))
        return kind, len(data), coded
    if stream.kind_of_bytes is How.BYTE_DIFFERENCE:
        return streams.PLANES, len(data), encode_planes(bytes(stream.reference), data)
    kind, coded = _encode_new(data)
    return kind, len(data), coded


@lru_cache(maxsize=REMEMBERED_NEW)
def _encode_new(data: bytes) -> tuple[int, bytes]:
    """Kind and bytes of a stream of new bytes. Remembered: many ways to put a group leave these alone."""
    ways = [(STORED, data)]
    if len(data) >= LEAST_WORTH_A_STREAM:
        ways.append((ZSTD, zstandard.ZstdCompressor(level=19, write_checksum=False).compress(data)))
        ways += [(LZMA, compress_lzma(data, lc, lp, pb)) for lc, lp, pb in ((3, 0, 0), (3, 0, 2), (0, 2, 2))]
    return min(ways, key=lambda way: len(way[1]))


@lru_cache(maxsize=REMEMBERED)
def _encode_numbers(how: How, reference: bytes, data: bytes, matrices: tuple[Matrix, ...]) -> tuple[int, bytes]:
    """Kind and bytes of a stream of numbers. Remembered: the ways to put a group hardly differ in these, and they are
    what takes long.
    """
    if how in DIFFERENCES:
        kind, form = DIFFERENCES[how]
        return kind, encode_differences(form, reference, data, matrices)
    if how in ALONE:
        kind, form = ALONE[how]
        return kind, encode_alone(form, data)
    coded = encode_integers(reference, data, matrices)
    # Blocks of quantised numbers hold others too: then their bytes may be shorter.
    planes = encode_planes(reference, data) if may_be_shorter(reference, data, len(coded)) else coded
    return (streams.PLANES, planes) if len(planes) < len(coded) else (streams.I8_DIFFERENCE, coded)


def _code(stream: _Stream, coded: bytes) -> tuple[int, int, bytes]:
    """Changed code in the way that was tried, or as edits: few changes that no address explains."""
    edits = coded
    if np.count_nonzero(np.frombuffer(stream.data, np.uint8) != np.frombuffer(stream.reference, np.uint8)) < FEW_EDITS:
        edits = encode_edits(bytes(stream.reference), bytes(stream.data))
    return (EDITS, len(stream.data), edits) if len(edits) < len(coded) else (CODE, len(stream.data), coded)
