"""How a group's output is handed on: in order, in few pieces, none of them large."""

from protocol.delta.apply import GATHERED_BYTES, WINDOW_BYTES, apply_group
from protocol.delta.operations import COPY, Operation
from server.delta.groups import ViewBase
from tests.unit.protocol.delta.test_few import coded


def pieces(base: bytes, new: bytes, *operations: Operation) -> list[bytes]:
    written: list[bytes] = []
    apply_group(coded(base, new, *operations), ViewBase(memoryview(base)), 0, written.append)
    assert b"".join(written) == new
    return written


def test_what_many_operations_give_is_handed_on_together() -> None:
    base = bytes(range(256)) * 2
    copies = [Operation(COPY, 100, number % 400) for number in range(2000)]
    new = b"".join(base[copy.base : copy.base + 100] for copy in copies)
    written = pieces(base, new, *copies)
    assert len(written) == -(-len(new) // (GATHERED_BYTES // 100 * 100))
    assert max(map(len, written)) <= GATHERED_BYTES


def test_a_long_copy_between_short_ones_keeps_its_place_and_is_cut() -> None:
    base = bytes(range(251)) * 4000
    copies = Operation(COPY, 7, 3), Operation(COPY, 900_000, 11), Operation(COPY, 9, 5)
    new = b"".join(base[copy.base : copy.base + copy.length] for copy in copies)
    written = pieces(base, new, *copies)
    assert max(map(len, written)) == WINDOW_BYTES
