"""Applies patch files: what would travel, in one file with the index in front, for people and for measurements."""

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from protocol import limits
from protocol.delta.apply import apply_group
from protocol.delta.envelope import read_envelope
from protocol.delta.patch import (
    DIGEST_PREFIX_BYTES,
    PATCH_HEAD_BYTES,
    GroupHeader,
    PatchFile,
    parse_patch_index,
    patch_head_bytes,
    read_group_header,
    read_patch_head,
    read_patch_index,
)
from protocol.errors import Reason, Refused
from server.delta.gzip_file import FileBase, deflate, inflate, is_gzip, refuse_other_zlib
from signing.durable import DISK, TEMPORARY_PREFIX, Part

GROUP_HEADER_BYTES: Final = 1024  # ample for the largest
PIECE_BYTES: Final = limits.PATCH_SEGMENT_BYTES

Progress = Callable[[int, int], None]
"""Told of the output bytes that are there, and of all."""


@dataclass(frozen=True)
class Applied:
    """What applying a patch file gave."""

    output_bytes: int
    output_sha256: str
    groups: int


def inflated(path: Path, to: Path) -> Path | None:
    """What a gzip file holds, in a file of its own; None when it is none."""
    if not is_gzip(path):
        return None
    with to.open("wb") as file:
        return to if inflate(path, file) else None


def apply_patch(old: Path, patch: Path, output: Path, *, progress: Progress) -> Applied:
    """Applies a patch file: base hash first, each segment's hash before it is decoded, the result's hash before it is
    visible.

    Raises:
        OSError: A file cannot be read or written.
        Refused: The patch is for another base, damaged, or not one.
    """
    with patch.open("rb") as source:
        envelope = read_envelope(source)
    if envelope is None:
        return _apply_plain(old, patch, 0, output, progress)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=TEMPORARY_PREFIX) as folder:
        if sha256_of(old)[:DIGEST_PREFIX_BYTES] != envelope.base_prefix:
            raise _refuse_other_base(old)
        plain = inflated(old, Path(folder) / "old") if envelope.inflates_base else old
        if plain is None:
            raise Refused(Reason.METADATA, f"{old} cannot be inflated, as the patch says")
        if envelope.recipe is None:
            return _apply_plain(plain, patch, envelope.length_bytes, output, progress)
        applied = _apply_plain(plain, patch, envelope.length_bytes, Path(folder) / "new", progress)
        whole = hashlib.sha256()
        done = 0
        with replacing(output) as part:
            for piece in deflate(envelope.recipe, Path(folder) / "new"):
                part.append(piece)
                whole.update(piece)
                done += len(piece)
            if whole.digest()[:DIGEST_PREFIX_BYTES] != envelope.output_prefix:
                raise refuse_other_zlib()
    return Applied(output_bytes=done, output_sha256=whole.hexdigest(), groups=applied.groups)


def _apply_plain(old: Path, patch: Path, offset: int, output: Path, progress: Progress) -> Applied:
    """Applies the patch file that begins at `offset` of `patch`."""
    with patch.open("rb") as source, old.open("rb", buffering=0) as base_file:
        head = _read_head(source, offset)
        if _sha256(base_file)[:DIGEST_PREFIX_BYTES] != head.base_prefix:
            raise _refuse_other_base(old)
        base = FileBase(base_file)
        output_bytes = announced_bytes(source, head)
        whole = hashlib.sha256()
        done = groups = 0
        with replacing(output) as part:

            def write(data: bytes) -> None:
                nonlocal done
                part.append(data)
                whole.update(data)
                done += len(data)
                progress(done, output_bytes)

            for header, group in read_groups(source, head):
                if done + header.output_bytes > output_bytes:
                    raise Refused(Reason.LENGTH, "the patch gives more than it says")
                apply_group(group, base, done, write)
                groups += 1
            if done != output_bytes or whole.digest()[:DIGEST_PREFIX_BYTES] != head.output_prefix:
                raise Refused(Reason.HASH, "the result is not what the patch promises: the patch is damaged")
    return Applied(output_bytes=done, output_sha256=whole.hexdigest(), groups=groups)


def open_patch(source: BinaryIO) -> PatchFile:
    """Reads the head of a patch file, goes to its payload, and takes an envelope for a part of the head."""
    envelope = read_envelope(source)
    return _read_head(source, envelope.length_bytes if envelope is not None else 0)


def announced_bytes(source: BinaryIO, head: PatchFile) -> int:
    """The length of the result: what the index says, or where there is none, what the few groups say together.

    Args:
        source: At the beginning of the payload, where it is left.
        head: Of the file.

    Raises:
        Refused: The file is torn or damaged.
    """
    if head.index:
        return read_patch_index(head.index).output_bytes
    output_bytes = sum(header.output_bytes for header, _ in read_groups(source, head))
    source.seek(head.payload_offset)
    if output_bytes > limits.ARTIFACT_BYTES:
        raise Refused(Reason.LIMIT, f"a patch for {output_bytes} bytes")
    return output_bytes


def read_groups(source: BinaryIO, head: PatchFile) -> Iterator[tuple[GroupHeader, bytes]]:
    """The groups of a patch file, whose segments' hashes were checked when there is an index.

    Args:
        source: At the beginning of the payload.
        head: Of the file.

    Raises:
        Refused: The file is torn or damaged.
    """
    payload = _checked(source, head)
    held = bytearray()
    ended = False
    while True:
        header = read_group_header(bytes(held[:GROUP_HEADER_BYTES]))
        if header is not None and len(held) >= header.group_bytes:
            with memoryview(held) as view:
                group = bytes(view[: header.group_bytes])
            del held[: header.group_bytes]
            yield header, group
        elif ended:
            break
        else:
            piece = next(payload, b"")
            ended = not piece
            held += piece
    if held:
        raise Refused(Reason.LENGTH, "the patch file ends within a group")


@contextmanager
def replacing(path: Path) -> Iterator[Part]:
    """A file that takes the place of `path` when all went well; else nothing changed."""
    temporary = path.absolute().parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"
    temporary.unlink(missing_ok=True)
    try:
        with DISK.open_part(temporary) as part:
            yield part
            part.sync()
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        DISK.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read_head(source: BinaryIO, offset: int) -> PatchFile:
    source.seek(offset)
    start = source.read(PATCH_HEAD_BYTES)
    head = read_patch_head(start + source.read(max(patch_head_bytes(start) - len(start), 0)))
    head = dataclasses.replace(head, payload_offset=head.payload_offset + offset)
    source.seek(head.payload_offset)
    return head


def _refuse_other_base(old: Path) -> Refused:
    return Refused(Reason.HASH, f"the patch was made for another base than {old}", hint="take the right OLD file")


def sha256_of(path: Path) -> bytes:
    """The hash of a file, raw."""
    with path.open("rb") as file:
        return _sha256(file)


def _checked(source: BinaryIO, head: PatchFile) -> Iterator[bytes]:
    payload_bytes = os.fstat(source.fileno()).st_size - head.payload_offset
    if not head.index:
        if payload_bytes > limits.UNINDEXED_PAYLOAD_BYTES:
            raise Refused(Reason.LENGTH, f"{payload_bytes} bytes of payload without an index")
        yield from pieces_of(source)
        return
    index = parse_patch_index(head.index, read_patch_index(head.index).output_bytes, payload_bytes)
    for number, digest in enumerate(index.segments):
        segment = source.read(index.segment_bytes)
        if hashlib.sha256(segment).digest() != digest:
            raise Refused(Reason.HASH, f"segment {number} of the patch is damaged")
        yield segment


def _sha256(file: BinaryIO) -> bytes:
    hasher = hashlib.sha256()
    for piece in iter(lambda: file.read(PIECE_BYTES), b""):
        hasher.update(piece)
    return hasher.digest()


def pieces_of(source: BinaryIO) -> Iterator[bytes]:
    """What is left of a file, piece by piece."""
    return iter(lambda: source.read(PIECE_BYTES), b"")
