"""What a backup needs to become a server again is in it and stays: keys that fit the catalog and open, and blobs."""

import asyncio
import errno
import os
from typing import Any

import msgspec
import pytest

from protocol.errors import SettingsError, StateError
from protocol.ids import digest
from server import backup_format
from server.backup import BackupOptions, back_up
from server.backup_format import read_contents, sets, write_contents
from server.keyring import make_next
from server.restoring import Restore, RestoreOptions, restore
from signing import durable
from tests.fakes.server_house import House
from tests.unit.server.test_backup import CHEAP, Silent, backed_up, brought_back, files


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
