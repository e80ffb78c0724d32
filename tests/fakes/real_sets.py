"""A field whose engine is a real one: what `Field` shows of its daemon is asked of Docker itself."""

import asyncio
import contextlib
import json
import random
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from device.containers.engine import NAME_LABEL, OWNER_LABEL, SPEC_LABEL
from device.containers.engine_client import EngineClient
from device.containers.keeper import CALM_S
from device.containers.whole import WholeSet
from device.update.ports import ReleaseSet
from protocol.ids import Digest
from tests.fakes.private_engine import PrivateEngine
from tests.fakes.whole_sets import FakeTrace, Field, Machine

UNSEEN_S = CALM_S + 1.0
AWAY = (HTTPException, OSError, ValueError, KeyError)  # what an engine that ends says of itself


class _Connection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=10)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


class CutEngine:
    """An agent's way to its engine, which ends when the agent is killed: nothing answers, nothing is asked any more.

    Args:
        client: To the real engine.
    """

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self.was_cut = asyncio.Event()

    def cut(self) -> None:
        self.was_cut.set()

    async def gone(self) -> None:
        """The child of a killed agent ends."""
        await self._client.close()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._client, name)

        async def ask(*arguments: Any, **options: Any) -> Any:
            if self.was_cut.is_set():
                await asyncio.Event().wait()
            answer = await real(*arguments, **options)
            if self.was_cut.is_set():
                await asyncio.Event().wait()
            return answer

        return ask


class RealDaemon:
    """What `FakeDaemon` shows, of a real engine. Blocking; an engine that is away shows nothing.

    Args:
        engine: Of this test alone.
        owner: Whose containers are looked at.
    """

    def __init__(self, engine: PrivateEngine, owner: str) -> None:
        self.engine = engine
        self.owner = owner
        self.up = True
        self.calls: list[str] = []
        self.dies_at: dict[int, str] = {}
        self.cuts_at: dict[int, str] = {}
        self._killed_s = 0.0
        self._turn = threading.Lock()  # else who starts it takes the one that is being killed for the new one

    def kill(self) -> None:
        with self._turn:
            self.up, self._killed_s = False, time.monotonic()
            self.engine.kill()

    def restart(self) -> None:
        with self._turn:
            if not self.up:
                self.engine.start()
                self.up = True

    def running_or_none(self) -> dict[str, list[Digest]] | None:
        """None where it does not say, or may have killed its containers a moment ago."""
        with contextlib.suppress(*AWAY):
            ran = self.running()
            if time.monotonic() - self._killed_s > UNSEEN_S:
                return ran
        return None

    def running(self) -> dict[str, list[Digest]]:
        return self._specs(all=False)

    @property
    def made(self) -> list[Digest]:
        return [spec for specs in self._specs(all=True).values() for spec in specs]

    def _specs(self, **which: bool) -> dict[str, list[Digest]]:
        words = urlencode({"filters": json.dumps({"label": [f"{OWNER_LABEL}={self.owner}"]}), "all": int(which["all"])})
        found: dict[str, list[Digest]] = {}
        with contextlib.closing(_Connection(self.engine.socket)) as connection:
            connection.request("GET", f"/containers/json?{words}")
            listed = json.loads(connection.getresponse().read())
        for one in listed:
            found.setdefault(one["Labels"][NAME_LABEL], []).append(one["Labels"][SPEC_LABEL])
        return {name: sorted(specs) for name, specs in sorted(found.items())}


class _Machine(Machine):
    """No label is looked at for a while after a kill: of containers that died with their engine nobody hears before
    the next look."""

    async def end_agent(self) -> None:
        await super().end_agent()
        await self.engine.gone()

    async def _see(self, whole: WholeSet) -> None:
        while True:
            before = self.keeper.whole()
            ran = await asyncio.to_thread(self.daemon.running_or_none)
            if before is not None and before == self.keeper.whole() and ran is not None:
                assert {spec for specs in ran.values() for spec in specs} == before[1]
                self.looks += 1
            await asyncio.sleep(0.1)

    looks = 0


class RealField(Field):
    """See the module."""

    def __init__(self, folder: Path, releases: Mapping[str, ReleaseSet], engine: PrivateEngine) -> None:
        self.releases = dict(releases)
        folder.mkdir(parents=True)
        for name in ("sets", "link"):
            (folder / name).mkdir()
        self.daemon = RealDaemon(engine, secrets.token_hex(8))
        files = {name: path for release in releases.values() for name, path in release.files.items()}
        self.machine = _Machine(self.daemon, FakeTrace(), folder, files, self._connect)

    def _connect(self, daemon: Any) -> Any:
        return CutEngine(EngineClient(lambda: daemon.engine.socket, daemon.owner))

    def runs(self, name: str) -> bool:
        """As `Field.runs`; not while its engine does not say."""
        with contextlib.suppress(*AWAY):
            return super().runs(name)
        return False

    def running_or_none(self) -> dict[str, list[Digest]] | None:
        return self.daemon.running_or_none()

    @contextlib.asynccontextmanager
    async def killing(self, chance: random.Random) -> AsyncIterator[None]:
        """Engine or agent, or both, are killed once, at any moment of what is done meanwhile."""

        async def kill_engine(after_s: float) -> None:
            await asyncio.sleep(after_s)
            await asyncio.to_thread(self.daemon.kill)

        async def kill_agent(after_s: float) -> None:
            await asyncio.sleep(after_s)
            self.machine.engine.cut()

        who = chance.choice([(kill_engine,), (kill_agent,), (kill_engine, kill_agent)])
        tasks = [asyncio.create_task(one(chance.random() * 4.0)) for one in who]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def end(self) -> None:
        assert self.machine.looks
        await self.machine.end_agent()
