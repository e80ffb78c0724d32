"""Other ways to say the same pieces, for groups with few changes: there every operation costs as much as what it saves.

The front-ends find what resembles what, as large files want it. Here pieces are put differently, without a look at how
they will be coded; `groups` codes each way and keeps the shortest.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np

from server.delta.pieces import ELEMENT_BYTES, How, Piece

NEW: Final = frozenset({How.TEXT, How.BINARY, How.X86, How.ARM64})
READ: Final = frozenset({How.COPY, How.EDITS})
LEAST_COPIES: Final[tuple[int, ...]] = (
    8,
    16,
    32,
)  # bytes; a shorter piece of the base among new bytes may be cheaper as new ones
LEAST_FILL: Final = 24  # equal bytes, among few new ones
LONG_FILL: Final = 1 << 12  # equal bytes, among many
MOST_CHANGES: Final = 1 << 12  # of edits
SPARSE_SHARE: Final = 64  # one element in so many
SPARSE_CHANGES: Final = 256
SPARSE_NEAR: Final = 16  # changes as near as this are in one piece
DIFFERENCES: Final = frozenset(
    {How.F32_DIFFERENCE, How.F16_DIFFERENCE, How.BF16_DIFFERENCE, How.I32_DIFFERENCE, How.I8_DIFFERENCE, How.CODE}
)
LEAST_JOINED: Final = (16, 24, 48)  # bytes; the same among much new text
OFTEN: Final = (2, 4)  # times that a piece is read
ALONE: Final = frozenset({How.F32_ALONE, How.F16_ALONE, How.BF16_ALONE})
PLAIN: Final = (DIFFERENCES - {How.CODE}) | ALONE | READ | {How.FILL, How.TEXT, How.BINARY}
_SHORT: Final = 512  # pieces from elsewhere that are held against what stands alongside
_NEAR: Final = 64  # bytes about where it would go on, that are tried
_STEPS: Final = 8
_JUMP_COSTS: Final = 4  # changed bytes


def filled(pieces: list[Piece], output_offset: int, new: memoryview) -> list[Piece]:
    """New bytes without very long runs of one byte."""
    out: list[Piece] = []
    at = output_offset
    for piece in pieces:
        parts = _without_runs(new[at : at + piece.length], LONG_FILL) if piece.how in NEW else iter((piece,))
        out += (part._replace(how=piece.how) if part.how is How.BINARY else part for part in parts)
        at += piece.length
    return out


def sparse(pieces: list[Piece], output_offset: int, old: memoryview, new: memoryview) -> list[Piece]:
    """Differences of numbers in which hardly a number changed are copies and edits."""
    out: list[Piece] = []
    at = output_offset
    for piece in pieces:
        out += _sparse(piece, at, old, new) if piece.how in DIFFERENCES else [piece]
        at += piece.length
    return out


def _sparse(piece: Piece, at: int, old: memoryview, new: memoryview) -> list[Piece]:
    before = np.frombuffer(old[piece.base : piece.base + piece.length], np.uint8)
    after = np.frombuffer(new[at : at + piece.length], np.uint8)
    places = np.flatnonzero(before != after)
    most = min(SPARSE_CHANGES * ELEMENT_BYTES.get(piece.how, 1), piece.length // SPARSE_SHARE)
    return list(_cut_at(places, piece, at)) if places.size <= most else [piece]


def _cut_at(places: "np.ndarray[tuple[int], np.dtype[np.intp]]", piece: Piece, at: int) -> Iterator[Piece]:
    """Copies, and edits where bytes changed."""
    done = 0
    runs = np.split(places, np.flatnonzero(np.diff(places) > SPARSE_NEAR) + 1) if places.size else []
    for run in runs:
        first, end = int(run[0]), int(run[-1]) + 1
        if first > done:
            yield Piece(How.COPY, first - done, piece.base + done)
        yield Piece(How.EDITS, end - first, piece.base + first)
        done = end
    if done < piece.length:
        yield Piece(How.COPY, piece.length - done, piece.base + done)


def alongside(pieces: list[Piece], output_offset: int, old: memoryview, new: memoryview) -> list[Piece]:
    """Short pieces from elsewhere are read where the ones before them were, if that makes few changes more."""
    out: list[Piece] = []
    at = output_offset
    last: Piece | None = None
    last_at = 0
    for whole in pieces:
        piece = whole
        if piece.how in READ:
            if last is not None and piece.length <= _SHORT:
                ways = last.base + last.length, last.base + at - last_at
                piece = _cheapest(piece, new[at : at + piece.length], old, *ways)
            last, last_at = piece, at
        out.append(piece)
        at += piece.length
    return out


def _cheapest(piece: Piece, target: memoryview, old: memoryview, follows: int, beside: int) -> Piece:
    """The piece read from where it makes fewest changes, a jump counted as some.

    Args:
        piece: From anywhere.
        target: What it gives.
        old: The base.
        follows: Where the one before ended in the base.
        beside: As far from the output as the one before.
    """
    near = min(abs(beside - follows), _NEAR) + _STEPS
    first, last = max(follows - near, 0), min(follows + near, len(old) - piece.length)
    if first <= piece.base <= last or last < first:
        return piece
    wanted = np.frombuffer(target, np.uint8)
    around = np.frombuffer(old[first : last + piece.length], np.uint8)
    wrong = np.count_nonzero(np.lib.stride_tricks.sliding_window_view(around, piece.length) != wanted, axis=1)
    cost = wrong + 1
    for free in (follows, beside):
        if first <= free <= last:
            cost[free - first] -= 1
    base = int(np.argmin(cost))
    here = np.count_nonzero(np.frombuffer(old[piece.base : piece.base + piece.length], np.uint8) != wanted)
    if int(cost[base]) > here + _JUMP_COSTS:
        return piece
    return Piece(How.EDITS if wrong[base] else How.COPY, piece.length, first + base)


def spelled(pieces: list[Piece], output_offset: int, old: memoryview, new: memoryview) -> list[Piece]:
    """Edits as copies and new bytes, unless there are many."""
    out: list[Piece] = []
    at = output_offset
    left = MOST_CHANGES
    for piece in pieces:
        if piece.how is How.EDITS:
            before = np.frombuffer(old[piece.base : piece.base + piece.length], np.uint8)
            wrong = before != np.frombuffer(new[at : at + piece.length], np.uint8)
            left -= int(np.count_nonzero(wrong))
            if left < 0:
                return pieces
            edges = np.flatnonzero(np.diff(wrong)) + 1
            for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), piece.length], strict=True):
                out.append(
                    Piece(How.BINARY, stop - start)
                    if wrong[start]
                    else Piece(How.COPY, stop - start, piece.base + start)
                )
        else:
            out.append(piece)
        at += piece.length
    return out


def absorbed(pieces: list[Piece], least: int) -> list[Piece]:
    """Pieces of the base that are shorter are new bytes, where new bytes stand beside them."""
    out: list[Piece] = []
    for number, piece in enumerate(pieces):
        neighbours = pieces[max(number - 1, 0) : number + 2]
        if piece.how in READ and piece.length < least and any(each.how in NEW for each in neighbours):
            out.append(Piece(How.BINARY, piece.length))
        else:
            out.append(piece)
    return out


def told_again(pieces: list[Piece], times: int) -> list[Piece]:
    """Short pieces that are read from one place so often are new bytes: text repeats itself more cheaply."""
    read = Counter(piece.base for piece in pieces if piece.how in READ and piece.length < _SHORT)
    return [
        Piece(How.BINARY, piece.length)
        if piece.how in READ and piece.length < _SHORT and read[piece.base] >= times
        else piece
        for piece in pieces
    ]


def without_numbers(pieces: list[Piece]) -> list[Piece]:
    """As many operations, but no streams of numbers: what the rest takes is soon known."""
    out: list[Piece] = []
    for piece in pieces:
        if piece.how in ALONE:
            out.append(Piece(How.FILL, piece.length, -1, 0))
        else:
            out.append(piece._replace(how=How.COPY, value=0) if piece.how in DIFFERENCES else piece)
    return out


def tidied(pieces: list[Piece], output_offset: int, new: memoryview) -> list[Piece]:
    """New bytes that follow one another in one piece, without the long runs of one byte."""
    out: list[Piece] = []
    at = output_offset
    for piece in pieces:
        if piece.how not in NEW:
            if (
                out
                and piece.how is How.COPY
                and out[-1].how is How.COPY
                and out[-1].base + out[-1].length == piece.base
            ):
                out[-1] = out[-1]._replace(length=out[-1].length + piece.length)
            else:
                out.append(piece)
        else:
            for part in _without_runs(new[at : at + piece.length], LEAST_FILL):
                if out and out[-1].how is part.how is How.BINARY:
                    out[-1] = out[-1]._replace(length=out[-1].length + part.length)
                else:
                    out.append(part)
        at += piece.length
    return out


def _without_runs(data: memoryview, least: int) -> Iterator[Piece]:
    """Fills, and what is between."""
    values = np.frombuffer(data, np.uint8)
    edges = np.concatenate(([0], np.flatnonzero(np.diff(values)) + 1, [values.size]))
    done = 0
    for run in np.flatnonzero(np.diff(edges) >= least).tolist():
        start, stop = int(edges[run]), int(edges[run + 1])
        if start > done:
            yield Piece(How.BINARY, start - done)
        yield Piece(How.FILL, stop - start, -1, int(values[start]))
        done = stop
    if done < values.size:
        yield Piece(How.BINARY, values.size - done)
