"""Faults that break the product on purpose, and what the layers exist for: one that stays green is blind.

with FAULTS["no start counter"].plant():
    ...

Each imports what it breaks only when it is planted.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

from signing import durable


@dataclass(frozen=True)
class Fault:
    """A fault.

    Args:
        workload: In which it shows.
        says: What must be said of it: a fault that breaks something else is not the one that was found.
        plant: While its context lasts, the product has the fault.
        harm: That shows it: the kernel keeps what a killed process did not sync, a cut of the power does not.
    """

    workload: str
    says: str
    plant: Callable[[], AbstractContextManager[None]]
    harm: Literal["kill", "cut"] = "kill"


@contextlib.contextmanager
def _unsynced(is_spared: Callable[[int], bool]) -> Iterator[None]:
    """`os.fsync` does nothing, but for files whose mode is spared."""
    fsync = os.fsync

    def forget(fd: int) -> None:
        if is_spared(os.fstat(fd).st_mode):
            fsync(fd)

    with mock.patch.object(os, "fsync", forget):
        yield


@contextlib.contextmanager
def _swap_in_place() -> Iterator[None]:
    """Files are written over and links made anew, where they lie."""

    def write(disk: durable.Disk, path: Path, data: bytes, mode: int = 0o600) -> None:
        disk.before("create", path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
                disk.before("write", path)
                os.write(fd, piece)
            disk.before("fsync", path)
            os.fsync(fd)
        finally:
            os.close(fd)
        disk.sync_dir(path.parent)

    def point(disk: durable.Disk, link: Path, target: str) -> None:
        disk.before("unlink", link)
        link.unlink(missing_ok=True)
        disk.before("symlink", link)
        link.symlink_to(target)
        disk.sync_dir(link.parent)

    with (
        mock.patch.multiple(durable.Disk, write=write, point=point),
        # The module's functions are bound methods, made of the old ones.
        mock.patch.multiple(durable, write=durable.DISK.write, point=durable.DISK.point),
    ):
        yield


def _state_skipped() -> AbstractContextManager[None]:
    """A release is committed without a trial."""
    from device.update.states import NEXT, Event, State

    return mock.patch.dict(NEXT, {(State.ACTIVATE, Event.ACTIVATED): State.COMMIT})


def _no_start_counter() -> AbstractContextManager[None]:
    """A release that takes the machine down is tried again at each start."""
    from device.update.states import RESUME, State

    return mock.patch.dict(RESUME, {State.CHECK: lambda record: record, State.TRIAL: lambda record: record})


@contextlib.contextmanager
def _promise_before_sync() -> Iterator[None]:
    """The outbox gives a row its number at once, and writes it when it gets to it."""
    from device.outbox.box import Outbox
    from device.outbox.writer import Append

    given: dict[tuple[str, str], int] = {}

    async def enqueue_all(box: Outbox, rows, *, done_frames=()) -> list[int]:
        numbers = []
        for lane, _ in rows:
            key = (box.epoch, lane)
            numbers.append(max(given.get(key, 0), box.positions()[lane].next_seq))
            given[key] = numbers[-1] + 1
        box._writer._put(Append(rows, mock.MagicMock(), done_frames))
        return numbers

    with mock.patch.object(Outbox, "enqueue_all", enqueue_all):
        yield


def _frame_marked_later() -> AbstractContextManager[None]:
    """A frame is marked as done in a transaction of its own, after that of its rows."""
    from device.outbox.box import Outbox

    enqueue_all = Outbox.enqueue_all

    async def in_two(box: Outbox, rows, *, done_frames=()) -> list[int]:
        numbers = await enqueue_all(box, rows)
        await enqueue_all(box, (), done_frames=done_frames)
        return numbers

    return mock.patch.object(Outbox, "enqueue_all", in_two)


def _floor_not_persisted() -> AbstractContextManager[None]:
    """Floors are raised in words only."""
    from device import state_db

    return mock.patch.object(state_db, "_raise_floor", lambda connection, name, value: None)


def _told_before_sealed() -> AbstractContextManager[None]:
    """The seal is written some other time."""
    from device import state_db

    return mock.patch.object(state_db.StateDb, "seal", lambda db, *, both=False: None)


@contextlib.contextmanager
def _receipt_before_commit() -> Iterator[None]:
    """The server gives the receipt, and keeps the batch when the next one comes."""
    from protocol.objects import ReceiptsBody
    from server.ingest import Ingest, Ingested
    from server.storage.catalog import Catalog

    nothing = ReceiptsBody(device="nobody", epoch="0" * 32, generation="0" * 32)
    late: list[Callable[[], object]] = []
    take, close = Ingest.take, Catalog.close

    def keep() -> None:
        while late:
            late.pop(0)()

    def take_late(ingest: Ingest, data: bytes, device: str) -> Ingested:
        keep()
        late.append(lambda: take(ingest, data, device))
        return Ingested(receipt="", conflicts="", says=nothing, fresh=0, known=0, clashing=0, losses=0, whole=True)

    def close_late(catalog: Catalog) -> None:
        keep()
        close(catalog)

    with mock.patch.object(Ingest, "take", take_late), mock.patch.object(Catalog, "close", close_late):
        yield


FAULTS = {
    "no fsync of file": Fault("renewal", "ca.pem or cert.pem in", lambda: _unsynced(stat.S_ISDIR), harm="cut"),
    "no fsync of folder": Fault("enrolment", "this token was used before", lambda: _unsynced(stat.S_ISREG), harm="cut"),
    "swap in place": Fault("renewal", "ca.pem or cert.pem in", _swap_in_place),
    "state skipped": Fault("update", "is committed without a trial", _state_skipped),
    "no start counter": Fault("dying", "lives, and it still tries", _no_start_counter),
    "promise before sync": Fault("outbox", "is gone", _promise_before_sync),
    "frame marked later": Fault("frames", "gave its results twice", _frame_marked_later),
    "floor not persisted": Fault("trust", "nothing is a floor", _floor_not_persisted),
    "told before sealed": Fault("sealed", "what was committed is taken back", _told_before_sealed),
    "receipt before commit": Fault("ingest", "each row is there once", _receipt_before_commit),
}
