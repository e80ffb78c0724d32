"""Segments: what a decoder sees was hashed before, and nothing decodes to more than was signed."""

import hashlib
import os
from itertools import islice

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.transfer import Segment, SegmentIndex, cut, decompress, open_segment, parse_index
from protocol.wire import pack


def chunks_of(data: bytes):
    for start in range(0, len(data), limits.SEGMENT_OUTPUT_BYTES):
        yield data[start : start + limits.SEGMENT_OUTPUT_BYTES]


def make(data: bytes, level: int = 1) -> tuple[SegmentIndex, list[bytes]]:
    pairs = list(cut(chunks_of(data), level))
    index = SegmentIndex(
        format=1,
        output_bytes=len(data),
        segment_bytes=limits.SEGMENT_OUTPUT_BYTES,
        segments=tuple(segment for _, segment in pairs),
    )
    return index, [payload for payload, _ in pairs]


DATA = os.urandom(limits.SEGMENT_OUTPUT_BYTES) + b"leaf" * 400_000


def test_segments_give_back_the_exact_bytes_one_by_one():
    index, payloads = make(DATA)
    again = parse_index(pack(index), len(DATA), sum(map(len, payloads)))
    assert again == index
    assert b"".join(open_segment(again, n, payload) for n, payload in enumerate(payloads)) == DATA
    assert [index.offset(n) for n in range(4)] == [0, *(sum(map(len, islice(payloads, n))) for n in (1, 2, 3))]


def test_incompressible_segments_stay_within_the_limit():
    _, payloads = make(os.urandom(limits.SEGMENT_OUTPUT_BYTES))
    assert len(payloads[0]) <= limits.SEGMENT_PAYLOAD_BYTES


@given(position=st.integers(0, 2_000), flip=st.integers(1, 255))
def test_a_flipped_byte_is_refused_before_any_decoder_sees_it(position, flip):
    index, payloads = make(b"leaf" * 1000 + os.urandom(2000))
    payload = bytearray(payloads[0])
    payload[position % len(payload)] ^= flip
    with pytest.raises(Refused) as refusal:
        open_segment(index, 0, bytes(payload))
    assert refusal.value.reason is Reason.HASH


@pytest.mark.parametrize("change", [b"", b"x"])
def test_a_segment_cut_short_or_extended_is_refused(change):
    index, payloads = make(DATA)
    with pytest.raises(Refused):
        open_segment(index, 1, payloads[1][:-1] + change * 2)


def test_an_index_that_does_not_add_up_to_the_signed_lengths_is_refused():
    index, payloads = make(DATA)
    total = sum(map(len, payloads))
    for output, payload in ((len(DATA) + 1, total), (len(DATA), total + 1), (0, 0)):
        with pytest.raises(Refused):
            parse_index(pack(index), output, payload)
    with pytest.raises(Refused):
        parse_index(pack(index)[:-1], len(DATA), total)


def test_attack_o1_a_bomb_stops_at_the_signed_length():
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 * limits.MIB))
    with pytest.raises(Refused) as refusal:
        decompress(bomb, 1000)
    assert refusal.value.reason is Reason.LENGTH


def test_attack_o1_a_frame_that_wants_a_large_window_is_refused():
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = os.urandom(1000)
    frame = compressor.compress(data) + compressor.flush()
    with pytest.raises(Refused) as refusal:
        decompress(frame, 1000)
    assert refusal.value.reason is Reason.LIMIT


def test_attack_o1_further_frames_and_lies_about_the_size_are_refused():
    frame = zstandard.ZstdCompressor().compress(b"leaf")
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"evil"
    for bad in (frame * 1, skippable + frame, b"", b"\x28\xb5\x2f\xfd", os.urandom(100)):
        with pytest.raises(Refused):
            decompress(bad, 5)
    with pytest.raises(Refused):
        decompress(frame + frame, 8)


def test_attack_o1_an_entry_that_allows_a_huge_segment_is_refused():
    segment = Segment(payload_bytes=1, payload_sha256=b"0" * 32, output_sha256=b"0" * 32)
    raw = pack(SegmentIndex(format=1, output_bytes=1, segment_bytes=limits.SEGMENT_OUTPUT_BYTES, segments=(segment,)))
    parse_index(raw, 1, 1)
    huge = raw.replace(b"\x93\x01\xc4", b"\x93\xce\x7f\xff\xff\xff\xc4")
    assert huge != raw
    with pytest.raises(Refused):
        parse_index(huge, 1, 0x7FFFFFFF)


def test_the_hash_of_an_empty_artifact_is_that_of_nothing():
    index, payloads = make(b"")
    assert parse_index(pack(index), 0, 0).segments == ()
    assert payloads == []
    assert hashlib.sha256(b"").hexdigest().startswith("e3b0")
