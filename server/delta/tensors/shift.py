"""Finds where weights moved to, when nothing in the file tells: by their signs, which training seldom turns.

One cross-correlation of the signs looks at all places of a window at once.
"""

import numpy as np
import numpy.typing as npt

from server.delta.tensors.found import Element

PROBE = 2048  # elements that are looked for
REACH = 1 << 18  # elements to each side that they are looked for in: a few hundredths of a second
MIN_AGREEMENT = 0.3  # of the probe, signs equal minus signs turned; chance reaches 0.12 in so many places


def find_shift(old: memoryview, around: int, new: memoryview, at: int, element: Element) -> int | None:
    """How many bytes the weights of the new file at `at` have to move to meet themselves in the old one.

    Args:
        old: The base.
        around: Where in the base they are expected; whole elements from where they really are.
        new: The result.
        at: Where in the result the weights begin; 2048 of them have to follow.
        element: A float type.

    Returns:
        Old offset minus new offset, or None when the signs agree nowhere.
    """
    width = element.width_bytes
    count = min(PROBE, (len(new) - at) // width)
    low = max(around % width, around - REACH * width)
    size = (min(len(old), around + (REACH + count) * width) - low) // width
    if count < PROBE or size < count:
        return None
    probe = _signs(new, at, count, width)
    window = _signs(old, low, size, width)
    length = 1 << (size + count).bit_length()
    spectrum = np.fft.rfft(window, length) * np.conj(np.fft.rfft(probe, length))
    agreement = np.fft.irfft(spectrum, length)[: size - count + 1]
    best = int(agreement.argmax())
    return low + best * width - at if agreement[best] >= MIN_AGREEMENT * count else None


def _signs(data: memoryview, at: int, count: int, width: int) -> npt.NDArray[np.float32]:
    """1 or -1 for each element; little-endian, so that the sign stands in the last byte."""
    top = np.frombuffer(data, np.uint8, count * width, at)[width - 1 :: width]
    return np.where(top & 128, np.float32(-1), np.float32(1))
