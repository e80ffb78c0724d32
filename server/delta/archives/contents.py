"""Says what the content of a changed file is made of, by the kind of bytes that it holds."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from protocol import limits
from protocol.delta.deflated import STREAM_MEMBERS
from server.delta.aligned import program_pieces
from server.delta.archives.exact import find_runs
from server.delta.archives.members import is_worth, read_member
from server.delta.matching import MatchLimits, find_covers
from server.delta.pieces import How, Piece

LOOKED_AT_BYTES: Final = 4096  # of a file's beginning, to tell text from other bytes
EXACT_BYTES: Final = limits.MIB // 2  # of a text; a larger one is aligned like other bytes
# Of the new bytes that may be gzip files, old and new, read as tokens: half a second a megabyte.
MEMBERS_SHARE: Final = 3
MANY_CHANGED: Final = 1 / 32  # of the bytes of a run that is like the base
SHORTEST_COPY_BYTES: Final = 64  # a shorter equal run does not leave the stream of its neighbours

GZIP: Final = b"\x1f\x8b\x08"
GZIP_TIME: Final = slice(4, 8)  # of the head
_ELF: Final = b"\x7fELF"
_MACHINES: Final = {62: How.X86, 183: How.ARM64}


def kind_of(content: memoryview) -> How:
    """What the bytes of a file resemble."""
    head = bytes(content[:LOOKED_AT_BYTES])
    if head[:4] == _ELF:
        return _MACHINES.get(int.from_bytes(head[18:20], "little"), How.BINARY)
    return How.BINARY if b"\0" in head else How.TEXT


class Contents:
    """Pieces of changed files.

    Args:
        old: The old archive.
        new: The new one.
        bounds: Of the next search, asked before each.
    """

    def __init__(self, old: memoryview, new: memoryview, bounds: Callable[[], MatchLimits]) -> None:
        self._old = old
        self._new = new
        self._bounds = bounds
        self._left = max(limits.MIB, len(new) // MEMBERS_SHARE), STREAM_MEMBERS

    def pieces(self, base: slice, result: slice) -> list[Piece]:
        """What a file is made of.

        Args:
            base: Where the old content stands in the old archive; empty when there is none.
            result: Where the new content stands in the new one.
        """
        kind = kind_of(self._new[result])
        if base.start >= base.stop:
            return [Piece(kind, result.stop - result.start)]
        if _is_gzip(self._new[result]) and _is_gzip(self._old[base]):
            deflated = self._retimed(base, result) or self._deflated(base, result)
            if deflated:
                return deflated
        small = max(base.stop - base.start, result.stop - result.start) <= EXACT_BYTES
        found = self._runs(base, result) if kind is How.TEXT and small else self._covers(base, result, kind)
        return list(_filled(found, result.stop - result.start, kind))

    def _retimed(self, base: slice, result: slice) -> list[Piece]:
        """A gzip file of which only the time in its head is another, or nothing."""
        before, after = self._old[base], self._new[result]
        if len(before) != len(after) or before[GZIP_TIME.stop :] != after[GZIP_TIME.stop :]:
            return []
        start, time = GZIP_TIME.start, GZIP_TIME.stop - GZIP_TIME.start
        return [
            Piece(How.COPY, start, base.start),
            Piece(How.TEXT, time),
            Piece(How.COPY, len(after) - start - time, base.start + start + time),
        ]

    def _deflated(self, base: slice, result: slice) -> list[Piece]:
        """A gzip file from the tokens of the old one, or nothing."""
        before, after = self._old[base], self._new[result]
        bytes_left, members_left = self._left
        if len(before) + len(after) > bytes_left or len(before) > 2 * len(after) or not members_left:
            return []
        old, new = read_member(before), read_member(after)
        if old is None or new is None or not is_worth(old, new, before, after):
            return []
        if base.start + old.start + len(after) - new.start > len(self._old):  # as if read, byte for byte
            return []
        self._left = bytes_left - len(before) - len(after), members_left - 1
        same = old.start == new.start and before[: old.start] == after[: new.start]
        head = Piece(How.COPY, new.start, base.start) if same else Piece(How.BINARY, new.start)
        return [head, Piece(How.DEFLATED, len(after) - new.start, base.start + old.start)]

    def _runs(self, base: slice, result: slice) -> Iterator[tuple[int, Piece]]:
        for run in find_runs(bytes(self._old[base]), bytes(self._new[result])):
            yield run.new, Piece(How.COPY, run.length, base.start + run.old)

    def _covers(self, base: slice, result: slice, kind: How) -> Iterator[tuple[int, Piece]]:
        before, after = self._old[base], self._new[result]
        if kind in _MACHINES.values():
            for start, piece in program_pieces(before, after, self._bounds):
                yield start, piece._replace(base=base.start + piece.base)
            return
        old, new = np.frombuffer(before, np.uint8), np.frombuffer(after, np.uint8)
        for start, source, length in find_covers(before, after, limits=self._bounds()).tolist():
            wrong = int(np.count_nonzero(old[source : source + length] != new[start : start + length]))
            how = How.EDITS if wrong or length < SHORTEST_COPY_BYTES else How.COPY
            if wrong > length * MANY_CHANGED:
                how = How.BYTE_DIFFERENCE
            yield start, Piece(how, length, base.start + source)


def _is_gzip(content: memoryview) -> bool:
    return bytes(content[: len(GZIP)]) == GZIP


def _filled(found: Iterator[tuple[int, Piece]], length: int, kind: How) -> Iterator[Piece]:
    """Pieces from the first byte to the last: what was not found is new."""
    at = 0
    for start, piece in found:
        if start > at:
            yield Piece(kind, start - at)
        yield piece
        at = start + piece.length
    if at < length:
        yield Piece(kind, length - at)
