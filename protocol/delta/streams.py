"""The streams of a group: how each kind is decoded.

| kind | name | coded bytes |
|---|---|---|
| 0 | stored | as they are |
| 1 | zstd | one frame |
| 2 | lzma | one byte of properties `(pb * 5 + lp) * 9 + lc`, then raw LZMA, which may end without its end marker |
| 3 | zstd behind the base | one frame, its dictionary are as many bytes of the base |
| 4, 5, 6 | float difference | `protocol.delta.floats`: fp32, fp16, bf16 made from those of the base |
| 7 | int8 difference | `protocol.delta.integers`: 8-bit integers made from those of the base |
| 8, 9, 10 | float alone | `protocol.delta.alone`: fp32, fp16, bf16 |
| 11 | int32 difference | `protocol.delta.floats`, as floats that have no exponent |
| 12 | planes | `protocol.delta.planes`: byte differences from the base |
| 16 | code | `protocol.delta.code`: machine code and other bytes that resemble the base |
| 32 | edits | `protocol.delta.edits`: bytes of the base with few changes, by numbers |
| 33 | deflated | `protocol.delta.deflated`: gzip members made from the tokens of older ones |
"""

import lzma
from collections.abc import Iterator
from itertools import chain
from typing import Final, Protocol

from protocol import limits
from protocol.delta.addresses import Places
from protocol.delta.alone import open_alone
from protocol.delta.code import open_code
from protocol.delta.deflated import members_of, open_deflated
from protocol.delta.edits import open_edits
from protocol.delta.floats import open_differences
from protocol.delta.integers import open_integers
from protocol.delta.lowrank import BF16, F16, F32, I32
from protocol.delta.patch import BEHIND, CODE, EDITS
from protocol.delta.planes import open_planes
from protocol.errors import Reason, Refused
from protocol.transfer import decompress

STORED: Final = 0
ZSTD: Final = 1
LZMA: Final = 2
F32_DIFFERENCE: Final = 4
F16_DIFFERENCE: Final = 5
BF16_DIFFERENCE: Final = 6
I8_DIFFERENCE: Final = 7
F32_ALONE: Final = 8
F16_ALONE: Final = 9
BF16_ALONE: Final = 10
I32_DIFFERENCE: Final = 11
PLANES: Final = 12
DEFLATED: Final = 33

DIFFERENCES: Final = {F32_DIFFERENCE: F32, F16_DIFFERENCE: F16, BF16_DIFFERENCE: BF16, I32_DIFFERENCE: I32}
ALONE: Final = {F32_ALONE: F32, F16_ALONE: F16, BF16_ALONE: BF16}

_NAMES: Final = {
    STORED: "stored",
    ZSTD: "zstd",
    LZMA: "lzma",
    BEHIND: "zstd behind the base",
    F32_DIFFERENCE: "fp32 difference",
    F16_DIFFERENCE: "fp16 difference",
    BF16_DIFFERENCE: "bf16 difference",
    I8_DIFFERENCE: "int8 difference",
    I32_DIFFERENCE: "int32 difference",
    F32_ALONE: "fp32 alone",
    F16_ALONE: "fp16 alone",
    BF16_ALONE: "bf16 alone",
    PLANES: "byte difference",
    CODE: "code",
    EDITS: "edits",
    DEFLATED: "deflated",
}


def kind_name(kind: int) -> str:
    """What people call a kind of stream."""
    return _NAMES.get(kind, f"kind {kind}")


class References(Protocol):
    """The bytes of the base that a stream's operations name, one behind the other."""

    def read(self) -> Iterator[bytes]:
        """All of them, in pieces of at most 1 MiB."""
        ...

    def places(self) -> Places:
        """Where the group's operations read the base and where they write, this stream's marked."""
        ...

    def at(self, offset: int, length: int) -> bytes:
        """Bytes of the base.

        Raises:
            Refused: `LIMIT`: they lie outside.
        """
        ...


def takes_base(kind: int) -> bool:
    """Whether a stream of this kind is made from bytes of the base, as many as it gives."""
    return kind in (BEHIND, I8_DIFFERENCE, PLANES, CODE, EDITS, DEFLATED) or kind in DIFFERENCES


def open_stream(
    kind: int, coded: memoryview, length_bytes: int, references: References
) -> bytes | bytearray | memoryview:
    """Decodes a stream.

    Args:
        kind: Of the stream.
        coded: Its bytes, whose hash was checked.
        length_bytes: What it must give.
        references: For the kinds that are made from bytes of the base.

    Raises:
        Refused: `LENGTH`, `LIMIT`, `METADATA`.
    """
    match kind:
        case 0:
            output: bytes | bytearray | memoryview = bytes(coded)
        case 1:
            return decompress(bytes(coded), length_bytes)
        case 2:
            output = _open_lzma(coded, length_bytes)
        case 3:
            return decompress(bytes(coded), length_bytes, b"".join(references.read()))
        case 4 | 5 | 6 | 11:
            twice = (references.read(), references.read())
            return _filled(open_differences(DIFFERENCES[kind], coded, length_bytes, twice), length_bytes)
        case 7:
            return _filled(open_integers(coded, length_bytes, references.read()), length_bytes)
        case 8 | 9 | 10:
            return _filled(open_alone(ALONE[kind], coded, length_bytes), length_bytes)
        case 12:
            if not coded:
                raise Refused(Reason.LENGTH, "a stream of planes without its stride")
            output = open_planes(coded[0], _open_lzma(coded[1:], length_bytes), references.read())
        case 16:
            output = open_code(coded, length_bytes, references.read(), references.places())
        case 32:
            output = open_edits(bytes(coded), references.read())
        case 33:
            output = open_deflated(bytes(coded), members_of(references.places()), references.at)
        case _:
            raise Refused(Reason.METADATA, f"a stream of unknown kind {kind}")
    if len(output) != length_bytes:
        raise Refused(Reason.LENGTH, f"a stream gives {len(output)} bytes where {length_bytes} are said")
    return output


def _filled(pieces: Iterator[bytes], length_bytes: int) -> bytearray:
    """The pieces put together in place: joining them would hold them twice.

    There is room for them only when the first is there: what had to be held to begin is gone by then.
    """
    first = next(pieces, b"")
    output = bytearray(length_bytes)
    at = 0
    for piece in chain((first,), pieces):
        if at + len(piece) > length_bytes:
            raise Refused(Reason.LENGTH, f"a stream gives more than the {length_bytes} bytes that are said")
        output[at : at + len(piece)] = piece
        at += len(piece)
    if at != length_bytes:
        raise Refused(Reason.LENGTH, f"a stream gives {at} bytes where {length_bytes} are said")
    return output


def lzma_filter(properties: int, length_bytes: int) -> list[dict[str, int]]:
    """The filter chain of raw LZMA.

    Args:
        properties: `(pb * 5 + lp) * 9 + lc`.
        length_bytes: Of what is coded: the dictionary is as long, within its bound.

    Raises:
        Refused: `METADATA`.
    """
    lc, rest = properties % 9, properties // 9
    lp, pb = rest % 5, rest // 5
    if pb > 4 or lc + lp > 4:
        raise Refused(Reason.METADATA, f"LZMA properties {properties}")
    dict_size = min(max(4096, length_bytes), limits.GROUP_CODED_BYTES)
    return [{"id": lzma.FILTER_LZMA1, "lc": lc, "lp": lp, "pb": pb, "dict_size": dict_size}]


def _open_lzma(coded: memoryview, length_bytes: int) -> bytes:
    if not coded:
        raise Refused(Reason.LENGTH, "an LZMA stream without its properties")
    try:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=lzma_filter(coded[0], length_bytes))
        return decoder.decompress(coded[1:], max_length=length_bytes)
    except (lzma.LZMAError, EOFError) as error:
        raise Refused(Reason.LIMIT, f"an LZMA stream that cannot be decoded: {error}") from error
