"""Estimates from a sample what a tensor costs alone and as a difference from another one.

It is the order-0 entropy of what the coders send: for a difference the bit length of the ordered integers' difference
and its raw bits, alone the exponent and the raw mantissa. Only the order of such estimates is relied on.
"""

import numpy as np
import numpy.typing as npt

from server.delta.tensors.found import Element
from server.delta.tensors.guess import entropy_bits

MIN_JOINT = 2048  # with fewer elements, pairs of exponent and length are too rare to be counted
BYTEWISE = frozenset({Element.F64, Element.I64, Element.U64, Element.U32, Element.I16, Element.U16})
"""Types without a kind of stream: their difference is that of their bytes."""
RUNS, RUN_ELEMENTS = 16, 256  # 4096 elements spread over a span; neighbours, so that few pages are touched

Words = npt.NDArray[np.uint64]


def words(data: memoryview, offset: int, length_bytes: int, element: Element) -> Words:
    """The sampled elements of a span, as unsigned integers. Two spans of one length are sampled at the same places."""
    width = element.width_bytes
    count = length_bytes // width
    if count <= RUNS * RUN_ELEMENTS:
        return np.frombuffer(data, f"<u{width}", count, offset).astype(np.uint64)
    step = (count - RUN_ELEMENTS) // (RUNS - 1)
    runs = [
        np.frombuffer(data, f"<u{width}", RUN_ELEMENTS, offset + run * step * width).astype(np.uint64)
        for run in range(RUNS)
    ]
    return np.concatenate(runs)


def delta_bits(old: Words, new: Words, element: Element) -> float:
    """Bits for each element as a difference."""
    bits = 8 * element.width_bytes
    mask = np.uint64((1 << bits) - 1)
    base = old
    if element.is_float and element not in BYTEWISE:
        old, new = _ordered(old, bits, mask), _ordered(new, bits, mask)
    difference = (new - old) & mask
    if element in BYTEWISE:
        bytewise = new.view(np.uint8) - old.view(np.uint8)
        planes = bytewise.reshape(-1, 8)[:, : element.width_bytes].T
        return sum(entropy_bits(np.bincount(plane, minlength=256)) for plane in planes)
    if bits == 8:
        return entropy_bits(np.bincount(difference.astype(np.int64), minlength=256))
    length = _bit_length(np.minimum(difference, (~difference + np.uint64(1)) & mask))
    raw = float(length.sum()) / max(1, len(length))
    if element.is_float and len(length) >= MIN_JOINT:
        # The old exponent tells much of how long a difference is: that is the context of the coder.
        mantissa = np.uint64(element.mantissa_bits)
        exponent = ((base >> mantissa) & np.uint64((1 << bits - 1 - element.mantissa_bits) - 1)).astype(np.int64)
        exponent -= int(exponent.min())
        joint = entropy_bits(np.unique(exponent * 65 + length, return_counts=True)[1])
        return joint - entropy_bits(np.bincount(exponent)) + raw
    return entropy_bits(np.bincount(length)) + raw


def solo_bits(new: Words, element: Element) -> float:
    """Bits for each element alone."""
    width, mantissa = element.width_bytes, element.mantissa_bits
    bits = 0.0
    if element.is_float:
        top = (new >> np.uint64(mantissa)) & np.uint64((1 << 8 * width - 1 - mantissa) - 1)
        bits = 1.0 + entropy_bits(np.bincount(top.astype(np.int64)))
    for plane in range(width):
        kept = min(8, mantissa - 8 * plane) if element.is_float else 8
        if kept > 0:
            part = (new >> np.uint64(8 * plane)) & np.uint64((1 << kept) - 1)
            bits += min(float(kept), entropy_bits(np.bincount(part.astype(np.int64), minlength=256)))
    return bits


def _ordered(values: Words, bits: int, mask: np.uint64) -> Words:
    """Floats as integers in the same order: negative ones reversed, below the positive ones."""
    sign = np.uint64(1 << bits - 1)
    return np.where(values & sign, ~values & mask, values | sign)


def _bit_length(values: Words) -> npt.NDArray[np.int64]:
    # A double rounds above 53 bits and may then say one too many; this is an estimate.
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)
