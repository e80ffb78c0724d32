"""Compressed archives are patched by what they hold, and come out as the very bytes that they were."""

import gzip
import io
import os
import zlib
from pathlib import Path

import pytest

from protocol.delta.envelope import ENVELOPE_MAGIC, read_envelope
from protocol.errors import Refused
from server.delta.applying import apply_patch
from server.delta.encode import EncodeOptions
from server.delta.gzip_file import find_recipe
from server.delta.inspect import describe
from server.delta.writing import write_patch
from tests.unit.server.delta.archive_files import archive
from tests.unit.server.delta.archive_lists import package

OLD = archive(package(1_700_000_000, modules=40))
NEW = archive(package(1_700_086_400, "1.1", b"changed", modules=40))


def packed(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)


def silent(done: int, total: int) -> None:
    pass


def patched(folder: Path, old: bytes, new: bytes) -> Path:
    """A patch file from one to the other that was seen to give the other."""
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    patch = folder / "patch"
    made = write_patch(folder / "old", folder / "new", patch, options=EncodeOptions(), progress=silent)
    assert made.output_bytes == len(new)
    applied = apply_patch(folder / "old", patch, folder / "out", progress=silent)
    assert (folder / "out").read_bytes() == new
    assert (applied.output_bytes, applied.output_sha256) == (len(new), made.output_sha256)
    assert sorted(path.name for path in folder.iterdir()) == ["new", "old", "out", "patch"]
    return patch


@pytest.mark.parametrize("level", [1, 6, 9])
def test_a_compressed_layer_takes_hardly_more_than_a_plain_one(tmp_path: Path, level: int) -> None:
    plain, compressed = tmp_path / "plain", tmp_path / "compressed"
    plain.mkdir()
    compressed.mkdir()
    whole = patched(plain, OLD, NEW).stat().st_size
    patch = patched(compressed, packed(OLD, level), packed(NEW, level))
    assert patch.stat().st_size < whole + 60
    described = describe(patch)
    assert described.output_bytes == len(NEW)
    assert sum(kind.patch_bytes for kind in described.kinds.values()) == described.patch_bytes


def test_only_one_of_both_may_be_compressed(tmp_path: Path) -> None:
    assert patched(tmp_path, packed(OLD), NEW).stat().st_size < 1000
    for path in tmp_path.iterdir():
        path.unlink()
    assert patched(tmp_path, OLD, packed(NEW)).stat().st_size < 1000


def test_the_name_in_a_gzip_header_comes_out(tmp_path: Path) -> None:
    header = b"\x1f\x8b\x08\x08\1\2\3\4\0\x03layer.tar\0"
    body = packed(NEW)[10:]
    patched(tmp_path, packed(OLD), header + body)


def test_what_zlib_does_not_give_again_is_coded_as_any_file(tmp_path: Path) -> None:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31, strategy=zlib.Z_HUFFMAN_ONLY)  # no match: all tokens are others
    odd = packer.compress(NEW) + packer.flush()
    patch = patched(tmp_path, packed(OLD), odd)
    envelope = read_envelope(io.BytesIO(patch.read_bytes()))
    assert envelope is None or envelope.recipe is None


def test_damaged_gzip_files_are_coded_as_any_file(tmp_path: Path) -> None:
    patched(tmp_path, packed(OLD)[:-20], packed(NEW)[:-20])
    (tmp_path / "content").write_bytes(NEW)
    (tmp_path / "short").write_bytes(packed(NEW)[:-1])
    assert find_recipe(tmp_path / "short", tmp_path / "content") is None


def test_another_base_and_another_zlib_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    patch = patched(tmp_path, packed(OLD), packed(NEW))
    with pytest.raises(Refused, match="another base"):
        apply_patch(tmp_path / "new", patch, tmp_path / "other", progress=silent)
    data = bytearray(patch.read_bytes())
    envelope = read_envelope(io.BytesIO(data))
    assert envelope is not None
    assert envelope.recipe is not None
    data[len(ENVELOPE_MAGIC) + 17] = 1  # the level, as if zlib compressed otherwise
    patch.write_bytes(data)
    with pytest.raises(Refused, match="zlib"):
        apply_patch(tmp_path / "old", patch, tmp_path / "other", progress=silent)
    assert not (tmp_path / "other").exists()


def test_a_torn_or_damaged_envelope_is_refused(tmp_path: Path) -> None:
    patch = patched(tmp_path, packed(OLD), packed(NEW))
    data = patch.read_bytes()
    for length in range(4, 40):
        patch.write_bytes(data[:length])
        with pytest.raises(Refused):
            apply_patch(tmp_path / "old", patch, tmp_path / "other", progress=silent)
    for place in range(4, 40):
        patch.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
        with pytest.raises(Refused):
            apply_patch(tmp_path / "old", patch, tmp_path / "other", progress=silent)
    assert not os.path.lexists(tmp_path / "other")
