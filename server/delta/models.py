"""Front-end for files of weights: tensors are coded by their elements, what lies between them as other bytes are."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from server.delta.archives.contents import Contents
from server.delta.matching import MatchLimits
from server.delta.pieces import How, Piece
from server.delta.tensors import Element, Match, Pair, Tensor, find_tensors, pair_tensors

DIFFERENCES: Final = {
    Element.F32: How.F32_DIFFERENCE,
    Element.F16: How.F16_DIFFERENCE,
    Element.BF16: How.BF16_DIFFERENCE,
    Element.I8: How.I8_DIFFERENCE,
    Element.U8: How.I8_DIFFERENCE,
    Element.I32: How.I32_DIFFERENCE,
}
UNSHAPED: Final = frozenset({How.I32_DIFFERENCE})  # sums and counts: no matrix is behind them
ALONE: Final = {
    Element.F32: How.F32_ALONE,
    Element.F16: How.F16_ALONE,
    Element.BF16: How.BF16_ALONE,
}
MANY_CHANGED: Final = 1 / 32  # of the bytes
BETWEEN_BYTES: Final = 64 << 20  # copied to be aligned; of a file with more of it the rest is new

Bounds = Callable[[], MatchLimits]


def model_pieces(old: memoryview, new: memoryview, base: slice, result: slice, bounds: Bounds) -> list[Piece] | None:
    """What a file of weights is made of.

    Args:
        old: The file that the base lies in.
        new: The file that the result lies in.
        base: Where the old weights stand in `old`; may be empty.
        result: Where the new weights stand in `new`.
        bounds: Of a search, asked before it.

    Returns:
        Pieces that make up the result, or None when no tensors were found in it.
    """
    old_file, new_file = old[base], new[result]
    new_tensors = find_tensors(new_file)
    if not new_tensors:
        return None
    old_tensors = find_tensors(old_file) if len(old_file) else []
    pairs = pair_tensors(old_file, old_tensors, new_file, new_tensors)
    between = _Between(old_file, old_tensors, new_file, pairs, bounds)
    pieces: list[Piece] = []
    at = 0
    for pair in pairs:
        pieces += between.pieces(at, pair.new_offset)
        pieces.append(_tensor_piece(pair, old_file, new_file))
        at = pair.new_offset + pair.new_length_bytes
    pieces += between.pieces(at, len(new_file))
    return list(_joined(_moved(piece, base.start) for piece in _equal_copied(pieces, old_file, new_file)))


def _tensor_piece(pair: Pair, old: memoryview, new: memoryview) -> Piece:
    length, element = pair.new_length_bytes, pair.new.element
    match pair.match:
        case Match.COPY:
            return Piece(How.COPY, length, pair.old_offset)
        case Match.DELTA if element in DIFFERENCES:
            how = DIFFERENCES[element]
            return Piece(how, length, pair.old_offset, 0 if how in UNSHAPED else pair.new.row_elements)
        case Match.DELTA:
            return Piece(_bytewise(pair, old, new), length, pair.old_offset)
        case _:
            return Piece(ALONE.get(element, How.BINARY), length)


def _bytewise(pair: Pair, old: memoryview, new: memoryview) -> How:
    """How bytes are told that are like the old ones: where many changed all are, else those that did."""
    before = np.frombuffer(old, np.uint8, pair.old_length_bytes, pair.old_offset)
    after = np.frombuffer(new, np.uint8, pair.new_length_bytes, pair.new_offset)
    return How.BYTE_DIFFERENCE if np.mean(before != after) > MANY_CHANGED else How.EDITS


class _Between:
    """What stands between the tensors: put together on both sides, aligned, and taken apart again."""

    def __init__(
        self, old: memoryview, old_tensors: list[Tensor], new: memoryview, pairs: list[Pair], bounds: Bounds
    ) -> None:
        old_gaps = list(_gaps([(each.offset, each.length_bytes) for each in old_tensors], len(old)))
        new_gaps = list(_gaps([(pair.new_offset, pair.new_length_bytes) for pair in pairs], len(new)))
        old_bytes = _gathered(old, old_gaps)
        new_bytes = _gathered(new, new_gaps)
        contents = Contents(memoryview(old_bytes), memoryview(new_bytes), bounds)
        found = contents.pieces(slice(0, len(old_bytes)), slice(0, len(new_bytes))) if new_bytes else []
        self._pieces = _Queue(_apart(found, old_gaps))

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """The pieces of one gap; the gaps are asked for in order."""
        return self._pieces.take(stop - start)


class _Queue:
    """Pieces that are taken by length."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._open = Piece(How.BINARY, 0)

    def take(self, length: int) -> Iterator[Piece]:
        while length:
            if not self._open.length:
                self._open = next(self._pieces)
            first, self._open = _cut(self._open, min(length, self._open.length))
            length -= first.length
            yield first


def _cut(piece: Piece, length: int) -> tuple[Piece, Piece]:
    base = piece.base + length if piece.base >= 0 else -1
    return piece._replace(length=length), piece._replace(length=piece.length - length, base=base)


def _gaps(spans: list[tuple[int, int]], file_bytes: int) -> Iterator[tuple[int, int]]:
    """Offset and length of what lies between spans."""
    at = 0
    for offset, length in spans:
        if offset > at:
            yield at, offset - at
        at = offset + length
    if at < file_bytes:
        yield at, file_bytes - at


def _gathered(file: memoryview, gaps: list[tuple[int, int]]) -> bytes:
    return b"".join(file[offset : offset + length] for offset, length in gaps)


def _apart(pieces: list[Piece], gaps: list[tuple[int, int]]) -> Iterator[Piece]:
    """Gives pieces that read the gathered gaps of the base the places where those stand in the file."""
    starts = [0]
    for _, length in gaps:
        starts.append(starts[-1] + length)
    for whole in pieces:
        piece = whole
        if piece.base < 0:
            yield piece
            continue
        number = bisect_right(starts, piece.base) - 1
        while piece.length:
            offset, length = gaps[number]
            inside = piece.base - starts[number]
            first, piece = _cut(piece, min(piece.length, length - inside))
            yield first._replace(base=offset + inside)
            number += 1


def _equal_copied(pieces: list[Piece], old: memoryview, new: memoryview) -> Iterator[Piece]:
    """Pieces of few changes that have none are copies, and then one with the tensors around them."""
    at = 0
    for piece in pieces:
        same = piece.how is How.EDITS and new[at : at + piece.length] == old[piece.base : piece.base + piece.length]
        yield piece._replace(how=How.COPY) if same else piece
        at += piece.length


def _moved(piece: Piece, base: int) -> Piece:
    return piece._replace(base=piece.base + base) if piece.base >= 0 else piece


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Neighbours that are one piece."""
    held = next(pieces, None)
    for piece in pieces:
        assert held is not None
        same = held.how is piece.how and held.value == piece.value == 0
        if same and (held.base < 0) == (piece.base < 0) and (piece.base < 0 or held.base + held.length == piece.base):
            held = held._replace(length=held.length + piece.length)
            continue
        yield held
        held = piece
    if held is not None:
        yield held
