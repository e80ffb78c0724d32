"""Locks: the second one hears of it at once, or waits."""

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from protocol.errors import StateError
from server import backup_format
from signing import locks
from signing.locks import held, is_held, one_by_one
from signing.workspace import Workspace

TAKEN = StateError("somebody is at it")


def test_the_second_one_hears_at_once_that_another_is_at_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path, TAKEN), pytest.raises(StateError, match="somebody is at it"), held(path, TAKEN):
        pytest.fail("both are inside")
    with held(tmp_path / "lock", TAKEN):
        pass


def test_one_who_looks_keeps_nobody_out_who_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    with held(path, TAKEN):
        assert is_held(path)
    assert not is_held(path)
    with path.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not is_held(path), "nor do two who look meet each other"
        # By the time that the other one tries again, this look is over.
        monkeypatch.setattr(locks.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with held(path, TAKEN):
            pass


def test_a_disk_that_takes_no_writes_any_more_keeps_nobody_from_holding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opens = tmp_path / "lock", os.open

    def read_only(name: str, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))
        return opens(name, flags, mode)

    path.touch()
    monkeypatch.setattr(os, "open", read_only)
    with held(path, TAKEN):
        assert is_held(path)
        with pytest.raises(StateError), held(path, TAKEN):
            pytest.fail("both are inside")


def test_who_comes_second_to_a_folder_waits_until_the_first_is_done(tmp_path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with one_by_one(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with one_by_one(tmp_path):
        inside.set()
        thread.join(0.1)  # it would be through by now; where it is slower than that, the test sees less
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_two_backups_into_one_folder_and_two_pushes_from_one_workspace_keep_out_of_each_others_way(
    tmp_path: Path,
) -> None:
    alone = backup_format.alone
    with alone(tmp_path), pytest.raises(StateError, match="another backup is being written"), alone(tmp_path):
        pytest.fail("both are inside")
    hold = Workspace(tmp_path).alone
    with hold(), pytest.raises(StateError, match="another `headland` builds or pushes"), hold():
        pytest.fail("both are inside")
