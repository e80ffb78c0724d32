"""Chooses the front-end for a pair of files by their content. What it cannot read is coded as plain bytes."""

from server.delta.archives import layer_pieces
from server.delta.pieces import How, Piece


def find_pieces(old: memoryview, new: memoryview, seconds: float | None) -> list[Piece]:
    """What the new file is made of.

    Args:
        old: The base.
        new: The result.
        seconds: For looking for what resembles what.

    Returns:
        Pieces that follow one another and make up `new`.
    """
    if old == new and len(new):
        return [Piece(How.COPY, len(new), 0)]
    layer = layer_pieces(old, new, seconds=seconds)
    if layer is not None:
        return layer
    return [Piece(How.BINARY, len(new))] if len(new) else []
