"""What explains a span of a new tensor."""

import enum
from dataclasses import dataclass

from server.delta.tensors.found import Tensor


class Match(enum.Enum):
    """How a span of the new file is explained."""

    COPY = "copy"  # the same bytes
    DELTA = "delta"  # the same type and length, values whose differences cost less than they do
    WEAK = "weak"  # the same type, length and name or place, but differences seem to cost as much: worth a try
    CAST = "cast"  # as many values in another float type, by name or order: not looked at
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Pair:
    """A span of a new tensor and what explains it.

    Args:
        new: The tensor.
        match: How.
        new_offset: Of the span, in the new file.
        new_length_bytes: Of the span; whole elements of `new`.
        old: The tensor that explains it; None when there is none, or when only a place in the old file is known.
        old_offset: Of the explaining span, in the old file; 0 when there is none.
        old_length_bytes: As `new_length_bytes`, except for CAST; 0 when there is none.
    """

    new: Tensor
    match: Match
    new_offset: int
    new_length_bytes: int
    old: Tensor | None
    old_offset: int
    old_length_bytes: int


def whole(new: Tensor, match: Match, old: Tensor | None) -> Pair:
    """All of a tensor, explained by all of another one."""
    if old is None:
        return Pair(new, match, new.offset, new.length_bytes, None, 0, 0)
    return Pair(new, match, new.offset, new.length_bytes, old, old.offset, old.length_bytes)
