"""Codes a group and applies it at once: what does not come out as it went in is coded more simply."""

from collections.abc import Iterator
from contextlib import suppress

from protocol.delta.apply import apply_group
from protocol.errors import Refused
from server.delta.groups import GroupPlan, ViewBase, cut_groups, encode_group, encode_pieces
from server.delta.pieces import How, Piece


def encode_checked(plan: GroupPlan, old: memoryview, new: memoryview) -> bytes:
    """The group as it travels, or several that give the same: they were seen to give the right bytes.

    Args:
        plan: Of the group.
        old: The base.
        new: The result.
    """
    # Whatever is odd about the bytes or the pieces, and whatever a finer way overlooks: the plain one is always open.
    with suppress(Refused, ArithmeticError, LookupError, ValueError):
        group = encode_group(plan, old, new)
        if gives(group, plan, old, new):
            return group
    plain = cut_groups(_plain_pieces(plan, old, new), plan.output_offset)
    return b"".join(encode_pieces(part, part.pieces, old, new, frozenset()) for part in plain)


def gives(group: bytes, plan: GroupPlan, old: memoryview, new: memoryview) -> bool:
    """Whether applying a group gives its part of the result."""
    at = plan.output_offset
    right = True

    def compare(data: bytes) -> None:
        nonlocal at, right
        right = right and data == new[at : at + len(data)]
        at += len(data)

    try:
        apply_group(group, ViewBase(old), plan.output_offset, compare)
    except Refused:  # a bound of the format that the plan did not foresee
        return False
    return right and at == plan.output_offset + plan.output_bytes


def _plain_pieces(plan: GroupPlan, old: memoryview, new: memoryview) -> Iterator[Piece]:
    """Copies that are right, and all else as bytes."""
    at = plan.output_offset
    for piece in plan.pieces:
        right = piece.how is How.COPY and old[piece.base : piece.base + piece.length] == new[at : at + piece.length]
        yield piece if right else Piece(How.BINARY, piece.length)
        at += piece.length
