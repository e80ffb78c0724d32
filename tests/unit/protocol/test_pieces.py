"""The file that a machine leaves on a stick: read whole or refused with a word."""

import pytest
from msgspec.structs import replace

from protocol import limits
from protocol.errors import Reason, Refused
from protocol.ids import digest
from protocol.kits import HEADER_BYTES, PieceHeader, read_piece, write_piece
from protocol.wire import pack

SEALED = bytes(range(256)) * 4
HEADER = PieceHeader(
    format=1,
    device="tractor-1",
    kind="batch",
    sealed_to="ab" * 32,
    sha256=digest(SEALED),
    epoch="0" * 32,
    rows={"results": ((0, 9), (12, 12))},
)


def test_a_piece_comes_back_as_it_was():
    assert read_piece(write_piece(HEADER, SEALED)) == (HEADER, SEALED)


def test_a_piece_cut_anywhere_is_refused():
    whole = write_piece(HEADER, SEALED)
    for length in range(len(whole)):
        with pytest.raises(Refused):
            read_piece(whole[:length])


def test_a_bit_flipped_in_the_sealed_bytes_is_seen_without_the_key():
    damaged = bytearray(write_piece(HEADER, SEALED))
    damaged[-3] ^= 4
    with pytest.raises(Refused) as refusal:
        read_piece(bytes(damaged))
    assert refusal.value.reason is Reason.HASH


def test_a_file_larger_than_a_piece_is_not_looked_at():
    with pytest.raises(Refused) as refusal:
        read_piece(bytes(limits.PIECE_BYTES + 1))
    assert refusal.value.reason is Reason.LENGTH


def test_the_header_of_a_batch_with_as_many_runs_and_losses_as_there_can_be_fits():
    far = limits.ROW_NUMBERS
    spans = tuple((far - 2 * n - 1, far - 2 * n) for n in range(1000))
    header = replace(HEADER, rows={"results": spans}, losses={"results": spans})
    assert len(pack(header)) < HEADER_BYTES
    assert read_piece(write_piece(header, SEALED))[0] == header
