"""Durable writes: a cut at any effect leaves the old or the new, and what has returned stays."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from signing import durable
from signing.durable import Disk


class PowerCut(BaseException):
    """Not an Exception: nothing may tidy up after it by catching errors."""


def cut_at(number: int) -> Disk:
    """A disk whose power goes just before its n-th effect."""
    left = [number]

    def before(effect: str, path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise PowerCut

    return Disk(before)


def every_cut(act: Callable[[Disk], None], check: Callable[[bool], None]) -> int:
    """Cuts at each effect in turn until the act completes; `check(done)` looks each time. Returns the effects."""
    for number in range(100):
        try:
            act(cut_at(number))
        except PowerCut:
            check(False)
        else:
            check(True)
            return number
    raise AssertionError("it never ends")


def test_a_cut_in_a_write_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "floor"
    seen = set()

    def act(disk: Disk) -> None:
        path.write_bytes(b"old")
        disk.write(path, b"new content")

    def check(done: bool) -> None:
        seen.add(path.read_bytes())
        if done:
            assert path.read_bytes() == b"new content"

    assert every_cut(act, check) == 5, "create, write, fsync, rename, fsync of the folder"
    assert seen == {b"old", b"new content"}


def test_the_file_is_synced_before_it_takes_the_name_and_the_folder_after(tmp_path: Path) -> None:
    seen: list[str] = []
    Disk(lambda effect, path: seen.append(effect)).write(tmp_path / "a", b"x")
    assert seen.index("fsync") < seen.index("rename") < seen.index("fsync-dir")


def test_nothing_but_the_file_is_left_after_a_write(tmp_path: Path) -> None:
    durable.write(tmp_path / "a", b"1", 0o640)
    durable.write(tmp_path / "a", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        durable.write(tmp_path / "folder", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_write_replaces_a_symlink_and_does_not_follow_it(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to("elsewhere")
    durable.write(tmp_path / "link", b"ours")
    assert (tmp_path / "elsewhere").read_bytes() == b"theirs"
    assert not (tmp_path / "link").is_symlink()


def test_write_new_never_replaces(tmp_path: Path) -> None:
    durable.write_new(tmp_path / "key", b"first")
    with pytest.raises(FileExistsError):
        durable.write_new(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_symlink_points_at_the_old_target_or_the_new_at_every_cut(tmp_path: Path) -> None:
    link = tmp_path / "active"
    seen = set()

    def act(disk: Disk) -> None:
        durable.point(link, "sets/old")
        disk.point(link, "sets/new")

    every_cut(act, lambda done: seen.add(str(link.readlink())))
    assert seen == {"sets/old", "sets/new"}


def test_make_dir_makes_all_folders_above_and_may_be_repeated(tmp_path: Path) -> None:
    durable.make_dir(tmp_path / "a" / "b" / "c")
    durable.make_dir(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_the_permissions_of_a_folder_do_not_hang_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        durable.make_dir(tmp_path / "for-all", 0o755)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "for-all").stat().st_mode) == 0o755


def test_a_part_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with durable.open_part(tmp_path / "part") as part:
        part.append(b"0123456789")
        part.sync()
    with durable.open_part(tmp_path / "part") as part:
        assert part.length_bytes == 10
        part.truncate(4)
        part.append(b"xy")
        assert part.length_bytes == 6
    assert (tmp_path / "part").read_bytes() == b"0123xy"


def test_remove_tree_follows_no_symlink(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"x")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "tree" / "file").write_bytes(b"x")
    durable.remove_tree(tmp_path / "tree")
    durable.remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious" / "file").exists()


def test_sweep_removes_what_a_cut_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f"{durable.TEMPORARY_PREFIX}x1").write_bytes(b"half")
    (tmp_path / f"{durable.TEMPORARY_PREFIX}x2").symlink_to(tmp_path)
    (tmp_path / "kept").write_bytes(b"whole")
    (tmp_path / f"{durable.TEMPORARY_PREFIX}folder").mkdir()
    durable.sweep(tmp_path)
    durable.sweep(tmp_path / "absent")
    assert {path.name for path in tmp_path.iterdir()} == {"kept", f"{durable.TEMPORARY_PREFIX}folder"}


def test_files_of_a_folder_go_with_one_sync_of_it(tmp_path: Path) -> None:
    effects: list[str] = []
    paths = [tmp_path / name for name in "abc"]
    for path in paths[:2]:
        path.write_bytes(b"x")
    durable.Disk(lambda effect, path: effects.append(effect)).unlink_all(paths)
    assert effects == ["unlink", "unlink", "unlink", "fsync-dir"]
    assert list(tmp_path.iterdir()) == []
    durable.Disk(lambda effect, path: effects.append(effect)).unlink_all(paths)
    assert effects[4:] == ["unlink"] * 3, "nothing went, so nothing is synced"


def test_rename_and_unlink(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").mkdir()
    durable.rename(tmp_path / "a", tmp_path / "b" / "c")
    durable.link(tmp_path / "b" / "c", tmp_path / "d")
    durable.unlink(tmp_path / "b" / "c")
    durable.unlink(tmp_path / "b" / "c")
    assert (tmp_path / "d").read_bytes() == b"x"
