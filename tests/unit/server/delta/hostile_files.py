"""Patch files of each form, to be damaged by tests and by `scripts/fuzz_delta.py`."""

import gzip
import hashlib
import io
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from protocol.delta.envelope import read_envelope
from protocol.delta.patch import DIGEST_PREFIX_BYTES, INDEXED_MAGIC, MAGIC, PatchIndex, read_patch_head, varint
from protocol.errors import Refused
from protocol.limits import PATCH_SEGMENT_BYTES
from protocol.wire import pack
from server.delta.applying import apply_patch
from server.delta.encode import EncodeOptions
from server.delta.writing import write_patch


@dataclass(frozen=True)
class FileSeed:
    """A patch file as the command line makes it.

    Args:
        name: What is special to it.
        old: The base.
        patch: The patch file.
        new: What it gives.
    """

    name: str
    old: bytes
    patch: bytes
    new: bytes


def file_outcome(patch: bytes, seed: FileSeed) -> bytes | None:
    """Applies any bytes as a patch file: what they give, or None when they are refused.

    Another exception, a file that is left behind, or a result of another hash than the file says fails the test.
    """
    with tempfile.TemporaryDirectory() as folder:
        old, path, out = (Path(folder) / name for name in ("old", "patch", "out"))
        old.write_bytes(seed.old)
        path.write_bytes(patch)
        try:
            done = apply_patch(old, path, out, progress=lambda done, total: None)
        except Refused:
            assert sorted(path.name for path in Path(folder).iterdir()) == ["old", "patch"]
            return None
        new = out.read_bytes()
        assert sorted(path.name for path in Path(folder).iterdir()) == ["old", "out", "patch"]
        envelope = read_envelope(io.BytesIO(patch))
        said = envelope or read_patch_head(patch)
        if envelope is None or envelope.recipe is not None:
            assert hashlib.sha256(new).digest()[:DIGEST_PREFIX_BYTES] == said.output_prefix
        assert (done.output_bytes, done.output_sha256) == (len(new), hashlib.sha256(new).hexdigest())
        return new


def indexed(patch: bytes, output: int, change: Callable[[dict[str, object]], None] = lambda index: None) -> bytes:
    """A patch file with an index, though its payload is small.

    Args:
        patch: Without an index.
        output: Length of what it gives.
        change: What becomes of the index's fields.
    """
    head = read_patch_head(patch)
    payload = patch[head.payload_offset :]
    starts = range(0, len(payload), PATCH_SEGMENT_BYTES)
    fields: dict[str, object] = {
        "format": 2,
        "output_bytes": output,
        "payload_bytes": len(payload),
        "segment_bytes": PATCH_SEGMENT_BYTES,
        "segments": tuple(hashlib.sha256(payload[at : at + PATCH_SEGMENT_BYTES]).digest() for at in starts),
    }
    change(fields)
    index = pack(PatchIndex(**fields))  # type: ignore[arg-type]  # a lie may have any type
    return INDEXED_MAGIC + patch[len(MAGIC) : head.payload_offset] + varint(len(index)) + index + payload


@cache
def file_seeds() -> tuple[FileSeed, ...]:
    """A small one of each form."""
    chance = random.Random(3)
    old = b" ".join(b"%d" % chance.randrange(10_000) for _ in range(900))
    new = old[:1000] + b"something new" + old[900:] + old[:99]
    plain = _made("plain", old, new)
    return (
        plain,
        FileSeed("indexed", old, indexed(plain.patch, len(new)), new),
        _made("compressed", _gzip(old), _gzip(new, "weights.bin")),
        _made("inflated", _gzip(old), new),
        _made("deflated", old, _gzip(new)),
        _made("empty result", old, b""),
        _made("empty base", b"", new),
    )


def _made(name: str, old: bytes, new: bytes) -> FileSeed:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / part for part in ("old", "new", "patch")]
        paths[0].write_bytes(old)
        paths[1].write_bytes(new)
        write_patch(*paths, options=EncodeOptions(), progress=lambda done, total: None)
        return FileSeed(name, old, paths[2].read_bytes(), new)


def _gzip(data: bytes, name: str = "") -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(name, "wb", 6, buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()
