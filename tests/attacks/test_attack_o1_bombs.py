"""O1: compressed bombs. Nothing is decoded before its hash held; after that, output, window and memory are bounded."""

import hashlib
import tracemalloc

import pytest
import zstandard

from device.store import Store
from device.transfer import Transfer, TransferSettings
from protocol.artifact import Artifact
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.limits import MIB
from protocol.objects import Step, TransferPlan
from protocol.transfer import Segment, SegmentIndex
from protocol.wire import pack
from signing.durable import Disk
from tests.fakes.updates import BlobSource, signed


def zeros(length, level=19, **options):
    compressor = zstandard.ZstdCompressor(level=level, **options).compressobj()
    pieces = [compressor.compress(bytes(MIB)) for _ in range(length // MIB)]
    return b"".join([*pieces, compressor.compress(bytes(length % MIB)), compressor.flush()])


async def fetch(folder, payload, length, index=None):
    """What a hostile server with a good signature over payload and index could try."""
    artifact = Artifact(sha256="ab" * 32, length_bytes=length, media_type="application/onnx")
    source = BlobSource()
    source.blobs[digest(payload)] = payload
    if index is not None:
        source.blobs[digest(index)] = index
    step = Step(
        artifact=artifact.sha256,
        length_bytes=length,
        method="full",
        payload=signed(payload),
        index=signed(index) if index is not None else None,
    )
    most = 0

    def watch(effect, path):
        nonlocal most
        if effect == "append":
            most = max(most, path.stat().st_size)

    store = Store(folder, disk=Disk(watch))
    transfer = Transfer(source, store, TransferSettings(attempts=2), count=lambda _: None)
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as refused:
            await transfer.fetch(TransferPlan(steps=(step,), full_bytes=0), [artifact])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * MIB
    assert most <= length + MIB
    assert store.used_bytes() <= length + MIB + 4096
    assert not store.has(artifact.sha256)
    return refused.value.reason


def index_of(payload, length):
    segment = Segment(
        payload_bytes=len(payload), payload_sha256=hashlib.sha256(payload).digest(), output_sha256=bytes(32)
    )
    return pack(SegmentIndex(format=1, output_bytes=length, segment_bytes=MIB, segments=(segment,)))


async def test_attack_o1_a_small_payload_of_gigabytes_of_zeros_stops_at_the_signed_length(tmp_path):
    bomb = zeros(512 * MIB)
    assert len(bomb) < MIB
    assert await fetch(tmp_path, bomb, 5000) is Reason.LENGTH


async def test_attack_o1_many_zeros_within_the_signed_length_stream_in_bounded_memory(tmp_path):
    assert await fetch(tmp_path, zeros(64 * MIB), 64 * MIB) is Reason.HASH


@pytest.mark.parametrize("length", [1000, MIB])
async def test_attack_o1_a_segment_that_grows_past_its_output_is_stopped(tmp_path, length):
    bomb = zeros(256 * MIB)
    assert await fetch(tmp_path, bomb, length, index_of(bomb, length)) is Reason.LENGTH


async def test_attack_o1_a_window_of_gigabytes_is_not_allocated(tmp_path):
    wide = zeros(MIB, compression_params=zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True))
    assert zstandard.get_frame_parameters(wide).window_size == 128 * MIB
    assert await fetch(tmp_path / "whole", wide, MIB) is Reason.LIMIT
    assert await fetch(tmp_path / "cut", wide, MIB, index_of(wide, MIB)) is Reason.LIMIT


async def test_attack_o1_a_content_size_that_lies_is_not_believed(tmp_path):
    honest = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(1000))
    lying = bytearray(honest)
    at = next(at for at in range(4, 10) if lying[at : at + 2] == (1000 - 256).to_bytes(2, "little"))
    lying[at : at + 2] = b"\xff\xff"
    assert await fetch(tmp_path, bytes(lying), 1000) in (Reason.LIMIT, Reason.LENGTH)


@pytest.mark.parametrize(
    "extra",
    [b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip", zstandard.ZstdCompressor().compress(bytes(1000))],
    ids=["skippable", "second"],
)
async def test_attack_o1_frames_before_the_real_one_do_not_count_as_it(tmp_path, extra):
    payload = extra + zstandard.ZstdCompressor().compress(b"the model")
    reason = await fetch(tmp_path, payload, len(b"the model"))
    assert reason in (Reason.LENGTH, Reason.LIMIT, Reason.HASH)


async def test_attack_o1_an_index_that_does_not_add_up_is_refused(tmp_path):
    payload = zeros(MIB)
    wrong = pack(
        SegmentIndex(
            format=1,
            output_bytes=3 * MIB,
            segment_bytes=MIB,
            segments=(Segment(payload_bytes=len(payload), payload_sha256=bytes(32), output_sha256=bytes(32)),),
        )
    )
    assert await fetch(tmp_path, payload, 3 * MIB, wrong) is Reason.LENGTH
    assert await fetch(tmp_path, payload, MIB, b"\xdf" + bytes(1000)) is Reason.METADATA
