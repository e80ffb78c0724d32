"""Front-end for tar archives: container layers above all. It says how headers, folders and unchanged files follow from
the old archive; what changed within a file is for `server.delta.matching` and the front-ends of models.

Memory: both archives are looked at where they lie; the tables of entries take a few hundred bytes each, a search what
`MatchLimits` says, and a text of up to 512 KiB fifty times its length.
"""

import time
from collections.abc import Callable

from server.delta.archives.contents import Contents
from server.delta.archives.elsewhere import found_elsewhere
from server.delta.archives.layers import archive_pieces
from server.delta.behind import behind_the_base
from server.delta.matching import MatchLimits
from server.delta.pieces import Piece

__all__ = ["archive_pieces", "layer_pieces"]

ModelPieces = Callable[[slice, slice], list[Piece] | None]
"""Pieces of a changed model: where its old content stands in the old archive, where its new one stands in the new one;
None when it is none."""


def layer_pieces(
    old: memoryview,
    new: memoryview,
    *,
    seconds: float | None = None,
    models: ModelPieces = lambda base, result: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Piece] | None:
    """What a new layer is made of.

    Args:
        old: The base, an archive that is not compressed.
        new: The result, likewise.
        seconds: For looking for what resembles what.
        models: Asked first for the contents of each file that changed and has a counterpart.
        clock: Seconds that only grow.

    Returns:
        Pieces that follow one another and make up `new`, or None when one of the two is no archive.
    """
    end = clock() + seconds if seconds is not None else None

    def bounds() -> MatchLimits:
        return MatchLimits() if end is None else MatchLimits(seconds=max(0.0, end - clock()))

    contents = Contents(old, new, bounds)

    def file_pieces(base: slice, result: slice, name: str) -> list[Piece]:
        found = models(base, result) if base.start < base.stop else None
        return found if found is not None else contents.pieces(base, result)

    pieces = archive_pieces(old, new, file_pieces=file_pieces)
    if pieces is None:
        return None
    return behind_the_base(found_elsewhere(pieces, old, new, bounds()), old, new)
