"""Starts real servers quickly: everything is imported once, each server is a fork that runs `headland-server run`.

Asked on standard input, a line of JSON a server: `{"state", "log", "kill_at", "fault"}`. It says `{"pid"}` when it was
forked and `{"ended"}`, its wait status, when it is gone. With `kill_at` the server ends itself by SIGKILL at its n-th
hit: before an effect on the disk, before and after a commit of the catalog, before an answer leaves.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, event

import server.http.devices
import server.http.people
from server.app import run as _imported  # noqa: F401  (so that a fork need not)
from server.cli import main
from server.ingest import Ingest, Ingested
from server.publish import Publisher
from server.storage.catalog import Catalog, Session
from signing import durable


class Hits:
    """Counts, and ends the process at the n-th. The log says where."""

    def __init__(self, kill_at: int) -> None:
        self.kill_at = kill_at
        self.count = 0

    def __call__(self, what: str) -> None:
        self.count += 1
        if self.count == self.kill_at:
            os.write(2, f"killed at hit {self.count}: {what}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def plant(self) -> None:
        durable.DISK.before = lambda effect, path: self(f"{effect} {path.name}")
        event.listen(Engine, "commit", lambda connection: self("commit"))
        write = Catalog.write

        @contextlib.contextmanager
        def counted(catalog: Catalog) -> Iterator[Session]:
            with write(catalog) as session:
                yield session
            self("committed")

        Catalog.write = counted  # type: ignore[method-assign]
        harden = server.http.devices.harden

        async def answered(request: Any, answer: Any) -> None:
            await harden(request, answer)
            self(f"answer to {request.method} {request.path}")

        server.http.devices.harden = answered
        server.http.people.harden = answered


PR_SET_PDEATHSIG: Final = 1
LATE_S: Final = 0.3


def receipts_before_the_commit() -> None:
    """Rows are receipted first, and kept a moment later."""
    take = Ingest.take

    def early(self: Ingest, data: bytes, device: str) -> Ingested:
        catalog = self._catalog

        class Forgetful:
            read = catalog.read

            @contextlib.contextmanager
            def write(self) -> Iterator[Session]:
                with contextlib.suppress(InterruptedError), catalog.write() as session:
                    yield session
                    raise InterruptedError("rolled back")

        answer = take(Ingest(Forgetful(), self._director, self._now_ms), data, device)  # type: ignore[arg-type]
        threading.Timer(LATE_S, take, (self, data, device)).start()
        return answer

    Ingest.take = early  # type: ignore[method-assign]


def published_before_it_is_served() -> None:
    """The managers are told that it is there, and it is rendered a moment later."""
    render = Publisher._render

    def later(self: Publisher, session: Session, now_ms: int) -> None:
        def work() -> None:
            with self._catalog.write() as late:
                render(self, late, now_ms)

        threading.Timer(LATE_S, work).start()

    Publisher._render = later  # type: ignore[method-assign]


FAULTS: Final = {each.__name__: each for each in (receipts_before_the_commit, published_before_it_is_served)}


def die_with_the_parent() -> None:
    """However the test ends, no server stays behind."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(asked: dict[str, Any]) -> None:
    """In the fork; never returns."""
    die_with_the_parent()
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    hits = Hits(asked["kill_at"])
    hits.plant()
    if asked["fault"]:
        FAULTS[asked["fault"]]()
    try:
        main(["run", "--state", asked["state"]], standalone_mode=False)
        Path(asked["log"]).with_suffix(".hits").write_text(str(hits.count))
    finally:
        os._exit(0)


def say(**what: int) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    die_with_the_parent()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            serve(json.loads(line))
        say(pid=child)
        say(ended=os.waitpid(child, 0)[1])
