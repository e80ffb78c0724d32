"""The writing side of `protocol.delta.edits`."""

import numpy as np

from protocol.delta.edits import CHUNK_BYTES, Edits
from server.delta.numbers import NumberWriter


def encode_edits(reference: bytes, data: bytes) -> bytes:
    """Codes bytes by the few that are not those of the base.

    Args:
        reference: Bytes of the base.
        data: As many new ones.
    """
    numbers = NumberWriter()
    edits = Edits(numbers)
    old, new = np.frombuffer(reference, np.uint8), np.frombuffer(data, np.uint8)
    for at in range(0, len(data), CHUNK_BYTES):
        edits.code(old[at : at + CHUNK_BYTES], new[at : at + CHUNK_BYTES])
    return numbers.finish()
