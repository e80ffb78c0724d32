"""Applies one group of a patch: the base by position, the output forward only.

Two passes. The first decodes the operations and holds each against the base, the output and the streams; then the
streams are decoded, those that are made from the base with the bytes that their operations name. The second writes.
What is in memory at once: the group's payload, its decoded streams and its operations, all within `limits`.
"""

from array import array
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from protocol import limits
from protocol.delta import operations as operations_of
from protocol.delta import tar as tar_of
from protocol.delta.addresses import Places, find_places
from protocol.delta.base import Base
from protocol.delta.numbers import NumberReader
from protocol.delta.operations import TAKE, Operation, Place, code_operation, read_digest
from protocol.delta.patch import GroupHeader, read_group_header
from protocol.delta.streams import LZMA, STORED, ZSTD, open_stream, takes_base
from protocol.delta.tar import TarPlace
from protocol.delta.tar_apply import Digests, TarWriter
from protocol.errors import Reason, Refused

__all__ = ["Base", "Operations", "apply_group", "read_operations"]

SLOW_STREAMS: Final = 2  # of one kind
WINDOW_BYTES: Final = 256 * limits.KIB  # the base is read and the output written in pieces no larger
GATHERED_BYTES: Final = 64 * limits.KIB  # smaller pieces of output are put together up to so much


def apply_group(group: bytes, base: Base, output_offset: int, write: Callable[[bytes], None]) -> int:
    """Applies a group whose hash was checked.

    Args:
        group: All of its bytes.
        base: What the patch was made against.
        output_offset: Where the group's output begins in the result.
        write: Takes the output in order, at most 256 KiB at a time.

    Returns:
        How many bytes were written: what the group's header says.

    Raises:
        Refused: `LIMIT`, `LENGTH` or `METADATA`: the group says something that cannot be done.
    """
    header = read_group_header(group)
    if header is None or header.group_bytes != len(group):
        raise Refused(Reason.LENGTH, "a group of a patch that is not as long as it says")
    view = memoryview(group)
    operations = read_operations(header, view, base, output_offset)
    at = header.header_bytes + header.control_bytes
    _hold_slow_streams(header)
    streams: list[memoryview] = []
    for number, stream in enumerate(header.streams):
        references = _References(base, operations, output_offset, TAKE + number)
        coded = view[at : at + stream.coded_bytes]
        streams.append(memoryview(open_stream(stream.kind, coded, stream.length_bytes, references)))
        at += stream.coded_bytes
    ahead, behind = _wanted_digests(operations, output_offset)
    contents = operations.tar.contents
    first = Digests(lambda data: None, output_offset, contents, ahead)
    if first.waiting:
        _hash_ahead(operations, _Output(base, streams, operations, first.write), first)
    gathered = _Gathered(write)
    digests = Digests(gathered.write, output_offset, contents, behind)
    digests.texts.update(first.texts)
    output = _Output(base, streams, operations, digests.write if behind else gathered.write)
    for operation in operations:
        if operation.kind == tar_of.DIGEST:
            output.write(digests.texts[read_digest(operation.value)])
        else:
            output.make(operation)
    gathered.flush()
    return header.output_bytes


def _hold_slow_streams(header: GroupHeader) -> None:
    """Holds that streams whose work is bounded one by one are not many: the encoder makes one a kind, of edits two."""
    kinds = [stream.kind for stream in header.streams if stream.kind not in (STORED, ZSTD, LZMA)]
    if any(kinds.count(kind) > SLOW_STREAMS for kind in kinds):
        raise Refused(Reason.LIMIT, "a group of a patch with too many streams of one kind")


class _Gathered:
    """Hands output on in pieces worth a call: where much changed, operations give a few bytes each.

    Args:
        write: Takes the pieces.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._held = bytearray()

    def write(self, data: bytes) -> None:
        """Takes some more."""
        if len(self._held) + len(data) > GATHERED_BYTES:
            self.flush()
        if len(data) > GATHERED_BYTES:
            self._write(data)
        else:
            self._held += data

    def flush(self) -> None:
        """Hands on what is held."""
        if self._held:
            self._write(bytes(self._held))
            self._held.clear()


class _Output:
    """The second pass over a group: makes the output of one operation after the other.

    Args:
        base: The old file.
        streams: Decoded.
        operations: For what the first pass left.
        write: Takes the output.
    """

    def __init__(
        self, base: Base, streams: list[memoryview], operations: "Operations", write: Callable[[bytes], None]
    ) -> None:
        self._base = base
        self._streams = streams
        self._taken = [0] * len(streams)
        self._own = operations.own
        self._tar = TarWriter(base, operations.tar, write)
        self.write = write

    def make(self, operation: Operation) -> None:
        """Makes what is not a digest."""
        match operation.kind:
            case operations_of.COPY:
                for piece in _windows(self._base, operation.base, operation.length):
                    self.write(piece)
            case operations_of.FILL | tar_of.PAD:
                for length in _lengths(operation.length):
                    self.write(bytes([operation.value]) * length)
            case tar_of.ENTRIES:
                self._tar.entries(operation.base, operation.value)
            case tar_of.HEAD | tar_of.STAMP:
                self._tar.block(operation.kind)
            case operations_of.NEW | operations_of.CHANGED:
                self._inline(operation)
            case kind:
                for length in _lengths(operation.length):
                    at = self._taken[kind - TAKE]
                    self._taken[kind - TAKE] = at + length
                    self.write(bytes(self._streams[kind - TAKE][at : at + length]))

    def _inline(self, operation: Operation) -> None:
        self.write(bytes(self._own[operation.value : operation.value + operation.length]))

    def skip(self, operation: Operation) -> None:
        """Goes on behind an operation whose output nobody wants."""
        if TAKE <= operation.kind != operations_of.CHANGED:
            self._taken[operation.kind - TAKE] += operation.length
        elif operation.kind in (tar_of.HEAD, tar_of.STAMP):
            self._tar.skip_block(operation.kind)


def _hash_ahead(operations: "Operations", output: _Output, digests: Digests) -> None:
    """Makes the files whose digests stand before them, only to hash them."""
    for operation in operations:
        if not digests.waiting:
            return
        if not digests.wants(operation.length):
            output.skip(operation)
            digests.skip(operation.length)
        elif operation.kind in (tar_of.DIGEST, tar_of.ENTRIES):
            raise Refused(Reason.METADATA, "a patch hashes a file that holds digests itself, before it is written")
        else:
            output.make(operation)
    if digests.waiting:
        raise Refused(Reason.METADATA, "a patch names a digest of a file that does not end in its group")


def _wanted_digests(operations: "Operations", output: int) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Which files' digests are written before and behind them, each with its form."""
    ahead: set[tuple[int, int]] = set()
    behind: set[tuple[int, int]] = set()
    contents = operations.tar.contents
    for operation in operations:
        if operation.kind == tar_of.DIGEST:
            reference, form = read_digest(operation.value)
            if reference >= len(contents) // 2:
                raise Refused(Reason.METADATA, "a patch names a digest of a file that is not there")
            end = contents[2 * reference] + contents[2 * reference + 1]
            (behind if end <= output else ahead).add((reference, form))
        output += operation.length
    return ahead, behind


class Operations:
    """A group's operations as columns of numbers: tens of thousands fit in little memory.

    Args:
        tar: What those of archives have left for the second pass.
        own: Bytes that were coded among them.
    """

    def __init__(self, tar: TarPlace, own: bytearray) -> None:
        self.own = own
        self._columns = tuple(array("q") for _ in Operation._fields)
        self.tar = tar

    def __len__(self) -> int:
        return len(self._columns[0])

    def append(self, operation: Operation) -> None:
        """Adds one."""
        for column, number in zip(self._columns, operation, strict=True):
            column.append(number)

    def __iter__(self) -> Iterator[Operation]:
        return map(Operation, *self._columns)

    def places(self, output_offset: int, own: int) -> Places:
        """Those that read the base. The arguments are as those of `find_places`."""
        kinds, lengths, bases, _ = (np.array(column, np.int64) for column in self._columns)
        return find_places(kinds, lengths, bases, output_offset, own)


class _References:
    """What the operations of one stream read of the base, in order."""

    def __init__(self, base: Base, operations: Operations, output_offset: int, kind: int) -> None:
        self._base = base
        self._operations = operations
        self._output_offset = output_offset
        self._kind = kind

    def read(self) -> Iterator[bytes]:
        for operation in self._operations:
            if operation.kind == self._kind:
                yield from _windows(self._base, operation.base, operation.length)

    def at(self, offset: int, length: int) -> bytes:
        if not 0 <= offset <= self._base.length_bytes - length:
            raise Refused(Reason.LIMIT, "a patch reads outside of its base")
        return self._base.read(offset, length)

    def places(self) -> Places:
        return self._operations.places(self._output_offset, self._kind)


def read_operations(header: GroupHeader, group: memoryview, base: Base, output_offset: int) -> Operations:
    """The first pass over a group.

    Args:
        header: Of the group.
        group: All of its bytes.
        base: The old file, of which headers of archives are looked at.
        output_offset: Where the group's output begins in the result.

    Returns:
        All operations, each within its bounds, the lengths of all streams used up.

    Raises:
        Refused: `LIMIT`, `LENGTH` or `METADATA`.
    """
    control = bytes(group[header.header_bytes : header.header_bytes + header.control_bytes])
    numbers = NumberReader(control)
    end = output_offset + header.output_bytes
    place = Place(base, output_offset, end, tuple(takes_base(stream.kind) for stream in header.streams))
    left = [stream.length_bytes for stream in header.streams]
    operations = Operations(place.tar, place.inline)
    while place.output < end:
        operation = code_operation(numbers, place)
        if TAKE <= operation.kind != operations_of.CHANGED:
            left[operation.kind - TAKE] -= operation.length
            if left[operation.kind - TAKE] < 0:
                raise Refused(Reason.LENGTH, "a patch takes more of a stream than there is")
        if len(operations) == limits.GROUP_OPERATIONS:
            raise Refused(Reason.LIMIT, "a group of a patch with too many operations")
        operations.append(operation)
    if place.output != end or any(left):
        raise Refused(Reason.LENGTH, "a group of a patch whose operations give another length than it says")
    return operations


def _windows(base: Base, offset: int, length: int) -> Iterator[bytes]:
    for piece in _lengths(length):
        yield base.read(offset, piece)
        offset += piece


def _lengths(length: int) -> Iterator[int]:
    while length > 0:
        yield min(length, WINDOW_BYTES)
        length -= WINDOW_BYTES
