"""Groups that take as long as the bounds allow, for what they give. `python -m tests.unit.protocol.delta.slow_groups`
measures them in full size: the figures in the codec's page are from it.
"""

import random
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np

from protocol import limits
from protocol.delta.addresses import find_places
from protocol.delta.apply import apply_group
from protocol.delta.code import code_blocks, code_lanes
from protocol.delta.code_words import WordModel
from protocol.delta.deflate import Block, Deflated, read_deflate, write_deflate
from protocol.delta.deflate_read import FIXED
from protocol.delta.deflated import (
    LEAST_OLD,
    LEAST_SAID,
    OLD_SHARE,
    TRAILER_BYTES,
    Step,
    code_member,
    code_old_length,
)
from protocol.delta.edits import CHUNK_BYTES, Edits
from protocol.delta.integers import BySize, blocks, code_block
from protocol.delta.lanes import Contexts, Symbols, Table
from protocol.delta.operations import FILL, TAKE, Operation, Place, code_operation
from protocol.delta.patch import CODE, EDITS, varint, write_group
from protocol.delta.streams import DEFLATED, I8_DIFFERENCE, takes_base
from protocol.delta.tar import HEAD
from protocol.delta.tar_blocks import BLOCK_BYTES
from server.delta.groups import ViewBase
from server.delta.lanes import LaneWriter
from server.delta.numbers import NumberWriter

LOUD_FORM = 32 | 9  # of a stream of integers: 512 lanes
MOST_HELD = limits.GROUP_CODED_BYTES * 3 // 2 - CHUNK_BYTES  # of a stream of changed code or edits


@dataclass(frozen=True)
class Slow:
    """A group.

    Args:
        name: What it does.
        base: The old file.
        group: Its bytes.
    """

    name: str
    base: bytes
    group: bytes

    def seconds(self) -> tuple[float, int]:
        """Processor time that it takes, and how many bytes it gives."""
        began = time.process_time()
        given = apply_group(self.group, ViewBase(memoryview(self.base)), 0, lambda data: None)
        return time.process_time() - began, given


class OneSymbol(LaneWriter):
    """Codes the last symbol all the time, or the first: hardly a byte for any work."""

    first = False

    def code(
        self, table: Table, contexts: Contexts, symbols: Symbols | None, lanes: np.ndarray | None = None
    ) -> Symbols:
        """As `Coder`."""
        symbol = 0 if self.first else getattr(table, "symbols", 2) - 1
        return super().code(table, contexts, np.full(contexts.size, symbol, np.uint8), lanes)


def slow_groups(share: float) -> Iterator[Slow]:
    """One of each, of a share of the full size."""
    yield Slow("operations of a byte", b"", tiny_operations(int(share * limits.GROUP_OPERATIONS)))
    yield _heads(int(share * limits.GROUP_CODED_BYTES) // BLOCK_BYTES)
    yield _edits(int(share * MOST_HELD))
    yield _integers(int(share * limits.GROUP_CODED_BYTES))
    yield _code(int(share * MOST_HELD))
    yield _old_members(int(share * limits.GROUP_CODED_BYTES) // 2048)
    yield _steps(int(share * (1 << 17)))


def tiny_operations(count: int) -> bytes:
    """So many operations, each of which gives a byte."""
    numbers, place = NumberWriter(), Place(ViewBase(memoryview(b"")), 0, count, ())
    for number in range(count):
        code_operation(numbers, place, Operation(FILL, 1, -1, number & 1))
    return write_group(count, numbers.finish(), [])


def _heads(count: int) -> Slow:
    """Headers of which each byte is told."""
    base = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    numbers, place = NumberWriter(), Place(ViewBase(memoryview(base)), 0, count * BLOCK_BYTES, ())
    for number in range(count):
        code_operation(
            numbers, place, Operation(HEAD, BLOCK_BYTES, 0), memoryview(bytes([1 + number % 2]) * BLOCK_BYTES)
        )
    return Slow("headers told byte for byte", base, write_group(count * BLOCK_BYTES, numbers.finish(), []))


def _taken(name: str, base: bytes, kind: int, length: int, coded: bytes) -> Slow:
    numbers, place = NumberWriter(), Place(ViewBase(memoryview(base)), 0, length, (takes_base(kind),))
    code_operation(numbers, place, Operation(TAKE, length, 0))
    return Slow(name, base, write_group(length, numbers.finish(), [(kind, length, coded)]))


def _edits(length: int) -> Slow:
    """Each byte behind a busy mark, and changed: all are asked."""
    old = (b"re" * (length // 2 + 1))[:length]
    numbers = NumberWriter()
    edits = Edits(numbers)
    before = np.frombuffer(old, np.uint8)
    for at in range(0, length, CHUNK_BYTES):
        edits.code(before[at : at + CHUNK_BYTES], before[at : at + CHUNK_BYTES] + np.uint8(1))
    return _taken("edits asked one by one", old, EDITS, length, numbers.finish())


def _integers(length: int) -> Slow:
    base = bytes(length)
    coder = OneSymbol(1 << (LOUD_FORM & 15))
    model = BySize(coder)
    for first, old in blocks([base]):
        code_block(model, old, first, [])
    coded = bytes([LOUD_FORM, 0, 0]) + coder.finish(np.zeros(coder.lanes, np.uint16))
    return _taken("integers told in full", base, I8_DIFFERENCE, length, coded)


def _code(length: int) -> Slow:
    """Each word wrong, and told byte for byte."""
    base = random.Random(1).randbytes(length)
    numbers, coder = NumberWriter(), OneSymbol(256)
    code_lanes(numbers, coder.lanes)
    numbers.unsigned(0, 0)
    places = find_places(*(np.array([number]) for number in (TAKE, length, 0)), 0, TAKE)

    def ask(*arguments: Any) -> Any:
        coder.first = True  # no word is like one before it
        answers = asked(*arguments)
        coder.first = False
        return answers

    asked = WordModel._ask
    with patch.object(WordModel, "_ask", ask):
        code_blocks(coder, np.frombuffer(bytearray(base), np.uint8), (), places)
    head = numbers.finish()
    coded = varint(len(head)) + head + coder.finish(np.zeros(coder.lanes, np.uint16))
    return _taken("code told bit for bit", base, CODE, length, coded)


def _old_members(most: int) -> Slow:
    """Short members, each made from one of many tokens of a bit."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    base = packer.compress(bytes(100_000)) + packer.flush()
    old, old_bytes = read_deflate(base)
    new = Deflated(old.lengths[:1000], old.values[:1000], (Block(FIXED, 1000),))
    length = len(write_deflate(new)) + TRAILER_BYTES
    count = 1
    while count < most and old_bytes * (count + 1) <= LEAST_OLD + OLD_SHARE * length * (count + 1):
        count += 1
    numbers, operations = NumberWriter(), NumberWriter()
    place = Place(ViewBase(memoryview(base)), 0, count * length, (True,))
    for _ in range(count):
        code_old_length(numbers, old_bytes - length)
        code_member(numbers, length, old, new, [Step(0, 0, 1000)])
        code_operation(operations, place, Operation(TAKE, length, 0))
    streams = [(DEFLATED, count * length, numbers.finish())]
    return Slow("members of long old ones", base, write_group(count * length, operations.finish(), streams))


def _steps(tokens: int) -> Slow:
    """Tokens copied one by one, as many as may be."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    base = packer.compress(bytes(random.Random(1).choices(range(64), k=tokens))) + packer.flush()
    old, old_bytes = read_deflate(base)
    count = old.lengths.size
    new = Deflated(old.lengths, old.values, (Block(FIXED, count),))
    length = len(write_deflate(new)) + TRAILER_BYTES
    steps = min(count - 1, LEAST_SAID + length // 2 - 1)
    numbers = NumberWriter()
    code_old_length(numbers, old_bytes - length)
    code_member(numbers, length, old, new, [Step(0, 0, 1)] * steps + [Step(0, 0, count - steps)])
    return _taken("tokens copied one by one", base + bytes(length), DEFLATED, length, numbers.finish())


def main(share: float) -> None:
    """Prints what each takes."""
    for slow in slow_groups(share):
        seconds, given = slow.seconds()
        figures = f"{len(slow.group):>9,} B give {given:>9,} B in {seconds:6.2f} s: {seconds / given * limits.MIB:6.2f}"
        print(f"{slow.name:<28} {figures} s for a MiB", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
