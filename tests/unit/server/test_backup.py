"""Backups: a moment of a server that runs, whole or not there; and a folder made of one, verified byte by byte."""

import asyncio
import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from protocol.errors import HeadlandError, Refused, StateError
from protocol.ids import digest
from protocol.wire import encode
from server import authorities
from server.backup import Backup, BackupOptions, back_up
from server.backup_format import Contents, read_contents, sets, write_contents
from server.clock import as_datetime
from server.keyring import make_next
from server.newest_keys import goes_on
from server.restoring import Restore, RestoreOptions, restore
from signing import durable
from signing.sealed_file import seal
from tests.fakes.server_house import House, make_manifest

CHEAP = 1 << 10
PASSPHRASE = "correct horse battery"
NOW = datetime(2026, 11, 1, tzinfo=UTC)


class Silent:
    def start(self, what: str, total_bytes: int) -> Any:
        return lambda _: None


def backed_up(house: House, **options: Any) -> Backup:
    chosen = BackupOptions(key_cost=CHEAP, **options)
    folder = house.state.parent / "backup"
    return back_up(house.state, folder, chosen, Silent(), now_ms=lambda: house.now_ms, random=os.urandom)


def brought_back(house: House, to: str = "restored", **options: Any) -> Restore:
    parent = house.state.parent
    return restore(parent / "backup", parent / to, RestoreOptions(**options), Silent(), lambda: "d" * 32)


async def moved_to(house: House, to: str = "restored") -> None:
    """The server goes on in the restored folder."""
    await house.stop()
    house.state = house.state.parent / to
    await house.start()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_whole(folder: Path) -> bool:
    """Whether each file of a set, and each blob that it names, is what it says."""
    named = [line.split(" ")[0] for line in (folder / "blobs.txt").read_text().splitlines()]
    blobs = [(folder.parents[1] / "blobs" / "sha256" / sha256[:2] / sha256, sha256) for sha256 in named]
    files = [(folder / file.path, file.sha256) for file in read_contents(folder).files]
    return all(digest(path.read_bytes()) == sha256 for path, sha256 in [*blobs, *files])


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ends what runs just before the n-th effect on the disk; the call returns how many there were. What a power cut
    makes of effects that were not synced is not asked here, so nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    before = durable.DISK.before

    class Cut(Exception):  # noqa: N818  (what happens to it, and no error)
        pass

    def at(number: int, work: Any) -> int:
        seen = 0

        def count(effect: str, path: Path) -> None:
            nonlocal seen
            seen += 1
            if seen == number:
                raise Cut

        durable.DISK.before = count
        try:
            work()
        except Cut:
            return number
        finally:
            durable.DISK.before = before
        return seen

    yield at
    durable.DISK.before = before


async def test_a_moment_of_a_running_server_comes_back_whole(house: House) -> None:
    model = os.urandom(300_000)
    manifest = await house.release("1.0.0", 1, [model])
    tractor = await house.enrol("tractor-1")
    await tractor.sync()
    await tractor.send(tractor.batch("results", [b"one", b"two"]))
    done = await asyncio.to_thread(backed_up, house)
    assert done.lacking == () and done.contents.left_out == ()
    await tractor.send(tractor.batch("results", [b"three"]))
    house.now_ms += 60_000
    back = await asyncio.to_thread(brought_back, house)
    assert (back.lost, back.blobs) == ((), done.contents.blobs)
    await moved_to(house)
    shown = await house.must("GET", "/api/v1/devices/tractor-1")
    assert shown["ingested"]["results"] == 2
    assert (await tractor.ask("GET", f"/v1/blobs/{digest(model)}"))[1] == model
    assert (await house.must("GET", "/api/v1/releases"))["releases"][0]["manifest"] == manifest
    assert (await tractor.sync()).generation
    assert (await house.must("GET", "/api/v1/status"))["restored"]["backup_ms"] == done.contents.created_ms
    # The tool's token and the CA are those of before.
    assert (await house.events("server-restored"))[0]["detail"] == f"restored from the set {done.name}"


async def test_blobs_travel_once_and_sets_that_are_too_many_go_with_what_only_they_named(house: House) -> None:
    await house.release("1.0.0", 1, [b"one"])
    first = await asyncio.to_thread(backed_up, house)
    assert first.copied == first.contents.blobs > 0
    stray = house.state.parent / "backup" / "blobs" / "sha256" / "00" / ("0" * 64)
    await asyncio.to_thread(stray.parent.mkdir)
    await asyncio.to_thread(stray.write_bytes, b"named by no set")
    await house.put_blobs(b"a new one")
    house.now_ms += 1000
    second = await asyncio.to_thread(backed_up, house)
    assert (second.copied, second.copied_bytes) == (1, 9)
    third = await asyncio.to_thread(backed_up, house, keep=2)
    assert third.name == f"{second.name}-1" and third.removed == (first.name,)
    assert await asyncio.to_thread(sets, house.state.parent / "backup") == [second.name, third.name]
    assert not stray.exists()
    assert (await asyncio.to_thread(brought_back, house)).lost == ()


async def test_rows_that_come_while_the_catalog_is_copied_are_in_it_wholly_or_not(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.backup.CATALOG_PAGES", 1)
    tractor = await house.enrol("tractor-1")
    await tractor.send(tractor.batch("results", [os.urandom(20_000) for _ in range(40)]))
    during = threading.Event()

    class Slow(Silent):
        def start(self, what: str, total_bytes: int) -> Any:
            def moved(_: int) -> None:
                if what == "catalog":
                    during.set()
                    written.wait(0.05)

            return moved

    written = threading.Event()

    async def write() -> None:
        await asyncio.to_thread(during.wait, 20)
        for _ in range(5):
            await tractor.send(tractor.batch("results", [os.urandom(20_000)]))
        written.set()

    def copy() -> Backup:
        options = BackupOptions(key_cost=CHEAP)
        folder = house.state.parent / "backup"
        return back_up(house.state, folder, options, Slow(), now_ms=lambda: house.now_ms, random=os.urandom)

    _, done = await asyncio.gather(write(), asyncio.to_thread(copy))
    with closing(sqlite3.connect(house.state.parent / "backup" / "sets" / done.name / "catalog.db")) as catalog:
        assert catalog.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = catalog.execute("SELECT count(*) FROM results").fetchone()[0]
        assert rows == catalog.execute("SELECT sum(ingested) FROM lane_totals").fetchone()[0] == 40


async def test_a_backup_that_is_cut_anywhere_leaves_the_one_before_and_is_never_taken_for_one(
    house: House, cut: Any
) -> None:
    await house.put_blobs(b"one", b"two")
    first = await asyncio.to_thread(backed_up, house)
    await house.put_blobs(b"three")
    house.now_ms += 1000
    parent = house.state.parent

    def every() -> int:
        shutil.copytree(parent / "backup", parent / "kept")
        number = 0
        while True:
            number += 1
            shutil.rmtree(parent / "backup")
            shutil.copytree(parent / "kept", parent / "backup")
            ended = cut(number, lambda: backed_up(house, keep=1))
            known = sets(parent / "backup")
            assert known, number
            assert is_whole(parent / "backup" / "sets" / known[-1]), number
            if ended < number:
                return number
            if number % 7 == 0:
                assert backed_up(house, keep=1).lacking == ()  # the next one is not hindered
                assert not list((parent / "backup" / "sets").glob(".partial-*"))

    assert await asyncio.to_thread(every) > 60
    assert (await asyncio.to_thread(brought_back, house)).lost == ()
    assert first.name not in await asyncio.to_thread(sets, parent / "backup")


async def test_a_restore_that_is_cut_anywhere_leaves_no_folder_and_the_next_one_works(house: House, cut: Any) -> None:
    await house.put_blobs(b"one", b"two")
    await asyncio.to_thread(backed_up, house)

    def every() -> int:
        number = 0
        while True:
            number += 1
            target = house.state.parent / "restored"
            ended = cut(number, lambda: brought_back(house))
            if ended < number:
                return number
            whole = target.exists()
            assert not whole or (target / "restored.json").exists(), number
            if whole:
                shutil.rmtree(target)

    assert await asyncio.to_thread(every) > 50
    await moved_to(house)
    assert (await house.must("GET", "/api/v1/status"))["blobs"]["count"] == 2


async def test_every_damaged_file_is_found_and_only_blobs_may_be_left_behind(house: House) -> None:
    await house.put_blobs(b"one", b"two", b"three")
    name = (await asyncio.to_thread(backed_up, house)).name
    backup = house.state.parent / "backup"

    def flip(path: Path, place: int) -> None:
        data = bytearray(path.read_bytes())
        data[place % len(data)] ^= 1
        path.write_bytes(data)

    def every() -> None:
        for inside in sorted(files(backup / "sets" / name)):
            path = backup / "sets" / name / inside
            whole = path.read_bytes()
            for place in (0, len(whole) // 2, len(whole) - 2):
                flip(path, place)
                with pytest.raises(HeadlandError):
                    brought_back(house)
                path.write_bytes(whole)
            path.unlink()
            with pytest.raises((HeadlandError, OSError)):
                brought_back(house)
            path.write_bytes(whole)
        flip(backup / "blobs" / "sha256" / digest(b"one")[:2] / digest(b"one"), 1)
        (backup / "blobs" / "sha256" / digest(b"two")[:2] / digest(b"two")).unlink()

    await asyncio.to_thread(every)
    back = await asyncio.to_thread(brought_back, house)
    assert (set(back.lost), back.blobs) == ({digest(b"one"), digest(b"two")}, 1)


async def test_a_release_whose_blobs_did_not_come_back_comes_with_the_next_push(house: House) -> None:
    await house.release("1.0.0", 1, [b"one"])
    await asyncio.to_thread(backed_up, house)
    gone = house.state.parent / "backup" / "blobs" / "sha256" / digest(b"one")[:2] / digest(b"one")
    await asyncio.to_thread(gone.unlink)
    house.now_ms += 1000
    assert (await asyncio.to_thread(brought_back, house)).lost == (digest(b"one"),)
    await moved_to(house)
    assert (await house.must("GET", "/api/v1/releases"))["releases"] == []
    manifest = encode(make_manifest("1.0.0", 1, [b"one"]))
    missing = [data for data in (b"one", b"golden", manifest) if await lacks(house, data)]
    assert missing == [b"one"]
    await house.put_blobs(*missing)
    assert await house.push_again() == ""
    await house.payloads()
    tractor = await house.enrol("tractor-1")
    await house.rollout("first", "1.0.0")
    assert (await tractor.sync()).assignment


async def lacks(house: House, data: bytes) -> bool:
    return (await house.ask("HEAD", f"/api/v1/blobs/{digest(data)}"))[0] == 404


async def test_a_sealed_set_shows_no_secret_and_opens_with_its_passphrase_only(house: House) -> None:
    done = await asyncio.to_thread(backed_up, house, passphrase=PASSPHRASE)
    folder = house.state.parent / "backup" / "sets" / done.name

    def look() -> None:
        assert sorted(files(folder)) == ["backup.json", "blobs.txt", "catalog.db", "state.sealed"]
        secrets = [path.read_bytes() for path in (house.state / "keys").iterdir()]
        secrets += [(house.state / "ca" / "ca.key").read_bytes(), house.token.encode()]
        content = b"".join(files(house.state.parent / "backup").values())
        for secret in secrets:
            assert secret not in content and secret.hex().encode() not in content
        with pytest.raises(StateError, match="is sealed"):
            brought_back(house)
        with pytest.raises(StateError, match="passphrase is wrong"):
            brought_back(house, passphrase=lambda: "wrong horse battery")
        brought_back(house, passphrase=lambda: PASSPHRASE)
        with pytest.raises(StateError, match="at least 8"):
            backed_up(house, passphrase="short")

    before = await asyncio.to_thread(files, house.state)
    await asyncio.to_thread(look)
    after = await asyncio.to_thread(files, house.state.parent / "restored")
    for name in ("ca/ca.key", "operator.json", "server.toml", "keys/director.clock.pem"):
        assert after[name] == before[name]
    await moved_to(house)


async def test_a_backup_is_for_its_owner_only(house: House) -> None:
    await house.put_blobs(b"one")

    def look() -> None:
        backed_up(house)
        brought_back(house)
        for root in (house.state.parent / "backup", house.state.parent / "restored"):
            assert stat.S_IMODE(root.stat().st_mode) == 0o700
            for path in root.rglob("*"):
                mode = stat.S_IMODE(path.stat().st_mode)
                public = path.name in ("server.toml", "online-keys.json", "ca.pem") and root.name == "restored"
                assert mode == (0o700 if path.is_dir() else 0o644 if public else 0o600), path

    await asyncio.to_thread(look)


async def test_damage_that_came_after_a_blob_was_copied_is_mended_when_asked_for(house: House) -> None:
    await house.put_blobs(b"one")
    await asyncio.to_thread(backed_up, house)
    kept = house.state.parent / "backup" / "blobs" / "sha256" / digest(b"one")[:2] / digest(b"one")
    await asyncio.to_thread(kept.write_bytes, b"eno")
    assert (await asyncio.to_thread(backed_up, house)).damaged == ()
    assert (await asyncio.to_thread(backed_up, house, check=True)).damaged == (digest(b"one"),)
    assert kept.read_bytes() == b"one"
    assert (await asyncio.to_thread(backed_up, house, link=True)).copied == 0


async def test_a_catalog_of_another_version_is_backed_up_and_left_as_it_is(house: House) -> None:
    path = house.state / "catalog.db"

    def version(setting: str = "") -> str:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (setting,)) if setting else None
            return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])

    await asyncio.to_thread(version, "9999")
    done = await asyncio.to_thread(backed_up, house)
    assert (house.state.parent / "backup" / "sets" / done.name).is_dir()
    assert await asyncio.to_thread(version) == "9999"


async def test_blobs_that_the_server_itself_has_not_whole_are_named(house: House) -> None:
    await house.put_blobs(b"one", b"two", b"three")
    blobs = house.state / "blobs" / "sha256"
    await asyncio.to_thread((blobs / digest(b"one")[:2] / digest(b"one")).unlink)
    await asyncio.to_thread((blobs / digest(b"two")[:2] / digest(b"two")).write_bytes, b"owt")
    done = await asyncio.to_thread(backed_up, house)
    assert set(done.lacking) == {digest(b"one"), digest(b"two")}
    # In a file that is read whole they would be a limit: with enough of them the set could not be read again.
    contents = house.state.parent / "backup" / "sets" / done.name / "backup.json"
    assert digest(b"one") not in await asyncio.to_thread(contents.read_text)
    assert set((await asyncio.to_thread(brought_back, house)).lost) == {digest(b"one"), digest(b"two")}


async def test_links_instead_of_copies_are_the_same_bytes_and_outlive_the_server(house: House) -> None:
    await house.put_blobs(b"one")
    assert (await asyncio.to_thread(backed_up, house, link=True)).copied == 1
    blob = house.state / "blobs" / "sha256" / digest(b"one")[:2] / digest(b"one")
    kept = house.state.parent / "backup" / blob.relative_to(house.state)
    assert kept.stat().st_ino == blob.stat().st_ino
    await asyncio.to_thread(shutil.rmtree, house.state / "blobs" / "sha256")
    back = await asyncio.to_thread(brought_back, house)
    assert back.lost == ()
    restored = house.state.parent / "restored" / blob.relative_to(house.state)
    assert restored.stat().st_ino != kept.stat().st_ino


async def test_what_lies_elsewhere_is_named_and_not_pretended(house: House) -> None:
    settings = house.state / "server.toml"
    await house.stop()
    text = (
        settings.read_text()
        + f'[storage]\nblobs = "s3://bucket/blobs"\ncatalog = "sqlite:///{house.state}/catalog.db"\n'
    )
    await asyncio.to_thread(settings.write_text, text)
    done = await asyncio.to_thread(backed_up, house)
    assert [words.split(":")[0] for words in done.contents.left_out] == ["the catalog", "blobs"]
    folder = house.state.parent / "backup" / "sets" / done.name
    assert not (folder / "catalog.db").exists() and (folder / "state" / "starts").exists()
    with pytest.raises(StateError, match="a database of its own"):
        await asyncio.to_thread(brought_back, house, revoke=("tractor-1",))
    back = await asyncio.to_thread(brought_back, house)
    assert back.blobs == 0
    # A database that comes back by other hands shows by itself that it is older: `starts` came with the files.
    restored = house.state.parent / "restored"
    assert (restored / "starts").exists() and not (restored / "restored.json").exists()
    await asyncio.to_thread(settings.write_text, text.partition("[storage]")[0])


async def test_nothing_is_restored_over_a_server_or_from_what_is_no_backup(house: House) -> None:
    await asyncio.to_thread(backed_up, house)
    parent = house.state.parent

    def look() -> None:
        with pytest.raises(StateError, match="not empty"):
            brought_back(house, to="server")
        with pytest.raises(StateError, match="no set"):
            brought_back(house, name="20200101T000000Z")
        with pytest.raises(StateError, match="no backup that is whole"):
            restore(parent / "server", parent / "x", RestoreOptions(), Silent(), lambda: "d" * 32)
        with pytest.raises(StateError, match="inside the state folder"):
            back_up(house.state, house.state / "b", BackupOptions(), Silent(), now_ms=lambda: 1, random=os.urandom)
        with pytest.raises(StateError, match="not a server's state folder"):
            back_up(parent, parent / "b", BackupOptions(), Silent(), now_ms=lambda: 1, random=os.urandom)
        with pytest.raises(Refused, match="cannot name a device"):
            brought_back(house, revoke=("../x",))
        (parent / "restored").mkdir()
        brought_back(house)  # an empty folder may be there

    await asyncio.to_thread(look)


async def test_a_set_that_names_a_file_outside_is_refused(house: House) -> None:
    name = (await asyncio.to_thread(backed_up, house)).name
    folder = house.state.parent / "backup" / "sets" / name

    honest = await asyncio.to_thread(read_contents, folder)

    def look() -> None:
        for path in ("../../../escaped", "state/../../escaped", "/tmp/escaped"):
            evil = honest.files[0]
            changed = Contents(
                format=1,
                created_ms=honest.created_ms,
                files=(type(evil)(path=path, sha256=evil.sha256, length_bytes=evil.length_bytes), *honest.files),
                blobs=0,
                blob_bytes=0,
            )
            write_contents(folder, changed)
            with pytest.raises(Refused, match="leads outside"):
                brought_back(house)
        data = seal(b'{"ca/../../../escaped": "00"}', PASSPHRASE, os.urandom, CHEAP)
        (folder / "state.sealed").write_bytes(data)
        sealed = type(evil)(path="state.sealed", sha256=digest(data), length_bytes=len(data))
        write_contents(folder, msgspec.structs.replace(honest, files=(*honest.files, sealed)))
        with pytest.raises(Refused, match="leads outside"):
            brought_back(house, passphrase=lambda: PASSPHRASE)

    await asyncio.to_thread(look)
    assert not (house.state.parent / "escaped").exists()


async def test_a_rotation_meanwhile_is_in_the_backup_wholly_or_not(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes
    rotation = threading.Thread(target=lambda: authorities.rotate(house.state / "ca", as_datetime(house.now_ms)))

    def read_bytes(path: Path) -> bytes:
        data = read(path)
        if path == house.state / "ca" / "authorities.json" and not rotation.ident:
            rotation.start()
            rotation.join(0.3)  # it must not come to its end; where it is slower than that, the test sees less
        return data

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        await asyncio.to_thread(backed_up, house)
        await asyncio.to_thread(rotation.join)
    await asyncio.to_thread(brought_back, house)
    held = await asyncio.to_thread(authorities.load, house.state.parent / "restored" / "ca")
    assert len(held.record.generations) == 1


async def test_folders_that_come_and_go_are_not_looked_at(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch in the making has a folder in `scratch/`; blobs are withdrawn."""
    seen: list[Path] = []
    scan = os.scandir

    def scandir(path: Any = ".") -> Any:
        seen.append(Path(os.fsdecode(path)))
        return scan(path)

    await house.release("1.0.0", 1, [b"one"])

    def work() -> None:
        (house.state / "scratch" / "patch-1").mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", scandir)
            patch.setattr(Path, "iterdir", lambda path: (path / each.name for each in scandir(path)))
            backed_up(house)

    await asyncio.to_thread(work)
    inside = {path for path in seen if path.is_relative_to(house.state)}
    assert not {path for path in inside if "scratch" in path.parts}
    assert house.state in inside and house.state / "blobs" not in inside


async def test_an_older_moment_comes_back_with_the_newest_ca_and_online_keys(house: House) -> None:
    """Machines that enrolled after a rotation know no other CA; the managers' metadata knows no older key."""
    await house.release("1.0.0", 1, [b"one"])
    older = await asyncio.to_thread(backed_up, house, passphrase=PASSPHRASE)
    await house.stop()
    before = files(house.state / "keys")

    def rotate() -> None:
        make_next(house.state / "keys", {}, ["director.clock"])
        keys = house.state / "keys"
        (keys / "director.clock.next.pem").rename(keys / "director.clock.pem")  # as the managers' next push does it
        authorities.rotate(house.state / "ca", as_datetime(house.now_ms))

    await asyncio.to_thread(rotate)
    house.now_ms += 60_000
    newest = await asyncio.to_thread(backed_up, house, passphrase=PASSPHRASE)
    tables = house.state.parent / "backup" / "sets" / newest.name / "catalog.db"
    await asyncio.to_thread(tables.write_bytes, b"damaged")

    def back(to: str, passphrase: str) -> Restore:
        return brought_back(house, to=to, name=older.name, passphrase=lambda: passphrase)

    done = await asyncio.to_thread(back, "restored", PASSPHRASE)
    assert (done.name, done.keys_from, done.unread) == (older.name, newest.name, ())
    restored = house.state.parent / "restored"
    assert files(restored / "ca") == files(house.state / "ca")
    assert files(restored / "keys") == {
        **before,
        "director.clock.next.pem": files(house.state / "keys")["director.clock.pem"],
    }
    # Where the newer one cannot be read, that is said; what can be had is made.
    sealed = house.state.parent / "backup" / "sets" / newest.name / "state.sealed"
    await asyncio.to_thread(sealed.write_bytes, b"damaged")
    done = await asyncio.to_thread(back, "second", PASSPHRASE)
    assert done.keys_from == older.name
    assert len(done.unread) == 1 and newest.name in done.unread[0]
    await moved_to(house)


def test_the_ca_of_another_server_does_not_take_the_place_of_this_ones(tmp_path: Path) -> None:
    def ca(name: str) -> dict[str, bytes]:
        return {"ca/authorities.json": (tmp_path / name / "authorities.json").read_bytes()}

    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        authorities.found(tmp_path / name, NOW)
    mine, other = ca("mine"), ca("other")
    authorities.rotate(tmp_path / "mine", NOW)
    assert goes_on(mine, mine) and goes_on(mine, ca("mine"))
    assert not goes_on(ca("mine"), mine), "it would go back"
    assert not goes_on(mine, other) and not goes_on(mine, {}) and not goes_on({}, mine)
