"""Compressed data as its tokens: a whole deflate stream (RFC 1951) in memory, read and written again.

What is written has the code lengths that zlib and GNU gzip would make. An encoder looks whether that gives the very
bytes; to the applier it is only a way to write.
"""

from typing import Final, NamedTuple

import numpy as np

from protocol.delta.deflate_read import STORED, DeflateReader, Ints
from protocol.delta.deflate_write import BlockWriter
from protocol.errors import Reason, Refused

MOST_TOKENS: Final = 1 << 18  # of one stream: bounds the memory
MOST_BLOCKS: Final = 1 << 10
BLOCK_SHARE: Final = 512  # bytes of a stream for each of its blocks, but for two: their codes are slow to make


class Block(NamedTuple):
    """A run of tokens with codes of their own.

    Args:
        kind: `FIXED` or `DYNAMIC`.
        tokens: How many.
    """

    kind: int
    tokens: int


class Deflated(NamedTuple):
    """A stream.

    Args:
        lengths: Of each token in bytes; 1 is a literal.
        values: The literal's byte, or the distance.
        blocks: In order.
    """

    lengths: Ints
    values: Ints
    blocks: tuple[Block, ...]


def read_deflate(data: bytes) -> tuple[Deflated, int]:
    """Reads a stream without stored blocks.

    Args:
        data: It, and what follows.

    Returns:
        The stream, and its length in bytes.

    Raises:
        Refused: `METADATA`, `LENGTH`, `LIMIT`: none, or one that is not read.
    """
    reader = DeflateReader([data])
    lengths: list[Ints] = []
    values: list[Ints] = []
    blocks: list[Block] = []
    tokens = before = 0
    for part in reader.parts():
        lengths.append(part.lengths)
        values.append(part.values)
        tokens += part.lengths.size
        if part.kind == STORED:
            raise Refused(Reason.METADATA, "compressed data of a kind that is not read")
        if part.ends:
            blocks.append(Block(part.kind, tokens - before))
            before = tokens
        if tokens > MOST_TOKENS or len(blocks) > min(MOST_BLOCKS, 2 + len(data) // BLOCK_SHARE):
            raise Refused(Reason.LIMIT, "compressed data of too many tokens")
    stream = Deflated(np.concatenate(lengths).astype(np.int32), np.concatenate(values).astype(np.int32), tuple(blocks))
    return stream, reader.bytes_read


def write_deflate(stream: Deflated) -> bytes:
    """Writes a stream, each block with the codes that follow from its tokens."""
    writer = BlockWriter()
    at = 0
    for number, block in enumerate(stream.blocks):
        some = slice(at, at + block.tokens)
        at += block.tokens
        writer.write(block.kind, stream.lengths[some], stream.values[some], last=number == len(stream.blocks) - 1)
    return writer.finish()
