"""Tells from a sample of bytes whether they are floats, and of which type.

A float's exponent takes few values and its low bits are noise; at the right type and phase the sum of the entropies
of its parts is well below that of its bytes. A wrong answer costs bytes in a patch, nothing else.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.delta.tensors.found import Element

SLICES, SLICE_BYTES = 4, 1024  # about a thousand fp32, enough for thirty exponents, at the price of four page faults
GUARD_BYTES = 8  # left free at the end of a slice, so that each phase sees as many elements

# Exponents as stored. Weights, gradients and optimiser states lie in 2**-60..2**30.
PLAUSIBLE = {
    Element.F64: (1023 - 60, 1023 + 30),
    Element.F32: (127 - 60, 127 + 30),
    Element.BF16: (127 - 60, 127 + 30),
    Element.F16: (0, 30),
}
MAX_OUTLIERS = 0.005
MIN_NONZERO = 0.55  # a wider float whose low half is zero is no pair of narrow ones
MIN_SIGN = 0.05  # weights have both signs; counters, pixels and most codes do not
MAX_SKEW = 0.3  # negative and positive weights have the same sizes; in two's complement they do not
WIDER = 0.03  # what small samples make a type of twice the width look too cheap
MAX_RATIO = 0.95  # against the entropy of the bytes alone; measured on weights 0.88 to 0.92
SPARSE_BITS, NOISE_BITS = 4.0, 7.97  # a byte: sparse data lies below, compressed data above

_MAGNITUDE = np.arange(256) & 127
# The bytes of sign and exponent that plausible floats and zero have: seven bits of the exponent, of fp16 all five.
TOPS = {
    Element.F32: (_MAGNITUDE == 0) | (_MAGNITUDE >= (127 - 60) >> 1) & (_MAGNITUDE <= (127 + 30) >> 1),
    Element.BF16: (_MAGNITUDE == 0) | (_MAGNITUDE >= (127 - 60) >> 1) & (_MAGNITUDE <= (127 + 30) >> 1),
    Element.F16: _MAGNITUDE < 31 << 2,
}
Bytes2 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a type explains a sample: bits for each byte of it."""

    element: Element
    phase: int
    bits: float

    @property
    def rank(self) -> float:
        """The bits; a little more for a wider type: two narrow floats look like a wide one, hardly the reverse."""
        return self.bits * (1 + WIDER * (self.element.width_bytes.bit_length() - 2))


def sample(data: memoryview, start: int, length_bytes: int) -> Bytes2:
    """Up to four slices spread over a span, as rows; each begins at a multiple of 8 from `start`."""
    rows = min(SLICES, max(1, length_bytes // SLICE_BYTES))
    width = min(SLICE_BYTES, length_bytes)
    step = (length_bytes - width) // max(1, rows - 1) & ~7
    taken = np.empty((rows, width), np.uint8)
    for row in range(rows):
        taken[row] = np.frombuffer(data, np.uint8, width, start + row * step)
    return taken


def entropy_bits(counts: npt.NDArray[np.int64]) -> float:
    """Bits a symbol, corrected for a small sample after Miller and Madow."""
    used = counts[counts > 0]
    total = float(used.sum())
    if not total:
        return 0.0
    share = used / total
    return float(-(share * np.log2(share)).sum() + (len(used) - 1) / (2 * np.log(2) * total))


def fit(taken: Bytes2, element: Element, phase: int, *, strict: bool) -> Fit | None:
    """The cost of a sample as floats, or None when they would be no weights.

    Args:
        taken: As `sample` gives it.
        element: A float type.
        phase: Bytes before the first element.
        strict: Nothing says that there are weights at all: ask for both signs, alike.
    """
    width = element.width_bytes
    usable = (taken.shape[1] - (GUARD_BYTES if strict else phase)) // width * width
    if usable < width:
        return None
    words = np.ascontiguousarray(taken[:, phase : phase + usable]).view(f"<u{width}").ravel()
    mantissa = element.mantissa_bits
    exponent_bits = 8 * width - 1 - mantissa
    top = (words >> mantissa).astype(np.int64)
    exponent = top & ((1 << exponent_bits) - 1)
    negative = (top >> exponent_bits).astype(bool)
    nonzero = (words << 1 if width == 8 else words.astype(np.uint64) << (65 - 8 * width)) != 0
    low, high = PLAUSIBLE[element]
    outliers = nonzero & ((exponent < low) | (exponent > high))
    if nonzero.mean() < MIN_NONZERO or outliers.sum() > MAX_OUTLIERS * len(words):
        return None
    if strict and not _alike(exponent[negative], exponent[~negative], low, high):
        return None
    planes = np.ascontiguousarray(words).view(np.uint8).reshape(-1, width)
    bits = entropy_bits(np.bincount(np.clip(exponent, low - 1, high + 1) - low + 1 + (high - low + 3) * negative))
    for plane in range(width):
        kept = min(8, mantissa - 8 * plane)
        if kept > 0:
            bits += entropy_bits(np.bincount(planes[:, plane] & ((1 << kept) - 1), minlength=256))
    return Fit(element, phase, bits / width)


def _alike(negative: npt.NDArray[np.int64], positive: npt.NDArray[np.int64], low: int, high: int) -> bool:
    if min(len(negative), len(positive)) < MIN_SIGN * (len(negative) + len(positive)):
        return False
    size = high - low + 1
    shares = [
        np.bincount(np.clip(each - low, 0, size - 1), minlength=size) / len(each) for each in (negative, positive)
    ]
    return float(np.abs(shares[0] - shares[1]).sum()) / 2 <= MAX_SKEW


def float_run(taken: Bytes2, likely: tuple[Element, int] | None = None) -> tuple[Element, int] | None:
    """The float type and phase of a sample of which nothing is known, or None.

    Args:
        taken: As `sample` gives it.
        likely: Tried first, and enough when it holds: what the neighbour is.
    """
    counts = _byte_counts(taken)
    plain = entropy_bits(counts.sum(axis=0))
    if not SPARSE_BITS <= plain <= NOISE_BITS:
        return None
    if likely is not None:
        same = fit(taken, *likely, strict=True)
        if same is not None and same.bits <= MAX_RATIO * plain:
            return likely
    fits = [
        found
        for element in (Element.F32, Element.F16, Element.BF16)
        for phase in range(element.width_bytes)
        if _possible(counts, element, phase) and (found := fit(taken, element, phase, strict=True)) is not None
    ]
    best = min(fits, key=lambda each: each.rank, default=None)
    return (best.element, best.phase) if best is not None and best.bits <= MAX_RATIO * plain else None


def _byte_counts(taken: Bytes2) -> npt.NDArray[np.int64]:
    """How often each byte stands at each place modulo 4: [4, 256]."""
    place = np.arange(taken.shape[1]) % 4 * 256
    return np.bincount((taken + place).ravel(), minlength=1024).reshape(4, 256)


def _possible(counts: npt.NDArray[np.int64], element: Element, phase: int) -> bool:
    """A cheap look at the byte of sign and exponent alone: rules out nearly all that is no float."""
    top = (phase + element.width_bytes - 1) % 4
    each = counts[top] if element.width_bytes == 4 else counts[top % 2] + counts[top % 2 + 2]
    return bool((each * ~TOPS[element]).sum() <= 2 * MAX_OUTLIERS * each.sum())


def storage(data: memoryview, start: int, length_bytes: int) -> Element:
    """The likely type of a whole storage of which only the span is known. Bytes when nothing fits."""
    taken = sample(data, start, length_bytes)
    if length_bytes % 4 == 0 and not taken.any():
        return Element.F32
    fits = [
        found
        for element in (Element.F32, Element.F16, Element.BF16, Element.F64)
        if length_bytes % element.width_bytes == 0 and (found := fit(taken, element, 0, strict=False)) is not None
    ]
    best = min(fits, key=lambda each: each.rank, default=None)
    return best.element if best is not None else Element.U8
