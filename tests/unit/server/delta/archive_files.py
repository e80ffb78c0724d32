"""Archives for tests: built by Python's tarfile, changed as builds change them."""

import io
import struct
import tarfile
from collections.abc import Callable, Sequence

from protocol.delta.apply import apply_group
from server.delta.archives.layers import archive_pieces
from server.delta.groups import ViewBase, cut_groups, encode_group
from server.delta.pieces import How, Piece

MAGIC = b"\xa7\x0d\r\n\0\0\0\0"


def member(
    name: str, content: bytes = b"", *, mtime: float = 1_700_000_000, kind: bytes = tarfile.REGTYPE
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.type = len(content), mtime, kind
    return info


def archive(files: Sequence[tuple[str, bytes, float]], *, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of files (a name that ends in a slash is a folder) with their mtimes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content, mtime in files:
            kind = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(member(name, content, mtime=mtime, kind=kind), io.BytesIO(content))
    return buffer.getvalue()


def compiled(mtime: int, size: int, body: bytes) -> bytes:
    """A module as Python's compiler leaves it."""
    return MAGIC + struct.pack("<II", mtime, size) + body


def plain(old: slice, new: slice, name: str) -> list[Piece]:
    return [Piece(How.BINARY, new.stop - new.start)]


def sent(old: bytes, new: bytes, file_pieces: Callable[[slice, slice, str], list[Piece]] = plain) -> list[bytes]:
    """The groups from one archive to the other."""
    pieces = archive_pieces(memoryview(old), memoryview(new), file_pieces=file_pieces)
    assert pieces is not None
    assert sum(piece.length for piece in pieces) == len(new)
    return [encode_group(group, memoryview(old), memoryview(new)) for group in cut_groups(pieces)]


def applied(old: bytes, groups: list[bytes]) -> bytes:
    out = bytearray()
    base = ViewBase(memoryview(old))
    for group in groups:
        apply_group(group, base, len(out), out.extend)
    return bytes(out)
