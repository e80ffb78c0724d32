"""The server's own tasks: at once while there is work, calmly when there is none, more calmly while it fails."""

import asyncio

import pytest

from protocol.errors import LinkError
from server import app
from server.threads import Threads


async def test_what_fails_is_tried_again_after_a_while_and_not_as_often_as_idle_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise asyncio.CancelledError

    going = iter([True, True, False])

    def work() -> bool:
        found = next(going, None)
        if found is None:
            raise LinkError("the catalog does not work", hint="its disk is full")
        return found

    monkeypatch.setattr(app.asyncio, "sleep", sleep)
    threads = Threads(1)
    with pytest.raises(asyncio.CancelledError):
        await app._every(0.5, "making payloads", threads, work)
    assert slept == [0.5, app.FAILED_S, app.FAILED_S]
    assert "making payloads failed" in caplog.text
    await threads.close()
