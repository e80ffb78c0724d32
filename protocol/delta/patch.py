"""The container of a patch: groups in a row, the index of its segments, and the file that the command line writes.

A **group** is what is applied at once: it needs nothing but the base and its own bytes, so a cut redoes at most the
open one. A **segment** is what is fetched and hashed at once: a fixed run of payload bytes, whatever groups lie in it.
No decoder sees a group before the hashes of all its segments held.
"""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.ids import Length
from protocol.transfer import Sha256Bytes
from protocol.wire import Message, unpack

CODEC: Final = 1
"""The version of the codec, in the first byte of each group. A patch is offered to agents that say they apply it."""
CODEC_BITS: Final = 3  # of that byte; the others are the number of streams

BEHIND: Final = 3
CODE: Final = 16  # the kinds of streams that `held_bytes` tells apart; the others stand in `streams`
EDITS: Final = 32
MAGIC: Final = b"HLD1"
INDEXED_MAGIC: Final = b"HLDI"  # the length of the index and the index follow the prefixes
DIGEST_PREFIX_BYTES: Final = 4  # in a patch file, against mistakes; the signed plan carries the whole digests
PATCH_HEAD_BYTES: Final = 64  # more than what stands before the index of a patch file


class PatchIndex(Message):
    """What the plan signs of a patch of more than 1 MiB: the hash of each segment, the last of which may be shorter."""

    format: Literal[2]
    output_bytes: Length
    payload_bytes: Length
    segment_bytes: Literal[262144]
    segments: Annotated[tuple[Sha256Bytes, ...], msgspec.Meta(max_length=limits.PATCH_SEGMENTS)]


def parse_patch_index(data: bytes, output_bytes: int, payload_bytes: int) -> PatchIndex:
    """Reads an index whose hash was checked before, and holds it against the signed lengths.

    Raises:
        Refused: `METADATA`, `LENGTH`: malformed, or it does not add up to the signed lengths.
    """
    index = unpack(data, PatchIndex, limit=limits.INDEX_BYTES)
    if index.output_bytes != output_bytes or index.payload_bytes != payload_bytes:
        raise Refused(Reason.LENGTH, f"a patch index for {index.output_bytes} bytes where {output_bytes} are signed")
    if len(index.segments) != -(-payload_bytes // index.segment_bytes):
        raise Refused(Reason.LENGTH, f"a patch index of {len(index.segments)} segments for {payload_bytes} bytes")
    return index


def read_patch_index(data: bytes) -> PatchIndex:
    """Reads the index of a patch file, which no plan signed lengths for.

    Raises:
        Refused: `METADATA`, `LENGTH`, `LIMIT`: malformed, or for more than any artifact has.
    """
    index = unpack(data, PatchIndex, limit=limits.INDEX_BYTES)
    if index.output_bytes > limits.ARTIFACT_BYTES:
        raise Refused(Reason.LIMIT, f"a patch for {index.output_bytes} bytes")
    return index


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream of a group, as its header describes it.

    Args:
        kind: How it is coded: see `protocol.delta.streams`.
        length_bytes: Decoded.
        coded_bytes: As it travels.
    """

    kind: int
    length_bytes: int
    coded_bytes: int


@dataclass(frozen=True, slots=True)
class GroupHeader:
    """The beginning of a group.

    Args:
        header_bytes: Length of the header itself.
        group_bytes: Length of the whole group, header included.
        output_bytes: What applying it gives.
        control_bytes: The coded operations, right behind the header; the streams follow in order.
        streams: What the operations take from.
    """

    header_bytes: int
    group_bytes: int
    output_bytes: int
    control_bytes: int
    streams: tuple[Stream, ...]


def read_group_header(data: bytes) -> GroupHeader | None:
    """The header of the group that begins with `data`, or None when more bytes are needed to tell.

    Raises:
        Refused: `LIMIT`, `METADATA`: another codec version, or a bound that is broken.
    """
    if not data:
        return None
    count, version = divmod(data[0], 1 << CODEC_BITS)
    if version != CODEC:
        raise Refused(Reason.METADATA, f"a patch of codec version {version}; this agent applies version {CODEC}")
    try:
        at = 1
        output_bytes, at = read_varint(data, at)
        control_bytes, at = read_varint(data, at)
        if not 0 < output_bytes <= limits.GROUP_OUTPUT_BYTES or control_bytes > limits.GROUP_CONTROL_BYTES:
            raise Refused(Reason.LIMIT, f"a group of {output_bytes} bytes with {control_bytes} bytes of operations")
        streams = []
        for _ in range(count):
            kind, at = read_varint(data, at)
            length_bytes, at = read_varint(data, at)
            coded_bytes, at = read_varint(data, at)
            streams.append(Stream(kind, length_bytes, coded_bytes))
    except IndexError:
        return None
    if sum(held_bytes(stream.kind, stream.length_bytes) for stream in streams) > limits.GROUP_CODED_BYTES:
        raise Refused(Reason.LIMIT, "a group whose streams give more than its bound")
    group_bytes = at + control_bytes + sum(stream.coded_bytes for stream in streams)
    if group_bytes > limits.GROUP_PAYLOAD_BYTES:
        raise Refused(Reason.LIMIT, f"a group of {group_bytes} payload bytes")
    return GroupHeader(at, group_bytes, output_bytes, control_bytes, tuple(streams))


def held_bytes(kind: int, length_bytes: int) -> int:
    """What a stream counts for in a group.

    Changed code is coded by what its group knows of how addresses moved, and takes hardly more memory than itself: it
    gets more room. So do few changes, which it may be coded as. What is coded behind bytes of the base holds those too.

    Args:
        kind: Of the stream.
        length_bytes: Decoded.
    """
    if kind == BEHIND:
        return -(-3 * length_bytes // 2)
    return -(-3 * length_bytes // 4) if kind in (CODE, EDITS) else length_bytes


def write_group(output_bytes: int, control: bytes, streams: list[tuple[int, int, bytes]]) -> bytes:
    """Puts a group together.

    Args:
        output_bytes: What it gives.
        control: The coded operations.
        streams: For each its kind, decoded length and coded bytes.
    """
    head = bytearray([CODEC | len(streams) << CODEC_BITS])
    head += varint(output_bytes) + varint(len(control))
    for kind, length_bytes, coded in streams:
        head += varint(kind) + varint(length_bytes) + varint(len(coded))
    return b"".join((head, control, *(coded for _, _, coded in streams)))


@dataclass(frozen=True, slots=True)
class PatchFile:
    """The head of a patch file.

    Args:
        base_prefix: The first bytes of the base's sha256.
        output_prefix: The first bytes of the result's sha256.
        index: The exact bytes of the index, empty for a payload of at most 1 MiB.
        payload_offset: Where the payload begins in the file; it runs to the end.
    """

    base_prefix: bytes
    output_prefix: bytes
    index: bytes
    payload_offset: int


def write_patch_head(base_sha256: bytes, output_sha256: bytes, index: bytes) -> bytes:
    """What stands before the payload in a patch file. Hashes are raw, 32 bytes."""
    prefixes = base_sha256[:DIGEST_PREFIX_BYTES] + output_sha256[:DIGEST_PREFIX_BYTES]
    return INDEXED_MAGIC + prefixes + varint(len(index)) + index if index else MAGIC + prefixes


def patch_head_bytes(data: bytes) -> int:
    """How long the head of a patch file is, index included.

    Args:
        data: The beginning of the file: `PATCH_HEAD_BYTES`, or all of it.

    Raises:
        Refused: `METADATA`, `LENGTH`, `LIMIT`: no patch file, or a torn one.
    """
    return _bounds_of_index(data)[1]


def read_patch_head(data: bytes) -> PatchFile:
    """Reads the head of a patch file.

    Args:
        data: The beginning of the file: at least `patch_head_bytes`.

    Raises:
        Refused: `METADATA`, `LENGTH`, `LIMIT`: no patch file, or a torn one.
    """
    index_at, end = _bounds_of_index(data)
    if len(data) < end:
        raise Refused(Reason.LENGTH, "the patch file ends in its head")
    middle = len(MAGIC) + DIGEST_PREFIX_BYTES
    prefixes = data[len(MAGIC) : middle], data[middle : middle + DIGEST_PREFIX_BYTES]
    return PatchFile(*prefixes, data[index_at:end], end)


def _bounds_of_index(data: bytes) -> tuple[int, int]:
    """Where the index begins and where it ends: at once when there is none."""
    at = len(MAGIC) + 2 * DIGEST_PREFIX_BYTES
    if data[: len(MAGIC)] == MAGIC:
        return at, at
    if data[: len(MAGIC)] != INDEXED_MAGIC:
        raise Refused(Reason.METADATA, "this is no patch file", hint="make one with `scripts/delta encode`")
    try:
        index_bytes, at = read_varint(data, at)
    except IndexError:
        raise Refused(Reason.LENGTH, "the patch file ends in its head") from None
    if not 0 < index_bytes <= limits.INDEX_BYTES:
        raise Refused(Reason.LIMIT, f"a patch file with an index of {index_bytes} bytes")
    return at, at + index_bytes


def varint(number: int) -> bytes:
    """LEB128, unsigned."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, of at most nine bytes, and the offset behind it.

    Raises:
        IndexError: `data` ends in it.
        Refused: `LIMIT`: it has more than nine bytes.
    """
    number = 0
    for shift in range(0, 63, 7):
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise Refused(Reason.LIMIT, "a number of more than nine bytes")
