"""O13 at the server: a full disk turns machines away for later, receipts nothing, and heals when there is room."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from protocol.ids import digest
from tests.fakes.server_house import published


class FullDisk:
    """SQLite's own word, in every connection, while `full`."""

    def __init__(self) -> None:
        self.full = False

    def __call__(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if self.full and not statement.lstrip().upper().startswith(("SELECT", "BEGIN", "PRAGMA", "ROLLBACK")):
            raise sqlite3.OperationalError("database or disk is full")


@pytest.fixture
def disk() -> Any:
    full = FullDisk()
    event.listen(Engine, "before_cursor_execute", full)
    yield full
    event.remove(Engine, "before_cursor_execute", full)


async def test_attack_o13_a_full_disk_at_the_server_is_try_again_later_and_no_receipt(
    tmp_path: Path, disk: FullDisk
) -> None:
    async with published(tmp_path) as house:
        tractor = await house.enrol("tractor-1")
        request, batch = tractor.request(), tractor.batch("results", [b"{}"])
        disk.full = True
        status, body, headers = await tractor.ask("POST", "/v1/results", batch)
        assert (status, headers["Retry-After"], b"signatures" in body) == (503, "10", False)
        assert (await tractor.contact(request))[0] == 503
        data = b"a blob"
        assert (await house.ask("PUT", f"/api/v1/blobs/{digest(data)}", data=data))[0] == 503
        assert (await house.ask("GET", "/api/v1/status"))[0] == 200
        disk.full = False
        assert (await tractor.contact(request))[0] == 200
        assert (await tractor.send(batch))[0] == 200
        assert (await house.must("GET", "/api/v1/devices/tractor-1"))["ingested"]["results"] == 1
