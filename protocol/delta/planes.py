"""Streams of bytes that are those of the base plus a difference: numbers of types that have no better model.

| part | bytes |
|---|---|
| stride | 1 byte, at least 1: a plane is the differences of every so many-th byte |
| planes | as a stream of LZMA: plane 0, plane 1, ...; at the end what is left over, fewer bytes than the stride |

Differences are modulo 256. A block of a quantised tensor has its scale and its numbers at the same places as the next.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from protocol.errors import Reason, Refused

Bytes = npt.NDArray[np.uint8]


def to_planes(differences: Bytes, stride: int) -> bytes:
    """Puts the planes behind one another.

    Args:
        differences: In the order of the bytes.
        stride: Of a plane, in bytes.
    """
    whole = differences.size - differences.size % stride
    return differences[:whole].reshape(-1, stride).T.tobytes() + differences[whole:].tobytes()


def open_planes(stride: int, planes: bytes, references: Iterable[bytes]) -> bytearray:
    """Decodes a stream.

    Args:
        stride: Of a plane, in bytes.
        planes: All differences.
        references: The old bytes, as many.

    Raises:
        Refused: `METADATA`, `LENGTH`: that cannot be.
    """
    if not stride:
        raise Refused(Reason.METADATA, "planes of every 0th byte")
    output = bytearray(len(planes))
    made = np.frombuffer(output, np.uint8)
    told = np.frombuffer(planes, np.uint8)
    whole = told.size - told.size % stride
    made[:whole].reshape(-1, stride)[:] = told[:whole].reshape(stride, -1).T
    made[whole:] = told[whole:]
    at = 0
    for reference in references:
        if at + len(reference) > made.size:
            raise Refused(Reason.LENGTH, "a stream of differences that is shorter than what it is made from")
        made[at : at + len(reference)] += np.frombuffer(reference, np.uint8)
        at += len(reference)
    if at != made.size:
        raise Refused(Reason.LENGTH, "a stream of differences that is longer than what it is made from")
    return output
