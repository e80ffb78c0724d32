"""Batches: bounded, exact, and nothing is read that the signature does not cover."""

import os

import pytest
import zstandard

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.results import BatchBody, LaneRows, SignedBatch, compress_body, open_batch, rows_sha256
from protocol.wire import pack

EPOCH = "0" * 32


def body(device: str = "tractor-1", rows: tuple[bytes, ...] = (b"one", b"two")) -> BatchBody:
    return BatchBody(device=device, epoch=EPOCH, lanes=(LaneRows(lane="results", first=7, rows=rows),))


def seal(content: BatchBody, device: str = "tractor-1") -> SignedBatch:
    payload, length = compress_body(content)
    return SignedBatch(device=device, body_bytes=length, payload=payload, signature=b"")


def test_a_batch_comes_back_as_it_was():
    assert open_batch(seal(body())) == body()


def test_a_batch_in_the_envelope_of_another_device_is_refused():
    with pytest.raises(Refused) as refusal:
        open_batch(seal(body("tractor-2")))
    assert refusal.value.reason is Reason.WRONG_DEVICE


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_batch_of_another_length_than_it_says_is_refused(extra):
    payload, length = compress_body(body())
    with pytest.raises(Refused):
        open_batch(SignedBatch(device="tractor-1", body_bytes=length + extra, payload=payload, signature=b""))


def test_attack_o19_a_bomb_stops_at_the_length_it_claims():
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(256 * limits.MIB))
    with pytest.raises(Refused) as refusal:
        open_batch(SignedBatch(device="tractor-1", body_bytes=1000, payload=bomb, signature=b""))
    assert refusal.value.reason is Reason.LENGTH


def test_a_row_over_the_limit_and_garbage_are_refused():
    with pytest.raises(Refused) as refusal:
        open_batch(seal(body(rows=(bytes(limits.ROW_BYTES + 1),))))
    assert refusal.value.reason is Reason.LIMIT
    garbage = zstandard.ZstdCompressor().compress(b"\xc1" * 50)
    with pytest.raises(Refused):
        open_batch(SignedBatch(device="tractor-1", body_bytes=50, payload=garbage, signature=b""))
    with pytest.raises(Refused):
        open_batch(SignedBatch(device="tractor-1", body_bytes=50, payload=os.urandom(40), signature=b""))


def test_the_hash_of_rows_depends_on_their_bounds():
    assert rows_sha256([b"ab", b"c"]) != rows_sha256([b"a", b"bc"])
    assert rows_sha256([b"a", b"b"]) != rows_sha256([b"b", b"a"])


def test_the_same_batch_gives_the_same_bytes():
    assert pack(body()) == pack(body())
