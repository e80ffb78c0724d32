"""Patch files that lie: in their head, their index, their envelope or behind their end. They are refused, or right."""

import gzip
import hashlib
import random

import pytest

from protocol import limits
from protocol.delta.patch import DIGEST_PREFIX_BYTES, INDEXED_MAGIC, MAGIC, read_patch_head, varint, write_group
from protocol.errors import Reason, Refused
from server.delta.applying import apply_patch
from server.delta.gzip_file import is_gzip
from tests.unit.protocol.delta.hostile_groups import other_bytes
from tests.unit.server.delta.hostile_files import FileSeed, file_outcome, file_seeds, indexed

SEEDS = file_seeds()
PLAIN = SEEDS[0]
REASONS = (Reason.LENGTH, Reason.HASH, Reason.METADATA, Reason.LIMIT)
PREFIXES = PLAIN.patch[len(MAGIC) : read_patch_head(PLAIN.patch).payload_offset]
PAYLOAD = PLAIN.patch[read_patch_head(PLAIN.patch).payload_offset :]


def refusal(patch: bytes, folder, old: bytes = PLAIN.old) -> Reason:
    """Why a patch file is refused."""
    paths = [folder / name for name in ("old", "patch", "out")]
    paths[0].write_bytes(old)
    paths[1].write_bytes(patch)
    with pytest.raises(Refused) as refused:
        apply_patch(*paths, progress=lambda done, total: None)
    assert not paths[2].exists()
    return refused.value.reason


@pytest.mark.parametrize("seed", SEEDS, ids=[seed.name for seed in SEEDS])
def test_a_damaged_patch_file_is_refused_or_gives_what_it_says(seed: FileSeed) -> None:
    assert file_outcome(seed.patch, seed) == seed.new
    chance = random.Random(seed.name)
    for _ in range(40):
        assert file_outcome(other_bytes(seed.patch, chance), seed) in (None, seed.new)


@pytest.mark.parametrize("seed", SEEDS, ids=[seed.name for seed in SEEDS])
def test_each_cut_of_a_patch_file_is_refused(seed: FileSeed) -> None:
    """Its end may be cut only where the numbers' last zeros are not missed: then the result is right."""
    for length in range(0, len(seed.patch), 1 + len(seed.patch) // 100):
        assert file_outcome(seed.patch[:length], seed) in (None, seed.new)


@pytest.mark.parametrize("seed", SEEDS, ids=[seed.name for seed in SEEDS])
def test_what_follows_the_payload_is_refused(seed: FileSeed) -> None:
    for garbage in (b"\0", b"\1", b"HLD1", write_group(1, b"", []), bytes(3000)):
        assert file_outcome(seed.patch + garbage, seed) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 1),
        ("output_bytes", len(PLAIN.new) + 1),
        ("output_bytes", -1),
        ("output_bytes", 1 << 62),
        ("payload_bytes", 0),
        ("payload_bytes", 1 << 30),
        ("segment_bytes", 1 << 20),
        ("segment_bytes", 0),
        ("segments", ()),
        ("segments", (bytes(32),)),
        ("segments", (bytes(31),)),
        ("segments", (hashlib.sha256(b"").digest(),) * 2),
        ("segments", (bytes(32),) * (limits.PATCH_SEGMENTS + 1)),
        ("segments", 7),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, field: str, value: object) -> None:
    patch = indexed(PLAIN.patch, len(PLAIN.new), lambda index: index.update({field: value}))
    assert refusal(patch, tmp_path) in (Reason.LENGTH, Reason.METADATA, Reason.HASH, Reason.LIMIT)


def test_an_index_that_says_more_than_it_may_is_refused(tmp_path) -> None:
    index = read_patch_head(indexed(PLAIN.patch, len(PLAIN.new))).index
    for wrong in (index + b"\0", index[:-1], b"\xc1" * 20, b"\x86" + index[1:], b"\xdd\xff\xff\xff\xff", b""):
        patch = INDEXED_MAGIC + PREFIXES + varint(len(wrong)) + wrong + PAYLOAD
        assert refusal(patch, tmp_path) in (Reason.METADATA, Reason.LENGTH, Reason.LIMIT)


def test_the_length_of_an_index_is_held_to_its_bound(tmp_path) -> None:
    start = INDEXED_MAGIC + PREFIXES
    for length in (limits.INDEX_BYTES + 1, 1 << 62):
        assert refusal(start + varint(length) + PAYLOAD, tmp_path) is Reason.LIMIT
    assert refusal(start + b"\xff" * 12, tmp_path) is Reason.LIMIT
    assert refusal(start + varint(1 << 20) + PAYLOAD, tmp_path) is Reason.LENGTH


def test_more_or_fewer_groups_than_the_result_are_refused(tmp_path) -> None:
    more = write_group(1, b"", [])
    for payload in (b"", PAYLOAD + more, more + PAYLOAD, PAYLOAD * 2):
        assert refusal(MAGIC + PREFIXES + payload, tmp_path) in REASONS


def test_a_large_payload_without_an_index_is_not_read(tmp_path) -> None:
    assert refusal(MAGIC + PREFIXES + bytes(limits.UNINDEXED_PAYLOAD_BYTES + 1), tmp_path) is Reason.LENGTH


def test_another_base_or_another_result_is_refused(tmp_path) -> None:
    assert refusal(PLAIN.patch, tmp_path, PLAIN.old + b" ") is Reason.HASH
    patch = bytearray(PLAIN.patch)
    patch[len(MAGIC) + DIGEST_PREFIX_BYTES] ^= 1  # of the result
    assert refusal(bytes(patch), tmp_path) is Reason.HASH


def compressed(name: str) -> FileSeed:
    return next(seed for seed in SEEDS if seed.name == name)


def test_a_compressed_base_with_a_lie_in_its_trailer_or_rubbish_behind_it_is_another_base(tmp_path) -> None:
    seed = compressed("compressed")
    assert is_gzip_bytes(seed.old, tmp_path)
    for old in (seed.old[:-8] + bytes(8), seed.old[:-1], seed.old + b"rubbish", seed.old[:-4] + b"\xff" * 4):
        assert refusal(seed.patch, tmp_path, old) is Reason.HASH


def is_gzip_bytes(data: bytes, folder) -> bool:
    (folder / "probe").write_bytes(data)
    return is_gzip(folder / "probe")


@pytest.mark.parametrize("name", ["compressed", "inflated"])
def test_a_base_that_does_not_inflate_as_the_envelope_says_is_refused(tmp_path, name: str) -> None:
    """The hash of the base in the envelope is made right: what is behind it has to hold by itself."""
    seed = compressed(name)
    bomb = gzip.compress(bytes(1 << 22), 9, mtime=0)
    for old in (seed.old[:-8] + bytes(8), seed.old[:-1], seed.old + b"rubbish", b"no gzip at all", b"", bomb):
        patch = bytearray(seed.patch)
        patch[5 : 5 + DIGEST_PREFIX_BYTES] = hashlib.sha256(old).digest()[:DIGEST_PREFIX_BYTES]
        assert refusal(bytes(patch), tmp_path, old) in (Reason.METADATA, Reason.HASH)


def test_flags_and_ways_of_an_envelope_that_mean_nothing_are_refused(tmp_path) -> None:
    seed = compressed("compressed")
    for place in (4, 5 + 2 * DIGEST_PREFIX_BYTES):
        for value in range(0, 256, 3):
            patch = bytearray(seed.patch)
            patch[place] = value
            assert file_outcome(bytes(patch), seed) in (None, seed.new)
