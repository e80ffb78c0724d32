"""A folder on a stick leads nowhere else, whatever somebody put there."""

import os

import pytest

from protocol.errors import Refused
from signing.durable import Disk
from signing.stick import stick_folder


def test_what_was_written_is_read_again_and_a_folder_is_made_once(tmp_path):
    for _ in range(2):
        with stick_folder(tmp_path) as stick, stick.below("results", make=True) as folder:
            folder.write("one.piece", b"content")
            assert folder.read("one.piece", 100) == b"content"
            assert folder.names(".piece") == ["one.piece"]
            assert folder.free_bytes() > 0
    assert (tmp_path / "results" / "one.piece").read_bytes() == b"content"


def test_a_link_in_place_of_a_folder_or_a_file_is_not_followed(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "secret").write_bytes(b"secret")
    place = tmp_path / "stick"
    place.mkdir()
    (place / "results").symlink_to(mine)
    (place / "file").symlink_to(mine / "secret")
    with stick_folder(place) as stick:
        with pytest.raises(OSError, match="results"), stick.below("results", make=True):
            pass
        with pytest.raises(OSError, match="file"):
            stick.read("file", 100)
        stick.write("file", b"other")
    assert (mine / "secret").read_bytes() == b"secret"
    assert sorted(entry.name for entry in mine.iterdir()) == ["secret"]


def test_a_folder_that_is_replaced_by_a_link_while_it_is_open_is_still_written_itself(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    place = tmp_path / "stick"
    with stick_folder(tmp_path) as stick, stick.below("stick", make=True) as folder:
        place.rename(tmp_path / "aside")
        place.symlink_to(mine)
        folder.write("one", b"1")
        folder.sweep()
    assert not list(mine.iterdir())
    assert (tmp_path / "aside" / "one").read_bytes() == b"1"


def test_a_pipe_is_refused_at_once_and_a_file_that_is_too_long_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "long").write_bytes(bytes(101))
    with stick_folder(tmp_path) as stick:
        for name in ("pipe", "long"):
            with pytest.raises(Refused):
                stick.read(name, 100)


def test_names_that_lead_away_or_hide_are_not_listed(tmp_path):
    for name in (".tmp-1.piece", "A.PIECE", "b.piece", "c.txt"):
        (tmp_path / name).touch()
    with stick_folder(tmp_path) as stick:
        assert stick.names(".piece") == ["A.PIECE", "b.piece"]


def test_a_file_system_without_permissions_takes_files_and_folders(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("this file system has none")

    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(os, "chmod", refuse)
    with stick_folder(tmp_path, disk=Disk()) as stick, stick.below("results", make=True) as folder:
        folder.write("one.piece", b"content")
    assert (tmp_path / "results" / "one.piece").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "../up", "a/b", "a\0b"])
def test_a_name_from_a_server_leads_nowhere_else(tmp_path, name):
    with stick_folder(tmp_path) as folder:
        for act in (
            lambda: folder.write(name, b"x"),
            lambda: folder.remove(name),
            lambda: folder.read(name, 10),
            lambda: folder.below(name, make=True).__enter__(),
        ):
            with pytest.raises(Refused, match="no name of a file on a stick"):
                act()
    assert list(tmp_path.iterdir()) == []
