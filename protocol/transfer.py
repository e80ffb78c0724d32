"""Segments: how a large payload is cut so that a dropped link costs at most one of them.

The payload is the concatenation of segments, each an independent zstd frame of at most 1 MiB of output (the last one
may be shorter). The index names length and sha256 of each segment's compressed bytes and the sha256 of its output; its
own hash is signed in the plan. No decoder gets a byte before its segment's hash held.
"""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
import zstandard

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.wire import Message, unpack

Sha256Bytes = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Segment(Message, array_like=True):
    """One entry of the index."""

    payload_bytes: Annotated[int, msgspec.Meta(ge=1, le=limits.SEGMENT_PAYLOAD_BYTES)]
    payload_sha256: Sha256Bytes
    output_sha256: Sha256Bytes


class SegmentIndex(Message):
    """The whole index. All segments but the last give exactly `segment_bytes` of output."""

    format: Literal[1]
    output_bytes: Annotated[int, msgspec.Meta(ge=0, le=limits.ARTIFACT_BYTES)]
    segment_bytes: Literal[1048576]
    segments: tuple[Segment, ...]

    def offset(self, number: int) -> int:
        """Where segment `number` begins in the payload, in bytes. `len(segments)` gives the payload's length."""
        return sum(segment.payload_bytes for segment in self.segments[:number])

    def output_length(self, number: int) -> int:
        """The output of segment `number`, in bytes."""
        return min(self.segment_bytes, self.output_bytes - number * self.segment_bytes)


def parse_index(data: bytes, output_bytes: int, payload_bytes: int) -> SegmentIndex:
    """Reads an index whose hash was checked before, and holds it against the signed lengths.

    Raises:
        Refused: `METADATA`, `LENGTH`: malformed, or it does not add up to the signed lengths.
    """
    index = unpack(data, SegmentIndex, limit=limits.INDEX_BYTES)
    count = -(-index.output_bytes // index.segment_bytes)
    if index.output_bytes != output_bytes or len(index.segments) != count:
        raise Refused(Reason.LENGTH, f"an index for {index.output_bytes} bytes where {output_bytes} are signed")
    if index.offset(count) != payload_bytes:
        raise Refused(
            Reason.LENGTH, f"an index of {index.offset(count)} payload bytes where {payload_bytes} are signed"
        )
    return index


def open_segment(index: SegmentIndex, number: int, payload: bytes) -> bytes:
    """As `decode_segment`, and the output is held against the index, too: for one who hashes no whole.

    Raises:
        Refused: As `decode_segment`; `HASH` also for the output.
    """
    output = decode_segment(index, number, payload)
    if hashlib.sha256(output).digest() != index.segments[number].output_sha256:
        raise Refused(Reason.HASH, f"segment {number}: its output has another hash than the signed index's")
    return output


def decode_segment(index: SegmentIndex, number: int, payload: bytes | memoryview) -> bytes:
    """The output of segment `number`, of the length that it must have.

    Args:
        index: The verified index.
        number: From 0.
        payload: The segment's compressed bytes, not yet trusted.

    Raises:
        Refused: `HASH` before any decoder sees the bytes; `LENGTH` or `LIMIT` when they decode to something else.
    """
    segment = index.segments[number]
    if len(payload) != segment.payload_bytes or hashlib.sha256(payload).digest() != segment.payload_sha256:
        raise Refused(Reason.HASH, f"segment {number}: {len(payload)} bytes with another hash than the signed index's")
    return decompress(payload, index.output_length(number))


def decompress(payload: bytes | memoryview, output_bytes: int, before: bytes = b"") -> bytes:
    """Decodes one zstd frame that must give exactly `output_bytes`, in bounded memory, whatever its header claims.

    Args:
        payload: The frame.
        output_bytes: What it must give.
        before: What stands before the output for matches to reach back to: a dictionary without a structure.

    Raises:
        Refused: `LIMIT` or `LENGTH`.
    """
    try:
        known = zstandard.ZstdCompressionDict(before, zstandard.DICT_TYPE_RAWCONTENT) if before else None
        decompressor = zstandard.ZstdDecompressor(known, max_window_size=limits.ZSTD_WINDOW_BYTES)
        with decompressor.stream_reader(payload, read_across_frames=False) as reader:
            output = reader.read(output_bytes + 1)
    except zstandard.ZstdError as error:
        raise Refused(Reason.LIMIT, f"compressed bytes that no decoder within bounds reads: {error}") from error
    if len(output) != output_bytes:
        raise Refused(Reason.LENGTH, f"compressed bytes that give another length than the signed {output_bytes}")
    return output


def cut(chunks: Iterator[bytes], level: int = 19) -> Iterator[tuple[bytes, Segment]]:
    """Cuts an output stream into compressed segments with their index entries.

    Args:
        chunks: The output, each chunk of exactly 1 MiB but for the last.
        level: Of zstd; the window never exceeds the segment.
    """
    compressor = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    for chunk in chunks:
        payload = compressor.compress(chunk)
        yield (
            payload,
            Segment(
                payload_bytes=len(payload),
                payload_sha256=hashlib.sha256(payload).digest(),
                output_sha256=hashlib.sha256(chunk).digest(),
            ),
        )
