"""What changed in short runs of the base is told in the cheaper of two ways, and neither takes long to find."""

import numpy as np
import pytest

from protocol import limits
from protocol.delta.patch import EDITS, held_bytes, read_group_header
from protocol.delta.streams import PLANES, STORED
from server.delta import changed
from server.delta.front import find_pieces
from server.delta.groups import cut_groups, encode_group
from server.delta.pieces import How, Piece
from tests.unit.server.delta.archive_files import applied

RUN_BYTES = 400
ALIKE_BYTES = 80  # at the beginning of a run that is like the base, by which that is found


def bursts(chance: np.random.Generator, old: np.ndarray[tuple[int], np.dtype[np.uint8]], share: float) -> bytes:
    """The bytes with some of them changed, a dozen or two at a time."""
    hit = np.repeat(chance.random(-(-old.size // 16)) < share, 16)[: old.size]
    new = old.copy()
    new[hit] = chance.integers(0, 256, int(hit.sum()), np.uint8)
    return new.tobytes()


def compressed_bytes(chance: np.random.Generator, runs: int, share: float) -> tuple[bytes, bytes, int]:
    """Two versions as of a compressed file, runs of new bytes between runs that are half like the base; what is new."""
    old, new = b"", b""
    changes = 0
    for _ in range(runs):
        alike, other = chance.integers(0, 256, (2, RUN_BYTES), np.uint8)
        became = alike[:ALIKE_BYTES].tobytes() + bursts(chance, alike[ALIKE_BYTES:], share)
        written = chance.bytes(int(chance.integers(RUN_BYTES // 2, RUN_BYTES)))
        old += other.tobytes() + alike.tobytes()
        new += written + became
        changes += len(written) + sum(one != two for one, two in zip(alike.tobytes(), became, strict=True))
    return old, new, changes


def groups_of(old: bytes, new: bytes, pieces: list[Piece] | None = None) -> list[bytes]:
    found = pieces if pieces is not None else find_pieces(memoryview(old), memoryview(new), None)
    groups = [encode_group(plan, memoryview(old), memoryview(new)) for plan in cut_groups(found)]
    assert applied(old, groups) == new
    return groups


def lengths(group: bytes) -> dict[int, int]:
    """Decoded lengths of the streams by kind."""
    header = read_group_header(group)
    assert header is not None
    return {stream.kind: stream.length_bytes for stream in header.streams}


def test_changes_at_random_cost_little_more_than_the_bytes_that_changed() -> None:
    old, new, changes = compressed_bytes(np.random.default_rng(7), 20, 0.3)
    groups = groups_of(old, new)
    assert lengths(groups[0]).keys() == {STORED, PLANES}
    assert len(groups[0]) < 1.06 * changes


def test_changes_that_are_alike_are_edits_however_many() -> None:
    """An index behind a mark grew by one, as in compiled modules: one byte in twenty or so."""
    chance = np.random.default_rng(8)
    old = chance.integers(128, 256, 12_000, np.uint8)
    places = np.cumsum(chance.integers(4, 36, 580))
    old[places], old[places + 1] = ord("t"), chance.integers(0, 20, places.size)
    new = old.copy()
    new[places + 1] += 1
    groups = groups_of(old.tobytes(), new.tobytes(), [Piece(How.BYTE_DIFFERENCE, old.size, 0)])
    assert PLANES not in lengths(groups[0])
    assert len(groups[0]) < 100


def test_many_changes_at_random_are_not_tried_as_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(9)
    old = chance.bytes(4000)
    new = bursts(chance, np.frombuffer(old, np.uint8), 0.7)
    changes = sum(one != two for one, two in zip(old, new, strict=True))
    pieces = [Piece(How.BYTE_DIFFERENCE, len(new), 0)]
    assert changed.worth_trying(pieces, 0, memoryview(old), memoryview(new)) == (True, True)
    monkeypatch.setattr(changed, "MANY_CHANGES", changes - 1)
    assert changed.worth_trying(pieces, 0, memoryview(old), memoryview(new)) == (False, True)


def test_a_full_group_of_edits_is_not_given_as_differences_that_it_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = np.random.default_rng(10)
    old = chance.bytes(12_000)
    new = bursts(chance, np.frombuffer(old, np.uint8), 0.3)
    pieces = [Piece(How.BYTE_DIFFERENCE, 4000, 0), Piece(How.EDITS, 8000, 4000)]
    plenty = groups_of(old, new, pieces)
    assert [lengths(group) for group in plenty] == [{PLANES: 12_000}]
    monkeypatch.setattr(limits, "GROUP_CODED_BYTES", 4000 + held_bytes(EDITS, 8000))
    full = groups_of(old, new, pieces)
    assert [lengths(group) for group in full] == [{PLANES: 4000}]  # the edits stand among the operations
