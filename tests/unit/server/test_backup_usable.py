"""What a backup needs to become a server again is in it and stays: keys that fit the catalog and open, and blobs."""

import asyncio
import errno
import io
import os
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy.exc import OperationalError

from protocol import limits
from protocol.errors import SettingsError, StateError
from protocol.ids import digest
from server import backup_format
from server.backup import BackupOptions, back_up
from server.backup_format import read_contents, sets, write_contents
from server.keyring import make_next
from server.restoring import Restore, RestoreOptions, restore
from server.steady_clock import DAY_MS
from server.storage.events import Events
from signing import durable
from signing.sealed_file import SEALED_BYTES
from tests.fakes.server_house import House
from tests.unit.server.test_backup import CHEAP, PASSPHRASE, Silent, backed_up, brought_back, files


async def test_an_online_key_that_goes_while_the_catalog_is_copied_is_in_the_backup(house: House) -> None:
    """The catalog names the old one; the one that came after it is needed for what managers push."""
    keys = house.state / "keys"
    old = files(keys)

    class Switching(Silent):
        def start(self, what: str, total_bytes: int) -> Any:
            if what == "catalog":
                durable.rename(keys / "director.clock.next.pem", keys / "director.clock.pem")
            return super().start(what, total_bytes)

    def work() -> None:
        make_next(keys, {}, ["director.clock"])
        chosen = BackupOptions(key_cost=CHEAP)
        folder = house.state.parent / "backup"
        back_up(house.state, folder, chosen, Switching(), now_ms=lambda: house.now_ms, random=os.urandom)
        brought_back(house)

    await asyncio.to_thread(work)
    new = files(keys)["director.clock.pem"]
    assert files(house.state.parent / "restored" / "keys") == {**old, "director.clock.next.pem": new}


@pytest.mark.parametrize("broken", ["ca/ca.key", "keys/director.clock.pem"])
async def test_keys_that_no_server_could_start_from_are_neither_backed_up_nor_restored(
    house: House, broken: str
) -> None:
    def work() -> None:
        folder = house.state.parent / "backup" / "sets" / backed_up(house).name
        data = b"another key"
        (folder / "state" / broken).write_bytes(data)
        honest = read_contents(folder)
        changed = tuple(
            msgspec.structs.replace(each, sha256=digest(data), length_bytes=len(data))
            if each.path == f"state/{broken}"
            else each
            for each in honest.files
        )
        write_contents(folder, msgspec.structs.replace(honest, files=changed))
        with pytest.raises(SettingsError):
            brought_back(house)
        (house.state / broken).write_bytes(data)
        with pytest.raises(SettingsError):
            backed_up(house)
        assert sets(house.state.parent / "backup") == [folder.name]

    await asyncio.to_thread(work)
    assert not (house.state.parent / "restored").exists()


async def test_no_backup_removes_blobs_under_the_hands_of_a_restore(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Meddling(Silent):
        def start(self, what: str, total_bytes: int) -> Any:
            with pytest.raises(StateError, match="or read"):
                backed_up(house, keep=1)
            return super().start(what, total_bytes)

    def bring(to: str, meter: Silent) -> Restore:
        parent = house.state.parent
        return restore(parent / "backup", parent / to, RestoreOptions(), meter, lambda: "d" * 32)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "a copy on a disk that cannot be written")

    await asyncio.to_thread(backed_up, house)
    assert (await asyncio.to_thread(bring, "restored", Meddling())).lost == ()
    monkeypatch.setattr(backup_format, "held", refuse)
    assert (await asyncio.to_thread(bring, "second", Silent())).lost == ()


UNREADABLE = Path("/proc/self/mem")
"""Its first byte is not mapped: reading it gives EIO, as a file on a failing disk does."""


@pytest.mark.skipif(not UNREADABLE.exists(), reason="no /proc: nothing here that fails like a disk")
async def test_a_blob_that_the_disk_cannot_read_is_named_and_stops_neither_backup_nor_restore(house: House) -> None:
    await house.put_blobs(b"one", b"two")
    one, two = digest(b"one"), digest(b"two")

    def fail(folder: Path, sha256: str) -> None:
        path = folder / "blobs" / "sha256" / sha256[:2] / sha256
        path.unlink()
        path.symlink_to(UNREADABLE)

    def work() -> None:
        fail(house.state, one)
        assert backed_up(house).lacking == (one,)
        fail(house.state.parent / "backup", two)
        assert brought_back(house).lost == tuple(sorted((one, two)))

    await asyncio.to_thread(work)


async def test_a_copy_that_the_disk_cannot_read_any_more_is_made_again_when_asked_for(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    real = Path.open

    def opened(path: Path, *arguments: Any, **named: Any) -> Any:
        return Failing() if "backup" in path.parts and path.name == one else real(path, *arguments, **named)

    await house.put_blobs(b"one")
    one = digest(b"one")
    await asyncio.to_thread(backed_up, house)
    monkeypatch.setattr(Path, "open", opened)
    done = await asyncio.to_thread(backed_up, house, check=True)
    assert set(done.damaged) == {one} and done.copied


async def test_the_set_that_was_just_made_is_the_newest_also_where_the_clock_was_ahead_before(house: House) -> None:
    """Or `--keep` would remove it, and a restore take the one before."""

    def work() -> None:
        house.now_ms += 20 * DAY_MS
        ahead = backed_up(house)
        house.now_ms -= 20 * DAY_MS
        done = backed_up(house, keep=1)
        assert done.removed == (ahead.name,)
        assert sets(house.state.parent / "backup") == [done.name]
        assert done.contents.created_ms == house.now_ms
        assert brought_back(house).name == done.name

    await asyncio.to_thread(work)


async def test_nothing_is_sealed_that_no_restore_would_open(house: House) -> None:
    def work() -> None:
        (house.state / "core").write_bytes(bytes(SEALED_BYTES))
        with pytest.raises(StateError, match="core"):
            backed_up(house, passphrase=PASSPHRASE)
        assert sets(house.state.parent / "backup") == []
        (house.state / "core").write_bytes(bytes(SEALED_BYTES // 2 - limits.MIB))
        backed_up(house, passphrase=PASSPHRASE)
        brought_back(house, passphrase=lambda: PASSPHRASE)

    await asyncio.to_thread(work)


@pytest.mark.parametrize("left", [None, b""])
async def test_a_server_without_its_catalog_is_told_so_and_gets_no_empty_one(house: House, left: bytes | None) -> None:
    await house.stop()
    catalog = house.state / "catalog.db"

    def work() -> None:
        catalog.unlink()
        if left is not None:
            catalog.write_bytes(left)
        with pytest.raises(StateError, match="catalog"):
            backed_up(house)
        assert catalog.exists() == (left is not None)

    await asyncio.to_thread(work)


async def test_a_backup_of_a_server_whose_disk_takes_nothing_any_more_is_whole_and_says_so(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise sqlite_error("database or disk is full", "SQLITE_FULL")

    monkeypatch.setattr(Events, "add", full)
    done = await asyncio.to_thread(backed_up, house)
    assert await asyncio.to_thread(sets, house.state.parent / "backup") == [done.name]


def sqlite_error(text: str, name: str) -> OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorname = name
    return OperationalError("INSERT", None, error)


async def test_a_damaged_list_in_an_older_set_ends_no_backup_and_costs_no_blob(house: House) -> None:
    await house.put_blobs(b"one")

    def work() -> None:
        first, second = backed_up(house), backed_up(house)
        backup = house.state.parent / "backup"
        (backup / "sets" / second.name / "blobs.txt").write_bytes(b"\xff\xfe")
        third = backed_up(house, keep=2)
        assert third.removed == (first.name,)
        assert brought_back(house).lost == ()

    await asyncio.to_thread(work)
