"""Codes bytes by their plain differences from those of the base, regrouped by the stride that a sample says is best."""

from typing import Final

import numpy as np

from protocol.delta.planes import Bytes, to_planes
from server.delta.lzma_stream import compress_lzma

STRIDES: Final = (1, 2, 4, 8, 18, 34)  # numbers of so many bytes; blocks of GGUF's q4_0 and q8_0
SAMPLE_BYTES: Final = 1 << 16  # from the middle
WORTH: Final = 1.05  # what a sample may take more than its share of another way, for that to be tried on all of it
PROPERTIES: Final = 3, 0, 0  # of LZMA: others give a hundredth, and take as long again
OF_NOISE: Final = 4, 0, 0  # where what changed is like nothing: then a sample of one plane tells


def encode_planes(reference: bytes, data: bytes) -> bytes:
    """The stream.

    Args:
        reference: Bytes of the base.
        data: As many new ones.
    """
    differences = np.frombuffer(data, np.uint8) - np.frombuffer(reference, np.uint8)
    sample = _sample(differences)
    stride, sample_bytes = _best_stride(sample)
    is_noise = stride == 1 and len(compress_lzma(sample.tobytes(), *OF_NOISE)) < sample_bytes
    properties = OF_NOISE if is_noise else PROPERTIES
    return bytes([stride]) + compress_lzma(to_planes(differences, stride), *properties)


def may_be_shorter(reference: bytes, data: bytes, coded_bytes: int) -> bool:
    """Whether a sample says that the stream may take fewer bytes than another way does.

    Args:
        reference: Bytes of the base.
        data: As many new ones.
        coded_bytes: What the other way takes.
    """
    differences = _sample(np.frombuffer(data, np.uint8) - np.frombuffer(reference, np.uint8))
    return _best_stride(differences)[1] * len(data) < WORTH * coded_bytes * differences.size


def _sample(differences: Bytes) -> Bytes:
    first = max(0, differences.size - SAMPLE_BYTES) // 2
    return differences[first : first + SAMPLE_BYTES]


def _best_stride(sample: Bytes) -> tuple[int, int]:
    """The stride, and what the sample takes with it."""
    sizes = {stride: len(compress_lzma(to_planes(sample, stride), *PROPERTIES)) for stride in STRIDES}
    stride = min(STRIDES, key=lambda each: sizes[each])
    return stride, sizes[stride]
