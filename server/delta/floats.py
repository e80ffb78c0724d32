"""The writing side of `protocol.delta.floats`."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from protocol.delta.alone import TOP_BITS, code_exponents, code_rest
from protocol.delta.floats import (
    LEARNT_SIGNS,
    code_factors,
    differences,
    exponents,
    predictions,
)
from protocol.delta.lowrank import FloatForm, code_shapes, factors_of
from protocol.delta.patch import varint
from protocol.delta.residuals import Offsets, Sizes, code_bodies, code_sizes, split
from server.delta.lanes import BitWriter, LaneWriter, bytes_alone, lanes_for
from server.delta.lowrank import Matrix, find_changes
from server.delta.numbers import NumberWriter

ALONE_LANES_BITS: Final = 11  # floats on their own always take many bytes
ALONE_A_LANE: Final = 2000
MEAN_OVER: Final = 1 << 18  # elements
ZEROS_WEIGH: Final = 3  # bits that a stream's mean is lower by if it were all zeros
SIGNS_WORTH: Final = 0.98  # learning the signs takes time on the machine: it has to save this share of them


def encode_differences(form: FloatForm, old: bytes, new: bytes, matrices: Sequence[Matrix]) -> bytes:
    """Codes floats that are made from those of the base.

    Args:
        form: Of the elements.
        old: The old floats.
        new: As many new ones.
        matrices: What is known of their shape.
    """
    changes = find_changes(form, np.frombuffer(old, form.word), np.frombuffer(new, form.word), matrices)
    expected = np.concatenate(list(predictions(form, [old], changes)))
    difference = differences(form, expected, np.frombuffer(new, form.word).astype(np.int64))
    sizes = split(difference)
    learn_signs = _signs_are_alike(sizes)
    shapes = NumberWriter()
    code_shapes(shapes, expected.size, changes)
    lanes_bits = lanes_for(expected.size, bytes_alone(sizes.size) + int(sizes.size.sum(dtype=np.int64)) // 8)
    coder = LaneWriter(1 << lanes_bits)
    factor_bits = BitWriter()
    code_factors(coder, factor_bits, changes, factors_of(changes))
    offsets = exponents(form, [old], expected.size)
    first_mean = _mean_size(sizes, offsets)
    code_sizes(coder, offsets, form.bits, first_mean, learn_signs=learn_signs, given=sizes)
    bits = BitWriter()
    for _ in code_bodies(bits, sizes, learn_signs=learn_signs, given=difference):
        pass
    hidden, plain = bits.finish(coder.lanes)
    words = coder.finish(hidden)
    parts = (shapes.finish(), factor_bits.finish(0)[1], words)
    numbers = (first_mean, *map(len, parts))
    head = bytes([lanes_bits | LEARNT_SIGNS * learn_signs]) + b"".join(map(varint, numbers))
    return b"".join((head, *parts, plain))


def encode_alone(form: FloatForm, new: bytes) -> bytes:
    """Codes floats on their own.

    Args:
        form: Of the elements.
        new: Their bytes.
    """
    words = np.frombuffer(new, form.word).astype(np.int64)
    exponents_given = (words >> form.mantissa & form.exponent_mask).astype(np.uint8)
    tops_given = (words >> (form.mantissa - TOP_BITS) & ((1 << TOP_BITS) - 1)).astype(np.uint8)
    lanes_bits = min(ALONE_LANES_BITS, max(lanes_for(words.size, len(new)), (words.size // ALONE_A_LANE).bit_length()))
    coder = LaneWriter(1 << lanes_bits)
    code_exponents(coder, form, words.size, (exponents_given, tops_given))
    bits = BitWriter()
    for _ in code_rest(bits, form, exponents_given, tops_given, words):
        pass
    hidden, plain = bits.finish(coder.lanes)
    coded = coder.finish(hidden)
    return b"".join((bytes([lanes_bits]), varint(len(coded)), coded, plain))


def _mean_size(sizes: Sizes, offsets: Offsets) -> int:
    """What the sizes and offsets are about at the beginning, when most of them are more than nothing."""
    some = slice(MEAN_OVER)
    size = sizes.size[some]
    there = size > 0
    if not there.any():
        return int(offsets[some].mean()) if offsets.size else 0
    mean = float((size[there] + offsets[some][there].astype(np.float64)).mean())
    return round(max(mean - ZEROS_WEIGH * float((~there).mean()), 0))


def _signs_are_alike(sizes: Sizes) -> bool:
    """Whether a sign is likely to be that of those just before."""
    negative = sizes.negative[sizes.size > 0].astype(np.int64)
    if negative.size < 64:
        return False
    sums = np.cumsum(negative)
    run = sums[16:-1] - sums[:-17]
    count = np.bincount(run * 2 + negative[17:], minlength=34).reshape(17, 2).astype(np.float64) + 0.5
    bits = -(count * np.log2(count / count.sum(axis=1, keepdims=True))).sum()
    return bool(bits < SIGNS_WORTH * count.sum())
