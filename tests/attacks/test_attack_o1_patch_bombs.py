"""O1: a patch that would unpack to more than was signed or than memory allows ends in the child, with nothing kept."""

import lzma

import pytest
import zstandard

from device.transfer import PatchFailedError
from device.transfer.child_applier import ChildApplier
from protocol.delta.patch import write_group
from protocol.delta.streams import LZMA, ZSTD
from protocol.errors import Reason
from protocol.limits import MIB
from tests.attacks.test_attack_o2_patched_machine import SignedPatch, machine
from tests.fakes.updates import noise

BASE = noise(1000, 1)


def raw_lzma(data):
    filters = [{"id": lzma.FILTER_LZMA1, "lc": 3, "lp": 0, "pb": 0, "dict_size": MIB}]
    return bytes([3]) + lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters)


def wide_window(data):
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(data) + compressor.flush()


BOMBS = {
    "a stream of 9 MiB": write_group(MIB, b"", [(ZSTD, 9 * MIB, zstandard.ZstdCompressor().compress(bytes(9 * MIB)))]),
    "streams of 9 MiB together": write_group(MIB, b"", [(ZSTD, 3 * MIB, b"x")] * 3),
    "a frame that gives more than it says": write_group(
        1000, b"", [(ZSTD, 1000, zstandard.ZstdCompressor().compress(bytes(200 * MIB)))]
    ),
    "a window of 128 MiB": write_group(1000, b"", [(ZSTD, 1000, wide_window(bytes(300 * MIB)))]),
    "LZMA that goes on": write_group(1000, b"", [(LZMA, 1000, raw_lzma(bytes(100 * MIB)))]),
    "a group of 65 MiB": write_group(65 * MIB, b"", []),
    "operations of a megabyte": write_group(1000, bytes(MIB - 100), []),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
async def test_attack_o1_a_patch_bomb_is_refused_and_leaves_nothing(tmp_path, bomb):
    patch = SignedPatch(BASE, bomb, bytes(MIB))
    rig, _ = machine(tmp_path, patch, ChildApplier)
    with pytest.raises(PatchFailedError) as failed:
        await rig.fetch()
    assert failed.value.reason in (Reason.LIMIT, Reason.LENGTH, Reason.METADATA)
    assert rig.store.digests() == (patch.step.base,)
    assert rig.parts() == []
