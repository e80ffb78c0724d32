"""Codes bytes as a stream of raw LZMA, as short as it can be made."""

import lzma
from itertools import count
from typing import Final

from protocol.delta.streams import lzma_filter

TRIMMED_BYTES: Final = 1 << 18  # up to here the dozen bytes at a stream's end are worth looking for


def compress_lzma(data: bytes, lc: int, lp: int, pb: int) -> bytes:
    """The byte of properties and the stream behind it.

    Args:
        data: What is coded.
        lc: Bits of the byte before that literals are told apart by.
        lp: Bits of the place likewise.
        pb: Bits of the place that all else is told apart by.
    """
    properties = (pb * 5 + lp) * 9 + lc
    filters = lzma_filter(properties, len(data))
    strong = filters[0] | {"preset": 9 | lzma.PRESET_EXTREME}
    coded = lzma.compress(data, format=lzma.FORMAT_RAW, filters=[strong])
    return bytes([properties]) + _without_end(coded, data, filters)


def _without_end(coded: bytes, data: bytes, filters: list[dict[str, int]]) -> bytes:
    """Cuts what the decoder does not need to give all bytes: the end marker and the coder's last flush."""
    for cut in count(1) if len(data) <= TRIMMED_BYTES else ():
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
        try:
            whole = decoder.decompress(coded[:-cut], max_length=len(data)) == data
        except (lzma.LZMAError, EOFError):
            whole = False
        if not whole:
            return coded[: len(coded) - cut + 1]
    return coded
