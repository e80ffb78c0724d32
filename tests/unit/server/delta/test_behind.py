"""Text of archives that is coded behind that of the base."""

import random
from collections.abc import Iterator

import pytest

from protocol import limits
from protocol.delta.addresses import Places
from protocol.delta.apply import apply_group
from protocol.delta.patch import BEHIND, read_group_header, write_group
from protocol.delta.streams import open_stream
from protocol.errors import Refused
from server.delta.archives import layer_pieces
from server.delta.behind import behind_the_base, compress_behind
from server.delta.groups import ViewBase, cut_groups, encode_group
from server.delta.pieces import How, Piece
from tests.unit.server.delta.archive_files import archive


def lines(seed: int, count: int) -> bytes:
    chance = random.Random(seed)
    return b"\n".join(b" ".join(chance.randbytes(3).hex().encode() for _ in range(6)) for _ in range(count))


def builds(change: bool) -> bytes:
    """A package that stands in several builds, each with lines of its own, and the same many lines new in all."""
    files = []
    for number in range(6):
        own = lines(number, 200).split(b"\n")
        if change:
            new = lines(99, 200).split(b"\n")
            own = [line for pair in zip(own, new, strict=True) for line in pair]
        files.append((f"dist/{number}.js", b"\n".join(own), 0.0))
    return archive(files)


def made(old: bytes, new: bytes) -> tuple[set[How], int]:
    """What the pieces are, and the bytes of the groups, which give the new file."""
    pieces = layer_pieces(memoryview(old), memoryview(new))
    assert pieces is not None
    out = bytearray()
    size = 0
    for plan in cut_groups(pieces):
        group = encode_group(plan, memoryview(old), memoryview(new))
        size += len(group)
        apply_group(group, ViewBase(memoryview(old)), len(out), out.extend)
    assert out == new
    return {piece.how for piece in pieces}, size


def test_the_same_new_lines_in_many_files_are_paid_for_about_once() -> None:
    kinds, size = made(builds(False), builds(True))
    assert How.BEHIND in kinds
    assert size < 2 * len(compress_behind(b"", lines(99, 200)))


def test_one_small_change_stays_a_copy_and_the_new_bytes() -> None:
    old, new = archive([("a.py", lines(1, 50), 0.0)]), archive([("a.py", lines(1, 50)[:-1] + b"#", 0.0)])
    assert How.BEHIND not in made(old, new)[0]


def test_a_text_longer_than_the_whole_base_is_left_as_it_was() -> None:
    pieces = [Piece(How.COPY, 600, 0), Piece(How.TEXT, 900)]
    new = lines(4, 40)[:1500]
    assert behind_the_base(pieces, memoryview(new[:600]), memoryview(new)) == pieces


def test_a_group_counts_the_bytes_of_the_base_that_it_holds() -> None:
    half = 2 * limits.GROUP_CODED_BYTES // 3
    assert [plan.output_bytes for plan in cut_groups([Piece(How.BEHIND, half + 9, 0)])] == [half, 9]


def test_a_frame_of_another_length_or_none_at_all_is_refused() -> None:
    text = lines(5, 100)

    class References:
        def read(self) -> Iterator[bytes]:
            yield text

        def places(self) -> Places:
            raise AssertionError("text behind the base asks for no places")

        def at(self, offset: int, length: int) -> bytes:
            raise AssertionError("text behind the base asks for no bytes elsewhere")

    whole = compress_behind(text, text + b"more")
    assert open_stream(BEHIND, memoryview(whole), len(text) + 4, References()) == text + b"more"
    for coded, length in ((whole, len(text) + 3), (whole, len(text) + 5), (whole[:-2], len(text) + 4), (b"", 9)):
        with pytest.raises(Refused):
            open_stream(BEHIND, memoryview(coded), length, References())
    with pytest.raises(Refused):
        read_group_header(write_group(9, b"", [(BEHIND, limits.GROUP_CODED_BYTES, b"")]))
