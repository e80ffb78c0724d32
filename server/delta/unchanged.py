"""Differences of weights of which whole rows did not change: another exporter rounded some channels' scales otherwise.

A stream that has to learn anew at each row's edge whether anything changes takes more than the edges themselves. What
changed in such a row moved by a unit or two of the last place, all of it up or all of it down: as integers, whose sign
is that of the move, not that of the move times the weight.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from server.delta.pieces import ELEMENT_BYTES, How, Piece

Words = npt.NDArray[np.unsignedinteger[npt.NBitBase]]

CUT: Final = frozenset({How.F32_DIFFERENCE, How.F16_DIFFERENCE, How.BF16_DIFFERENCE})
LEAST_RUN: Final = 64  # unchanged elements: an operation or two are about what a row's edges cost in a stream
LEAST_SHARE: Final = 4  # one in so many elements stands in such runs, or nothing is cut
MOST_RUNS: Final = 64  # elements of a piece for each run
FEW_UNITS: Final = 16  # of the last place


def unchanged_copied(pieces: list[Piece], output_offset: int, old: memoryview, new: memoryview) -> list[Piece]:
    """Long runs of elements that did not change are copies.

    Args:
        pieces: Of a group.
        output_offset: Where they begin in the new file.
        old: The base.
        new: The result.
    """
    return [
        part
        for at, piece in _placed(pieces, output_offset)
        for part in (
            _cut(piece, _words(piece, piece.base, old), _words(piece, at, new)) if piece.how in CUT else (piece,)
        )
    ]


def as_integers(pieces: list[Piece], output_offset: int, old: memoryview, new: memoryview) -> list[Piece]:
    """Differences of floats that hardly moved are those of integers.

    Args:
        pieces: Of a group.
        output_offset: Where they begin in the new file.
        old: The base.
        new: The result.
    """
    return [
        _as_integers(piece, _words(piece, piece.base, old), _words(piece, at, new))
        if piece.how is How.F32_DIFFERENCE
        else piece
        for at, piece in _placed(pieces, output_offset)
    ]


def _placed(pieces: list[Piece], output_offset: int) -> Iterator[tuple[int, Piece]]:
    """Pieces with where they begin in the new file."""
    at = output_offset
    for piece in pieces:
        yield at, piece
        at += piece.length


def _as_integers(piece: Piece, before: Words, after: Words) -> Piece:
    near = np.count_nonzero(np.abs((after - before).view(np.int32)) <= FEW_UNITS)
    return piece._replace(how=How.I32_DIFFERENCE, value=0) if 2 * near >= after.size else piece


def _words(piece: Piece, at: int, file: memoryview) -> Words:
    width = ELEMENT_BYTES[piece.how]
    return np.frombuffer(file, f"<u{width}", piece.length // width, at)


def _cut(
    piece: Piece,
    before: Words,
    after: Words,
) -> Iterator[Piece]:
    """Copies of what did not change, and differences of what did."""
    changed = np.flatnonzero(before != after)
    edges = np.concatenate(([-1], changed, [before.size]))
    runs = np.flatnonzero(np.diff(edges) > LEAST_RUN)
    starts, stops = edges[runs] + 1, edges[runs + 1]
    if int((stops - starts).sum()) * LEAST_SHARE < before.size or runs.size * MOST_RUNS > before.size:
        yield piece
        return
    done = 0
    for start, stop in [*zip(starts.tolist(), stops.tolist(), strict=True), (before.size, before.size)]:
        for how, first, last in ((piece.how, done, start), (How.COPY, start, stop)):
            if first < last:
                yield _part(piece, how, first, last)
        done = stop


def _part(piece: Piece, how: How, first: int, last: int) -> Piece:
    width = ELEMENT_BYTES[piece.how]
    value = piece.value if how is piece.how and last - first == piece.length // width else 0
    return Piece(how, (last - first) * width, piece.base + first * width, value)
