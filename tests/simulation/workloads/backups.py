"""A backup of a server that was backed up before, and a restore with the first start after it.

The clock stands: what is newer must be known without it.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from protocol.errors import StateError
from protocol.ids import digest
from server import restored
from server.backup import Backup, BackupOptions, back_up
from server.backup_format import blob_path, read_blob_list, read_contents, sets
from server.restoring import RestoreOptions, restore
from signing import durable
from tests.fakes.managers import Managers
from tests.fakes.updates import noise
from tests.simulation.workload import REFUSED, Promises, leftovers
from tests.simulation.workloads.server import START, check_tidy, make_server, now_ms, opened

OLD, KEPT, FRESH = (noise(1500, number) for number in (1, 2, 3))
KEEP = 2


class Meter:
    """Nobody looks."""

    def start(self, what: str, total_bytes: int) -> Callable[[int], None]:
        return lambda _: None


class BackingUp:
    """The third set of a folder that keeps two; what the server withdraws before the next one is never copied again."""

    name = "backup"

    def prepare(self, home: Path) -> None:
        server = home / "state"
        make_server(server / "state", Managers(START))
        put(server, OLD, KEPT)
        back_up_now(server)
        withdraw(server, OLD)
        back_up_now(server)
        put(server, FRESH)
        (home / "world/sets").write_text("\n".join(sets(server / "backup")))

    def act(self, home: Path, promise: Promises) -> None:
        done = back_up_now(home / "state")
        assert done.removed and not done.lacking
        promise(f"backed up {done.name}")

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        self.look(home, promised)
        withdraw(home / "state", FRESH)
        done = back_up_now(home / "state")
        assert not (done.lacking or done.damaged), (done.lacking, done.damaged)
        assert sets(home / "state/backup")[-1] == done.name, "the newest set is not known as such"

    def look(self, home: Path, promised: Sequence[str]) -> None:
        """As somebody who needs a set now."""
        backup = home / "state/backup"
        known = sets(backup)
        made = [line.removeprefix("backed up ") for line in promised if line != REFUSED]
        for name in [*(home / "world/sets").read_text().split(), *made]:
            assert name in known or len(known) >= KEEP, f"set {name} is gone, and there are only {known}"
        for name in known:
            check_whole(backup, name)

    def check(self, home: Path, promised: Sequence[str]) -> None:
        self.look(home, promised)
        backup = home / "state/backup"
        known = sets(backup)
        assert len(known) == KEEP
        assert sorted(path.name for path in (backup / "sets").iterdir()) == known, "half a set stays"
        named = {name for each in known for name in read_blob_list(backup / "sets" / each)}
        assert {path.name for path in backup.glob("blobs/sha256/??/*")} == named, "a blob stays that no set names"
        assert leftovers(backup) == []
        check_tidy(home / "state/state")


class Restoring:
    """A server out of a set, in a folder that is there and empty, and its first start."""

    name = "restore"

    def prepare(self, home: Path) -> None:
        server = home / "state"
        make_server(server / "state", Managers(START))
        put(server, OLD, KEPT)
        with opened(server) as parts, parts.catalog.read() as session:
            (home / "world/generation").write_text(session.facts.get("generation") or "")
        back_up_now(server)
        (server / "again").mkdir()

    def act(self, home: Path, promise: Promises) -> None:
        bring_back(home, "1")
        promise("restored")
        promise(f"serves {start(home)}")

    def recover(self, home: Path, promised: Sequence[str]) -> None:
        """A person who saw it go dark begins again, and starts what is there when told so."""
        try:
            bring_back(home, "2")
        except StateError as error:
            assert "is there and not empty" in error.message, error.message
        else:
            assert "restored" not in promised, "what was restored is gone"
        start(home)

    def check(self, home: Path, promised: Sequence[str]) -> None:
        generation = start(home)
        assert generation != (home / "world/generation").read_text(), "machines would not send again"
        for line in promised:
            assert line in ("restored", f"serves {generation}", REFUSED), f"{line}, and now {generation}"
        again = home / "state/again"
        with opened(home / "state", folder="again") as parts, parts.catalog.read() as session:
            record = restored.read(session)
            assert record is not None and record.how.startswith("restored from the set ")
            begun = [event for event in session.events.after(0, 10_000) if event.kind == "server-restored"]
            assert len(begun) == 1, "the same restore was begun twice"
        assert not (again / "restored.json").exists()
        for data in (OLD, KEPT):
            assert blob_path(again / "blobs", digest(data)).read_bytes() == data
        check_tidy(again)
        assert leftovers(home / "state") == []


def back_up_now(place: Path) -> Backup:
    """As `headland-server backup --keep`."""
    options = BackupOptions(keep=KEEP)
    return back_up(place / "state", place / "backup", options, Meter(), now_ms=now_ms, random=os.urandom)


def check_whole(backup: Path, name: str) -> None:
    """Every byte of a set is what it says."""
    folder = backup / "sets" / name
    for file in read_contents(folder).files:
        assert digest((folder / file.path).read_bytes()) == file.sha256, f"{file.path} of {name} is damaged"
    for sha256 in read_blob_list(folder):
        assert digest(blob_path(backup / "blobs", sha256).read_bytes()) == sha256, f"a blob of {name} is damaged"


def put(place: Path, *blobs: bytes) -> None:
    """As managers push. Without the object store, whose threads no fork takes along."""
    with opened(place) as parts:
        for data in blobs:
            path = blob_path(place / "state/blobs", digest(data))
            durable.make_dir(path.parent)
            durable.write(path, data)
            with parts.catalog.write() as session:
                session.payloads.add_blob(digest(data), len(data), now_ms())


def withdraw(place: Path, data: bytes) -> None:
    """As the server does with what is not needed any more."""
    with opened(place) as parts, parts.catalog.write() as session:
        session.payloads.forget_blob(digest(data))
    durable.unlink(blob_path(place / "state/blobs", digest(data)))


def bring_back(home: Path, name: str) -> None:
    """As `headland-server restore`."""
    place = home / "state"
    restore(place / "backup", place / "again", RestoreOptions(), Meter(), lambda: name * 32)


def start(home: Path) -> str:
    """As the first start, and each one after it. Returns the generation that machines meet."""
    with opened(home / "state", folder="again") as parts, parts.catalog.read() as session:
        return session.facts.get("generation") or ""


def workloads() -> list[BackingUp | Restoring]:
    return [BackingUp(), Restoring()]
