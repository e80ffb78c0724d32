"""What a patch file is made of, read from it without its base."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from protocol import limits
from protocol.delta.apply import read_operations
from protocol.delta.operations import OPERATION_NAMES, TAKE
from protocol.delta.patch import GroupHeader
from protocol.delta.streams import kind_name
from server.delta.files import open_patch, read_groups

ANY_BASE_BYTES: Final = 1 << 60  # the base is not at hand; its bounds are for who applies


@dataclass
class Kind:
    """One way of coding: how much of the result it makes, and what it takes of the patch."""

    streams: int = 0
    pieces: int = 0
    output_bytes: int = 0
    patch_bytes: int = 0


@dataclass
class Description:
    """A patch file. `kinds` add up: their patch bytes to `patch_bytes`, their output bytes to `output_bytes`."""

    patch_bytes: int
    output_bytes: int
    index_bytes: int
    segments: int
    groups: int = 0
    kinds: dict[str, Kind] = field(default_factory=dict)


def describe(patch: Path) -> Description:
    """Reads a patch file.

    Raises:
        OSError: It cannot be read.
        Refused: It is none, or damaged.
    """
    with patch.open("rb") as source:
        head = open_patch(source)
        patch_bytes = patch.stat().st_size
        payload_bytes = patch_bytes - head.payload_offset
        segments = -(-payload_bytes // limits.PATCH_SEGMENT_BYTES) if head.index else 1
        found = Description(patch_bytes, head.output_bytes, len(head.index), segments)
        found.kinds["head"] = Kind(patch_bytes=head.payload_offset - len(head.index))
        if head.index:
            found.kinds["index"] = Kind(patch_bytes=len(head.index))
        found.kinds["group headers"] = Kind()
        found.kinds["operations"] = Kind()
        at = 0
        for header, group in read_groups(source, head):
            _describe_group(found, header, group, at)
            at += header.output_bytes
    return found


def _describe_group(found: Description, header: GroupHeader, group: bytes, output_offset: int) -> None:
    found.groups += 1
    found.kinds["group headers"].patch_bytes += header.header_bytes
    found.kinds["operations"].patch_bytes += header.control_bytes
    for stream in header.streams:
        kind = found.kinds.setdefault(kind_name(stream.kind), Kind())
        kind.streams += 1
        kind.patch_bytes += stream.coded_bytes
    for operation in read_operations(header, memoryview(group), ANY_BASE_BYTES, output_offset):
        if operation.kind >= TAKE:
            name = kind_name(header.streams[operation.kind - TAKE].kind)
        else:
            name = OPERATION_NAMES[operation.kind]
        kind = found.kinds.setdefault(name, Kind())
        kind.pieces += 1
        kind.output_bytes += operation.length
