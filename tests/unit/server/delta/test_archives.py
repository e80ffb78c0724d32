"""What changes in a layer is sent, what follows from it is not, and what comes out is the new archive."""

import random
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.delta.archives import archive_pieces, layer_pieces
from server.delta.archives.exact import find_runs
from server.delta.groups import cut_groups, encode_group
from server.delta.pieces import How, Piece
from tests.unit.server.delta.archive_files import applied, archive, plain, sent
from tests.unit.server.delta.archive_lists import File, noise, package

OLD_TIME, NEW_TIME = 1_700_000_000, 1_700_086_400


def tree(mtime: float, version: str = "1.0", changed: bytes = b"") -> list[File]:
    return package(mtime, version, changed, modules=40)


def runs_in(old: bytes, new: bytes) -> Callable[[slice, slice, str], list[Piece]]:
    def runs(base: slice, result: slice, name: str) -> list[Piece]:
        pieces, at = [], result.start
        for run in find_runs(old[base], new[result]):
            pieces += [Piece(How.TEXT, result.start + run.new - at)] if result.start + run.new > at else []
            pieces.append(Piece(How.COPY, run.length, base.start + run.old))
            at = result.start + run.new + run.length
        return [*pieces, Piece(How.TEXT, result.stop - at)] if at < result.stop else pieces

    return runs


def test_a_rebuild_that_changed_only_mtimes_takes_a_few_bytes() -> None:
    old, new = archive(tree(OLD_TIME)), archive(tree(NEW_TIME))
    groups = sent(old, new)
    assert applied(old, groups) == new
    assert sum(map(len, groups)) < 60


def test_the_hash_and_the_stamp_of_a_changed_module_follow_from_it() -> None:
    change = noise(30, 5)
    old, new = archive(tree(OLD_TIME)), archive(tree(NEW_TIME, "1.1", change))

    groups = sent(old, new, runs_in(old, new))
    assert applied(old, groups) == new
    assert sum(map(len, groups)) < 130


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_every_form_of_archive_comes_out_as_it_went_in(form: int) -> None:
    deep = "usr/" + "/".join("abcdefgh" for _ in range(12)) + "/"
    old = archive([*tree(OLD_TIME), (deep + "old-name-1.0.txt", noise(900, 3), OLD_TIME)], form=form)
    new = archive([*tree(NEW_TIME, "2.0"), (deep + "old-name-1.1.txt", noise(900, 3), NEW_TIME)], form=form)
    assert applied(old, sent(old, new)) == new


def test_a_rebuild_with_mtimes_of_parts_of_a_second_takes_little_more_than_their_noise() -> None:
    chance = random.Random(4)

    def timed(mtime: int) -> bytes:
        return archive([(name, content, mtime + chance.random()) for name, content, _ in tree(OLD_TIME)])

    old, new = timed(OLD_TIME), timed(NEW_TIME)
    groups = sent(old, new)
    assert applied(old, groups) == new
    assert sum(map(len, groups)) < 60 + 83 * 4


def test_a_list_of_hashes_in_front_of_its_files_follows_from_them_too() -> None:
    def turned(files: list[File]) -> bytes:
        return archive(files[-1:] + files[:-1])

    old, new = turned(tree(OLD_TIME)), turned(tree(NEW_TIME, "1.1", noise(30, 5)))
    groups = sent(old, new, runs_in(old, new))
    assert applied(old, groups) == new
    assert sum(map(len, groups)) < 140


def test_a_torn_archive_comes_out_torn() -> None:
    old, new = archive(tree(OLD_TIME)), archive(tree(NEW_TIME))
    for length in (513, 5000, 20_000, len(new) - 10_240):
        assert applied(old, sent(old, new[:length])) == new[:length]
        assert applied(old[:length], sent(old[:length], new)) == new


def test_what_is_no_archive_is_left_to_others() -> None:
    tar = memoryview(archive(tree(OLD_TIME)))
    other = memoryview(noise(5000, 1))
    assert archive_pieces(other, tar, file_pieces=plain) is None
    assert archive_pieces(tar, other, file_pieces=plain) is None
    assert archive_pieces(memoryview(b""), tar, file_pieces=plain) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_archives_with_damages_come_out_damaged(seed: int, form: int) -> None:
    chance = random.Random(seed)

    def damaged(mtime: float, version: str) -> bytes:
        data = bytearray(archive(package(mtime, version, chance.randbytes(chance.randrange(40))), form=form))
        for _ in range(chance.randrange(20)):
            place = chance.choice([chance.randrange(len(data)), 512 * chance.randrange(len(data) // 512) + 124])
            data[place] = chance.choice(b"\0 0179x=\n\xff\x80")
        return bytes(data[: chance.choice([len(data), chance.randrange(600, len(data))])])

    old, new = damaged(1_700_000_000.5, "1.0"), damaged(1_700_000_009.25, "1.1")
    pieces = layer_pieces(memoryview(old), memoryview(new))
    if pieces is not None:
        groups = [encode_group(group, memoryview(old), memoryview(new)) for group in cut_groups(pieces)]
        assert applied(old, groups) == new


def test_a_group_that_begins_within_a_file_finds_the_next_header() -> None:
    old = archive([("a", noise(1024, 1), OLD_TIME), ("b", noise(700, 2), OLD_TIME), ("c", b"c", OLD_TIME)])
    new = archive([("a", noise(1024, 3), OLD_TIME), ("c", b"c", NEW_TIME), ("b", noise(700, 2), NEW_TIME)])
    pieces = archive_pieces(memoryview(old), memoryview(new), file_pieces=plain)
    assert pieces is not None
    head, content, *rest = pieces
    cut = [head, content._replace(length=100)], [content._replace(length=content.length - 100), *rest]
    plans = [*cut_groups(cut[0]), *cut_groups(cut[1], head.length + 100)]
    groups = [encode_group(plan, memoryview(old), memoryview(new)) for plan in plans]
    assert len(groups) == 2
    assert applied(old, groups) == new
