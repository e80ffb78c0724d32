"""Text that is coded behind that of the base: for files of which many changed alike, or hold the same new text.

Exact runs of the base and what is new between them are cheapest where files changed on their own. Where the same change
stands in many files, as in the builds of a package for several runtimes or under a new licence, each file pays for it
anew. A compressor that sees both the old text and the new one so far pays once.
"""

import lzma
from collections.abc import Iterator
from typing import Final

import zstandard

from protocol import limits
from server.delta.pieces import How, Piece

WINDOW_BITS: Final = 23
BATCH_BYTES: Final = 5 * limits.MIB // 2  # about what one group holds beside other streams
MOST_BYTES: Final = 64 * limits.MIB  # of text that is tried: half a second a megabyte
OPERATION_BYTES: Final = 1.6  # a run or new text of a file cut into many
WORTH: Final = 0.97
LEAST_SAVED_BYTES: Final = 64
LONG_BYTES: Final = 512  # of a run that tells where in the old text the new one stands
TEXTS: Final = frozenset({How.COPY, How.TEXT})


def compress_behind(reference: bytes, data: bytes) -> bytes:
    """One zstd frame whose matches reach into the reference.

    Args:
        reference: Bytes of the base.
        data: What is coded.
    """
    known = zstandard.ZstdCompressionDict(reference, zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, source_size=len(reference) + len(data), window_log=WINDOW_BITS, write_checksum=False
    )
    return zstandard.ZstdCompressor(dict_data=known, compression_params=parameters).compress(data)


def behind_the_base(pieces: list[Piece], old: memoryview, new: memoryview) -> list[Piece]:
    """The pieces with changed text coded behind that of the base, where all of that is estimated to be cheaper.

    Args:
        pieces: All of the new file.
        old: The base.
        new: The result.
    """
    texts = list(_texts(pieces))
    total = sum(piece.length for first, last, _ in texts for piece in pieces[first:last])
    if not texts or total > MOST_BYTES:
        return pieces
    joined = [list(_joined(pieces[first:last], len(old))) for first, last, _ in texts]
    if any(not each for each in joined):
        return pieces
    count = sum(last - first for first, last, _ in texts)
    written = b"".join(
        new[at : at + piece.length]
        for first, last, start in texts
        for at, piece in _placed(pieces[first:last], start)
        if piece.how is How.TEXT
    )
    apart = OPERATION_BYTES * count + len(lzma.compress(written, lzma.FORMAT_ALONE, preset=6))
    together = OPERATION_BYTES * sum(map(len, joined)) + _estimate(joined, [start for _, _, start in texts], old, new)
    if together > WORTH * apart - LEAST_SAVED_BYTES:
        return pieces
    out: list[Piece] = []
    done = 0
    for (first, last, _), others in zip(texts, joined, strict=True):
        out += pieces[done:first] + others
        done = last
    return out + pieces[done:]


def _placed(pieces: list[Piece], at: int) -> Iterator[tuple[int, Piece]]:
    for piece in pieces:
        yield at, piece
        at += piece.length


def _texts(pieces: list[Piece]) -> Iterator[tuple[int, int, int]]:
    """Runs of pieces that are a changed text, or one that is new: from, to, and the offset in the new file."""
    at = start = first = 0
    written = False
    for index, piece in enumerate([*pieces, Piece(How.FILL, 0)]):
        if piece.how not in TEXTS:
            if written:
                yield first, index, start
            first, start, written = index + 1, at + piece.length, False
        written = written or piece.how is How.TEXT
        at += piece.length


def _joined(pieces: list[Piece], old_bytes: int) -> Iterator[Piece]:
    """One piece for a text, or several where much of the old one was left out; nothing where the base is too short."""
    whole = sum(piece.length for piece in pieces)
    copies = [(at, piece) for at, piece in _placed(pieces, 0) if piece.how is How.COPY]
    start = 0
    base = copies[0][1].base - copies[0][0] if copies else 0
    for at, piece in copies:
        left_out = at > start and piece.base + piece.length > base + whole - start
        if left_out and piece.length >= LONG_BYTES:
            yield from _inside(at - start, base, old_bytes)
            start, base = at, piece.base
    yield from _inside(whole - start, base, old_bytes)


def _inside(length: int, base: int, old_bytes: int) -> Iterator[Piece]:
    if length <= old_bytes:
        yield Piece(How.BEHIND, length, min(max(0, base), old_bytes - length))


def _estimate(joined: list[list[Piece]], starts: list[int], old: memoryview, new: memoryview) -> int:
    """Bytes that the texts take, as many at a time as a group may hold."""
    coded = 0
    reference, data = bytearray(), bytearray()
    for pieces, start in zip(joined, starts, strict=True):
        for at, piece in _placed(pieces, start):
            reference += old[piece.base : piece.base + piece.length]
            data += new[at : at + piece.length]
            if len(data) >= BATCH_BYTES:
                coded += len(compress_behind(bytes(reference), bytes(data)))
                reference, data = bytearray(), bytearray()
    return coded + (len(compress_behind(bytes(reference), bytes(data))) if data else 0)
