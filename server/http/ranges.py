"""The Range header: one range of bytes or none. Pure.

What we do not understand is answered 416 rather than with the whole: a machine on a metered link asked for a piece.
"""

import re
from typing import Final

_RANGE: Final = re.compile(r"^bytes=([0-9]{0,19})-([0-9]{0,19})\Z")


class UnsatisfiableRangeError(ValueError):
    """Not one range within the blob."""


def parse_range(header: str, length_bytes: int) -> tuple[int, int]:
    """Reads `bytes=A-B`, `bytes=A-` or `bytes=-N`.

    Args:
        header: As it came.
        length_bytes: Of the whole blob.

    Returns:
        The first byte, and how many.

    Raises:
        UnsatisfiableRangeError: Anything else, several ranges, or none of it lies within the blob.
    """
    found = _RANGE.match(header.strip())
    if found is None:
        raise UnsatisfiableRangeError(header)
    first_text, last_text = found.groups()
    if not first_text:
        if not last_text or int(last_text) == 0:
            raise UnsatisfiableRangeError(header)
        count = min(int(last_text), length_bytes)
        if not count:
            raise UnsatisfiableRangeError(header)
        return length_bytes - count, count
    first = int(first_text)
    last = min(int(last_text) if last_text else length_bytes - 1, length_bytes - 1)
    if first >= length_bytes or last < first:
        raise UnsatisfiableRangeError(header)
    return first, last - first + 1
