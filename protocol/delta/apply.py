"""Applies one group of a patch: the base by position, the output forward only.

Two passes. The first decodes the operations and holds each against the base, the output and the streams; then the
streams are decoded, those that are made from the base with the bytes that their operations name. The second writes.
What is in memory at once: the group's payload, its decoded streams and its operations, all within `limits`.
"""

from array import array
from collections.abc import Callable, Iterator
from typing import Final

from protocol import limits
from protocol.delta import operations as operations_of
from protocol.delta import tar as tar_of
from protocol.delta.base import Base
from protocol.delta.numbers import NumberReader
from protocol.delta.operations import TAKE, Operation, Place, code_operation, read_digest
from protocol.delta.patch import GroupHeader, read_group_header
from protocol.delta.streams import open_stream, takes_base
from protocol.delta.tar import TarPlace
from protocol.delta.tar_apply import Digests, TarWriter
from protocol.errors import Reason, Refused

__all__ = ["Base", "Operations", "apply_group", "read_operations"]

WINDOW_BYTES: Final = limits.MIB  # the base is read and the output written in pieces no larger


def apply_group(group: bytes, base: Base, output_offset: int, write: Callable[[bytes], None]) -> int:
    """Applies a group whose hash was checked.

    Args:
        group: All of its bytes.
        base: What the patch was made against.
        output_offset: Where the group's output begins in the result.
        write: Takes the output in order, at most 1 MiB at a time.

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
    streams: list[memoryview] = []
    for number, stream in enumerate(header.streams):
        references = _References(base, operations, TAKE + number)
        coded = view[at : at + stream.coded_bytes]
        streams.append(memoryview(open_stream(stream.kind, coded, stream.length_bytes, references)))
        at += stream.coded_bytes
    tar = operations.tar
    digests = Digests(write, output_offset, tar.contents, _digests(operations))
    if digests.wanted:
        write = digests.write
    tar_writer = TarWriter(base, tar, write)
    taken = [0] * len(streams)
    for operation in operations:
        match operation.kind:
            case operations_of.COPY:
                for piece in _windows(base, operation.base, operation.length):
                    write(piece)
            case operations_of.FILL:
                for length in _lengths(operation.length):
                    write(bytes([operation.value]) * length)
            case tar_of.ENTRIES:
                tar_writer.entries(operation.base, operation.value)
            case tar_of.HEAD | tar_of.STAMP:
                tar_writer.block(operation.kind)
            case tar_of.DIGEST:
                write(digests.text(*read_digest(operation.value)))
            case tar_of.PAD:
                write(bytes(operation.length))
            case kind:
                stream_bytes = streams[kind - TAKE]
                for length in _lengths(operation.length):
                    first = taken[kind - TAKE]
                    taken[kind - TAKE] = first + length
                    write(bytes(stream_bytes[first : first + length]))
    return header.output_bytes


class Operations:
    """A group's operations as columns of numbers: tens of thousands fit in little memory.

    Args:
        tar: What those of archives have left for the second pass.
    """

    def __init__(self, tar: TarPlace) -> None:
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


class _References:
    """What the operations of one stream read of the base, in order."""

    def __init__(self, base: Base, operations: Operations, kind: int) -> None:
        self._base = base
        self._operations = operations
        self._kind = kind

    def read(self) -> Iterator[bytes]:
        for operation in self._operations:
            if operation.kind == self._kind:
                yield from _windows(self._base, operation.base, operation.length)


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
    operations = Operations(place.tar)
    while place.output < end:
        operation = code_operation(numbers, place)
        if operation.kind >= TAKE:
            left[operation.kind - TAKE] -= operation.length
            if left[operation.kind - TAKE] < 0:
                raise Refused(Reason.LENGTH, "a patch takes more of a stream than there is")
        if len(operations) == limits.GROUP_OPERATIONS:
            raise Refused(Reason.LIMIT, "a group of a patch with too many operations")
        operations.append(operation)
    if place.output != end or any(left):
        raise Refused(Reason.LENGTH, "a group of a patch whose operations give another length than it says")
    return operations


def _digests(operations: Operations) -> list[tuple[int, int]]:
    return [read_digest(operation.value) for operation in operations if operation.kind == tar_of.DIGEST]


def _windows(base: Base, offset: int, length: int) -> Iterator[bytes]:
    for piece in _lengths(length):
        yield base.read(offset, piece)
        offset += piece


def _lengths(length: int) -> Iterator[int]:
    while length > 0:
        yield min(length, WINDOW_BYTES)
        length -= WINDOW_BYTES
