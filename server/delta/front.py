"""Chooses the front-end for a pair of files by their content. What it cannot read is coded as plain bytes."""

import time
from collections.abc import Callable

from server.delta.archives import layer_pieces
from server.delta.archives.contents import Contents
from server.delta.matching import MatchLimits
from server.delta.models import model_pieces
from server.delta.pieces import How, Piece


def find_pieces(
    old: memoryview, new: memoryview, seconds: float | None, clock: Callable[[], float] = time.monotonic
) -> list[Piece]:
    """What the new file is made of.

    Args:
        old: The base.
        new: The result.
        seconds: For looking for what resembles what.
        clock: Seconds that only grow.

    Returns:
        Pieces that follow one another and make up `new`.
    """
    if not len(new):
        return []
    if old == new:
        return [Piece(How.COPY, len(new), 0)]
    end = None if seconds is None else clock() + seconds

    def bounds() -> MatchLimits:
        return MatchLimits() if end is None else MatchLimits(seconds=max(0.0, end - clock()))

    def models(base: slice, result: slice) -> list[Piece] | None:
        return model_pieces(old, new, base, result, bounds)

    layer = layer_pieces(old, new, seconds=seconds, models=models)
    if layer is not None:
        return layer
    base, result = slice(0, len(old)), slice(0, len(new))
    return models(base, result) or Contents(old, new, bounds).pieces(base, result)
