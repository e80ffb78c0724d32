"""What a patch file is made of, read from it without its base."""

from dataclasses import dataclass, field
from pathlib import Path

from protocol import limits
from protocol.delta.patch import GroupHeader
from protocol.delta.streams import kind_name
from server.delta.applying import announced_bytes, open_patch, read_groups


@dataclass
class Kind:
    """One way of coding: how much of the result it makes, and what it takes of the patch."""

    streams: int = 0
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
        found = Description(patch_bytes, announced_bytes(source, head), len(head.index), segments)
        found.kinds["head"] = Kind(patch_bytes=head.payload_offset - len(head.index))
        if head.index:
            found.kinds["index"] = Kind(patch_bytes=len(head.index))
        found.kinds["group headers"] = Kind()
        found.kinds["operations"] = Kind()
        for header, _ in read_groups(source, head):
            _describe_group(found, header)
    return found


def _describe_group(found: Description, header: GroupHeader) -> None:
    found.groups += 1
    found.kinds["group headers"].patch_bytes += header.header_bytes
    found.kinds["operations"].patch_bytes += header.control_bytes
    for stream in header.streams:
        kind = found.kinds.setdefault(kind_name(stream.kind), Kind())
        kind.streams += 1
        kind.patch_bytes += stream.coded_bytes
        kind.output_bytes += stream.length_bytes
    made = found.kinds.setdefault("made from the base", Kind())
    made.output_bytes += header.output_bytes - sum(stream.length_bytes for stream in header.streams)
