"""Looks for what is still new in the whole old archive: files that were renamed and changed, split or put together."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from protocol import limits
from server.delta.matching import MatchLimits, find_covers
from server.delta.pieces import How, Piece

NEW_BYTES: Final = frozenset({How.TEXT, How.BINARY, How.X86, How.ARM64})
LEAST_BYTES: Final = 64  # of a piece that is worth a look
LEAST_RUN: Final = 32  # equal bytes that are worth a copy from far away
WORTH_BYTES: Final = 4096  # in all; to look for less takes longer than it saves
WINDOW_BYTES: Final = 32 * limits.MIB  # looked for at once


def found_elsewhere(pieces: list[Piece], old: memoryview, new: memoryview, bounds: MatchLimits) -> list[Piece]:
    """The pieces, with new bytes that stand in the old archive as copies.

    Args:
        pieces: Of the whole new file, in order.
        old: The base.
        new: The result.
        bounds: Of the search.
    """
    if sum(piece.length for piece in pieces if _is_worth(piece)) < WORTH_BYTES:
        return pieces
    out: list[Piece] = []
    window: list[tuple[int, int]] = []  # number of a piece in `out`, its offset
    held = at = 0
    for piece in pieces:
        if _is_worth(piece):
            window.append((len(out), at))
            held += piece.length
        out.append(piece)
        at += piece.length
        if held >= WINDOW_BYTES:
            out = _replaced(out, window, old, new, bounds)
            window, held = [], 0
    return _replaced(out, window, old, new, bounds) if window else out


def _is_worth(piece: Piece) -> bool:
    return piece.how in NEW_BYTES and piece.length >= LEAST_BYTES


def _replaced(
    pieces: list[Piece], window: list[tuple[int, int]], old: memoryview, new: memoryview, bounds: MatchLimits
) -> list[Piece]:
    looked_for = b"".join(bytes(new[at : at + pieces[number].length]) for number, at in window)
    covers = find_covers(old, looked_for, limits=bounds)
    starts = np.cumsum([0, *(pieces[number].length for number, _ in window)])
    found: dict[int, list[tuple[int, int, int]]] = {}
    for start, source, length in covers.tolist():
        place = int(starts.searchsorted(start, "right")) - 1
        at = start
        while at < start + length:
            low, high = int(starts[place]), int(starts[place + 1])
            end = min(start + length, high)
            found.setdefault(place, []).append((at - low, source + at - start, end - at))
            at, place = end, place + 1
    numbers = {number: place for place, (number, _) in enumerate(window)}
    out: list[Piece] = []
    for number, piece in enumerate(pieces):
        place = numbers.get(number, -1)
        if place in found:
            at = window[place][1]
            out += _copied(piece, new[at : at + piece.length], old, found[place])
        else:
            out.append(piece)
    return out


def _copied(piece: Piece, content: memoryview, old: memoryview, covers: list[tuple[int, int, int]]) -> Iterator[Piece]:
    """A new piece with its equal runs as copies."""
    at = 0
    for start, source, length in covers:
        one = np.frombuffer(content[start : start + length], np.uint8)
        other = np.frombuffer(old[source : source + length], np.uint8)
        wrong = np.flatnonzero(one != other).tolist()
        for first, last in zip([-1, *wrong], [*wrong, length], strict=True):
            if last - first - 1 >= LEAST_RUN:
                if start + first + 1 > at:
                    yield Piece(piece.how, start + first + 1 - at)
                yield Piece(How.COPY, last - first - 1, source + first + 1)
                at = start + last
    if at < piece.length:
        yield Piece(piece.how, piece.length - at)
