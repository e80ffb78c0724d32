"""The writing side of `protocol.delta.integers`."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from protocol.delta.floats import code_factors
from protocol.delta.integers import LOUD, QUIET, BySize, ByValue, blocks, code_block
from protocol.delta.lowrank import FACTORS, Change, code_shapes, factors_of
from protocol.delta.patch import varint
from server.delta.judging import IntegerJudge
from server.delta.lanes import BitWriter, LaneWriter, bytes_alone, lanes_for
from server.delta.lowrank import Matrix, Search, factors_in, may_move
from server.delta.numbers import NumberWriter
from server.delta.remembering import by_digest

Bytes = npt.NDArray[np.uint8]

RANKS: Final = (1, 2, 4, 8, 12, 16, 24, 32)
PRECISIONS: Final = (4, 5, 6)  # bits of the largest factor: the sums are wanted in eighths
QUIET_SHARE: Final = 0.4  # of elements that do not change: from here on it is said first which do
LOUD_SHARE: Final = 0.3


def encode_integers(old: bytes, new: bytes, matrices: Sequence[Matrix]) -> bytes:
    """Codes 8-bit integers that are made from those of the base.

    Args:
        old: The old integers.
        new: As many new ones.
        matrices: What is known of their shape.
    """
    before, after = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    changes = _find_changes(before, after, matrices)
    unchanged = float((before == after).mean()) if before.size else 1.0
    ways = [_encode(before, after, changes, quiet=unchanged > QUIET_SHARE, loud=False)]
    if unchanged < LOUD_SHARE:
        ways.append(_encode(before, after, changes, quiet=False, loud=True))
    return min(ways, key=len)


def _encode(before: Bytes, after: Bytes, changes: list[Change], *, quiet: bool, loud: bool) -> bytes:
    shapes = NumberWriter()
    code_shapes(shapes, before.size, changes)
    lanes_bits = lanes_for(before.size, bytes_alone(after - before))
    coder = LaneWriter(1 << lanes_bits)
    plain = BitWriter()
    code_factors(coder, plain, changes, factors_of(changes))
    model = BySize(coder) if loud else ByValue(coder, quiet=quiet)
    for first, run in blocks([before.tobytes()]):
        code_block(model, run, first, changes, after[first : first + run.size])
    words = coder.finish(np.zeros(coder.lanes, np.uint16))
    parts = (shapes.finish(), plain.finish(0)[1])
    form = lanes_bits | QUIET * quiet | LOUD * loud
    return b"".join((bytes([form]), *(varint(len(part)) for part in parts), *parts, words))


def _find_changes(old: Bytes, new: Bytes, matrices: Sequence[Matrix]) -> list[Change]:
    changes: list[Change] = []
    factors = 0
    for matrix in filter(may_move, matrices):
        here = slice(matrix.first, matrix.first + matrix.rows * matrix.columns)
        change = _find_change((new[here] - old[here]).view(np.int8), matrix.rows, matrix.columns)
        if change is not None and factors + change.factors <= FACTORS:
            factors += change.factors
            changes.append(change.moved_to(matrix.first))
    return changes


@by_digest(factors_in)
def _find_change(moved: npt.NDArray[np.int8], rows: int, columns: int) -> Change | None:
    if not moved.any():
        return None
    values = moved.astype(np.float64).reshape(rows, columns)
    # Rows are scaled by themselves when a tensor was quantised; the directions are sought without those scales.
    spread = np.sqrt((values**2).mean(axis=1, keepdims=True)) + 1e-3
    search = Search(IntegerJudge(moved, rows, columns), RANKS, PRECISIONS, least_precision=PRECISIONS[0], least_shift=0)
    return search.best(values, (None, spread))
